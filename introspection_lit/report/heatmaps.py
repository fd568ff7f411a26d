"""Draws heat maps of the TPR by band and strength, and by kind and strength."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from introspection_lit.report.detection_plots import VECTOR_TITLES
from introspection_lit.report.drawing import HEIGHT, ROW_HEIGHT, new_figure, styled
from introspection_lit.report.elements import ReportFigure, Table
from introspection_lit.report.formatting import format_band, format_rate, format_strength, lookup, shorten

MAX_CELLS = 100_000  # of a heat map; usual ones have some hundred
Rows = Sequence[Mapping[str, Any]]


@styled
def draw_heat_map(title: str, cells: Mapping[tuple[str, float], float | None], side: str, unit: str) -> ReportFigure:
    """Draw a heat map of the TPR with the numbers in its cells.

    Args:
        title: Of the figure.
        cells: TPR by row and strength, in the order of the rows; None where it was not measured.
        side: Title of the rows.
        unit: Of the strength.

    Raises:
        ValueError: There are more than ``MAX_CELLS`` cells.
    """
    names = list(dict.fromkeys(name for name, _ in cells))
    strengths = sorted({level for _, level in cells})
    if len(names) * len(strengths) > MAX_CELLS:
        raise ValueError(f"{len(names)} rows by {len(strengths)} strengths are more than a page can show")
    values = np.array([[_nan_if_none(cells.get((name, level))) for level in strengths] for name in names])
    figure, panel = new_figure(max(HEIGHT if len(names) > 4 else 2.6, 1.3 + ROW_HEIGHT * len(names)))
    panel.imshow(values, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    size = 10 if len(strengths) <= 9 else 9
    if len(strengths) <= 12:
        for (y, x), value in np.ndenumerate(values):
            colour = "white" if value < 0.45 else "black"
            panel.text(
                x, y, "-" if np.isnan(value) else f"{value:.2f}", ha="center", va="center", fontsize=size, color=colour
            )
    every = max(1, -(-len(strengths) // 9))
    places = range(0, len(strengths), every)
    panel.set_xticks(places, [format_strength(strengths[place]) for place in places])
    panel.set_yticks(range(len(names)), [shorten(name) for name in names])
    panel.set_xlabel(f"strength ({shorten(unit)})")
    panel.set_ylabel(side)
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    rows = [(name, *(format_rate(cells.get((name, level))) for level in strengths)) for name in names]
    table = Table(title, (side, *map(format_strength, strengths)), rows)
    measured = {place: value for place, value in cells.items() if value is not None}
    alt = f"{title}: nothing was measured."
    if measured:
        worst, best = min(measured, key=lambda place: measured[place]), max(measured, key=lambda place: measured[place])
        alt = f"{title}, {len(names)} rows by {len(strengths)} strengths. " + "; ".join(
            f"{word} {measured[place]:.3f} ({place[0]}, strength {format_strength(place[1])})"
            for word, place in (("lowest", worst), ("highest", best))
        )
    caption = "TPR at the threshold; light is high, dark is low."
    return ReportFigure(figure, title, alt, caption, table)


def _nan_if_none(value: float | None) -> float:
    return np.nan if value is None else float(value)


def heat_maps(evidence: Mapping[str, Any], unit: str) -> dict[str, ReportFigure]:
    """TPR by band and strength, then by kind and strength, for each type of vectors."""
    figures = {}
    grid, kinds = lookup(evidence, "grid") or [], lookup(evidence, "kind_grid") or []
    for vectors in dict.fromkeys(row["vectors"] for row in grid):
        rows = sorted(
            (r for r in grid if r["vectors"] == vectors and r["strength"] is not None), key=lambda r: list(r["band"])
        )
        cells = {(format_band(row["band"]), float(row["strength"])): row["tpr"] for row in rows}
        if cells:
            name = f"TPR by band and strength: {VECTOR_TITLES.get(vectors, vectors)}"
            figures[f"bands-{vectors}"] = draw_heat_map(name, cells, "layers", unit)
    for vectors in dict.fromkeys(row["vectors"] for row in kinds):
        rows = [row for row in kinds if row["vectors"] == vectors and row["strength"] is not None]
        rows.sort(key=lambda row: (bool(row["seen"]), row["kind"]))
        cells = {(_kind_label(row), float(row["strength"])): row["tpr"] for row in rows}
        if cells:
            name = f"TPR by kind and strength: {VECTOR_TITLES.get(vectors, vectors)}"
            drawing = draw_heat_map(name, cells, "kind", unit)
            caption = f"{drawing.caption} *: unseen in training. Few trials a cell."
            figures[f"kinds-{vectors}"] = drawing._replace(caption=caption)
    return figures


@styled
def draw_confusion(row: Mapping[str, Any]) -> ReportFigure:
    """Draw how often each answer was given where each was right; rows and columns in the order of the right answers.

    Args:
        row: Of ``evidence.choices``, with ``confusion``.
    """
    counts = {(right, given): count for right, given, count in row["confusion"]}
    names = sorted({name for pair in counts for name in pair})
    values = np.array([[counts.get((right, given), 0) for given in names] for right in names], dtype=float)
    figure, panel = new_figure(1.6 + 0.17 * len(names))
    panel.imshow(values, cmap="cividis", aspect="auto")
    panel.set_xticks(range(len(names)), [shorten(name) for name in names], rotation=90, fontsize=8)
    panel.set_yticks(range(len(names)), [shorten(name) for name in names], fontsize=8)
    panel.set_xlabel("named")
    panel.set_ylabel("added")
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    how = "by name" if row["set"] == "naming" else "by digit or letter"
    title = f"Concept added and concept answered {how}: {row['observer']}"
    given = values.sum(axis=0)
    most = int(given.argmax())
    share = given[most] / given.sum()
    alt = f"{title}. Right: {row['accuracy']:.3f}. Most often named: {names[most]} ({share:.3f} of all answers)."
    table = Table(title, ("added", "named", "times"), [(right, named, str(n)) for (right, named), n in counts.items()])
    return ReportFigure(figure, title, alt, "Light: often. The diagonal is right.", table)


def confusions(evidence: Mapping[str, Any]) -> dict[str, ReportFigure]:
    """The confusion of concepts, by test set and observer."""
    rows = [row for row in lookup(evidence, "choices") or [] if row.get("confusion")]
    return {f"confusion-{row['set']}-{row['observer']}": draw_confusion(row) for row in rows}


def _kind_label(row: Mapping[str, Any]) -> str:
    return f"{row['kind']}{'' if row['seen'] else ' *'}"
