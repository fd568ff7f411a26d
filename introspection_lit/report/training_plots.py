"""Draws the learning curves of a run, and the logit lens: log-odds by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from introspection_lit.report.drawing import GREY, legend_below, line_style, new_figure, styled
from introspection_lit.report.elements import ReportFigure, Table
from introspection_lit.report.formatting import format_rate, lookup
from introspection_lit.report.log_odds_plot import CLEAN, STEERED


@styled
def draw_learning_curve(
    training: Mapping[str, Any], keys: Mapping[str, str], title: str, share: bool
) -> ReportFigure | None:
    """Draw metrics against the training step.

    Args:
        training: Lists of values by metric; ``loss_steps`` are the steps of ``loss``, ``steps`` those of all others.
        keys: Titles of the metrics to draw, by name.
        title: Of the figure.
        share: Whether all values lie in [0, 1].

    Returns:
        None if there is nothing to draw.
    """
    lines = {}
    for key, name in keys.items():
        steps = training.get("loss_steps" if key == "loss" else "steps") or []
        pairs = [(s, v) for s, v in zip(steps, training.get(key) or [], strict=False) if s is not None and v is not None]
        if pairs:
            lines[name] = pairs
    if not lines:
        return None
    figure, panel = new_figure()
    for place, (name, pairs) in enumerate(lines.items()):
        colour, line, marker = line_style("", place)
        x, y = zip(*pairs, strict=True)
        size = 4 if len(pairs) <= 40 else 0
        panel.plot(x, y, color=colour, linestyle=line, marker=marker, markersize=size, linewidth=1.6, label=name)
    if share:
        panel.set_ylim(-0.03, 1.05)
    panel.set_xlabel("step")
    if len(lines) == 1:
        panel.set_ylabel(next(iter(lines)))
    else:
        legend_below(figure, panel)
    descriptions = "; ".join(
        f"{name} from {format_rate(p[0][1])} at step {p[0][0]} to {format_rate(p[-1][1])} at step {p[-1][0]}"
        for name, p in lines.items()
    )
    steps = sorted({step for pairs in lines.values() for step, _ in pairs})
    steps = steps[:: max(1, len(steps) // 100)]
    rows = [(str(s), *(format_rate(dict(pairs).get(s)) for pairs in lines.values())) for s in steps]
    table = Table(f"{title} by step", ("step", *lines), rows, "" if len(steps) < 100 else "Every n-th step.")
    return ReportFigure(figure, title, f"{title}: {descriptions}.", "Validation set." if share else "", table)


@styled
def draw_logit_lens(lens: Mapping[str, Any]) -> ReportFigure | None:
    """Draw the mean log-odds read after each layer, with quartiles, for clean and for steered trials; None without data."""
    if not lens.get("layers") or not lens.get("clean") or not lens.get("steered"):
        return None
    figure, panel = new_figure()
    places = lens["layers"]
    for label, colour, line, marker in (("clean", CLEAN, "-", "o"), ("steered", STEERED, "--", "s")):
        rows = lens[label]
        panel.plot(
            places, rows["mean"], color=colour, linestyle=line, marker=marker, markersize=3.5, linewidth=1.8, label=label
        )
        if rows.get("low") and rows.get("high"):
            panel.fill_between(places, rows["low"], rows["high"], color=colour, alpha=0.18, linewidth=0)
    panel.axhline(0, color=GREY, linewidth=0.9, linestyle=":")
    panel.set_xlabel("layer")
    panel.set_ylabel("log-odds")
    legend_below(figure, panel)
    clean, steered = lens["clean"], lens["steered"]
    means = zip(places, clean["mean"], steered["mean"], strict=True)
    table = Table(
        "Mean log-odds after each layer",
        ("layer", "clean", "steered"),
        [(str(p), format_rate(c), format_rate(s)) for p, c, s in means],
    )
    gaps = [s - c for c, s in zip(clean["mean"], steered["mean"], strict=True)]
    widest = int(np.argmax(np.abs(gaps)))
    alt = (
        f"Mean log-odds after each layer: clean {clean['mean'][0]:.2f} at layer {places[0]} and {clean['mean'][-1]:.2f} at "
        f"layer {places[-1]}, steered {steered['mean'][0]:.2f} and {steered['mean'][-1]:.2f}; the gap is widest at layer "
        f"{places[widest]} ({gaps[widest]:.2f})."
    )
    caption = f"Bands: quartiles. {lens['n']} trials of each sort." if lens.get("n") else "Bands: quartiles."
    return ReportFigure(figure, "Logit lens: log-odds by layer", alt, caption, table)


def learning_plots(evidence: Mapping[str, Any]) -> dict[str, ReportFigure]:
    """Validation rates, threshold and training loss against the step."""
    training = lookup(evidence, "training") or {}
    figures = {
        "learning": draw_learning_curve(
            training, {"auroc": "AUROC", "tpr": "TPR", "fpr": "FPR", "mass": "mass"}, "Validation", True
        ),
        "threshold": draw_learning_curve(training, {"threshold": "threshold (log-odds)"}, "Threshold", False),
        "loss": draw_learning_curve(training, {"loss": "loss (nats)"}, "Training loss", False),
    }
    return {name: figure for name, figure in figures.items() if figure}
