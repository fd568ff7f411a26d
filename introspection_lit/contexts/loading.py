"""Loads contexts from the package, a JSON or JSONL file, or a data set of the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any, TypeAlias

from introspection_lit.contexts.context import BUILTIN, LARGE, Context, Message, exchange, has_lone_surrogate
from introspection_lit.utils.config_files import unique_fields
from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.paths import parse_path


def load_contexts(source: str) -> list[Context]:
    """Load contexts from a source.

    Args:
        source: ``builtin`` for the set in the package; a ``.jsonl`` file; a ``.json`` file of conversations; or
            ``hub:NAME``, a data set on the Hugging Face hub (or a local folder of one), optionally ``hub:NAME:SPLIT``. A
            row has ``user`` and ``assistant``, or ``messages`` (role and content), and may have ``kind``, which defaults
            to ``unlabelled``. If a message is marked ``"steering_ends": true``, the messages up to it are the context and
            those after it ask the question (docs/conversations.md); without a mark, the first user message and its reply
            are the context.

    Returns:
        The contexts in the order of the source, without duplicates.

    Raises:
        ConfigurationError: The file does not exist, is empty, or has invalid rows (the first ten are named); or the source
            is ``large``, which :func:`~introspection_lit.contexts.generation.build.large_contexts` makes for a tokenizer.
    """
    rows: Iterable[tuple[str, Any]]
    if source.startswith("hub:"):
        rows = _hub_rows(source.removeprefix("hub:"))
    elif source == BUILTIN:
        rows = _jsonl_rows((files("introspection_lit") / "assets" / "contexts.jsonl").read_text(encoding="utf-8"), BUILTIN)
    elif source == LARGE:
        raise ConfigurationError(
            [
                "data.contexts: got 'large' where no tokenizer can measure it. Expected 'builtin', 'hub:NAME', "
                "or a file; scripts/build_contexts.py writes the larger set into one."
            ]
        )
    else:
        path = parse_path("data.contexts", source)
        if not path.is_file():
            raise ConfigurationError(
                [f"data.contexts: no such file: {source}. Expected 'builtin', 'large', 'hub:NAME', a .jsonl or .json file."]
            )
        read = _json_rows if path.suffix.lower() == ".json" else _jsonl_rows
        try:
            rows = read(path.read_text(encoding="utf-8-sig"), source)
        except UnicodeDecodeError as error:
            raise ConfigurationError([f"data.contexts: {source} is not UTF-8 text ({error})."]) from error
        except OSError as error:
            raise ConfigurationError([f"data.contexts: {source} cannot be read ({error.strerror})."]) from error
    contexts: dict[str, Context] = {}
    problems = []
    for place, row in rows:
        context = _as_context(row)
        if isinstance(context, str):
            problems.append(f"data.contexts: {place}: {context}")
        else:
            contexts.setdefault(context.key, context)
    if not contexts and not problems:
        problems.append(f"data.contexts: {source} holds no context.")
    if len(problems) > 10:
        problems = [*problems[:10], f"data.contexts: and {len(problems) - 10} more bad rows in {source}."]
    if problems:
        raise ConfigurationError(problems)
    return list(contexts.values())


def _jsonl_rows(text: str, name: str) -> Iterable[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield f"{name}, line {number}", json.loads(line, object_pairs_hook=unique_fields)
            except (ValueError, RecursionError) as error:  # JSONDecodeError is a ValueError
                yield f"{name}, line {number}", error


def _json_rows(text: str, name: str) -> Iterable[tuple[str, Any]]:
    """The conversations of a JSON file: one, as a list of messages or an object with ``messages``, or a list of them."""
    try:
        content = json.loads(text, object_pairs_hook=unique_fields)
    except (ValueError, RecursionError) as error:
        return [(name, error)]
    if isinstance(content, dict) and isinstance(content.get("conversations"), list):
        content = content["conversations"]
    one = isinstance(content, dict) or (
        isinstance(content, list) and any("role" in m for m in content if isinstance(m, dict))
    )
    conversations = [content] if one or not isinstance(content, list) else content
    rows = ({"messages": row} if isinstance(row, list) else row for row in conversations)
    return ((f"{name}, conversation {number}", row) for number, row in enumerate(rows, start=1))


def _hub_rows(name: str) -> Iterable[tuple[str, Any]]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ConfigurationError(
            [f"data.contexts: 'hub:{name}' needs the datasets package: pip install 'introspection_lit[hub]' ({error})."]
        ) from error
    name, _, split = name.partition(":")
    try:
        rows = load_dataset(name, split=split or "train")
    except Exception as error:
        raise ConfigurationError([f"data.contexts: the data set {name!r} could not be loaded: {error}"]) from error
    return ((f"hub:{name}, row {index}", row) for index, row in enumerate(rows))


def _as_context(row: Any) -> Context | str:
    """Convert a row to a context, or return a problem as a sentence."""
    if isinstance(row, ValueError | RecursionError):
        return f"not JSON ({row})"
    if not isinstance(row, dict):
        return f"expected an object, got {type(row).__name__}."
    fields = dict(row)
    messages = fields.get("messages")
    listed = messages if isinstance(messages, list) and all(isinstance(message, dict) for message in messages) else None
    misplaced = [name for part in (fields, *(listed or ())) for name in part if _is_misplaced_mark(name, part is fields)]
    if misplaced:
        return f"got {misplaced[0]!r}. Expected \"steering_ends\": true, on one of the 'messages'."
    if listed is not None:
        if any("steering_ends" in message for message in listed):
            return _as_conversation(fields, listed)
        roles = [message.get("role") for message in listed]
        first = roles.index("user") if "user" in roles else 0
        if roles[first : first + 2] != ["user", "assistant"]:
            return "expected a 'user' message and an 'assistant' reply right after it in 'messages'."
        fields |= {role: listed[first + i].get("content") for i, role in enumerate(("user", "assistant"))}
    kind = "unlabelled" if fields.get("kind") in (None, "") else fields["kind"]
    user, assistant = fields.get("user"), fields.get("assistant")
    texts = [text for text in (kind, user, assistant) if isinstance(text, str) and text.strip()]
    if len(texts) < 3:
        return "expected non-empty strings 'user' and 'assistant' (or 'messages'), and 'kind' if given."
    if any(map(has_lone_surrogate, texts)):
        return "expected text; it has half of a surrogate pair."
    return exchange(*texts)


def _is_misplaced_mark(name: object, outside: bool) -> bool:
    """Whether a field looks like ``steering_ends`` but is misspelt or outside a message."""
    spelling = str(name).casefold().replace("-", "_")
    return spelling.startswith("steer") and (outside or name != "steering_ends")


def _as_conversation(fields: dict[str, Any], messages: list[dict[str, Any]]) -> Context | str:
    """Convert messages with a ``steering_ends`` mark to a context, or return a problem as a sentence."""
    turns = [Message(str(message.get("role")), message.get("content", "")) for message in messages]
    for number, turn in enumerate(turns, start=1):
        if turn.role not in ("system", "user", "assistant") or not isinstance(turn.content, str):
            return f"message {number}: expected a role (system, user or assistant) and a text as content."
    if not all(isinstance(message.get("steering_ends", False), bool) for message in messages):
        return 'expected "steering_ends" to be true or false.'
    marks = [number for number, message in enumerate(messages) if message.get("steering_ends")]
    if len(marks) != 1:
        return f'expected one message with "steering_ends": true (the last that is steered), got {len(marks)}.'
    steered, question_turns = tuple(turns[: marks[0] + 1]), tuple(turns[marks[0] + 1 :])
    questions = [turn.content for turn in question_turns if turn.role == "user"]
    if not questions or not questions[-1].strip() or question_turns[-1].role == "system":
        return "expected the question, a user message, after the message where steering ends."
    if not any(turn.content.strip() for turn in steered if turn.role != "system"):
        return "there is no text before the message where steering ends: nothing would be steered."
    if any(has_lone_surrogate(turn.content) for turn in turns):
        return "expected text; it has half of a surrogate pair."
    kind, answers = "unlabelled" if fields.get("kind") in (None, "") else fields["kind"], fields.get("answers")
    words = isinstance(answers, list) and len(answers) == 2 and all(isinstance(word, str) for word in answers)
    if not isinstance(kind, str) or not (answers is None or words):
        return "expected 'answers' to be two texts, the word for steered first, and 'kind' to be a text, if given."
    if any(map(has_lone_surrogate, (kind, *(answers or ())))):
        return "expected text; it has half of a surrogate pair."
    return Context(kind, steered, question_turns, (answers[0], answers[1]) if answers else None)


# A user message; a user message and the reply to it; messages with role and content; or a context.
Conversation: TypeAlias = str | tuple[str, str] | Sequence[Mapping[str, str]] | Context


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
            turns = [Message(message["role"], message["content"]) for message in conversation]
        named = all(turn.role in ("system", "user", "assistant") and isinstance(turn.content, str) for turn in turns)
        if not named or not any(turn.content.strip() for turn in turns if turn.role == "user"):
            raise ValueError("its roles or texts are not right, or the user says nothing")
    except (TypeError, KeyError, ValueError) as error:
        expected = (
            "a text, a (message, reply) pair, or messages with 'role' (system, user, assistant) and 'content', a text"
        )
        raise ConfigurationError([f"got {str(conversation)[:80]!r} ({error}). Expected {expected}."]) from error
    if turns[-1].role == "user":
        turns.append(Message("assistant", ""))
    return Context("unlabelled", tuple(turns))
