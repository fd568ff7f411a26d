"""What a report is made of, and how its numbers are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

MISSING = "not measured"
NOT_REACHED = "not reached"
# A mark and a word: read without colour, and aloud.
HELD = {True: "✓ held", False: "✗ not held", None: "? not judged"}


class Table(NamedTuple):
    """A table; the first cell of a row is its header.

    Attributes:
        caption: What it shows.
        head: Titles of the columns.
        rows: Each as long as ``head``.
        note: Said below it.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


class FigureOfReport(NamedTuple):
    """A figure with everything that is said about it.

    Attributes:
        figure: 5 inches wide.
        title: Above it.
        alt: What is to be seen, with numbers, for those who do not see it.
        caption: How to read it.
        table: Its numbers.
    """

    figure: Figure
    title: str
    alt: str
    caption: str
    table: Table


class Tile(NamedTuple):
    """A key number: what it is, the number, and its interval or where it was found."""

    label: str
    value: str
    note: str = ""


class Section(NamedTuple):
    """A part of the page, in the order of its attributes.

    Attributes:
        anchor: Its address in the page.
        title: Its heading.
        text: Paragraphs.
        labelled: Paragraphs, each under a heading of its own.
        tiles: Key numbers.
        figures: By name.
        code: By caption; shown as it is.
        tables: Shown open.
        terms: Explained, and folded away.
    """

    anchor: str
    title: str
    text: Sequence[str] = ()
    labelled: Mapping[str, str] = {}
    tiles: Sequence[Tile] = ()
    figures: Mapping[str, FigureOfReport] = {}
    code: Mapping[str, str] = {}
    tables: Sequence[Table] = ()
    terms: Mapping[str, str] = {}

    @property
    def empty(self) -> bool:
        """It would be a heading with nothing below."""
        return not any(self[2:])


class Page(NamedTuple):
    """A whole report: its title, a line below it, and its sections."""

    title: str
    subtitle: str
    sections: Sequence[Section]

    @property
    def figures(self) -> dict[str, FigureOfReport]:
        """Of all sections, by name."""
        return {name: figure for section in self.sections for name, figure in section.figures.items()}


def rate(value: float | None) -> str:
    """A share, an AUROC, bits or log-odds, with three decimals."""
    return MISSING if value is None else f"{value:.3f}"


def interval(ends: Sequence[float | None] | None) -> str:
    """Both ends of an interval of rates; nothing if there is none."""
    return "" if not ends or None in ends else f"{ends[0]:.3f}-{ends[1]:.3f}"


def with_interval(value: float | None, ends: Sequence[float | None] | None) -> str:
    """A rate and, in brackets, its interval."""
    return f"{rate(value)} ({interval(ends)})" if value is not None and interval(ends) else rate(value)


def strength(value: float | None, missing: str = NOT_REACHED) -> str:
    """A strength with two significant digits, never in powers of ten."""
    if value is None:
        return missing
    return str(np.format_float_positional(float(value), precision=2, fractional=False, trim="-"))


def strength_interval(ends: Sequence[float | None] | None) -> str:
    """Both ends of an interval of strengths, or the one that lies within what was tested."""
    low, high = ends or (None, None)
    if low is None:
        return "" if high is None else f"up to {strength(high)}"
    return f"{strength(low)}-{strength(high)}" if high is not None else f"{strength(low)} or more"


def percent(share: float) -> str:
    """A share without decimals, such as 75 %."""
    return f"{100 * share:.0f} %"


def count(value: int | None) -> str:
    """A number of things."""
    return MISSING if value is None else f"{value:,d}"


def layers(band: Sequence[int]) -> str:
    """A band, both ends inclusive."""
    return f"{band[0]}..{band[1]}"


def short(text: str, most: int = 24) -> str:
    """A label that fits beside a figure; the middle is left out of a longer one. Dollar signs are no formulas."""
    text = " ".join(str(text).split())
    text = text if len(text) <= most else f"{text[: most // 2 - 1]}...{text[-(most - most // 2 - 2) :]}"
    return text.replace("$", r"\$")


def part(results: Mapping[str, Any], *keys: str) -> Any:
    """What lies at a path of keys; None where the path ends before."""
    found: Any = results
    for key in keys:
        found = found.get(key) if found else None
    return found
