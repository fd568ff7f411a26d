"""Every message that docs/errors.md quotes is one that the code has: in other words, it would not be found."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest
from project_paths import ROOT

PAGE = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
GAP = "…"
SECTIONS = re.findall(r"^### (.+?)\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
MESSAGES = [line for block in re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


@cache
def literals() -> tuple[str, ...]:
    """Every text in the source of the package; what is inserted into one is a gap."""
    found = set()
    for path in (ROOT / "introspection_lit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else GAP for part in node.values]
                found.add("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return tuple(found)


def pieces(message: str) -> list[str]:
    """What a literal must hold: sentences, and what lies between gaps."""
    parts = [part.strip(" .:,;()") for sentence in re.split(r"(?<=[^.][.;]) ", message) for part in sentence.split(GAP)]
    return [part for part in parts if len(part) > 3]


def is_there(piece: str) -> bool:
    """Whether a literal holds a piece, or two of them its words up to somewhere and the rest."""
    words = piece.split(" ")
    splits = [[piece], *([" ".join(words[:at]), " ".join(words[at:])] for at in range(1, len(words)))]
    return any(all(any(part in text for text in literals()) for part in parts) for parts in splits)


@pytest.mark.parametrize("message", MESSAGES)
def test_quoted_message_is_in_the_code(message: str) -> None:
    """Piece by piece, since some messages are put together of several texts."""
    assert pieces(message)
    assert [piece for piece in pieces(message) if not is_there(piece)] == []


def test_a_changed_message_is_not_found() -> None:
    """One word is enough."""
    (piece,) = pieces("Give a template that keeps it with data.chat_template.")
    assert is_there(piece)
    assert not is_there(piece.replace("a template", "some template"))


def test_each_error_has_a_section_with_its_message() -> None:
    """And each heading once: a search leads to one place."""
    titles = [title for title, _ in SECTIONS]
    assert len(titles) == len(set(titles)) > 25
    assert all("```text" in text for _, text in SECTIONS)
