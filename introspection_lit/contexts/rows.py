"""Rows of data sets and conversation files as contexts, in the forms that people have them.

Messages with role and content, which may be a list of text parts; ShareGPT's (``from`` and ``value``); a prompt and its
completion; a user message and a reply; and the prompt files of earlier work on injected vectors, which mark the
messages that are steered with ``add_injection``.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from introspection_lit.contexts.context import Context, Message, has_lone_surrogate
from introspection_lit.utils.errors import ConfigurationError

ROLES = ("system", "developer", "user", "assistant")
# Roles of ShareGPT's data sets.
SHARED_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}
TEXT_PARTS = ("text", "input_text", "output_text")
HALF = "expected text; it has half of a surrogate pair."
Row: TypeAlias = Mapping[str, Any]


class BadRowError(ValueError):
    """What is wrong with a row, as a sentence."""


def as_row_context(row: Any) -> Context | str:
    """Convert a row to a context, or return a problem as a sentence."""
    if isinstance(row, ValueError | RecursionError):
        return f"not JSON ({row})"
    if not isinstance(row, dict):
        return f"expected an object, got {type(row).__name__}."
    try:
        return _context(row)
    except BadRowError as error:
        return str(error)


def _context(row: Row) -> Context:
    listed = _messages(row)
    misplaced = [name for part in (row, *(listed or ())) for name in part if _is_misplaced_mark(name, part is row)]
    if misplaced:
        raise BadRowError(f"got {misplaced[0]!r}. Expected \"steering_ends\": true, on one of the 'messages'.")
    if listed is not None and any("steering_ends" in message or "add_injection" in message for message in listed):
        return _conversation(row, listed)
    if listed is not None:
        turns = _exchange(listed)
    else:
        names = ("prompt", "completion") if "prompt" in row and "user" not in row else ("user", "assistant")
        turns = [Message(role, row.get(name)) for role, name in zip(("user", "assistant"), names, strict=True)]  # type: ignore[arg-type]
    kind = _kind(row)
    texts = [text for text in (kind, *(turn.content for turn in turns)) if isinstance(text, str) and text.strip()]
    if len(texts) < 1 + len(turns):
        raise BadRowError(
            "expected non-empty strings 'user' and 'assistant' (or 'messages', 'conversations', or 'prompt' and "
            "'completion'), and 'kind' if given."
        )
    if any(map(has_lone_surrogate, texts)):
        raise BadRowError(HALF)
    return Context(kind, tuple(turns))


def _kind(row: Row) -> Any:
    return "unlabelled" if row.get("kind") in (None, "") else row["kind"]


def _messages(row: Row) -> list[dict[str, Any]] | None:
    """The messages of a row, with ``role`` and ``content`` as text; None: it has none."""
    listed = row.get("messages")
    if listed is None and "conversations" in row:
        listed = row["conversations"]
        system = row.get("system")
        if isinstance(listed, list) and isinstance(system, str) and system:
            listed = [{"from": "system", "value": system}, *listed]
    if listed is None and all(isinstance(row.get(name), list) for name in ("prompt", "completion")):
        listed = [*row["prompt"], *row["completion"]]
    if not isinstance(listed, list) or not all(isinstance(message, dict) for message in listed):
        return None
    return [_message(message, number) for number, message in enumerate(listed, start=1)]


def _message(message: dict[str, Any], number: int) -> dict[str, Any]:
    """A message with ``role`` and ``content``, its text parts joined by line breaks."""
    shared = "from" in message and "role" not in message
    if shared:
        role = message["from"]
        names = {"role": SHARED_ROLES.get(role, role) if isinstance(role, str) else role, "content": message.get("value")}
        message = {name: value for name, value in message.items() if name not in ("from", "value")} | names
    content = message.get("content")
    if not isinstance(content, list):
        return message
    kinds = [str(part.get("type", "untyped")) if isinstance(part, dict) else type(part).__name__ for part in content]
    texts = [part.get("text") if isinstance(part, dict) else None for part in content]
    other = [kind for kind, text in zip(kinds, texts, strict=True) if kind not in TEXT_PARTS or not isinstance(text, str)]
    if other or not content:
        what = f"a part of type {other[0][:40]!r}" if other else "no part"
        raise BadRowError(f"message {number}: its content has {what}. Expected a text, or parts of type 'text'.")
    return message | {"content": "\n".join(map(str, texts))}


def _exchange(listed: Sequence[Row]) -> list[Message]:
    """The first user message and the reply to it, after the system and developer messages before them."""
    roles = [message.get("role") for message in listed]
    first = roles.index("user") if "user" in roles else 0
    if roles[first : first + 2] != ["user", "assistant"]:
        raise BadRowError("expected a 'user' message and an 'assistant' reply right after it in 'messages'.")
    before = [m for m in listed[:first] if m.get("role") in ("system", "developer") and m.get("content") not in ("", None)]
    return [Message(str(message["role"]), message.get("content")) for message in (*before, *listed[first : first + 2])]  # type: ignore[arg-type]


def _is_misplaced_mark(name: object, outside: bool) -> bool:
    """Whether a field looks like a mark of what is steered but is misspelt or outside a message."""
    spelling = str(name).casefold().replace("-", "_")
    if spelling.startswith("steer"):
        return outside or name != "steering_ends"
    return spelling == "add_injection" and (outside or name != "add_injection")


def _conversation(row: Row, messages: Sequence[Row]) -> Context:
    """Convert messages with marks of what is steered to a context."""
    turns = [Message(str(message.get("role")), message.get("content", "")) for message in messages]
    for number, turn in enumerate(turns, start=1):
        if turn.role not in ROLES or not isinstance(turn.content, str):
            raise BadRowError(f"message {number}: expected a role ({', '.join(ROLES)}) and a text as content.")
    end = _last_steered(messages)
    _check_start(messages)
    steered, question_turns = tuple(turns[:end]), tuple(turns[end:])
    questions = [turn.content for turn in question_turns if turn.role == "user"]
    if not questions or not questions[-1].strip() or question_turns[-1].role in ("system", "developer"):
        raise BadRowError("expected the question, a user message, after the message where steering ends.")
    if not any(turn.content.strip() for turn in steered if turn.role not in ("system", "developer")):
        raise BadRowError("there is no text before the message where steering ends: nothing would be steered.")
    kind, answers, label = _kind(row), _answers(row), row.get("label")
    if "kind" not in row and any("add_injection" in message for message in messages) and isinstance(label, str) and label:
        kind = label
    if not isinstance(kind, str):
        raise BadRowError(
            "expected 'answers' to be two texts, the word for steered first, and 'kind' to be a text, if given."
        )
    if any(map(has_lone_surrogate, (kind, *(answers or ()), *(turn.content for turn in turns)))):
        raise BadRowError(HALF)
    return Context(kind, steered, question_turns, answers)


def _last_steered(messages: Sequence[Row]) -> int:
    """How many messages are steered: up to the one where steering ends, or the last that something is injected into."""
    for name in ("steering_ends", "add_injection", "continue_msg"):
        if not all(isinstance(message.get(name, False), bool) for message in messages):
            raise BadRowError(f'expected "{name}" to be true or false.')
    ends = [number for number, message in enumerate(messages, start=1) if message.get("steering_ends")]
    injected = [number for number, message in enumerate(messages, start=1) if message.get("add_injection")]
    if ends and injected:
        raise BadRowError('it has both "steering_ends" and "add_injection". Expected one way of marking what is steered.')
    if injected:
        unmarked = [n for n in range(1, injected[-1]) if n not in injected and str(messages[n - 1].get("content")).strip()]
        if unmarked:
            warnings.warn(
                f"data.contexts: message {unmarked[0]} is not marked add_injection and a later one is: it is steered too, "
                "as all messages up to the last one that is marked.",
                stacklevel=2,
            )
        return injected[-1]
    if len(ends) != 1:
        raise BadRowError(
            f'expected one message with "steering_ends": true (the last that is steered), or some with "add_injection": '
            f"true, got {len(ends)}."
        )
    return ends[0]


def _check_start(messages: Sequence[Row]) -> None:
    """Check that a message which the answer continues is the last one, of the assistant."""
    continued = [number for number, message in enumerate(messages, start=1) if message.get("continue_msg")]
    if continued and (continued != [len(messages)] or messages[-1].get("role") != "assistant"):
        raise BadRowError(
            f'message {continued[0]} has "continue_msg": true. Expected it on the last message alone, of the assistant.'
        )


def _answers(row: Row) -> tuple[str, str] | None:
    """The words for "steered" and "not steered"; spaces before those of ``yes_token`` and ``no_token`` are left out."""
    answers, tokens = row.get("answers"), [row.get("yes_token"), row.get("no_token")]
    if answers is not None and not (isinstance(answers, list) and len(answers) == 2 and _are_texts(answers)):
        raise BadRowError(
            "expected 'answers' to be two texts, the word for steered first, and 'kind' to be a text, if given."
        )
    if tokens == [None, None]:
        return (answers[0], answers[1]) if answers else None
    if not _are_texts(tokens):
        raise BadRowError("expected both 'yes_token' and 'no_token' to be texts, if one is given.")
    named = (str(tokens[0]).strip(), str(tokens[1]).strip())
    if answers and tuple(answers) != named:
        raise BadRowError(f"'answers' are {answers}, 'yes_token' and 'no_token' {list(named)}. Expected the same words.")
    return named


def _are_texts(values: Sequence[object]) -> bool:
    return all(isinstance(value, str) for value in values)


# A user message; a user message and the reply to it; messages with role and content; or a context.
Conversation: TypeAlias = str | tuple[str, str] | Sequence[Mapping[str, Any]] | Context


def as_context(conversation: Conversation) -> Context:
    """Read a conversation; after a last message of the user comes an empty reply, as roles alternate in chat templates.

    Raises:
        ConfigurationError: It is none.
    """
    if isinstance(conversation, Context):
        return conversation
    try:
        if isinstance(conversation, str):
            turns = [Message("user", conversation)]
        elif isinstance(conversation, tuple):
            user, assistant = conversation
            turns = [Message("user", user), Message("assistant", assistant)]
        else:
            read = [_message(dict(message), number) for number, message in enumerate(conversation, start=1)]
            turns = [Message(message["role"], message["content"]) for message in read]
        named = all(turn.role in ROLES and isinstance(turn.content, str) for turn in turns)
        if not named or not any(turn.content.strip() for turn in turns if turn.role == "user"):
            raise ValueError("its roles or texts are not right, or the user says nothing")
    except (TypeError, KeyError, ValueError) as error:
        expected = f"a text, a (message, reply) pair, or messages with 'role' ({', '.join(ROLES)}) and 'content', a text"
        raise ConfigurationError([f"got {str(conversation)[:80]!r} ({error}). Expected {expected}."]) from error
    if turns[-1].role == "user":
        turns.append(Message("assistant", ""))
    return Context("unlabelled", tuple(turns))
