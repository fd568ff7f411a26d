"""Draws detection against strength, and ROC curves, with a line for each observer or run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from introspection_lit.evaluation.psychometric import Psychometric
from introspection_lit.evaluation.rungs import RUNGS
from introspection_lit.report.drawing import GREY, legend_below, line_style, new_figure, strength_axis, styled
from introspection_lit.report.elements import ReportFigure, Table
from introspection_lit.report.formatting import (
    format_percent,
    format_rate,
    format_rate_with_interval,
    format_strength,
    format_strength_interval,
    lookup,
    shorten,
)

METRIC_TITLES = {"tpr": "TPR at 1 % FPR", "auroc": "AUROC"}
VECTOR_TITLES = {"random": "random vectors", "concept": "concept vectors"}
# With more lines than this only the first has its interval shaded; the table has all intervals.
MAX_BANDS = 3
# FPRs at which the table of a ROC curve gives the TPR.
ROC_TABLE_FPRS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
Points = Sequence[Mapping[str, Any]]


@styled
def draw_detection_curve(
    vectors: str, lines: Mapping[str, Points], key: str, unit: str, fit: Mapping[str, Any] | None = None
) -> ReportFigure | None:
    """Draw how well steering is detected as a function of its strength.

    Args:
        vectors: "random" or "concept".
        lines: Points by observer, or by run.
        key: "tpr" or "auroc".
        unit: Of the strength.
        fit: The detection strength with its interval and psychometric function, drawn into the figure of the TPR.

    Returns:
        None if there is no point to draw.
    """
    curves = {
        name: [p for p in points or [] if p.get("strength") and p.get(key) is not None] for name, points in lines.items()
    }
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        return None
    figure, panel = new_figure()
    strengths = sorted({float(point["strength"]) for points in curves.values() for point in points})
    for place, (name, points) in enumerate(curves.items()):
        _draw_line(panel, name, place, points, key, banded=place == 0 or len(curves) <= MAX_BANDS)
    descriptions = [f"{name} {_describe_ends(points, key)}" for name, points in curves.items()]
    if key == "tpr":
        descriptions += _mark_detection_strength(panel, fit, strengths)
        panel.set_ylim(-0.03, 1.05)
    else:
        panel.axhline(0.5, color=GREY, linewidth=0.9, linestyle=":")
        panel.text(
            0.995, 0.505, "chance", transform=panel.get_yaxis_transform(), color=GREY, ha="right", va="bottom", fontsize=9
        )
        panel.set_ylim(min(0.45, *(p[key] - 0.03 for points in curves.values() for p in points)), 1.02)
    strength_axis(panel, strengths, unit)
    panel.set_ylabel(METRIC_TITLES[key])
    legend_below(figure, panel)
    title = f"{METRIC_TITLES[key]}: {VECTOR_TITLES.get(vectors, vectors)}"
    caption = "Bands: 95 % intervals." if len(curves) <= MAX_BANDS else f"Band: 95 % interval of {next(iter(curves))}."
    if key == "tpr":
        caption = f"The share of steered trials that is detected where 1 % of clean ones are called steered. {caption}"
        if fit:
            caption += (
                " Diamond and bar: the detection strength and its interval; thin line: the psychometric function fitted."
            )
    rows = [(format_strength(level), *_cells(curves, level, key)) for level in strengths]
    table = Table(f"{title}, 95 % intervals in brackets", ("strength", "n", *curves), rows)
    alt = f"{METRIC_TITLES[key]} against the strength of {VECTOR_TITLES.get(vectors, vectors)}: {'; '.join(descriptions)}."
    return ReportFigure(figure, title, alt, caption, table)


def _draw_line(panel: Any, name: str, place: int, points: Points, key: str, banded: bool) -> None:
    colour, line, marker = line_style(name, place)
    x, y = [p["strength"] for p in points], [p[key] for p in points]
    panel.plot(x, y, color=colour, linestyle=line, marker=marker, markersize=5, linewidth=1.8, label=shorten(name))
    low, high = zip(*(_interval(p, key) for p in points), strict=True)
    if len(points) > 1 and banded:
        panel.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    elif len(points) == 1:
        spread = np.clip([[y[0] - low[0]], [high[0] - y[0]]], 0, None)
        panel.errorbar(x, y, yerr=spread, fmt="none", ecolor=colour, capsize=4)


def _interval(point: Mapping[str, Any], key: str) -> tuple[float, float]:
    low, high = point.get(f"{key}_interval") or (None, None)
    return point[key] if low is None else low, point[key] if high is None else high


def _describe_ends(points: Points, key: str) -> str:
    descriptions = [f"{format_rate(p[key])} at strength {format_strength(p['strength'])}" for p in (points[0], points[-1])]
    return descriptions[0] if len(points) == 1 else f"from {descriptions[0]} to {descriptions[1]}"


def _cells(lines: Mapping[str, Points], level: float, key: str) -> list[str]:
    points = [next((p for p in points if p["strength"] == level), {}) for points in lines.values()]
    n = next((str(p["n"]) for p in points if p.get("n") is not None), "")
    return [n, *(format_rate_with_interval(p.get(key), p.get(f"{key}_interval")) for p in points)]


def _mark_detection_strength(panel: Any, fit: Mapping[str, Any] | None, strengths: Sequence[float]) -> list[str]:
    share = lookup(fit or {}, "share") or 0.75
    panel.axhline(share, color=GREY, linewidth=0.9, linestyle="--")
    panel.text(
        0.005,
        share + 0.005,
        format_percent(share),
        transform=panel.get_yaxis_transform(),
        color=GREY,
        ha="left",
        va="bottom",
        fontsize=9,
    )
    if not fit:
        return []
    if all(fit.get(name) is not None for name in Psychometric._fields) and len(strengths) > 1 and fit["width"] > 0:
        function = Psychometric(*(fit[name] for name in Psychometric._fields))
        x = np.geomspace(strengths[0], strengths[-1], 200)
        panel.plot(x, function.probability(x), color="black", linewidth=0.8)
    at, ends = fit.get("strength"), fit.get("interval") or [None, None]
    if at is None:
        return [f"{format_percent(share)} not reached"]
    # An open end of the interval is drawn to the end of the tested range.
    low, high = ends[0] or min(strengths[0], at), ends[1] or max(strengths[-1], at)
    spread = np.clip([[at - low], [high - at]], 0, None)
    panel.errorbar(
        [at],
        [share],
        xerr=spread,
        fmt="D",
        color="black",
        markersize=6,
        capsize=4,
        linewidth=1.6,
        zorder=5,
        markerfacecolor="white",
        label=f"{format_percent(share)} at {format_strength(at)}",
    )
    return [
        f"{format_percent(share)} at strength {format_strength(at)} ({format_strength_interval(ends) or 'no interval'})"
    ]


@styled
def draw_roc(name: str, lines: Mapping[str, Any]) -> ReportFigure | None:
    """Draw ROC curves, with the FPR on a log axis since low FPRs matter most.

    Args:
        name: Of the test set.
        lines: [FPR, TPR] by observer or run, each ``(n,)`` and ascending.

    Returns:
        None if there is no curve to draw.
    """
    curves = {label: np.asarray(line, dtype=float) for label, line in lines.items() if line and line[0]}
    if not curves:
        return None
    figure, panel = new_figure()
    positive = [value for fpr, _ in curves.values() for value in fpr if value > 0]
    edge = min([0.01, *positive]) / 2
    for place, (label, (fpr, tpr)) in enumerate(curves.items()):
        colour, line, _ = line_style(label, place)
        panel.plot(
            np.maximum(fpr, edge),
            tpr,
            color=colour,
            linestyle=line,
            linewidth=1.8,
            drawstyle="steps-post",
            label=shorten(label),
        )
    chance = np.geomspace(edge, 1, 100)
    panel.plot(chance, chance, color=GREY, linewidth=0.9, linestyle=":", label="chance")
    panel.axvline(0.01, color=GREY, linewidth=0.9, linestyle="--")
    panel.set_xscale("log")
    panel.set_xlim(edge, 1.05)
    ticks = [tick for tick in (0.0001, 0.001, 0.01, 0.1, 1.0) if tick > edge]
    panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    panel.set_xticks([], minor=True)
    panel.set_ylim(-0.03, 1.05)
    panel.set_xlabel("FPR (log axis; left edge: 0)")
    panel.set_ylabel("TPR")
    legend_below(figure, panel)
    tprs = {label: [_tpr_at(line, at) for at in ROC_TABLE_FPRS] for label, line in curves.items()}
    rows = [
        (f"{at:g}", *(format_rate(values[number]) for values in tprs.values())) for number, at in enumerate(ROC_TABLE_FPRS)
    ]
    descriptions = "; ".join(f"{label} {values[ROC_TABLE_FPRS.index(0.01)]:.3f}" for label, values in tprs.items())
    title = f"ROC: {RUNGS.get(name, name)}"
    table = Table(f"{title}: highest TPR at an FPR of at most", ("FPR at most", *curves), rows)
    alt = f"TPR against FPR on {RUNGS.get(name, name)}. TPR at an FPR of at most 0.01: {descriptions}."
    return ReportFigure(figure, title, alt, "Dashed: an FPR of 1 %. Dotted: chance.", table)


def _tpr_at(line: Any, at: float) -> float:
    fpr, tpr = line
    return float(tpr[fpr <= at].max(initial=0.0))


def detection_plots(evidence: Mapping[str, Any], unit: str) -> dict[str, ReportFigure]:
    """TPR and AUROC against strength for each type of vectors."""
    figures = {}
    for vectors, lines in (lookup(evidence, "curves") or {}).items():
        for key in METRIC_TITLES:
            fit = lookup(evidence, "detection_strength", vectors) if key == "tpr" else None
            figures[f"{key}-{vectors}"] = draw_detection_curve(vectors, lines or {}, key, unit, fit)
    return {name: figure for name, figure in figures.items() if figure}


def roc_plots(evidence: Mapping[str, Any]) -> dict[str, ReportFigure]:
    """ROC curves of each test set that has them."""
    figures = {f"roc-{name}": draw_roc(name, lines or {}) for name, lines in (lookup(evidence, "roc") or {}).items()}
    return {name: figure for name, figure in figures.items() if figure}
