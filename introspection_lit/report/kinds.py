"""Figures with a row for each kind of text: false alarms, and steering that is found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from introspection_lit.report.drawing import GREY, HEIGHT, ROW, blank, legend_below, styled
from introspection_lit.report.parts import FigureOfReport, Table, rate, short, with_interval
from introspection_lit.report.plots import CLEAN, PALETTE, STEERED

SEEN = {True: "seen in training", False: "unseen"}
# What is drawn: title, axis, number of inputs, the sign that puts the worst first, and the worse of two.
DRAWN = {
    "fpr": ("False alarms by kind", "FPR", "n_clean", -1, max),
    "tpr": ("Steering found by kind", "TPR", "n_steered", 1, min),
}
Rows = Sequence[Mapping[str, Any]]


@styled
def by_kind(lanes: Mapping[str, Rows], key: str) -> FigureOfReport | None:
    """Draw a rate of every kind with its interval, a lane for each run, unseen kinds and the worst first.

    Args:
        lanes: Rows of ``kinds`` by run; with one run its name is not shown.
        key: "fpr" or "tpr".

    Returns:
        None if there is nothing to draw.
    """
    lanes = {run: [row for row in rows if row.get(key) is not None] for run, rows in lanes.items()}
    lanes = {run: rows for run, rows in lanes.items() if rows}
    if not lanes:
        return None
    title, axis, inputs, sign, worse = DRAWN[key]
    everything = [row for rows in lanes.values() for row in rows]
    worst: dict[str, float] = {}
    for row in everything:
        worst[row["kind"]] = worse(worst.get(row["kind"], row[key]), row[key])
    unseen = {row["kind"] for row in everything if not row["seen"]}
    order = sorted(worst, key=lambda kind: (kind not in unseen, sign * worst[kind], kind))
    figure, panel = blank(max(HEIGHT, 1.5 + ROW * len(order) * max(1, 0.6 * len(lanes))))
    named: list[str] = []
    for lane, (run, rows) in enumerate(lanes.items()):
        middle = 0.7 * ((lane + 0.5) / len(lanes) - 0.5)
        for seen in (False, True):
            chosen = [row for row in rows if bool(row["seen"]) == seen]
            if chosen:
                colour = (CLEAN if seen else STEERED) if len(lanes) == 1 else PALETTE[lane % len(PALETTE)]
                label = SEEN[seen] if len(lanes) == 1 else "" if short(run) in named else short(run)
                named.append(label)
                _dots(panel, chosen, key, [order.index(row["kind"]) + middle for row in chosen], colour, seen, label)
    if key == "fpr":
        panel.axvline(0.01, color=GREY, linewidth=1, linestyle="--", label="1 %")
        panel.set_xlim(left=-0.02 * panel.get_xlim()[1])
    numbers = {row["kind"]: row.get(inputs) for row in everything}
    panel.set_yticks(range(len(order)), [f"{short(kind)} ({numbers[kind]})" for kind in order])
    panel.set_ylim(len(order) - 0.4, -0.6)
    panel.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.set_xlabel(axis)
    legend_below(figure, panel)
    at = worse(everything, key=lambda row: row[key])
    over = f"; {sum(value > 0.01 for value in worst.values())} kinds above 0.01" if key == "fpr" else ""
    alt = (
        f"{axis} of {len(order)} kinds, {len(unseen)} of them unseen. {'Highest' if key == 'fpr' else 'Lowest'}: "
        f"{at['kind']} ({SEEN[bool(at['seen'])]}), {with_interval(at[key], at.get(f'{key}_interval'))}{over}."
    )
    trials = "distinct clean inputs" if key == "fpr" else "steered trials"
    caption = f"95 % intervals; in brackets: {trials}. Circles: kinds seen in training; diamonds: unseen."
    return FigureOfReport(figure, title, alt, caption, _table(title, lanes, order, key))


def _dots(panel: Any, rows: Rows, key: str, heights: Sequence[float], colour: str, seen: bool, label: str) -> None:
    """Rates with their intervals; the shape says whether the kind was seen."""
    x = np.array([row[key] for row in rows], dtype=float)
    low, high = np.array([row.get(f"{key}_interval") or [row[key]] * 2 for row in rows], dtype=float).T
    panel.errorbar(
        x,
        heights,
        xerr=np.clip([x - low, high - x], 0, None),
        fmt="o" if seen else "D",
        color=colour,
        markersize=5.5,
        markerfacecolor="white" if seen else colour,
        capsize=2,
        linewidth=1.2,
        label=label,
    )


def _table(title: str, lanes: Mapping[str, Rows], order: Sequence[str], key: str) -> Table:
    by = {run: {row["kind"]: row for row in rows} for run, rows in lanes.items()}
    note = "95 % intervals in brackets."
    if len(lanes) > 1:
        cells = (
            [with_interval(*map(rows.get(kind, {}).get, (key, f"{key}_interval"))) for rows in by.values()]
            for kind in order
        )
        return Table(title, ("kind", *lanes), [(kind, *row) for kind, row in zip(order, cells, strict=True)], note)
    rows = []
    for row in (next(iter(by.values()))[kind] for kind in order):
        counts = (
            (f"{row.get('alarms', '?')} of {row.get('n_clean', '?')}",)
            if key == "fpr"
            else (str(row.get("n_steered", "?")),)
        )
        rows.append(
            (
                row["kind"],
                "yes" if row["seen"] else "no",
                *counts,
                with_interval(row[key], row.get(f"{key}_interval")),
                rate(row.get("auroc")),
            )
        )
    head = ("alarms", "FPR") if key == "fpr" else ("steered", "TPR")
    return Table(title, ("kind", "seen", *head, "AUROC"), rows, note)


def kind_figures(lanes: Mapping[str, Rows]) -> dict[str, FigureOfReport]:
    """False alarms and steering found, by kind."""
    made = {f"{key}-kinds": by_kind(lanes, key) for key in DRAWN}
    return {name: figure for name, figure in made.items() if figure}
