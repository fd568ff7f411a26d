"""How figures of a report are drawn: their style, their size, and the ones that show a distribution.

Drawn at 5 x 3.4 inches with letters of 10 points and more, so that they can be read on a telephone.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from introspection_lit.evaluation.rungs import RUNGS
from introspection_lit.report.parts import FigureOfReport, Table, part, short, strength
from introspection_lit.report.plots import CLEAN, PALETTE, STEERED

WIDTH, HEIGHT, RESOLUTION = 5.0, 3.4, 200
ROW = 0.24  # the height of a row that has a label
STYLE = {
    "font.size": 11,
    "axes.labelsize": 10.5,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "legend.fontsize": 10.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    # Words of a results file are never formulas: "$" in a kind's name would be one, and may not even be well-formed.
    "text.parse_math": False,
}
# Colour, line and shape, so that none is needed to tell lines apart.
LINES = tuple(zip(PALETTE, ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), "-"), "os^Dv*P", strict=True))
OBSERVERS = ("adapter", "untrained", "linear probe", "with info", "norms", "text")
GREY = "#595959"
Given = ParamSpec("Given")
Made = TypeVar("Made")


def styled(draw: Callable[Given, Made]) -> Callable[Given, Made]:
    """Draw in the style of the report, whatever the reader's own settings of matplotlib are."""

    @wraps(draw)
    def drawn(*args: Given.args, **options: Given.kwargs) -> Made:
        with mpl.rc_context():
            mpl.rcdefaults()
            mpl.rcParams.update(STYLE)
            return draw(*args, **options)

    return drawn


def blank(height: float = HEIGHT) -> tuple[Figure, Any]:
    """A figure with one panel, height in inches."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def png(figure: Figure) -> bytes:
    """The figure as a picture, 1,000 pixels wide."""
    stream = io.BytesIO()
    with warnings.catch_warnings(), mpl.rc_context(STYLE):
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # names in other scripts: boxes, and no harm
        figure.savefig(stream, dpi=RESOLUTION, format="png", facecolor="white", metadata={"Software": None})
    return stream.getvalue()


def line_of(name: str, place: int) -> tuple[str, Any, str]:
    """Colour, line style and marker: an observer always has its own, others by their place."""
    return LINES[(OBSERVERS.index(name) if name in OBSERVERS else place) % len(LINES)]


def legend_below(figure: Figure, panel: Any) -> None:
    """Name the lines below the panel, where they cover nothing: in one row, or else in as many columns as fit."""
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
    """Make x a log axis of strengths, labelled at strengths that were tested, as many as fit."""
    logs = np.log10(sorted(set(strengths)))
    spread = max(float(logs[-1] - logs[0]), 0.3)
    kept: list[float] = []
    for place in logs:
        if not kept or place - kept[-1] >= spread / 7:
            kept.append(float(place))
    panel.set_xscale("log")
    panel.set_xlim(10 ** (logs[0] - 0.06 * spread), 10 ** (logs[-1] + 0.06 * spread))
    panel.set_xticks([10**place for place in kept], [strength(10**place) for place in kept])
    panel.set_xticks([], minor=True)
    panel.set_xlabel(f"strength ({short(unit)})")


@styled
def histogram(name: str, bins: Mapping[str, Any], threshold: float | None) -> FigureOfReport:
    """Draw how often each log-odds came, clean and steered.

    Args:
        name: Of the test set.
        bins: ``edges`` (n + 1), ``clean`` and ``steered`` (n).
        threshold: Drawn as a line, if there is one.
    """
    figure, panel = blank()
    edges = np.asarray(bins["edges"], dtype=float)
    middles = (edges[1:] + edges[:-1]) / 2
    said = []
    for label, colour, line, hatch in (("clean", CLEAN, "-", None), ("steered", STEERED, "--", "////")):
        counts = np.asarray(bins[label], dtype=float)
        legend = f"{label} ({int(counts.sum())})"
        panel.stairs(counts, edges, fill=True, alpha=0.35, facecolor=colour, edgecolor=colour, hatch=hatch, linewidth=0)
        panel.stairs(counts, edges, color=colour, linestyle=line, linewidth=1.5, label=legend)
        if counts.sum():
            mean = float(counts @ middles / counts.sum())
            median = float(middles[np.searchsorted(counts.cumsum(), counts.sum() / 2)])
            said.append(f"{int(counts.sum())} {label} trials, mean about {mean:.1f}, median about {median:.1f}")
    if threshold is not None:
        panel.axvline(threshold, color="black", linewidth=1.2, linestyle=":", label=f"threshold {threshold:.2f}")
        said.append(f"threshold {threshold:.2f}")
    panel.set_xlabel("log-odds, logit(yes) - logit(no)")
    panel.set_ylabel("trials")
    legend_below(figure, panel)
    rows = [
        (f"{low:.2f} to {high:.2f}", str(clean), str(steered))
        for low, high, clean, steered in zip(edges[:-1], edges[1:], bins["clean"], bins["steered"], strict=True)
        if clean or steered
    ]
    named = RUNGS.get(name, name)
    table = Table(f"Log-odds on {named}, trials in each bin that has any", ("log-odds", "clean", "steered"), rows)
    caption = "Trials right of the threshold count as steered. Blue, solid: clean; orange, dashed and hatched: steered."
    alt = f"Histogram of log-odds on {named}: {'; '.join(said)}."
    return FigureOfReport(figure, f"Log-odds: {named}", alt, caption, table)


def histograms(evidence: Mapping[str, Any], threshold: float | None) -> dict[str, FigureOfReport]:
    """A histogram for each test set that has one."""
    found = part(evidence, "histograms") or {}
    return {
        f"histogram-{name}": histogram(name, bins, threshold)
        for name, bins in found.items()
        if bins and len(bins["edges"]) > 1
    }
