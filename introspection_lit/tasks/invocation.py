"""The tokens that switch an exported adapter on: every question about steering begins with them, and nothing else does.

PEFT's Activated LoRA (``alora_invocation_tokens``) looks for the last place of these tokens in its input, and lets the
adapter act from their first token on. Before it the base model reads, as in the prefill of the training.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    asked: Sequence[tuple[Context, str | None]],
    lead_in: str,
    phrasing: Phrasing,
) -> list[int]:
    """Find the tokens from the first of the question turn to the end of what all questions begin with.

    With a lead-in that is the lead-in; otherwise the text that the questions share, up to the last token of a single one.
    The mark of the turn alone would switch the adapter on at every message.

    Args:
        tokenizer: Has the chat template.
        asked: Contexts and the questions, lead-in included, that the adapter is trained to answer after them; None: the
            context's own question.
        lead_in: First words of every question; empty: none.
        phrasing: System prompt, information before the question, and answer prefix.

    Raises:
        ConfigurationError: The questions have no beginning of their own, or a context holds it.
    """

    def turn(context: Context, text: str | None, cut: bool) -> list[int]:
        """Tokens of the question turns; ``cut``: before the last token of the question, where its text is known."""
        encoded = encode(tokenizer, context, text, phrasing, len(text) if text and cut else 0)
        return encoded.question_ids[: encoded.mark if encoded.mark >= 0 else None]

    contexts = list(dict.fromkeys(context for context, _ in asked))
    marks = commonprefix([turn(context, word, False) for context in contexts for word in FIRST_WORDS])
    if lead_in and all(text is not None for _, text in asked):
        turns = [turn(context, with_lead_in(lead_in, word), False) for context in contexts for word in FIRST_WORDS]
    else:
        turns = [turn(context, text, True) for context, text in asked]
    tokens = list(commonprefix(turns))
    if len(tokens) <= len(marks):
        raise ConfigurationError(
            ["its questions have no beginning of their own. Train with data.lead_in, words that each of them begins with."]
        )
    if any(holds(encode(tokenizer, context, text, phrasing).context_ids, tokens) for context, text in asked):
        raise ConfigurationError([f"a context holds {tokenizer.decode(tokens)!r}, with which the questions begin."])
    return tokens


def holds(ids: Sequence[int], tokens: Sequence[int]) -> bool:
    """Whether tokens occur in a row somewhere in others."""
    return any(list(ids[start : start + len(tokens)]) == list(tokens) for start in range(len(ids)))
