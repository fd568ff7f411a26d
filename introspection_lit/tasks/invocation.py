"""The tokens that switch an exported adapter on: every question about steering begins with them, and nothing else does.

PEFT's Activated LoRA (``alora_invocation_tokens``) looks for the last place of these tokens in its input, and lets the
adapter act from their first token on. Before it the base model reads, as in the prefill of the training.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os.path import commonprefix
from typing import TYPE_CHECKING

from introspection_lit.contexts.context import Context
from introspection_lit.contexts.conversations import Phrasing, encode
from introspection_lit.tasks.task import with_lead_in
from introspection_lit.utils.errors import ConfigurationError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# First words of messages, to find out which tokens do not depend on what follows.
FIRST_WORDS = ("Were", "how", "7", "Is", "Ödland")


def invocation_tokens(
    tokenizer: PreTrainedTokenizerBase,
    contexts: Sequence[Context],
    questions: Sequence[str],
    lead_in: str,
    phrasing: Phrasing,
) -> list[int]:
    """Find the tokens from the first of the question turn to the end of what all questions begin with.

    With a lead-in that is the lead-in; otherwise the text that the questions share, and the whole of a single one. The mark
    of the turn alone would switch the adapter on at every message.

    Args:
        tokenizer: Has the chat template.
        contexts: Conversations that the questions follow; those with a question of their own are asked that one.
        questions: What the adapter is trained to answer about steering, lead-in included.
        lead_in: First words of every question; empty: none.
        phrasing: System prompt, information before the question, and answer prefix.

    Raises:
        ConfigurationError: The questions have no beginning of their own, or a context holds it.
    """

    def beginning(texts: Iterable[str | None], asked: bool) -> list[int]:
        """Tokens that the question turns share; ``asked``: not those of the answer's start."""
        turns = []
        for text in texts:
            for context in contexts:
                encoded = encode(tokenizer, context, text, phrasing, len(text) if text and asked else 0)
                turns.append(encoded.question_ids[: encoded.mark if encoded.mark >= 0 else None])
        return list(commonprefix(turns))

    own = any(context.question_turns for context in contexts)
    marks = beginning(FIRST_WORDS, asked=False)
    texts: Sequence[str | None] = [with_lead_in(lead_in, word) for word in FIRST_WORDS] if lead_in else questions
    tokens = beginning([None] if own else texts, asked=not lead_in)
    if len(tokens) <= len(marks):
        raise ConfigurationError(
            ["its questions have no beginning of their own. Train with data.lead_in, words that each of them begins with."]
        )
    if any(_holds(encode(tokenizer, context, questions[0], phrasing).context_ids, tokens) for context in contexts):
        raise ConfigurationError([f"a context holds {tokenizer.decode(tokens)!r}, with which the questions begin."])
    return tokens


def _holds(ids: Sequence[int], tokens: Sequence[int]) -> bool:
    return any(list(ids[start : start + len(tokens)]) == list(tokens) for start in range(len(ids)))
