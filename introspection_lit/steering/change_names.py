"""The changes of caches that there are, and which of them are harmless; without torch, for reports."""

from __future__ import annotations

from typing import NamedTuple


class Change(NamedTuple):
    """What is known of a change.

    Attributes:
        benign: It happens where models are deployed, and is to be called clean; otherwise it is tampering.
        text: What it does, for reports.
        drops: It drops tokens: what they said can no longer be asked for.
    """

    benign: bool
    text: str
    drops: bool = False


CHANGES = {
    "bf16": Change(True, "rounded to bfloat16"),
    "fp8": Change(True, "rounded to 8-bit floats (e4m3, scale 1)"),
    "int8": Change(True, "8 bits, symmetric, a scale for each token and head"),
    "int4": Change(True, "4 bits, keys by channel, values by token, groups of 32"),
    "int2": Change(True, "2 bits, keys by channel, values by token, groups of 32"),
    "evicted": Change(True, "the first 4 tokens and the most recent half of the others kept", drops=True),
    "low_key_norm": Change(True, "as many tokens kept, by head those with the lowest key norm", drops=True),
    "heavy_hitters": Change(True, "as many, by head: half the most recent, half those most attended to", drops=True),
    "window": Change(True, "the most recent half kept, without the first tokens", drops=True),
    "shifted": Change(True, "as evicted, and the positions closed up (context shift)", drops=True),
    "chunks": Change(True, "the two halves read apart, as documents are that are cached one by one"),
    "system_prompt": Change(True, "another system prompt before the same text"),
    "neighbours": Change(True, "read in a batch four times as wide: other padding"),
    "keys_scaled": Change(False, "keys times 1.5"),
    "values_scaled": Change(False, "values times 1.5"),
    "noise_5": Change(False, "noise of 5 % of each layer's root mean square"),
    "noise_20": Change(False, "noise of 20 % of each layer's root mean square"),
    "spliced": Change(False, "the second half of the positions from another conversation"),
    "edited": Change(False, "a quarter of the words of the text exchanged: text, not activations"),
    "other_adapter": Change(False, "written under another adapter (random, 5 % of each matrix's norm)"),
}
BENIGN = tuple(name for name, change in CHANGES.items() if change.benign)
DROPS = tuple(name for name, change in CHANGES.items() if change.drops)
UNTOUCHED = "untouched"  # in reports; the field ``change`` of a trial is empty
