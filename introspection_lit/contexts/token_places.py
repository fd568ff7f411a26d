"""Where the parts of a context are among its tokens: lines of a message, and exchanges."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from introspection_lit.contexts.context import Context
from introspection_lit.contexts.conversations import Phrasing, write_out

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def line_spans(
    tokenizer: PreTrainedTokenizerBase, context: Context, question: str, phrasing: Phrasing
) -> list[tuple[int, int]]:
    """The tokens of each line of a context's first user message, as (first, one after the last).

    A token across two lines belongs to the first. Arguments as for
    :func:`~introspection_lit.contexts.conversations.render`.
    """
    written = write_out(tokenizer, context, question, phrasing)
    tokens = tokenizer(written.text, add_special_tokens=False, return_offsets_mapping=True)
    message = next(number for number, message in enumerate(written.messages) if message.role == "user")
    start, end = written.places[message]
    ends = [start + len(line) for line in accumulate(written.text[start:end].splitlines(keepends=True))]
    first = sum(beginning < start for beginning, _ in tokens["offset_mapping"])
    places = [sum(beginning < end for beginning, _ in tokens["offset_mapping"]) for end in ends]
    return list(pairwise([first, *places]))


def user_starts(
    tokenizer: PreTrainedTokenizerBase, context: Context, question: str, phrasing: Phrasing
) -> tuple[list[int], int]:
    """The first token of the text of each user message of a context, and the number of the context's tokens.

    Arguments as for :func:`~introspection_lit.contexts.conversations.render`.
    """
    written = write_out(tokenizer, context, question, phrasing)
    offsets = tokenizer(written.text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    users = [
        start for message, (start, end) in zip(written.messages, written.places, strict=True) if message.role == "user"
    ]
    starts = [sum(end <= start for _, end in offsets) for start in users[: sum(t.role == "user" for t in context.turns)]]
    return starts, next((place for place, (_, end) in enumerate(offsets) if end > written.boundary), len(offsets))
