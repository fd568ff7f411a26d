"""Conversations: a context, a question about it and the start of the answer, as text and as tokens.

The chat template is applied to the whole conversation, which is tokenised once and split into context and question by
character offsets; so the tokens do not depend on the split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, NamedTuple

from introspection_lit.contexts.chat_templates import (
    Layout,
    apply_template,
    control_tokens,
    find_layout,
    find_marks,
    find_texts,
    has_same_marks,
    layout_control_tokens,
)
from introspection_lit.contexts.context import Context, Message, has_lone_surrogate
from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.resource_limits import BeyondLimitError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

YES_NO = ("yes", "no")
HALF = "has half of a surrogate pair, which no file and no tokenizer can hold"
TURN = "would open or close a turn"


class UnfitText(ConfigurationError):
    """A text that opens or closes turns, or that the chat template changes.

    Args:
        source: The option that the text comes from.
        text: The text.
        reason: The problem, after "the text ...".
    """

    def __init__(self, source: str, text: str, reason: str) -> None:
        super().__init__([f"{source}: the text {text[:60]!r} {reason}. Leave it out."])


@dataclass(frozen=True)
class Phrasing:
    """The texts around a question, and the words of its answer.

    Attributes:
        system: The system prompt. An empty one is passed too, which keeps templates from inserting their default.
        answers: The words for "steered" and "not steered".
        answer_prefix: Start of the assistant's answer; the answer word is the next token. No trailing space.
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
        context_ids: Tokens of the context, the only ones that may be steered.
        question_ids: Tokens of the question, up to and including the answer prefix.
        mark: Index in ``question_ids`` of the token that ends what is asked, before the answer words; -1: not looked for.
    """

    context_ids: list[int]
    question_ids: list[int]
    mark: int = -1


def render(
    tokenizer: PreTrainedTokenizerBase, context: Context, question: str | None, phrasing: Phrasing
) -> tuple[str, int]:
    """Write a conversation as text.

    Args:
        tokenizer: Has the chat template.
        context: The steered turns.
        question: The user's message after them; None: the context's own question.
        phrasing: System prompt, information before the question, and answer prefix.

    Returns:
        The text, and the number of its characters that belong to the context.

    Raises:
        UnfitText: The template changes a text, or a text holds what the template writes between messages.
        ConfigurationError: The template drops a message, rejects the roles, or takes no system prompt.
    """
    conversation = _write(tokenizer, context, question, phrasing)
    return conversation.text, conversation.boundary


def messages_of(
    tokenizer: PreTrainedTokenizerBase, context: Context, question: str | None, phrasing: Phrasing
) -> tuple[list[Message], str]:
    """The messages of a conversation as its chat template takes them, and the start of the answer; as :func:`render`."""
    turns, _ = _arrange(tokenizer, _turns(context, question, phrasing))
    return turns.messages, turns.start.content + phrasing.joint


class _Written(NamedTuple):
    """A conversation as text.

    Attributes:
        text: The whole conversation.
        boundary: Number of its characters that belong to the context.
        messages: The messages, and the start of the answer.
        sources: The option that each message comes from.
        places: (start, end) of each message in ``text``.
        layout: What the template itself writes, and where.
    """

    text: str
    boundary: int
    messages: list[Message]
    sources: list[str]
    places: list[tuple[int, int]]
    layout: Layout


class _Turns(NamedTuple):
    """The messages of a conversation before the template is applied.

    Attributes:
        messages: System prompt, context and question.
        sources: The option that each message comes from.
        steered: Number of messages that belong to the context, system prompt included.
        start: Start of the answer.
    """

    messages: list[Message]
    sources: list[str]
    steered: int
    start: Message


def _turns(context: Context, question: str | None, phrasing: Phrasing) -> _Turns:
    """Put system prompt, context, information and question together.

    Raises:
        UnfitText: A text has half of a surrogate pair.
    """
    turns = list(context.turns)
    question_turns = list(context.question_turns) if question is None else [Message("user", question)]
    has_start = question_turns[-1].role == "assistant"
    start = Message("assistant", question_turns.pop().content if has_start else phrasing.answer_prefix)
    if phrasing.info:
        last = max(index for index, message in enumerate(question_turns) if message.role == "user")
        question_turns[last] = Message("user", f"{phrasing.info}\n\n{question_turns[last].content}")
    own_system = turns[0].role == "system"
    system = turns.pop(0).content if own_system else phrasing.system
    sources = ["data.contexts" if own_system else "data.system_prompt", *["data.contexts"] * len(turns)]
    sources += ["data.contexts" if question is None else "data.questions"] * len(question_turns)
    messages = [Message("system", system), *turns, *question_turns]
    for message, source in zip((*messages, start), (*sources, "data.answer_prefix"), strict=True):
        if has_lone_surrogate(message.content):
            raise UnfitText(source, message.content, HALF)
    return _Turns(messages, sources, 1 + len(turns), start)


def _arrange(tokenizer: PreTrainedTokenizerBase, turns: _Turns) -> tuple[_Turns, Layout]:
    """Find the layout of a conversation; an empty system prompt is left out if the template takes none.

    Raises:
        ConfigurationError: The template drops a message, rejects the roles, or takes no system prompt.
    """
    try:
        layout = _layout(tokenizer, turns.messages, turns.steered)
    except Exception as error:  # templates raise jinja2 errors of their own, for example Gemma's: no system role
        if turns.messages[0].content:
            raise ConfigurationError(
                [f"data.system_prompt: the model's chat template takes no system prompt ({error}). Leave it empty."]
            ) from error
        turns = _Turns(turns.messages[1:], turns.sources[1:], turns.steered - 1, turns.start)
        try:
            layout = _layout(tokenizer, turns.messages, turns.steered)
        except Exception as second:
            roles = ", ".join(message.role for message in turns.messages)
            raise ConfigurationError(
                [f"data.contexts: the model's chat template refuses a conversation of {roles} ({second})."]
            ) from second
    if isinstance(layout, int):
        message = turns.messages[layout]
        raise ConfigurationError(
            [
                "data.contexts: the model's chat template changes or drops a message of the context once others follow, so "
                f"the context cannot be told from the question ({message.role}: {message.content[:60]!r})."
            ]
        )
    if not layout.pieces[sum(number < turns.steered for number in layout.order)].strip():
        raise ConfigurationError(
            ["base.name_or_path: the model's chat template writes nothing but white space between context and question."]
        )
    return turns, layout


def _write(tokenizer: PreTrainedTokenizerBase, context: Context, question: str | None, phrasing: Phrasing) -> _Written:
    """Apply the template, and check that it changes no text and that no text adds marks of a turn; see :func:`render`."""
    turns, layout = _arrange(tokenizer, _turns(context, question, phrasing))
    messages, sources, steered, start = turns
    try:
        text = apply_template(tokenizer, messages, True)
    except (BeyondLimitError, MemoryError) as error:
        reason = str(error) or "there is no memory left"
        raise ConfigurationError(
            [f"base.name_or_path: the model's chat template does not end on a text: {reason}."]
        ) from error
    except Exception as error:  # it did not fail with placeholder words
        raise UnfitText(sources[steered - 1], messages[steered - 1].content, f"is refused ({error})") from error
    contents = [message.content for message in messages]
    places = find_texts(text, layout, contents)
    if isinstance(places, int):
        fresh = _layout(tokenizer, messages, steered, again=True)
        assert isinstance(fresh, Layout)
        layout, places = fresh, find_texts(text, fresh, contents)
    if isinstance(places, int):
        raise UnfitText(sources[places], messages[places].content, "is changed by the model's chat template")
    boundary = layout.boundary + sum(end - beginning for beginning, end in places[:steered])
    messages, sources = [*messages, start], [*sources, "data.answer_prefix"]
    places = [*places, (len(text), len(text) + len(start.content))]
    text += start.content
    if not has_same_marks(tokenizer, text, layout):
        number = next((n for n, m in enumerate(messages) if find_marks(tokenizer, m.content)), steered - 1)
        raise UnfitText(sources[number], messages[number].content, TURN)
    return _Written(text + phrasing.joint, boundary, messages, sources, places, layout)


def _layout(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], steered: int, again: bool = False
) -> Layout | int:
    roles, filled = [message.role for message in messages], [bool(message.content) for message in messages]
    return find_layout(tokenizer, roles, filled, steered, again)


def encode(
    tokenizer: PreTrainedTokenizerBase, context: Context, question: str | None, phrasing: Phrasing, asked: int = 0
) -> Encoded:
    """Tokenise a conversation and split it into context and question; arguments as for :func:`render`.

    ``asked`` is the number of the question's characters after which the mark is set; 0: none. A token across the boundary
    belongs to the question, so that only the context is steered.

    Raises:
        UnfitText: A text holds a control token, or merges with one of the template's.
        ConfigurationError: As for :func:`render`.
    """
    written = _write(tokenizer, context, question, phrasing)
    tokens = tokenizer(written.text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = tokens["input_ids"], tokens["offset_mapping"]
    control = control_tokens(tokenizer)
    controls = [(number, *offset) for number, offset in zip(ids, offsets, strict=True) if number in control]
    for message, source, (first, last) in zip(written.messages, written.sources, written.places, strict=True):
        # Some control tokens include the white space around them: compare without it.
        inside = written.text[first:last]
        first, last = first + len(inside) - len(inside.lstrip()), first + len(inside.rstrip())
        if any(beginning < last and end > first for _, beginning, end in controls):
            raise UnfitText(source, message.content, TURN)
    if [number for number, _, _ in controls] != layout_control_tokens(tokenizer, written.layout):
        raise UnfitText("data.contexts", context.user, TURN)
    cut = next((i for i, (_, end) in enumerate(offsets) if end > written.boundary), len(ids))
    if question is None or not asked:
        return Encoded(ids[:cut], ids[cut:])
    asked_end = written.places[-2][1] - len(question) + asked  # information may precede the question
    return Encoded(ids[:cut], ids[cut:], sum(end < asked_end for _, end in offsets) - cut)


def line_spans(
    tokenizer: PreTrainedTokenizerBase, context: Context, question: str, phrasing: Phrasing
) -> list[tuple[int, int]]:
    """The tokens of each line of a context's first user message, as (first, one after the last).

    Arguments as for :func:`render`; a token across two lines belongs to the first.
    """
    written = _write(tokenizer, context, question, phrasing)
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

    Arguments as for :func:`render`.
    """
    written = _write(tokenizer, context, question, phrasing)
    offsets = tokenizer(written.text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    users = [
        start for message, (start, end) in zip(written.messages, written.places, strict=True) if message.role == "user"
    ]
    starts = [sum(end <= start for _, end in offsets) for start in users[: sum(t.role == "user" for t in context.turns)]]
    return starts, next((place for place, (_, end) in enumerate(offsets) if end > written.boundary), len(offsets))
