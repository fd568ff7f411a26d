"""Figures with a line for each observer: detection against strength, and ROC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from introspection_lit.evaluation.psychometric import Psychometric
from introspection_lit.evaluation.rungs import RUNGS
from introspection_lit.report.drawing import GREY, blank, legend_below, line_of, strength_axis, styled
from introspection_lit.report.parts import (
    FigureOfReport,
    Table,
    part,
    percent,
    rate,
    short,
    strength,
    strength_interval,
    with_interval,
)

NAMES = {"tpr": "TPR at 1 % FPR", "auroc": "AUROC"}
VECTORS = {"random": "random vectors", "concept": "concept vectors"}
# More bands than this hide each other; the table has all intervals.
MOST_BANDS = 3
# Where a ROC curve is read off for its table.
READ_AT = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
Points = Sequence[Mapping[str, Any]]


@styled
def detection_curve(
    vectors: str, lines: Mapping[str, Points], key: str, unit: str, found: Mapping[str, Any] | None = None
) -> FigureOfReport | None:
    """Draw how well steering is detected as a function of its strength.

    Args:
        vectors: "random" or "concept".
        lines: Points by observer, or by run.
        key: "tpr" or "auroc".
        unit: Of the strength.
        found: The detection strength with its interval and fit, drawn into the figure of the TPR.

    Returns:
        None if there is no point at all.
    """
    kept = {
        name: [p for p in points or [] if p.get("strength") and p.get(key) is not None] for name, points in lines.items()
    }
    kept = {name: points for name, points in kept.items() if points}
    if not kept:
        return None
    figure, panel = blank()
    strengths = sorted({float(point["strength"]) for points in kept.values() for point in points})
    for place, (name, points) in enumerate(kept.items()):
        _line(panel, name, place, points, key, banded=place == 0 or len(kept) <= MOST_BANDS)
    said = [f"{name} {_ends(points, key)}" for name, points in kept.items()]
    if key == "tpr":
        said += _mark_threshold(panel, found, strengths)
        panel.set_ylim(-0.03, 1.05)
    else:
        panel.axhline(0.5, color=GREY, linewidth=0.9, linestyle=":")
        panel.text(
            0.995, 0.505, "chance", transform=panel.get_yaxis_transform(), color=GREY, ha="right", va="bottom", fontsize=9
        )
        panel.set_ylim(min(0.45, *(p[key] - 0.03 for points in kept.values() for p in points)), 1.02)
    strength_axis(panel, strengths, unit)
    panel.set_ylabel(NAMES[key])
    legend_below(figure, panel)
    title = f"{NAMES[key]}: {VECTORS.get(vectors, vectors)}"
    caption = "Bands: 95 % intervals." if len(kept) <= MOST_BANDS else f"Band: 95 % interval of {next(iter(kept))}."
    if key == "tpr":
        caption = f"The share of steered trials that is detected where 1 % of clean ones are called steered. {caption}"
        if found:
            caption += (
                " Diamond and bar: the detection strength and its interval; thin line: the psychometric function fitted."
            )
    rows = [(strength(level), *_cells(kept, level, key)) for level in strengths]
    table = Table(f"{title}, 95 % intervals in brackets", ("strength", "n", *kept), rows)
    alt = f"{NAMES[key]} against the strength of {VECTORS.get(vectors, vectors)}: {'; '.join(said)}."
    return FigureOfReport(figure, title, alt, caption, table)


def _line(panel: Any, name: str, place: int, points: Points, key: str, banded: bool) -> None:
    colour, line, marker = line_of(name, place)
    x, y = [p["strength"] for p in points], [p[key] for p in points]
    panel.plot(x, y, color=colour, linestyle=line, marker=marker, markersize=5, linewidth=1.8, label=short(name))
    low, high = zip(*(_interval(p, key) for p in points), strict=True)
    if len(points) > 1 and banded:
        panel.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    elif len(points) == 1:
        spread = np.clip([[y[0] - low[0]], [high[0] - y[0]]], 0, None)
        panel.errorbar(x, y, yerr=spread, fmt="none", ecolor=colour, capsize=4)


def _interval(point: Mapping[str, Any], key: str) -> tuple[float, float]:
    low, high = point.get(f"{key}_interval") or (None, None)
    return point[key] if low is None else low, point[key] if high is None else high


def _ends(points: Points, key: str) -> str:
    said = [f"{rate(p[key])} at strength {strength(p['strength'])}" for p in (points[0], points[-1])]
    return said[0] if len(points) == 1 else f"from {said[0]} to {said[1]}"


def _cells(lines: Mapping[str, Points], level: float, key: str) -> list[str]:
    points = [next((p for p in points if p["strength"] == level), {}) for points in lines.values()]
    n = next((str(p["n"]) for p in points if p.get("n") is not None), "")
    return [n, *(with_interval(p.get(key), p.get(f"{key}_interval")) for p in points)]


def _mark_threshold(panel: Any, found: Mapping[str, Any] | None, strengths: Sequence[float]) -> list[str]:
    share = part(found or {}, "share") or 0.75
    panel.axhline(share, color=GREY, linewidth=0.9, linestyle="--")
    panel.text(
        0.005,
        share + 0.005,
        percent(share),
        transform=panel.get_yaxis_transform(),
        color=GREY,
        ha="left",
        va="bottom",
        fontsize=9,
    )
    if not found:
        return []
    if all(found.get(name) is not None for name in Psychometric._fields) and len(strengths) > 1 and found["width"] > 0:
        fitted = Psychometric(*(found[name] for name in Psychometric._fields))
        x = np.geomspace(strengths[0], strengths[-1], 200)
        panel.plot(x, fitted.probability(x), color="black", linewidth=0.8)
    at, ends = found.get("strength"), found.get("interval") or [None, None]
    if at is None:
        return [f"{percent(share)} not reached"]
    # An open end runs to the edge of what was tested.
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
        label=f"{percent(share)} at {strength(at)}",
    )
    return [f"{percent(share)} at strength {strength(at)} ({strength_interval(ends) or 'no interval'})"]


@styled
def roc(name: str, lines: Mapping[str, Any]) -> FigureOfReport | None:
    """Draw the ROC on a log axis, since what matters is a low FPR.

    Args:
        name: Of the test set.
        lines: [FPR, TPR] by observer or run, each ``(n,)`` and ascending.
    """
    kept = {label: np.asarray(line, dtype=float) for label, line in lines.items() if line and line[0]}
    if not kept:
        return None
    figure, panel = blank()
    positive = [value for fpr, _ in kept.values() for value in fpr if value > 0]
    edge = min([0.01, *positive]) / 2
    for place, (label, (fpr, tpr)) in enumerate(kept.items()):
        colour, line, _ = line_of(label, place)
        panel.plot(
            np.maximum(fpr, edge),
            tpr,
            color=colour,
            linestyle=line,
            linewidth=1.8,
            drawstyle="steps-post",
            label=short(label),
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
    read = {label: [_read(line, at) for at in READ_AT] for label, line in kept.items()}
    rows = [(f"{at:g}", *(rate(values[number]) for values in read.values())) for number, at in enumerate(READ_AT)]
    said = "; ".join(f"{label} {values[READ_AT.index(0.01)]:.3f}" for label, values in read.items())
    title = f"ROC: {RUNGS.get(name, name)}"
    table = Table(f"{title}: highest TPR at an FPR of at most", ("FPR at most", *kept), rows)
    alt = f"TPR against FPR on {RUNGS.get(name, name)}. TPR at an FPR of at most 0.01: {said}."
    return FigureOfReport(figure, title, alt, "Dashed: an FPR of 1 %. Dotted: chance.", table)


def _read(line: Any, at: float) -> float:
    fpr, tpr = line
    return float(tpr[fpr <= at].max(initial=0.0))


def curves(evidence: Mapping[str, Any], unit: str) -> dict[str, FigureOfReport]:
    """Detection against strength: TPR and AUROC for each sort of vectors."""
    made = {}
    for vectors, lines in (part(evidence, "curves") or {}).items():
        for key in NAMES:
            found = part(evidence, "detection_strength", vectors) if key == "tpr" else None
            made[f"{key}-{vectors}"] = detection_curve(vectors, lines or {}, key, unit, found)
    return {name: figure for name, figure in made.items() if figure}


def rocs(evidence: Mapping[str, Any]) -> dict[str, FigureOfReport]:
    """A ROC for each test set that has one."""
    made = {f"roc-{name}": roc(name, lines or {}) for name, lines in (part(evidence, "roc") or {}).items()}
    return {name: figure for name, figure in made.items() if figure}
