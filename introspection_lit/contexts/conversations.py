"""Conversations: a context, a question about it, and the start of the answer, as text and as tokens.

The chat template is applied once to the whole conversation, which is tokenised once and then split into context and
question by character offsets, so that no token depends on where the split is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from introspection_lit.contexts.chat_templates import (
    Layout,
    control_tokens,
    controls_of,
    find_texts,
    layout,
    marks_in,
    same_marks,
    template,
)
from introspection_lit.contexts.context import Context, Message, unwritable
from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.resource_limits import BeyondLimitError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


YES_NO = ("yes", "no")
HALF = "has half of a surrogate pair, which no file and no tokenizer can hold"
TURN = "would open or close a turn"


class UnfitText(ConfigurationError):
    """A text that would be read as something that it does not say: it opens or closes turns, or the template changes it.

    Args:
        source: The option that it comes from.
        text: The text.
        reason: What is wrong with it.
    """

    def __init__(self, source: str, text: str, reason: str) -> None:
        super().__init__([f"{source}: the text {text[:60]!r} {reason}. Leave it out."])


@dataclass(frozen=True)
class Phrasing:
    """How a question is put and answered.

    Attributes:
        system: The system prompt. The empty one is given explicitly, which keeps templates from inserting their own.
        answers: The words for "steered" and "not steered".
        answer_prefix: How the assistant's answer starts; the answer word is the next token. No trailing space.
        info: Information before the question, in the same message.
        joint: Follows the answer prefix: a space if the tokenizer makes the space before the answer words a token of its
            own, as some do before digits; otherwise empty.
    """

    system: str = ""
    answers: tuple[str, str] = YES_NO
    answer_prefix: str = "The answer is"
    info: str = ""
    joint: str = ""


@dataclass(frozen=True)
class Encoded:
    """A tokenised conversation.

    Attributes:
        context_ids: Tokens of turn 1, the only ones that may be steered.
        question_ids: Tokens of turn 2, up to and including the answer prefix.
    """

    context_ids: list[int]
    question_ids: list[int]


def render(
    tokenizer: PreTrainedTokenizerBase, context: Context, question: str | None, phrasing: Phrasing
) -> tuple[str, int]:
    """Write a conversation out as text.

    Args:
        tokenizer: Carries the chat template.
        context: What is steered.
        question: The user's message after it; None: what the context itself asks.
        phrasing: System prompt, what is said before the question, and answer prefix.

    Returns:
        The text, and the number of its characters that belong to the context.

    Raises:
        UnfitText: A text is changed by the template, or holds what it writes between messages.
        ConfigurationError: The template drops a message, refuses the roles, or has no place for a system prompt.
    """
    written = _write(tokenizer, context, question, phrasing)
    return written.text, written.seam


class _Written(NamedTuple):
    """A conversation as text.

    Attributes:
        text: All of it.
        seam: How many of its characters belong to the context.
        messages: What was put into the template, and the start of the answer.
        sources: The option that each of them comes from.
        places: Where each of them stands.
        layout: What the template itself writes, and where.
    """

    text: str
    seam: int
    messages: list[Message]
    sources: list[str]
    places: list[tuple[int, int]]
    layout: Layout


def _write(tokenizer: PreTrainedTokenizerBase, context: Context, question: str | None, phrasing: Phrasing) -> _Written:
    turns = list(context.turns)
    asked = list(context.question_turns) if question is None else [Message("user", question)]
    start = Message("assistant", asked.pop().content if asked[-1].role == "assistant" else phrasing.answer_prefix)
    if phrasing.info:
        number = max(index for index, message in enumerate(asked) if message.role == "user")
        asked[number] = Message("user", f"{phrasing.info}\n\n{asked[number].content}")
    own = turns[0].role == "system"
    system = turns.pop(0).content if own else phrasing.system
    messages, steered = [Message("system", system), *turns, *asked], 1 + len(turns)
    sources = ["data.contexts" if own else "data.system_prompt", *["data.contexts"] * len(turns)]
    sources += ["data.contexts" if question is None else "data.questions"] * len(asked)
    for message, source in zip((*messages, start), (*sources, "data.answer_prefix"), strict=True):
        if unwritable(message.content):
            raise UnfitText(source, message.content, HALF)
    try:
        found = _laid_out(tokenizer, messages, steered)
    except Exception as error:  # templates raise jinja2 errors of their own, for example Gemma's: no system role
        if system:
            raise ConfigurationError(
                [f"data.system_prompt: the model's chat template takes no system prompt ({error}). Leave it empty."]
            ) from error
        messages, sources, steered = messages[1:], sources[1:], steered - 1
        try:
            found = _laid_out(tokenizer, messages, steered)
        except Exception as second:
            roles = ", ".join(message.role for message in messages)
            raise ConfigurationError(
                [f"data.contexts: the model's chat template refuses a conversation of {roles} ({second})."]
            ) from second
    if isinstance(found, int):
        raise ConfigurationError(
            [
                "data.contexts: the model's chat template changes or drops a message of the context once others follow, so "
                f"the context cannot be told from the question ({messages[found].role}: {messages[found].content[:60]!r})."
            ]
        )
    if not found.pieces[sum(number < steered for number in found.order)].strip():
        raise ConfigurationError(
            ["base.name_or_path: the model's chat template writes nothing but white space between context and question."]
        )
    try:
        text = template(tokenizer, messages, True)
    except (BeyondLimitError, MemoryError) as error:
        reason = str(error) or "there is no memory left"
        raise ConfigurationError(
            [f"base.name_or_path: the model's chat template does not end on a text: {reason}."]
        ) from error
    except Exception as error:  # with words of ours for the texts there was none
        raise UnfitText(sources[steered - 1], messages[steered - 1].content, f"is refused ({error})") from error
    places = find_texts(text, found, [message.content for message in messages])
    if isinstance(places, int):
        found = _laid_out(tokenizer, messages, steered, again=True)
        assert isinstance(found, Layout)
        places = find_texts(text, found, [message.content for message in messages])
    if isinstance(places, int):
        raise UnfitText(sources[places], messages[places].content, "is changed by the model's chat template")
    seam = found.seam + sum(end - beginning for beginning, end in places[:steered])
    messages, sources = [*messages, start], [*sources, "data.answer_prefix"]
    places = [*places, (len(text), len(text) + len(start.content))]
    text += start.content
    if not same_marks(tokenizer, text, found):
        number = next((n for n, m in enumerate(messages) if marks_in(tokenizer, m.content)), steered - 1)
        raise UnfitText(sources[number], messages[number].content, TURN)
    return _Written(text + phrasing.joint, seam, messages, sources, places, found)


def _laid_out(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], steered: int, again: bool = False
) -> Layout | int:
    roles, filled = [message.role for message in messages], [bool(message.content) for message in messages]
    return layout(tokenizer, roles, filled, steered, again)


def encode(tokenizer: PreTrainedTokenizerBase, context: Context, question: str | None, phrasing: Phrasing) -> Encoded:
    """Tokenise a conversation once, and split it into context and question; see :func:`render`.

    A token that reaches across the seam belongs to the question: what is steered is never more than the context.

    Raises:
        UnfitText: A text holds a control token, or hides one of the template's.
        ConfigurationError: As for :func:`render`.
    """
    written = _write(tokenizer, context, question, phrasing)
    tokens = tokenizer(written.text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = tokens["input_ids"], tokens["offset_mapping"]
    control = control_tokens(tokenizer)
    controls = [(number, *offset) for number, offset in zip(ids, offsets, strict=True) if number in control]
    for message, source, (first, last) in zip(written.messages, written.sources, written.places, strict=True):
        # Some control tokens swallow the white space around them, as far as the template has left it there.
        inside = written.text[first:last]
        first, last = first + len(inside) - len(inside.lstrip()), first + len(inside.rstrip())
        if any(beginning < last and end > first for _, beginning, end in controls):
            raise UnfitText(source, message.content, TURN)
    if [number for number, _, _ in controls] != controls_of(tokenizer, written.layout):
        raise UnfitText("data.contexts", context.user, TURN)
    cut = next((i for i, (_, end) in enumerate(offsets) if end > written.seam), len(ids))
    return Encoded(ids[:cut], ids[cut:])


def control_token_problems(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], option: str = "data") -> list[str]:
    """Problems with texts of the configuration that no conversation can hold: most of them would open or close turns.

    Args:
        tokenizer: Carries the chat template.
        texts: As they were given.
        option: Where they come from, as it was typed.
    """
    problems = []
    for text in texts:
        if unwritable(text):
            problems += UnfitText(option, text, HALF).problems
            continue
        for mark in marks_in(tokenizer, text):
            what = "control token" if mark in control_tokens(tokenizer).values() else "mark of a turn"
            problems += UnfitText(option, text, f"holds the {what} {mark!r}, which would open or close a turn").problems
    return problems


def fakes_turns(tokenizer: PreTrainedTokenizerBase, context: Context, question: str, phrasing: Phrasing) -> bool:
    """Whether a text of a context would be read as several turns, or as something else that it does not say."""
    try:
        for one in [question, None] if context.question_turns else [question]:
            encode(tokenizer, context, one, phrasing)
    except UnfitText:
        return True
    return False


def usable_contexts(
    tokenizer: PreTrainedTokenizerBase, contexts: Sequence[Context], question: str, phrasing: Phrasing, limit: int
) -> list[Context]:
    """Leave out contexts of more than ``limit`` tokens (cutting them would break the chat template), or that fake turns.

    A user message with ``<|im_end|>`` in it would be several turns, and could plant the answer. A context that asks a
    question of its own is looked at as a whole.
    """
    usable = []
    for context in contexts:
        asked = [question, None] if context.question_turns else [question]
        try:
            lengths = [len(encode(tokenizer, context, one, phrasing).context_ids) for one in asked]
        except UnfitText:
            continue
        if max(lengths) <= limit:
            usable.append(context)
    return usable


def repeated_questions(train: Sequence[str], heldout: Sequence[str]) -> list[str]:
    """List the held-out questions that are training questions too, blind to case and white space: each is a leak."""
    seen = {" ".join(question.casefold().split()) for question in train}
    return [question for question in heldout if " ".join(question.casefold().split()) in seen]
