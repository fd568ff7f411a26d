"""Loads contexts from the package, a JSON or JSONL file, or a data set of the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib.resources import files
from typing import Any

from introspection_lit.contexts.context import BUILTIN, LARGE, Context
from introspection_lit.contexts.rows import as_row_context
from introspection_lit.utils.config_files import unique_fields
from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.paths import parse_path


def load_contexts(source: str) -> list[Context]:
    """Load contexts from a source.

    Args:
        source: ``builtin`` for the set in the package; a ``.jsonl`` file; a ``.json`` file of conversations; or
            ``hub:NAME``, a data set on the Hugging Face hub (or a local folder of one), optionally ``hub:NAME:SPLIT``. A
            row has ``user`` and ``assistant``, ``prompt`` and ``completion``, ``messages`` (role and content, which is a
            text or text parts) or ShareGPT's ``conversations`` (from and value), and may have ``kind``, which defaults to
            ``unlabelled``.
            If a message is marked ``"steering_ends": true``, or some ``"add_injection": true``, the messages up to the
            (last) marked one are the context and those after it ask the question (docs/conversations.md); without a mark,
            the first user message and its reply are the context, with the system and developer messages before them.

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
        context = as_row_context(row)
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
    inner = content.get("conversations") if isinstance(content, dict) else None
    if isinstance(inner, list) and not any(isinstance(one, dict) and "from" in one for one in inner):
        content = inner  # else one of ShareGPT's
    one = isinstance(content, dict) or (
        isinstance(content, list) and any("role" in m or "from" in m for m in content if isinstance(m, dict))
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
