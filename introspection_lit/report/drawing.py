"""Style, size and parts common to all figures of the report, and the histograms of log-odds.

Figures are 5 x 3.4 inches with letters of at least about 10 points, readable on a telephone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from introspection_lit.evaluation.rungs import RUNGS
from introspection_lit.report.elements import ReportFigure, Table
from introspection_lit.report.formatting import format_strength, lookup, shorten
from introspection_lit.report.log_odds_plot import CLEAN, PALETTE, STEERED

WIDTH, HEIGHT, RESOLUTION = 5.0, 3.4, 200
ROW_HEIGHT = 0.24  # the height of a row that has a label
STYLE = {
    "font.size": 11,
    "axes.labelsize": 10.5,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "legend.fontsize": 10.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    # Texts of a results file may contain "$", which matplotlib would parse as a formula, maybe a malformed one.
    "text.parse_math": False,
}
# Colour, line style and marker; lines differ in all three.
LINES = tuple(zip(PALETTE, ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), "-"), "os^Dv*P", strict=True))
OBSERVERS = ("adapter", "untrained", "linear probe", "with info", "norms", "text", "cache reader")
GREY = "#595959"
Arguments = ParamSpec("Arguments")
Drawing = TypeVar("Drawing")


def styled(draw: Callable[Arguments, Drawing]) -> Callable[Arguments, Drawing]:
    """Decorator: draw with matplotlib's defaults and the report's style instead of the user's settings."""

    @wraps(draw)
    def draw_styled(*args: Arguments.args, **options: Arguments.kwargs) -> Drawing:
        with mpl.rc_context():
            mpl.rcdefaults()
            mpl.rcParams.update(STYLE)
            return draw(*args, **options)

    return draw_styled


def new_figure(height: float = HEIGHT) -> tuple[Figure, Any]:
    """A figure with one panel; ``height`` in inches."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def line_style(name: str, place: int) -> tuple[str, Any, str]:
    """Colour, line style and marker: fixed for each observer, by ``place`` for other lines."""
    return LINES[(OBSERVERS.index(name) if name in OBSERVERS else place) % len(LINES)]


def legend_below(figure: Figure, panel: Any) -> None:
    """Put the legend below the panel, in one row if it fits, else in as many columns as fit."""
    handles, labels = panel.get_legend_handles_labels()
    if handles:
        fits = sum(len(label) + 7 for label in labels) <= 60
        columns = len(labels) if fits else max(1, 63 // (max(map(len, labels)) + 8))
        if len(labels) == 4 and columns == 3:
            columns = 2
        rows = -(-len(labels) // columns)
        figure.set_figheight(figure.get_figheight() + 0.2 * max(0, rows - 2))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, handlelength=2.4, columnspacing=1.2)


def strength_axis(panel: Any, strengths: Sequence[float], unit: str) -> None:
    """Make x a log axis of strengths with ticks at the tested strengths, as many as fit."""
    logs = np.log10(sorted(set(strengths)))
    spread = max(float(logs[-1] - logs[0]), 0.3)
    ticks: list[float] = []
    for place in logs:
        if not ticks or place - ticks[-1] >= spread / 7:
            ticks.append(float(place))
    panel.set_xscale("log")
    panel.set_xlim(10 ** (logs[0] - 0.06 * spread), 10 ** (logs[-1] + 0.06 * spread))
    panel.set_xticks([10**place for place in ticks], [format_strength(10**place) for place in ticks])
    panel.set_xticks([], minor=True)
    panel.set_xlabel(f"strength ({shorten(unit)})")


@styled
def draw_histogram(name: str, bins: Mapping[str, Any], threshold: float | None) -> ReportFigure:
    """Draw histograms of the log-odds of clean and steered trials.

    Args:
        name: Of the test set.
        bins: ``edges`` (n + 1 values, in nats), and counts ``clean`` and ``steered`` (n values each).
        threshold: Drawn as a line; None: no line.
    """
    figure, panel = new_figure()
    edges = np.asarray(bins["edges"], dtype=float)
    middles = (edges[1:] + edges[:-1]) / 2
    descriptions = []
    for label, colour, line, hatch in (("clean", CLEAN, "-", None), ("steered", STEERED, "--", "////")):
        counts = np.asarray(bins[label], dtype=float)
        legend = f"{label} ({int(counts.sum())})"
        panel.stairs(counts, edges, fill=True, alpha=0.35, facecolor=colour, edgecolor=colour, hatch=hatch, linewidth=0)
        panel.stairs(counts, edges, color=colour, linestyle=line, linewidth=1.5, label=legend)
        if counts.sum():
            mean = float(counts @ middles / counts.sum())
            median = float(middles[np.searchsorted(counts.cumsum(), counts.sum() / 2)])
            descriptions.append(f"{int(counts.sum())} {label} trials, mean about {mean:.1f}, median about {median:.1f}")
    if threshold is not None:
        panel.axvline(threshold, color="black", linewidth=1.2, linestyle=":", label=f"threshold {threshold:.2f}")
        descriptions.append(f"threshold {threshold:.2f}")
    panel.set_xlabel("log-odds, logit(yes) - logit(no)")
    panel.set_ylabel("trials")
    legend_below(figure, panel)
    rows = [
        (f"{low:.2f} to {high:.2f}", str(clean), str(steered))
        for low, high, clean, steered in zip(edges[:-1], edges[1:], bins["clean"], bins["steered"], strict=True)
        if clean or steered
    ]
    title = RUNGS.get(name, name)
    table = Table(f"Log-odds on {title}, trials in each bin that has any", ("log-odds", "clean", "steered"), rows)
    caption = "Trials right of the threshold count as steered. Blue, solid: clean; orange, dashed and hatched: steered."
    alt = f"Histogram of log-odds on {title}: {'; '.join(descriptions)}."
    return ReportFigure(figure, f"Log-odds: {title}", alt, caption, table)


def histogram_plots(evidence: Mapping[str, Any], threshold: float | None) -> dict[str, ReportFigure]:
    """Histograms of each test set that has them."""
    histograms = lookup(evidence, "histograms") or {}
    return {
        f"histogram-{name}": draw_histogram(name, bins, threshold)
        for name, bins in histograms.items()
        if bins and len(bins["edges"]) > 1
    }
