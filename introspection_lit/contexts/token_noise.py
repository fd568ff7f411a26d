"""Validation contexts with random tokens in them: text of no kind, so that the threshold is set on unusual text as well.

A threshold below which 99 % of usual clean texts stay is too low for kinds of text unlike them. Which kinds these are is
what a test is for; random tokens are unlike all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from introspection_lit.contexts.context import Context, Message
from introspection_lit.utils.seeds import generator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KIND = "token noise"
# A token of half a character is decoded to this.
NO_CHARACTER = "\ufffd"


def noisy_contexts(
    tokenizer: PreTrainedTokenizerBase, contexts: Sequence[Context], share: float, seed: int
) -> list[Context]:
    """Copies of contexts with tokens exchanged for random ones of the vocabulary, from hardly any to all of a copy's.

    Args:
        tokenizer: Its vocabulary, without the tokens added to it, is what is drawn from, uniformly.
        contexts: Contexts of validation. They are copied in turn, each with other tokens every time.
        share: Share of copies among contexts and copies together, 0 to below 1.
        seed: The experiment's seed.

    Returns:
        The copies, of kind :data:`KIND`. System prompts and questions stay. Some are longer than their contexts, since
        random tokens are not what a tokenizer makes of their text.
    """
    vocabulary = np.setdiff1d(np.arange(len(tokenizer)), [*tokenizer.get_added_vocab().values()])
    copies = []
    for number in range(round(share / (1 - share) * len(contexts))):
        context, random = contexts[number % len(contexts)], generator(seed, KIND, number)
        level = random.random()
        turns = tuple(
            Message(turn.role, _noisy(tokenizer, turn.content, level, vocabulary, random))
            if turn.role in ("user", "assistant")
            else turn
            for turn in context.turns
        )
        copies.append(replace(context, kind=KIND, turns=turns))
    return copies


def _noisy(
    tokenizer: PreTrainedTokenizerBase, text: str, level: float, vocabulary: np.ndarray, random: np.random.Generator
) -> str:
    """A text with about this share of its tokens exchanged, at least one; the text itself if nothing printable is left."""
    ids = np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"])
    exchanged = random.random(len(ids)) < level
    exchanged[random.integers(len(ids))] = True
    ids[exchanged] = random.choice(vocabulary, size=exchanged.sum())
    noisy = tokenizer.decode(ids, clean_up_tokenization_spaces=False).replace(NO_CHARACTER, "")
    return noisy if noisy.strip() else text
