"""Figures of log-odds, for TensorBoard and for files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from torch import Tensor


# Blue, orange and green of Okabe and Ito's palette: told apart by colour-blind readers, and in grey.
CLEAN, STEERED, ANOTHER = "#0072B2", "#E69F00", "#009E73"
# The rest of it that shows on white: purple, vermilion, sky blue, black.
PALETTE = (CLEAN, STEERED, ANOTHER, "#CC79A7", "#D55E00", "#56B4E9", "#000000")


def plain(text: str) -> str:
    """A text as matplotlib draws it letter by letter: between two dollar signs it would read a formula."""
    return text.replace("$", r"\$")


def log_odds_figure(groups: Mapping[str, tuple[Tensor, Tensor]], threshold: float) -> Figure:
    """Draw histograms of the log-odds of clean and steered trials, one panel for each group.

    Args:
        groups: Scores and labels by title; each ``(n,)``.
        threshold: Drawn as a line; scores above it count as steered.
    """
    figure = Figure(figsize=(7.5, 0.7 + 1.35 * len(groups)), layout="constrained")
    panels = figure.subplots(len(groups), sharex=True, squeeze=False)[:, 0]
    everything = np.concatenate([scores.numpy() for scores, _ in groups.values()])
    low, high = float(everything.min()), float(everything.max())
    bins = np.linspace(low, high if high > low else low + 1, 60)
    for panel, (title, (scores, labels)) in zip(panels, groups.items(), strict=True):
        values, steered = scores.numpy(), labels.numpy().astype(bool)
        for name, chosen, colour in (("clean", ~steered, CLEAN), ("steered", steered, STEERED)):
            panel.hist(values[chosen], bins=bins, alpha=0.75, color=colour, label=f"{name} ({chosen.sum()})")
        panel.axvline(threshold, color="black", linewidth=1, linestyle="--")
        panel.set_ylabel("trials")
        panel.set_title(plain(title), fontsize=9, loc="left")
        panel.legend(fontsize=7, frameon=False, loc="upper center")
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel(f"log-odds, logit(yes) - logit(no); dashed: threshold {threshold:.2f}")
    return figure
