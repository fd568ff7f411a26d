"""Heat maps of where steering is missed: TPR by band and strength, and by kind and strength."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from introspection_lit.report.curves import VECTORS
from introspection_lit.report.drawing import HEIGHT, ROW, blank, styled
from introspection_lit.report.parts import FigureOfReport, Table, layers, part, rate, short, strength

MOST_CELLS = 100_000  # of a table; ours have some hundred
Rows = Sequence[Mapping[str, Any]]


@styled
def heat_map(title: str, cells: Mapping[tuple[str, float], float | None], side: str, unit: str) -> FigureOfReport:
    """Draw TPR as a heat map with its numbers in it.

    Args:
        title: Of the figure.
        cells: TPR by row and strength, in the order of the rows.
        side: What a row is.
        unit: Of the strength.
    """
    names = list(dict.fromkeys(name for name, _ in cells))
    strengths = sorted({level for _, level in cells})
    if len(names) * len(strengths) > MOST_CELLS:
        raise ValueError(f"{len(names)} rows by {len(strengths)} strengths are more than a page can show")
    values = np.array([[_number(cells.get((name, level))) for level in strengths] for name in names])
    figure, panel = blank(max(HEIGHT if len(names) > 4 else 2.6, 1.3 + ROW * len(names)))
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
    panel.set_xticks(places, [strength(strengths[place]) for place in places])
    panel.set_yticks(range(len(names)), [short(name) for name in names])
    panel.set_xlabel(f"strength ({short(unit)})")
    panel.set_ylabel(side)
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    rows = [(name, *(rate(cells.get((name, level))) for level in strengths)) for name in names]
    table = Table(title, (side, *map(strength, strengths)), rows)
    known = {place: value for place, value in cells.items() if value is not None}
    alt = f"{title}: nothing was measured."
    if known:
        worst, best = min(known, key=lambda place: known[place]), max(known, key=lambda place: known[place])
        alt = f"{title}, {len(names)} rows by {len(strengths)} strengths. " + "; ".join(
            f"{word} {known[place]:.3f} ({place[0]}, strength {strength(place[1])})"
            for word, place in (("lowest", worst), ("highest", best))
        )
    caption = "TPR at the threshold; light is high, dark is low."
    return FigureOfReport(figure, title, alt, caption, table)


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)


def heat_maps(evidence: Mapping[str, Any], unit: str) -> dict[str, FigureOfReport]:
    """TPR by band and strength, then by kind and strength, for each sort of vectors."""
    made = {}
    grid, kinds = part(evidence, "grid") or [], part(evidence, "kind_grid") or []
    for vectors in dict.fromkeys(row["vectors"] for row in grid):
        chosen = sorted(
            (r for r in grid if r["vectors"] == vectors and r["strength"] is not None), key=lambda r: list(r["band"])
        )
        cells = {(layers(row["band"]), float(row["strength"])): row["tpr"] for row in chosen}
        if cells:
            name = f"TPR by band and strength: {VECTORS.get(vectors, vectors)}"
            made[f"bands-{vectors}"] = heat_map(name, cells, "layers", unit)
    for vectors in dict.fromkeys(row["vectors"] for row in kinds):
        chosen = [row for row in kinds if row["vectors"] == vectors and row["strength"] is not None]
        chosen.sort(key=lambda row: (bool(row["seen"]), row["kind"]))
        cells = {(_kind(row), float(row["strength"])): row["tpr"] for row in chosen}
        if cells:
            name = f"TPR by kind and strength: {VECTORS.get(vectors, vectors)}"
            found = heat_map(name, cells, "kind", unit)
            made[f"kinds-{vectors}"] = found._replace(caption=f"{found.caption} *: unseen in training. Few trials a cell.")
    return made


def _kind(row: Mapping[str, Any]) -> str:
    return f"{row['kind']}{'' if row['seen'] else ' *'}"
