"""The curve of the page: log-odds over strengths, beside the threshold."""

from __future__ import annotations

import html
from collections.abc import Mapping

from introspection_lit.detector import Answer
from introspection_lit.report.drawing import legend_below, new_figure, styled
from introspection_lit.report.formatting import format_strength
from introspection_lit.report.log_odds_plot import CLEAN, STEERED
from introspection_lit.report.pictures import data_url, to_picture


def curve_points(clean: Answer, curve: Mapping[float, Answer], chosen: tuple[float, Answer]) -> list[tuple[float, float]]:
    """Strength and log-odds of each point, by strength: the clean conversation at 0, the curve's, and the chosen one."""
    found = {0.0: clean, **curve, chosen[0]: chosen[1]}
    return [(strength, found[strength].log_odds) for strength in sorted(found)]


@styled
def draw_curve(clean: Answer, curve: Mapping[float, Answer], chosen: tuple[float, Answer]) -> str:
    """Draw the curve, as HTML: a picture with its description, and its numbers.

    Args:
        clean: The answer without steering.
        curve: The answers by strength.
        chosen: Strength and answer that the visitor has asked for.
    """
    points = curve_points(clean, curve, chosen)
    figure, panel = new_figure(3.1)
    panel.plot(*zip(*points, strict=True), color=STEERED, marker="o", markersize=4, linewidth=1.8, label="steered")
    panel.plot([0], [clean.log_odds], color=CLEAN, marker="s", markersize=8, linestyle="", label="clean")
    panel.plot([chosen[0]], [chosen[1].log_odds], marker="o", markersize=11, linestyle="", label="yours", **RING)
    panel.axhline(clean.threshold, color="black", linewidth=1.2, linestyle=":", label="threshold")
    panel.set_xlabel("strength of the steering (0: clean)")
    panel.set_ylabel("log-odds")
    legend_below(figure, panel)
    rows = [
        (format_strength(strength), f"{score:.2f}", "yes" if score > clean.threshold else "no")
        for strength, score in points
    ]
    said = "; ".join(f"{score} at strength {strength}" for strength, score, _ in rows)
    alt = f"Curve of log-odds over strengths: {said}. Threshold {clean.threshold:.2f}."
    cells = "".join(f"<tr><th scope='row'>{a}</th><td>{b}</td><td>{c}</td></tr>" for a, b, c in rows)
    head = "<tr><th scope='col'>strength</th><th scope='col'>log-odds</th><th scope='col'>judged steered</th></tr>"
    picture = f'<img src="{data_url(to_picture(figure))}" alt="{html.escape(alt)}">'
    return f"{picture}<details><summary>The same in numbers</summary><table>{head}{cells}</table></details>"


RING = {"markerfacecolor": "none", "markeredgecolor": "black", "markeredgewidth": 1.6}
