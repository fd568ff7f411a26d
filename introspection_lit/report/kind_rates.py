"""Draws the FPR and the TPR of every kind of context, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from introspection_lit.report.drawing import GREY, HEIGHT, ROW_HEIGHT, legend_below, new_figure, styled
from introspection_lit.report.elements import ReportFigure, Table
from introspection_lit.report.formatting import format_rate, format_rate_with_interval, shorten
from introspection_lit.report.log_odds_plot import CLEAN, PALETTE, STEERED

SEEN = {True: "seen in training", False: "unseen"}
Rows = Sequence[Mapping[str, Any]]


class RatePlot(NamedTuple):
    """What distinguishes the plot of the FPR from that of the TPR.

    Attributes:
        title: Of the figure.
        axis: Name of the rate.
        counts: Key of the number of inputs.
        trials: What these inputs are.
        worse: Returns the worse of several rates.
        extreme: Name of the worst rate.
        head: Titles of the table's columns for counts and rate.
    """

    title: str
    axis: str
    counts: str
    trials: str
    worse: Callable[..., Any]
    extreme: str
    head: tuple[str, str]


PLOTS = {
    "fpr": RatePlot("False alarms by kind", "FPR", "n_clean", "distinct clean inputs", max, "Highest", ("alarms", "FPR")),
    "tpr": RatePlot("Steering found by kind", "TPR", "n_steered", "steered trials", min, "Lowest", ("steered", "TPR")),
}


@styled
def draw_rates_by_kind(runs: Mapping[str, Rows], key: str) -> ReportFigure | None:
    """Draw a rate of every kind with its interval, unseen kinds and the worst first; runs are offset within a kind's row.

    Args:
        runs: Rows of ``kinds`` by run; with one run its name is not shown.
        key: "fpr" or "tpr".

    Returns:
        None if there is nothing to draw.
    """
    runs = {run: [row for row in rows if row.get(key) is not None] for run, rows in runs.items()}
    runs = {run: rows for run, rows in runs.items() if rows}
    if not runs:
        return None
    plot, all_rows = PLOTS[key], [row for rows in runs.values() for row in rows]
    worst = {
        kind: plot.worse(row[key] for row in all_rows if row["kind"] == kind) for kind in {r["kind"] for r in all_rows}
    }
    unseen = {row["kind"] for row in all_rows if not row["seen"]}
    sign = -1 if plot.worse is max else 1
    order = sorted(worst, key=lambda kind: (kind not in unseen, sign * worst[kind], kind))
    figure, panel = new_figure(max(HEIGHT, 1.5 + ROW_HEIGHT * len(order) * max(1, 0.44 * len(runs))))
    _draw_points(panel, runs, key, order)
    if key == "fpr":
        panel.axvline(0.01, color=GREY, linewidth=1, linestyle="--", label="1 %")
        panel.set_xlim(left=-0.02 * panel.get_xlim()[1])
    labels = [
        f"{shorten(kind)} ({_counts(row.get(plot.counts) for row in all_rows if row['kind'] == kind)})" for kind in order
    ]
    panel.set_yticks(range(len(order)), labels)
    panel.set_ylim(len(order) - 0.4, -0.6)
    panel.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.set_xlabel(plot.axis)
    legend_below(figure, panel)
    row = plot.worse(all_rows, key=lambda row: row[key])
    above = f"; {sum(value > 0.01 for value in worst.values())} kinds above 0.01" if key == "fpr" else ""
    alt = (
        f"{plot.axis} of {len(order)} kinds, {len(unseen)} of them unseen. {plot.extreme}: {row['kind']} "
        f"({SEEN[bool(row['seen'])]}), {_rate_cell(row, key)}{above}."
    )
    caption = f"95 % intervals; in brackets: {plot.trials}. Circles: kinds seen in training; diamonds: unseen."
    table = _table_of_run(plot, next(iter(runs.values())), order, key) if len(runs) == 1 else _table(plot, runs, order, key)
    return ReportFigure(figure, plot.title, alt, caption, table)


def _draw_points(panel: Any, runs: Mapping[str, Rows], key: str, order: Sequence[str]) -> None:
    """Draw the points of all runs: seen and unseen kinds in two colours for one run, each run in one colour for several."""
    labels: list[str] = []
    for index, (run, rows) in enumerate(runs.items()):
        offset = 0.7 * ((index + 0.5) / len(runs) - 0.5)
        for seen in (False, True):
            points = [row for row in rows if bool(row["seen"]) == seen]
            if points:
                colour = (CLEAN if seen else STEERED) if len(runs) == 1 else PALETTE[index % len(PALETTE)]
                label = SEEN[seen] if len(runs) == 1 else "" if shorten(run) in labels else shorten(run)
                labels.append(label)
                _draw_series(panel, points, key, [order.index(row["kind"]) + offset for row in points], colour, label)


def _draw_series(panel: Any, rows: Rows, key: str, heights: Sequence[float], colour: str, label: str) -> None:
    """Draw rates with their intervals; hollow circles for seen kinds, filled diamonds for unseen ones."""
    seen = bool(rows[0]["seen"])
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


def _counts(numbers: Iterable[int | None]) -> str:
    """The number of inputs of a kind, or the fewest and the most where runs differ."""
    known = {number for number in numbers if number is not None}
    return f"{min(known)} to {max(known)}" if len(known) > 1 else str(*known) or "?"


def _rate_cell(row: Mapping[str, Any], key: str) -> str:
    return format_rate_with_interval(row.get(key), row.get(f"{key}_interval"))


def _table(plot: RatePlot, runs: Mapping[str, Rows], order: Sequence[str], key: str) -> Table:
    """The rate of each kind, a column for each run."""
    by_run = [{row["kind"]: row for row in rows} for rows in runs.values()]
    rows = [(kind, *(_rate_cell(of_kind.get(kind, {}), key) for of_kind in by_run)) for kind in order]
    return Table(plot.title, ("kind", *runs), rows, "95 % intervals in brackets.")


def _table_of_run(plot: RatePlot, rows: Rows, order: Sequence[str], key: str) -> Table:
    """Counts, rate and AUROC of each kind in one run."""
    by_kind = {row["kind"]: row for row in rows}
    cells = []
    for row in (by_kind[kind] for kind in order):
        alarms = f"{row.get('alarms', '?')} of {row.get('n_clean', '?')}"
        counts = alarms if key == "fpr" else str(row.get("n_steered", "?"))
        seen = "yes" if row["seen"] else "no"
        cells.append((row["kind"], seen, counts, _rate_cell(row, key), format_rate(row.get("auroc"))))
    return Table(plot.title, ("kind", "seen", *plot.head, "AUROC"), cells, "95 % intervals in brackets.")


def kind_rate_plots(runs: Mapping[str, Rows]) -> dict[str, ReportFigure]:
    """FPR and TPR by kind."""
    figures = {f"{key}-kinds": draw_rates_by_kind(runs, key) for key in PLOTS}
    return {name: figure for name, figure in figures.items() if figure}
