"""The elements of a report page: tables, figures, tiles, sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.figure import Figure


class Table(NamedTuple):
    """A table; the first cell of a row is its header.

    Attributes:
        caption: Title of the table.
        head: Titles of the columns.
        rows: Cells, as many as ``head`` in each row.
        note: Text below it.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


class ReportFigure(NamedTuple):
    """A figure with its texts and its data.

    Attributes:
        figure: The matplotlib figure, 5 inches wide.
        title: Text above it.
        alt: Alternative text with the main numbers, for screen readers.
        caption: Explains how to read the figure.
        table: The data.
    """

    figure: Figure
    title: str
    alt: str
    caption: str
    table: Table


class Tile(NamedTuple):
    """A key number: its label, the number as text, and its interval or test set as a note."""

    label: str
    value: str
    note: str = ""


class Section(NamedTuple):
    """A section of the page; its contents appear in the order of the attributes.

    Attributes:
        anchor: HTML id.
        title: Heading.
        text: Paragraphs.
        labelled: Paragraphs by heading.
        tiles: Key numbers.
        figures: Figures by name.
        code: Preformatted text by caption.
        tables: Tables.
        terms: Explanations by term, collapsed at first.
    """

    anchor: str
    title: str
    text: Sequence[str] = ()
    labelled: Mapping[str, str] = {}
    tiles: Sequence[Tile] = ()
    figures: Mapping[str, ReportFigure] = {}
    code: Mapping[str, str] = {}
    tables: Sequence[Table] = ()
    terms: Mapping[str, str] = {}

    @property
    def empty(self) -> bool:
        """Whether the section has no content."""
        return not any(self[2:])


class Page(NamedTuple):
    """A whole report: its title, a line below it, and its sections."""

    title: str
    subtitle: str
    sections: Sequence[Section]

    @property
    def figures(self) -> dict[str, ReportFigure]:
        """The figures of all sections, by name."""
        return {name: figure for section in self.sections for name, figure in section.figures.items()}


def present(*tables: Table | None) -> list[Table]:
    """The tables that there is data for."""
    return [table for table in tables if table]
