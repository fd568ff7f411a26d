"""Conversations: a context, a question about it and the start of the answer, as text and as tokens.

The chat template is applied to the whole conversation, which is tokenised once and split into context and question by
character offsets; so the tokens do not depend on the split.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from introspection_lit.contexts.answer_opening import Opening
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
        thinking: ``closed``: an answer starts after a block of thoughts, which is closed if the chat template opens one;
            ``open``: right where the generation prompt ends.
    """

    system: str = ""
    answers: tuple[str, str] = YES_NO
    answer_prefix: str = "The answer is"
    info: str = ""
    joint: str = ""
    thinking: Literal["closed", "open"] = "closed"

    def describe(self) -> dict[str, Any]:
        """As a dictionary for files; ``thinking`` only if it is not closed."""
        return {name: value for name, value in asdict(self).items() if (name, value) != ("thinking", "closed")}


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
    conversation = write_out(tokenizer, context, question, phrasing)
    return conversation.text, conversation.boundary


def messages_of(
    tokenizer: PreTrainedTokenizerBase, context: Context, question: str | None, phrasing: Phrasing
) -> tuple[list[Message], Opening, str]:
    """The messages of a conversation as its chat template takes them, and what follows; arguments as for :func:`render`.

    Returns:
        The messages, where the answer starts after the generation prompt, and the start of the answer.
    """
    turns, layout = _arrange(tokenizer, _turns(context, question, phrasing))
    return turns.messages, layout.opening, turns.start.content + phrasing.joint


class Written(NamedTuple):
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
        closed: The answer starts after a block of thoughts.
    """

    messages: list[Message]
    sources: list[str]
    steered: int
    start: Message
    closed: bool


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
    return _Turns(messages, sources, 1 + len(turns), start, phrasing.thinking == "closed")


def _arrange(tokenizer: PreTrainedTokenizerBase, turns: _Turns) -> tuple[_Turns, Layout]:
    """Find the layout of a conversation; an empty system prompt is left out if the template takes none.

    Raises:
        ConfigurationError: The template drops a message, rejects the roles, or takes no system prompt.
    """
    try:
        layout = _layout(tokenizer, turns)
        if isinstance(layout, int) and not turns.messages[0].content and turns.messages[1].role == "developer":
            turns = _without_system(turns)  # some templates take a developer message in place of a system prompt alone
            layout = _layout(tokenizer, turns)
    except Exception as error:  # templates raise jinja2 errors of their own, for example Gemma's: no system role
        if turns.messages[0].content:
            raise ConfigurationError(
                [
                    f"{turns.sources[0]}: the model's chat template takes no system prompt ({error}). Leave it empty, or "
                    "give a template that does with data.chat_template."
                ]
            ) from error
        turns = _without_system(turns)
        try:
            layout = _layout(tokenizer, turns)
        except Exception as second:
            roles = ", ".join(message.role for message in turns.messages)
            raise ConfigurationError(
                [f"data.contexts: the model's chat template refuses a conversation of {roles} ({second})."]
            ) from second
    if isinstance(layout, int):
        raise ConfigurationError([_lost(turns, layout)])
    if not layout.pieces[sum(number < turns.steered for number in layout.order)].strip():
        raise ConfigurationError(
            ["base.name_or_path: the model's chat template writes nothing but white space between context and question."]
        )
    return turns, layout


def _without_system(turns: _Turns) -> _Turns:
    return turns._replace(messages=turns.messages[1:], sources=turns.sources[1:], steered=turns.steered - 1)


def _lost(turns: _Turns, number: int) -> str:
    """The message for a message that a template drops, repeats or moves."""
    role, text = turns.messages[number]
    what = f"{turns.sources[number]}: the model's chat template"
    if role in ("system", "developer") and number < turns.steered:
        done = f"drops a {role} message, or puts it behind the context ({text[:60]!r})"
        return f"{what} {done}. Leave it out, or give a template that keeps it with data.chat_template."
    done = "changes or drops a message of the context once others follow, so the context cannot be told from the question"
    return f"{what} {done} ({role}: {text[:60]!r}). Give another template with data.chat_template."


def write_out(tokenizer: PreTrainedTokenizerBase, context: Context, question: str | None, phrasing: Phrasing) -> Written:
    """Apply the template, and check that it changes no text and that no text adds marks of a turn; see :func:`render`."""
    turns, layout = _arrange(tokenizer, _turns(context, question, phrasing))
    messages, sources, steered, start, _ = turns
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
    written, text = text, layout.opening.complete(text)
    places = find_texts(text, layout, contents)
    if isinstance(places, int):
        fresh = _layout(tokenizer, turns, again=True)
        assert isinstance(fresh, Layout)
        layout, text = fresh, fresh.opening.complete(written)
        places = find_texts(text, layout, contents)
    if isinstance(places, int):
        raise UnfitText(sources[places], messages[places].content, "is changed by the model's chat template")
    boundary = layout.boundary + sum(end - beginning for beginning, end in places[:steered])
    messages, sources = [*messages, start], [*sources, "data.answer_prefix"]
    places = [*places, (len(text), len(text) + len(start.content))]
    text += start.content
    if not has_same_marks(tokenizer, text, layout):
        number = next((n for n, m in enumerate(messages) if find_marks(tokenizer, m.content)), steered - 1)
        raise UnfitText(sources[number], messages[number].content, TURN)
    return Written(text + phrasing.joint, boundary, messages, sources, places, layout)


def _layout(tokenizer: PreTrainedTokenizerBase, turns: _Turns, again: bool = False) -> Layout | int:
    roles, filled = ([message.role for message in turns.messages], [bool(message.content) for message in turns.messages])
    return find_layout(tokenizer, roles, filled, turns.steered, again, turns.closed)


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
    written = write_out(tokenizer, context, question, phrasing)
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
