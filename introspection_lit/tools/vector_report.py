"""Describes a vector bank: lengths of its directions, and cosines between and within its splits."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor

from introspection_lit.report.formatting import escape_dollars
from introspection_lit.steering.vector_bank import RANDOM_SPLITS, VectorBank


def describe_bank(bank: VectorBank) -> dict[str, Any]:
    """Compute norms and cosines of a bank.

    Args:
        bank: Its directions have length 1.

    Returns:
        ``residual_norms`` by layer; for each split ``n``, its largest deviation from length 1 (``off_unit``) and largest
        |cosine| between two of its directions (``within``) and to each random split (``to``); and for each direction that
        is not random its length before scaling relative to the residual norm (``length``, middle layer), its nearest
        neighbour in the split, its cosine to the same concept by the other extraction method and its largest |cosine| to
        the random directions. Cosines are averaged over layers if both sides have a direction for each layer.
    """
    middle = len(bank.residual_norms) // 2
    splits = {}
    for split, rows in bank.directions.items():
        norms = rows.norm(dim=-1)
        splits[split] = {
            "n": len(rows),
            "off_unit": float((norms[norms > 0] - 1).abs().max()),
            "within": _largest_off_diagonal(cosines(rows, rows)),
            "to": {other: _largest(rows, bank.directions[other]) for other in RANDOM_SPLITS if other != split},
        }
    extracted = {split: rows for split, rows in bank.directions.items() if split not in RANDOM_SPLITS}
    random = torch.cat([bank.directions[split] for split in RANDOM_SPLITS])
    concepts = []
    for split, rows in extracted.items():
        between = cosines(rows, rows).fill_diagonal_(-2)
        other = bank.directions.get({"concept": "concept_pca", "concept_pca": "concept"}.get(split, ""))
        for number, name in enumerate(bank.names[split]):
            nearest = int(between[number].argmax()) if len(rows) > 1 else number
            length = bank.lengths[split][number, middle] / bank.residual_norms[middle] if split in bank.lengths else None
            concepts.append(
                {
                    "vectors": split,
                    "name": name,
                    "length": None if length is None else float(length),
                    "nearest": bank.names[split][nearest],
                    "cosine": float(between[number, nearest]) if len(rows) > 1 else None,
                    "other_method": float((rows[number] * other[number]).sum(-1).mean()) if other is not None else None,
                    "to_random": _largest(rows[number : number + 1], random),
                }
            )
    return {
        "fingerprint": bank.fingerprint,
        "residual_norms": [round(norm, 3) for norm in bank.residual_norms.tolist()],
        "splits": splits,
        "directions": concepts,
        "concept_cosines": [[round(c, 3) for c in row] for row in bank.concept_cosines().tolist()],
    }


def cosines(first: Tensor, second: Tensor) -> Tensor:
    """Cosines between directions, ``(n, m)``; for directions by layer the mean over layers where both are nonzero."""
    if first.dim() == 2 and second.dim() == 2:
        return first @ second.T
    both = ((first.norm(dim=-1)[:, None] > 0) & (second.norm(dim=-1)[None] > 0)).sum(dim=-1).clamp(min=1)
    return torch.einsum("ilh,jlh->ij", first, second) / both


def _largest(first: Tensor, second: Tensor) -> float:
    return float((first.reshape(-1, first.shape[-1]) @ second.reshape(-1, second.shape[-1]).T).abs().max())


def _largest_off_diagonal(square: Tensor) -> float | None:
    return float(square.fill_diagonal_(0).abs().max()) if len(square) > 1 else None


def bank_tables(description: dict[str, Any]) -> list[Table]:
    """Lay out :func:`describe_bank` as tables that fit 80 columns: the splits, and the directions that are not random."""
    splits = Table(title="Directions", padding=(0, 1))
    for column in ("split", "n", "|cos| within", *(f"to {split}" for split in RANDOM_SPLITS)):
        splits.add_column(column, justify="left" if column == "split" else "right", no_wrap=True)
    for name, row in description["splits"].items():
        within = "" if row["within"] is None else f"{row['within']:.3f}"
        others = [f"{row['to'][split]:.3f}" if split in row["to"] else "" for split in RANDOM_SPLITS]
        splits.add_row(name, str(row["n"]), within, *others)
    concepts = Table(title="Concepts", padding=(0, 1))
    for column in ("direction", "from", "length", "nearest", "cos", "other", "random"):
        concepts.add_column(column, justify="left" if column in ("direction", "from", "nearest") else "right", no_wrap=True)
    for row in description["directions"]:
        if row["vectors"] == "concept_pca":  # the column "other way" says how alike the two are
            continue
        numbers = [
            "" if row[key] is None else f"{row[key]:.2f}" for key in ("length", "cosine", "other_method", "to_random")
        ]
        concepts.add_row(row["name"][:14], row["vectors"], numbers[0], row["nearest"][:14], *numbers[1:])
    return [splits, concepts]


def draw_bank(bank: VectorBank) -> Figure:
    """Draw the residual norms by layer and the cosines between concepts."""
    names = bank.names["concept"]
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.35))
    layers = range(len(bank.residual_norms))
    left.plot(layers, bank.residual_norms, color="black", label="residual stream (median)")
    if "concept" in bank.lengths:
        lengths = bank.lengths["concept"]
        left.plot(layers, lengths.median(dim=0).values, color="#0072B2", label="concept minus mean (median)")
        left.fill_between(layers, lengths.min(dim=0).values, lengths.max(dim=0).values, color="#0072B2", alpha=0.2)
    left.set_yscale("log")
    left.set_xlabel("layer")
    left.set_ylabel("length")
    left.legend(fontsize=8, frameon=False)
    left.spines[["top", "right"]].set_visible(False)
    square = bank.concept_cosines().numpy()
    limit = max(0.3, float(np.abs(square - np.eye(len(square))).max()))
    image = right.imshow(square, cmap="PuOr", vmin=-limit, vmax=limit)
    names = [escape_dollars(name) for name in names]
    right.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    right.set_yticks(range(len(names)), names, fontsize=7)
    right.set_title("cosines between concepts, mean over layers", fontsize=9)
    figure.colorbar(image, ax=right, shrink=0.8)
    return figure
