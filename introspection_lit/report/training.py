"""Figures of how the answer came about: over the steps of training, and from layer to layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from introspection_lit.report.drawing import GREY, blank, legend_below, line_of, styled
from introspection_lit.report.parts import FigureOfReport, Table, part, rate
from introspection_lit.report.plots import CLEAN, STEERED


@styled
def learning(training: Mapping[str, Any], keys: Mapping[str, str], title: str, share: bool) -> FigureOfReport | None:
    """Draw what validation measured while training went on.

    Args:
        training: Lists by name; ``steps`` are of all but the loss.
        keys: What to draw, and what it is called.
        title: Of the figure.
        share: All of it lies in [0, 1].
    """
    lines = {}
    for key, name in keys.items():
        steps = training.get("loss_steps" if key == "loss" else "steps") or []
        pairs = [(s, v) for s, v in zip(steps, training.get(key) or [], strict=False) if s is not None and v is not None]
        if pairs:
            lines[name] = pairs
    if not lines:
        return None
    figure, panel = blank()
    for place, (name, pairs) in enumerate(lines.items()):
        colour, line, marker = line_of("", place)
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
    said = "; ".join(
        f"{name} from {rate(p[0][1])} at step {p[0][0]} to {rate(p[-1][1])} at step {p[-1][0]}" for name, p in lines.items()
    )
    steps = sorted({step for pairs in lines.values() for step, _ in pairs})
    steps = steps[:: max(1, len(steps) // 100)]
    rows = [(str(s), *(rate(dict(pairs).get(s)) for pairs in lines.values())) for s in steps]
    table = Table(f"{title} by step", ("step", *lines), rows, "" if len(steps) < 100 else "Every n-th step.")
    return FigureOfReport(figure, title, f"{title}: {said}.", "Validation set." if share else "", table)


@styled
def lens(found: Mapping[str, Any]) -> FigureOfReport | None:
    """Draw the log-odds that each layer's residual stream would give, steered against clean, with quartiles."""
    if not found.get("layers") or not found.get("clean") or not found.get("steered"):
        return None
    figure, panel = blank()
    places = found["layers"]
    for label, colour, line, marker in (("clean", CLEAN, "-", "o"), ("steered", STEERED, "--", "s")):
        rows = found[label]
        panel.plot(
            places, rows["mean"], color=colour, linestyle=line, marker=marker, markersize=3.5, linewidth=1.8, label=label
        )
        if rows.get("low") and rows.get("high"):
            panel.fill_between(places, rows["low"], rows["high"], color=colour, alpha=0.18, linewidth=0)
    panel.axhline(0, color=GREY, linewidth=0.9, linestyle=":")
    panel.set_xlabel("layer")
    panel.set_ylabel("log-odds")
    legend_below(figure, panel)
    clean, steered = found["clean"], found["steered"]
    body = zip(places, clean["mean"], steered["mean"], strict=True)
    table = Table(
        "Mean log-odds after each layer", ("layer", "clean", "steered"), [(str(p), rate(c), rate(s)) for p, c, s in body]
    )
    gaps = [s - c for c, s in zip(clean["mean"], steered["mean"], strict=True)]
    widest = int(np.argmax(np.abs(gaps)))
    alt = (
        f"Mean log-odds after each layer: clean {clean['mean'][0]:.2f} at layer {places[0]} and {clean['mean'][-1]:.2f} at "
        f"layer {places[-1]}, steered {steered['mean'][0]:.2f} and {steered['mean'][-1]:.2f}; the gap is widest at layer "
        f"{places[widest]} ({gaps[widest]:.2f})."
    )
    caption = f"Bands: quartiles. {found['n']} trials of each sort." if found.get("n") else "Bands: quartiles."
    return FigureOfReport(figure, "Logit lens: log-odds by layer", alt, caption, table)


def learning_curves(evidence: Mapping[str, Any]) -> dict[str, FigureOfReport]:
    """Rates, threshold and loss over steps."""
    training = part(evidence, "training") or {}
    made = {
        "learning": learning(training, {"auroc": "AUROC", "tpr": "TPR", "fpr": "FPR", "mass": "mass"}, "Validation", True),
        "threshold": learning(training, {"threshold": "threshold (log-odds)"}, "Threshold", False),
        "loss": learning(training, {"loss": "loss (nats)"}, "Training loss", False),
    }
    return {name: figure for name, figure in made.items() if figure}
