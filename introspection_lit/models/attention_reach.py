"""How far back the layers of a decoder look: with sliding windows, what is at the end of a question may see no context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from transformers import DynamicCache

if TYPE_CHECKING:
    from introspection_lit.utils.lazy_types import PretrainedConfig

# Kinds of layers that look at no other token.
ALONE = ("mlp", "moe")
SHARED = ("sliding_attention", "full_attention")


class LayerReach(NamedTuple):
    """What a decoder layer reads of earlier tokens.

    Attributes:
        tokens: How many tokens back it looks; None: to the first one.
        source: The layer whose output it reads keys and values of: that before itself, or before the one that it takes
            them from; -1: of the embeddings.
    """

    tokens: int | None
    source: int


def layer_reaches(config: PretrainedConfig) -> list[LayerReach]:
    """What each decoder layer reads, by the caches that ``transformers`` makes for the architecture.

    Args:
        config: The decoder's configuration.
    """
    count = int(getattr(config, "num_hidden_layers", 0) or 0)
    kinds: Sequence[Any] = getattr(config, "layer_types", None) or [None] * count
    local = getattr(config, "attention_layers", None) or [None] * count  # GPT-Neo has windows, but keeps whole caches
    try:
        layers: Sequence[Any] = DynamicCache(config=config).layers
    except Exception:  # of transformers, for kinds of layers that it does not know
        layers = []
    owners = _owners(config, count)
    found = []
    for number in range(count):
        owner = owners[number]
        window = getattr(layers[owner], "sliding_window", None) if owner < len(layers) else None
        window = getattr(config, "window_size", None) if local[number] == "local" else window
        if kinds[number] == "conv":
            window = getattr(config, "conv_L_cache", None)
        tokens = None if window is None or _has_state(layers, owner, kinds[number]) else max(int(window) - 1, 0)
        found.append(LayerReach(0 if kinds[number] in ALONE else tokens, owner - 1))
    return found


def _has_state(layers: Sequence[Any], number: int, kind: Any) -> bool:
    """Whether a layer keeps a state of all tokens beside its keys and values."""
    return kind != "conv" and number < len(layers) and hasattr(layers[number], "recurrent_states")


def _owners(config: PretrainedConfig, count: int) -> list[int]:
    """The layer whose keys and values each layer reads: its own, or the last of its kind before those that share."""
    first = count - int(getattr(config, "num_kv_shared_layers", 0) or 0)
    kinds = getattr(config, "layer_types", None) or [SHARED[1]] * count
    last = {kind: number for number, kind in enumerate(kinds[:first])}
    return [number if number < first else last.get(kinds[number], number) for number in range(count)]


def tokens_back(reaches: Sequence[LayerReach], first: int) -> int | None:
    """How many tokens back the output of the model depends on what a decoder layer puts out; None: on all.

    A layer looks at tokens that lower ones have put something into, so that the windows of the layers add up; those of
    layers that share the keys and values of one do not.

    Args:
        reaches: From :func:`layer_reaches`.
        first: The layer, such as the first of a steered band.
    """
    after = {first: 0}  # by layer: how many tokens back its output depends on that of ``first``
    for number in range(first + 1, len(reaches)):
        tokens, source = reaches[number]
        if tokens is None and source >= first:
            return None
        after[number] = max(after[number - 1], (tokens or 0) + after[source] if source in after else 0)
    return after[len(reaches) - 1]
