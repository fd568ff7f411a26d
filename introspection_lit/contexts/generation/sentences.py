"""Composes user messages and replies from patterns: templates of both, and rows of words that fill them.

A pattern file (assets/sentences-LANGUAGE.txt) has blocks separated by empty lines. In a block, lines that start with ``?``
are templates of user messages and lines with ``!`` of replies; every other line is a row whose parts, separated by ``|``,
replace ``{0}``, ``{1}``, ... in both. Words in a row already have the inflected form that the sentences need.
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
# Text before the start of a sentence: nothing, a full stop, or the sign of a list item.
_STARTS = re.compile(r"(^|[.!?]\s|\n- |\n\d\. |^\d\. |^- )$")


class Pattern(NamedTuple):
    """A block of a pattern file.

    Attributes:
        users: Templates of user messages.
        replies: Templates of replies.
        rows: The words that replace ``{0}``, ``{1}``, ...
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
    """Compose exchanges: every row of every pattern in a random wording, and then once more in another one.

    Args:
        language: Selects the pattern file.
        random: Random generator for order and wording.
        part: Number of the share of rows to use, from 0.
        parts: Number of shares, which are disjoint.
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
    """Replace ``{0}``, ``{1}``, ... in a template by the parts of a row, capitalised at the start of a sentence."""

    def part(match: re.Match[str]) -> str:
        text = row[int(match[1])]
        if not _STARTS.search(template[: match.start()]):
            return text
        first = "\u0130" if language == "turkish" and text[0] == "i" else text[0].upper()
        return first + text[1:]

    return re.sub(r"\{(\d)\}", part, template)


def english(random: np.random.Generator, part: int) -> Iterator[Pair]:
    """English texts for kinds that transform text: composed ones and docstrings of the standard library, in turns.

    Args:
        random: Random generator.
        part: 0 or 1; the two parts share no texts with each other nor with the kind ``docstrings``.
    """
    composed, quoted = compose("english", random, part, 2), docstrings(random, (2 + part,), longest=200)
    while True:
        pairs = [pair for source in (composed, quoted) if (pair := next(source, None))]
        if not pairs:
            return
        yield from pairs
