"""Steer with vectors from elsewhere, and see at which strength each is noticed.

    python examples/own_vectors.py

Give your own with ``--vectors FILE ...``: a control vector of repeng (.gguf), a persona vector (.pt, layers + 1 rows, the
embeddings first), or a row of an SAE's decoder (.npy or .safetensors, one hidden size long). Without files, three such
files are written from concept directions of the run, one in each format. The figure has the log-odds against the
strength, with the range of random directions of the same length behind them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from example_detector import OUT, TALK, arguments, load, save
from matplotlib.figure import Figure
from torch import Tensor

from introspection_lit import Detector, Steering, read_directions, write_direction
from introspection_lit.report.log_odds_plot import PALETTE


def stand_ins(detector: Detector, folder: Path) -> list[Path]:
    """One file in each format, from directions of concepts, ``(layers, hidden)``."""
    assert detector.bank is not None
    first, second, third = detector.bank.directions["concept"][:3]
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / name for name in ("repeng.gguf", "persona.pt", "sae_row.npy")]
    write_direction(files[0], first, detector.config.model_type)
    torch.save(torch.cat([torch.zeros_like(second[:1]), second]), files[1])
    np.save(files[2], third[len(third) // 2].numpy())
    return files


def log_odds(detector: Detector, direction: Tensor, strengths: list[float], band: str) -> list[float]:
    """Of one conversation, at each strength of one direction."""
    steerings = [Steering(direction, strength, band) for strength in strengths]
    return [answer.log_odds for answer in detector.ask_many([TALK] * len(steerings), steerings)]


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--vectors", type=Path, nargs="+", help="Files; default: three are made.")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.1, 0.25, 0.5, 1.0, 2.0])
    parser.add_argument("--band", default="middle", choices=("early", "middle", "late", "all"))
    args = parser.parse_args()
    detector = load(args.adapter)
    assert detector.bank is not None
    layers, hidden = len(detector.layers), int(detector.config.hidden_size)
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    panel = figure.subplots()
    for number, path in enumerate(args.vectors or stand_ins(detector, OUT / "vectors")):
        for name, direction in read_directions(path, layers, hidden).items():
            odds = log_odds(detector, direction, args.strengths, args.band)
            print(f"{path.name:14} {name:14}", "  ".join(f"{value:+7.2f}" for value in odds))
            panel.plot(args.strengths, odds, color=PALETTE[number % len(PALETTE)], marker="osD^"[number % 4], label=name)
    others = [log_odds(detector, each, args.strengths, args.band) for each in detector.bank.directions["heldout"][:8]]
    panel.fill_between(args.strengths, np.min(others, 0), np.max(others, 0), color="#DDDDDD", label="8 random directions")
    panel.axhline(detector.ask(*TALK).log_odds, color="grey", linewidth=1, label="clean")
    panel.axhline(detector.threshold, color="black", linewidth=1, linestyle="--", label="threshold")
    panel.set_xscale("log")
    panel.set_xticks(args.strengths, [f"{strength:g}" for strength in args.strengths], minor=False)
    panel.set_xticks([], minor=True)
    panel.set_xlabel(f"strength, share of the residual norm ({args.band} layers)")
    panel.set_ylabel("log-odds, logit(yes) - logit(no)")
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    save(figure, "own_vectors.png", args.adapter, args.out)
