"""Variants of contexts that nothing was added to: other system prompts before them, and words of them exchanged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from introspection_lit.contexts.context import Context, Message
from introspection_lit.contexts.conversations import Phrasing
from introspection_lit.contexts.odd_text import exchanged_words
from introspection_lit.contexts.usable import usable_contexts
from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.seeds import generator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a careful editor. Answer in plain words and never longer than needed.",
    "Answer as a friendly librarian would. If you do not know something, say so.",
    "You work for a small shop that sells bicycles. Be polite, and keep to what you are asked.",
)
SYSTEM_PROMPT, EDITED = "system_prompt", "edited"


def with_system_prompt(context: Context, seed: int) -> Context:
    """The same turns after another system prompt, one of :data:`SYSTEM_PROMPTS`, drawn by seed and context."""
    prompt = SYSTEM_PROMPTS[int(generator(seed, SYSTEM_PROMPT, context.key).integers(len(SYSTEM_PROMPTS)))]
    turns = tuple(turn for turn in context.turns if turn.role != "system")
    return replace(context, turns=(Message("system", prompt), *turns))


def edited(context: Context, seed: int) -> Context:
    """The same turns with a quarter of their words exchanged (at least two where there are); drawn by seed and context."""
    random = generator(seed, EDITED, context.key)
    return replace(
        context,
        turns=tuple(
            turn if turn.role in ("system", "developer") else Message(turn.role, exchanged_words(turn.content, random))
            for turn in context.turns
        ),
    )


VARIANTS = {SYSTEM_PROMPT: with_system_prompt, EDITED: edited}


def add_variants(
    tokenizer: PreTrainedTokenizerBase,
    contexts: Sequence[Context],
    names: Sequence[str],
    seed: int,
    question: str,
    phrasing: Phrasing,
) -> tuple[list[Context], dict[str, list[Context]]]:
    """Make variants of contexts; contexts that lack one of them are left out.

    Args:
        tokenizer: Has the chat template.
        contexts: The contexts.
        names: Keys of :data:`VARIANTS`.
        seed: The experiment's seed.
        question: Any question of the experiment.
        phrasing: System prompt, answer words and answer prefix.

    Returns:
        The contexts that have all variants, and the variants of each of them, in order, by name. Variants may be longer
        than their contexts.

    Raises:
        ConfigurationError: The model's chat template takes no system prompt.
    """
    kept: list[Context] = []
    made: dict[str, list[Context]] = {name: [] for name in names}
    for context in contexts:
        variants = {name: VARIANTS[name](context, seed) for name in names}
        try:
            usable = [usable_contexts(tokenizer, [variant], question, phrasing, NO_LIMIT) for variant in variants.values()]
        except ConfigurationError as error:
            raise ConfigurationError(
                [f"data.test_changes, data.benign: {SYSTEM_PROMPT} cannot be used. {' '.join(error.problems)}"]
            ) from error
        if all(usable):
            kept.append(context)
            for name, variant in variants.items():
                made[name].append(variant)
    return kept, made


NO_LIMIT = 10**9
