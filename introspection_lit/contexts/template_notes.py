"""What is done about a chat template that does more than write messages out, in sentences for the user."""

from __future__ import annotations

from typing import TYPE_CHECKING

from introspection_lit.contexts.answer_opening import AS_PROMPTED, open_block
from introspection_lit.contexts.context import Context
from introspection_lit.contexts.conversations import Phrasing, write_out

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def template_notes(
    tokenizer: PreTrainedTokenizerBase, context: Context, question: str | None, phrasing: Phrasing
) -> list[str]:
    """Sentences about a conversation, arguments as for :func:`~introspection_lit.contexts.conversations.render`.

    Returns:
        A sentence if the context is cut out of the whole because the template writes the last reply otherwise; and one on
        where the answer starts, if that is not right after the generation prompt, or inside of a block of thoughts. None
        for most templates.
    """
    written = write_out(tokenizer, context, question, phrasing)
    opening, notes = written.layout.opening, []
    if written.layout.rewritten:
        notes.append(
            "the last reply of a conversation is written otherwise than earlier ones (a think block, for example); the "
            "context is steered as it stands in the whole conversation, before the question"
        )
    if opening != AS_PROMPTED:
        place = (
            f"with {opening.added!r} in place of its {opening.removed!r}" if opening.removed else f"and {opening.added!r}"
        )
        notes.append(
            f"answers start after the generation prompt {place}, as a reply does (data.thinking {phrasing.thinking})"
        )
    elif tag := open_block(written.layout.pieces[-1]):
        notes.append(f"answers start inside of the {tag[0]} that the generation prompt opens (data.thinking open)")
    return [f"chat template: {note}" for note in notes]
