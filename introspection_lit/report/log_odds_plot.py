"""Draws histograms of log-odds for TensorBoard and as a file, and defines the colours of all figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from introspection_lit.report.formatting import escape_dollars

if TYPE_CHECKING:
    from torch import Tensor
# Blue, orange and green of Okabe and Ito's palette, distinguishable for colour-blind readers and in greyscale.
CLEAN, STEERED, ANOTHER = "#0072B2", "#E69F00", "#009E73"
# And those of the palette that are visible on white: purple, vermilion, sky blue, black.
PALETTE = (CLEAN, STEERED, ANOTHER, "#CC79A7", "#D55E00", "#56B4E9", "#000000")


def log_odds_figure(groups: Mapping[str, tuple[Tensor, Tensor]], threshold: float) -> Figure:
    """Draw histograms of the log-odds of clean and steered trials, one panel for each group.

    Args:
        groups: Scores (log-odds, nats) and labels (True where steered) by title, each ``(n,)``.
        threshold: Drawn as a line; scores above it count as steered.
    """
    figure = Figure(figsize=(7.5, 0.7 + 1.35 * len(groups)), layout="constrained")
    panels = figure.subplots(len(groups), sharex=True, squeeze=False)[:, 0]
    scores_of_all = np.concatenate([scores.numpy() for scores, _ in groups.values()])
    low, high = float(scores_of_all.min()), float(scores_of_all.max())
    bins = np.linspace(low, high if high > low else low + 1, 60)
    for panel, (title, (scores, labels)) in zip(panels, groups.items(), strict=True):
        values, steered = scores.numpy(), labels.numpy().astype(bool)
        for name, selection, colour in (("clean", ~steered, CLEAN), ("steered", steered, STEERED)):
            panel.hist(values[selection], bins=bins, alpha=0.75, color=colour, label=f"{name} ({selection.sum()})")
        panel.axvline(threshold, color="black", linewidth=1, linestyle="--")
        panel.set_ylabel("trials")
        panel.set_title(escape_dollars(title), fontsize=9, loc="left")
        panel.legend(fontsize=7, frameon=False, loc="upper center")
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel(f"log-odds, logit(yes) - logit(no); dashed: threshold {threshold:.2f}")
    return figure
