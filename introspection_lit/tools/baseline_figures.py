"""Draws the baseline: every direction at one band and strength, or heat maps of a sweep over several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from introspection_lit.report.formatting import escape_dollars
from introspection_lit.report.log_odds_plot import ANOTHER, CLEAN, STEERED
from introspection_lit.tools.baseline import cell_of
from introspection_lit.trials.grid import CLEAR_NO, CLEAR_YES, DETECTION


def draw_baseline(compared: Sequence[dict[str, Any]], summary: Sequence[dict[str, Any]]) -> Figure:
    """Draw the baseline: a point for each direction, or heat maps if there are several bands or strengths.

    Args:
        compared: From :func:`~introspection_lit.tools.baseline.compare_directions`.
        summary: From :func:`~introspection_lit.tools.baseline.average_directions`.
    """
    sweep = len({cell_of(row)[1:] for row in summary}) > 1
    return draw_sweep(summary) if sweep else draw_directions(compared)


def draw_directions(compared: Sequence[dict[str, Any]]) -> Figure:
    """Draw the shift of the log-odds of every direction for each question, and the AUROC of the detection question."""
    places = list(dict.fromkeys(map(cell_of, compared)))
    kinds = list(dict.fromkeys(row["vectors"] for row in compared))
    colours = {DETECTION: STEERED, CLEAR_YES: CLEAN, CLEAR_NO: ANOTHER}
    figure = Figure(figsize=(9, 2 + 0.75 * len(places) * len(kinds)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.6, 1))
    labels = []
    scatter = np.random.default_rng(0)
    for number, (place, kind) in enumerate((place, kind) for place in places for kind in kinds):
        rows = [row for row in compared if (cell_of(row), row["vectors"]) == (place, kind)]
        info = escape_dollars(Path(place[0]).name)
        labels.append(f"{kind}, info: {info}\nlayers {place[1][0]}..{place[1][1]}, strength {place[2]:g}")
        for lane, (question, colour) in enumerate(colours.items()):
            selection = [row for row in rows if row["question"] == question]
            height = number + 0.22 * (lane - 1) + scatter.uniform(-0.06, 0.06, len(selection))
            name = question if number == 0 else None
            left.scatter([row["log_odds_shift"] for row in selection], height, s=9, alpha=0.6, color=colour, label=name)
            if question == DETECTION:
                right.scatter([row["auroc"] for row in selection], height, s=9, alpha=0.6, color=colour)
    left.axvline(0, color="black", linewidth=0.8)
    right.axvline(0.5, color="black", linewidth=0.8, linestyle="--")
    left.set_yticks(range(len(labels)), labels, fontsize=8)
    left.invert_yaxis()
    left.set_xlabel("shift of the log-odds under steering (a point is a direction)")
    right.set_xlabel("AUROC, detection (dashed: chance)")
    right.set_xlim(-0.03, 1.03)
    figure.legend(*left.get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside upper center", ncols=3)
    for panel in (left, right):
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def draw_sweep(summary: Sequence[dict[str, Any]]) -> Figure:
    """Draw bands against strengths: the AUROC of detection, and the shift of the log-odds of each question."""
    lanes = list(dict.fromkeys((row["info"], row["vectors"]) for row in summary))
    bands = list(dict.fromkeys(tuple(row["band"]) for row in summary))
    strengths = sorted({row["strength"] for row in summary})
    cells = {(row["info"], row["vectors"], tuple(row["band"]), row["strength"], row["question"]): row for row in summary}
    columns = [
        ("AUROC", DETECTION, "auroc"),
        *((f"shift: {q}", q, "log_odds_shift") for q in (DETECTION, CLEAR_YES, CLEAR_NO)),
    ]
    columns = [column for column in columns if any(key[-1] == column[1] for key in cells)]
    figure = Figure(figsize=(2.6 * len(columns) + 1, 0.9 + (0.6 + 0.35 * len(bands)) * len(lanes)), layout="constrained")
    panels = figure.subplots(len(lanes), len(columns), sharex=True, sharey=True, squeeze=False)
    limit = max(abs(row["log_odds_shift"]) for row in summary)
    for line, (info, vectors) in enumerate(lanes):
        for panel, (title, question, key) in zip(panels[line], columns, strict=True):
            values = np.array([[cells[info, vectors, band, s, question][key] for s in strengths] for band in bands])
            low, high = (0.0, 1.0) if key == "auroc" else (-limit, limit)
            panel.imshow(values, cmap="PuOr", vmin=low, vmax=high, aspect="auto")
            for (y, x), value in np.ndenumerate(values):
                dark = abs(value - (low + high) / 2) > 0.35 * (high - low)
                panel.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7, color="white" if dark else "black")
            if line == 0:
                panel.set_title(title, fontsize=9)
            panel.set_xticks(range(len(strengths)), [f"{strength:g}" for strength in strengths], fontsize=8)
        panels[line][0].set_yticks(range(len(bands)), [f"{first}..{last}" for first, last in bands], fontsize=8)
        panels[line][0].set_ylabel(f"{vectors}\ninfo: {escape_dollars(Path(info).name)}", fontsize=8)
    figure.supxlabel("strength", fontsize=9)
    return figure
