"""Which texts can stand in a conversation: those that open and close no turns, and are short enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from introspection_lit.contexts.chat_templates import control_tokens, find_marks
from introspection_lit.contexts.context import Context, has_lone_surrogate
from introspection_lit.contexts.conversations import HALF, Phrasing, UnfitText, encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def control_token_problems(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], option: str = "data") -> list[str]:
    """Check that texts of the configuration hold no control tokens or turn marks; a sentence for each problem.

    Args:
        tokenizer: Has the chat template.
        texts: The texts.
        option: The option that they come from, for messages.
    """
    problems = []
    for text in texts:
        if has_lone_surrogate(text):
            problems += UnfitText(option, text, HALF).problems
            continue
        for mark in find_marks(tokenizer, text):
            what = "control token" if mark in control_tokens(tokenizer).values() else "mark of a turn"
            problems += UnfitText(option, text, f"holds the {what} {mark!r}, which would open or close a turn").problems
    return problems


class ContextLengths:
    """Lengths of contexts in tokens, each measured once: a set-up asks for the same context in several places.

    A context with a question of its own is measured with that question too.

    Args:
        tokenizer: Has the chat template.
        question: Any question of the experiment.
        phrasing: System prompt, information before the question, and answer prefix.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, question: str, phrasing: Phrasing) -> None:
        self.tokenizer, self.question, self.phrasing = tokenizer, question, phrasing
        self._known: dict[Context, int | None] = {}

    def of(self, context: Context) -> int | None:
        """The length of a context; None if a text of it opens or closes turns, or is changed by the template."""
        if context not in self._known:
            questions = [self.question, None] if context.question_turns else [self.question]
            try:
                encoded = [encode(self.tokenizer, context, text, self.phrasing) for text in questions]
                self._known[context] = max(len(each.context_ids) for each in encoded)
            except UnfitText:
                self._known[context] = None
        return self._known[context]

    def usable(self, contexts: Sequence[Context], limit: int) -> list[Context]:
        """As :func:`usable_contexts`."""
        return [context for context in contexts if (length := self.of(context)) is not None and length <= limit]


def fakes_turns(tokenizer: PreTrainedTokenizerBase, context: Context, question: str, phrasing: Phrasing) -> bool:
    """Whether a text of a context opens or closes turns, or is changed by the template."""
    return ContextLengths(tokenizer, question, phrasing).of(context) is None


def usable_contexts(
    tokenizer: PreTrainedTokenizerBase, contexts: Sequence[Context], question: str, phrasing: Phrasing, limit: int
) -> list[Context]:
    """Leave out contexts of more than ``limit`` tokens (cutting them would break the chat template), or that fake turns.

    A user message with ``<|im_end|>`` would be read as several turns and could plant the answer. A context with a question
    of its own is checked with that question too.

    Args:
        tokenizer: Has the chat template.
        contexts: The contexts.
        question: Any question of the experiment.
        phrasing: System prompt, information before the question, and answer prefix.
        limit: Length of the longest usable context, in tokens.
    """
    return ContextLengths(tokenizer, question, phrasing).usable(contexts, limit)
