"""Compare two adapters on the same conversations and directions, which neither was trained on.

    python examples/compare_adapters.py lightning_logs/quickstart/version_0/adapter

The conversations are those of examples/conversations.jsonl, the directions are drawn here, each with length 1. The
figure has the share that each adapter calls steered against the strength, at its own threshold (dashed), with 95 %
intervals, and the log-odds of one adapter against those of the other. The second is by default the one that comes with
this package.
"""

from __future__ import annotations

from pathlib import Path

import torch
from example_detector import arguments, load, save
from matplotlib.figure import Figure

from introspection_lit import Detector, Steering, load_contexts
from introspection_lit.evaluation.statistics import auroc, wilson_interval
from introspection_lit.report.log_odds_plot import ANOTHER, CLEAN, STEERED

CONVERSATIONS = Path(__file__).with_name("conversations.jsonl")


def log_odds(detector: Detector, strengths: list[float]) -> torch.Tensor:
    """``(1 + strengths, conversations)``: clean first. Every conversation has a direction of its own."""
    contexts, hidden = load_contexts(str(CONVERSATIONS)), int(detector.config.hidden_size)
    directions = torch.randn(len(contexts), hidden, generator=torch.Generator().manual_seed(2026))
    conditions = [None, *([Steering(direction, strength) for direction in directions] for strength in strengths)]
    return torch.tensor([[answer.log_odds for answer in detector.ask_many(contexts, each)] for each in conditions])


if __name__ == "__main__":
    parser = arguments(__doc__, ("first", "second"))
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.1, 0.25, 0.5, 1.0, 2.0])
    args = parser.parse_args()
    detectors = {"first": load(args.first), "second": load(args.second)}
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    rates, scatter = figure.subplots(1, 2)
    scores = {}
    for (name, detector), colour, marker in zip(detectors.items(), (ANOTHER, STEERED), "os", strict=True):
        scores[name] = odds = log_odds(detector, args.strengths)
        called = (odds > detector.threshold).sum(dim=1).tolist()
        for strength, row, count in zip([0.0, *args.strengths], odds, called, strict=True):
            area = auroc(torch.cat([odds[0], row]), torch.arange(2 * len(row)) >= len(row))
            print(f"{name:7} strength {strength:4g}: {count:2} of {len(row)} called steered, AUROC {area:.3f}")
        shares = [count / odds.shape[1] for count in called]
        limits = [wilson_interval(count, odds.shape[1]) for count in called]
        bars = [
            [share - low for share, (low, _) in zip(shares, limits, strict=True)],
            [high - share for share, (_, high) in zip(shares, limits, strict=True)],
        ]
        shift = -0.06 if name == "first" else 0.06
        places = [place + shift for place in range(len(shares))]
        rates.errorbar(places, shares, bars, color=colour, marker=marker, capsize=3, label=name)
    for row, (label, colour) in enumerate((("clean", CLEAN), (f"strength {args.strengths[-1]:g}", STEERED))):
        pair = [scores[name][-row] for name in ("first", "second")]
        scatter.scatter(*pair, s=22, color=colour, marker="oD"[row], label=label)
    for line, name in ((scatter.axvline, "first"), (scatter.axhline, "second")):
        line(detectors[name].threshold, color="black", linewidth=1, linestyle="--")
    rates.set_xticks(range(len(args.strengths) + 1), ["clean", *(f"{strength:g}" for strength in args.strengths)])
    rates.set(xlabel="strength", ylabel="share called steered", ylim=(-0.05, 1.05))
    scatter.set(xlabel="log-odds, first adapter", ylabel="log-odds, second adapter")
    for panel in (rates, scatter):
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False)
    save(figure, "compared.png", args.first, args.out)
