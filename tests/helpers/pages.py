"""Reads a page as a browser would, with the standard library's parser."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

INSIDE = ("data:image/webp;base64,", "data:image/png;base64,")


class Read(HTMLParser):
    """Tags with their attributes, text, headings and tables of a page.

    Attributes:
        tags: Name and attributes of each.
        text: All of it that is shown.
        style: All of the style sheets.
        headings: Level and text.
        tables: By caption: rows of cells by title of the column; the row's header is the key.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.style = "", ""
        self.headings: list[tuple[int, str]] = []
        self.tables: dict[str, dict[str, dict[str, str]]] = {}
        self._open: list[str] = []
        self._head: list[str] = []
        self._row: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a cell, a row or a table."""
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "link", "input"):
            self._open.append(tag)
        if tag == "caption":
            self._caption = ""
        if tag == "tr":
            self._row = []
        if tag in ("th", "td"):
            self._row.append("")
        if tag in ("h1", "h2", "h3"):
            self.headings.append((int(tag[1]), ""))

    def handle_endtag(self, tag: str) -> None:
        """End a row: the first of a table is its head."""
        assert self._open.pop() == tag, f"</{tag}> closes something else"
        if tag == "caption":
            assert self._caption not in self.tables, self._caption
            self.tables[self._caption], self._head = {}, []
        if tag == "tr" and not self._head:
            self._head = self._row
        elif tag == "tr":
            self.tables[self._caption][self._row[0]] = dict(zip(self._head[1:], self._row[1:], strict=True))

    def handle_data(self, data: str) -> None:
        """Text of whatever is open."""
        inside = self._open[-1] if self._open else ""
        if inside == "style":
            self.style += data
            return
        self.text += data.replace("\u00a0", " ")
        if inside == "caption":
            self._caption += data
        if inside in ("th", "td"):
            self._row[-1] += data
        if inside in ("h1", "h2", "h3"):
            self.headings[-1] = (self.headings[-1][0], self.headings[-1][1] + data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Attributes of every tag of a name."""
        return [attributes for name, attributes in self.tags if name == tag]


def three(value: float) -> str:
    """Three decimals, by hand; from a million on, as the perplexity of a ruined model has it, three digits."""
    return format(value, ".3f" if abs(value) < 1e6 else ".2e")


def ends(interval: list[float]) -> str:
    """An interval, by hand."""
    return "-".join(map(three, interval))


def save(folder: Path, results: Any, **others: str) -> Path:
    """A run's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    text = results if isinstance(results, str) else json.dumps(results)
    (folder / "results.json").write_text(text, encoding="utf-8")
    for name, other in others.items():
        (folder / name.replace("_", ".")).write_text(other, encoding="utf-8")
    return folder


def needs_nothing(page: Read) -> None:
    """Nothing is loaded, nothing is run."""
    assert not page.all("script")
    assert not page.all("link")
    assert not page.all("iframe")
    assert not page.all("object")
    assert "@import" not in page.style
    assert "url(" not in page.style
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("src", "srcset", "data", "action", "poster", "background"):
            assert (attributes.get(name) or INSIDE[0]).startswith(INSIDE), (tag, attributes)
        assert (attributes.get("href") or "#").startswith("#"), attributes


def is_sound(page: Read) -> None:
    """Language, one title, headings in order, links that lead somewhere, tables with headers, pictures in words."""
    assert page.all("html") == [{"lang": "en"}]
    levels = [level for level, _ in page.headings]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(names) == len(set(names))
    assert {f"#{name}" for name in names} >= {link["href"] for link in page.all("a")}
    assert all(cell.get("scope") in ("col", "row") for cell in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    for picture in page.all("img"):
        assert any(letter.isdigit() for letter in picture["alt"] or ""), picture["alt"]
    assert "nan" not in page.text.lower().replace("finance", "").split()
