"""Exchanges composed from patterns: ways to ask, ways to reply, and rows of words that fit both.

A pattern file (assets/sentences-LANGUAGE.txt) has blocks, with an empty line between them. In a block, lines that start
with ``?`` are user messages and lines with ``!`` replies; every other line is a row whose parts, split at ``|``, take the
places ``{0}``, ``{1}``, ... of both. The words in a row are in the form the sentences need, so nothing is ever inflected.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from importlib.resources import files
from typing import NamedTuple

import numpy as np

from introspection_lit.contexts.generation.passages import docstrings

Pair = tuple[str, str]
# What a sentence starts after: nothing, a full stop, or the sign of an item in a list.
_STARTS = re.compile(r"(^|[.!?]\s|\n- |\n\d\. |^\d\. |^- )$")


class Pattern(NamedTuple):
    """A block of a pattern file.

    Attributes:
        users: Templates of user messages.
        replies: Templates of replies.
        rows: What takes their places.
    """

    users: tuple[str, ...]
    replies: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@lru_cache(maxsize=8)
def patterns(language: str) -> tuple[Pattern, ...]:
    """Read the pattern file of a language."""
    text = (files("introspection_lit") / "assets" / f"sentences-{language}.txt").read_text(encoding="utf-8")
    blocks = []
    for block in text.split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith("#")]
        if lines:
            users, replies = ([line[1:].strip().replace("\\n", "\n") for line in lines if line[0] == mark] for mark in "?!")
            rows = [tuple(part.strip() for part in line.split("|")) for line in lines if line[0] not in "?!"]
            blocks.append(Pattern(tuple(users), tuple(replies), tuple(rows)))
    return tuple(blocks)


def compose(language: str, random: np.random.Generator, part: int = 0, parts: int = 1) -> Iterator[Pair]:
    """Compose exchanges, every row of every pattern once in a random wording, and then once more in others.

    Args:
        language: Which pattern file.
        random: Decides order and wording.
        part: Which share of the rows to use, from 0.
        parts: How many shares there are; rows of different shares are disjoint.
    """
    rows = [(pattern, row) for pattern in patterns(language) for row in pattern.rows][part::parts]
    wordings = random.integers(1000, size=(len(rows), 2))
    for lap in range(2):  # the second time with the next wording
        for index in random.permutation(len(rows)):
            pattern, row = rows[index]
            user, reply = wordings[index] + lap
            answer = fill_template(pattern.replies[reply % len(pattern.replies)], row, language)
            first = answer.split("\u3002")[0] + "\u3002"
            if language == "japanese" and random.random() < 0.6 and 8 < len(first) < len(answer) and "\u300c" not in first:
                answer = first  # the built-in replies are short
            yield fill_template(pattern.users[user % len(pattern.users)], row, language), answer


def fill_template(template: str, row: tuple[str, ...], language: str) -> str:
    """Put the parts of a row into a template, with a capital letter where a sentence starts."""

    def part(match: re.Match[str]) -> str:
        text = row[int(match[1])]
        if not _STARTS.search(template[: match.start()]):
            return text
        first = "\u0130" if language == "turkish" and text[0] == "i" else text[0].upper()
        return first + text[1:]

    return re.sub(r"\{(\d)\}", part, template)


def english(random: np.random.Generator, part: int) -> Iterator[Pair]:
    """English to be changed by a transformation: composed, and docstrings of the standard library, in turns.

    Args:
        random: Decides which.
        part: 0 or 1; the texts of one part are not in the other, nor among the docstrings that stay as they are.
    """
    composed, quoted = compose("english", random, part, 2), docstrings(random, (2 + part,), longest=200)
    while True:
        pairs = [pair for source in (composed, quoted) if (pair := next(source, None))]
        if not pairs:
            return
        yield from pairs
