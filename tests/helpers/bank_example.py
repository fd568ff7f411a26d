"""Vector banks that take no model: five directions a split with concepts, or as many random ones as a test wants."""

from __future__ import annotations

import torch

from introspection_lit.steering.extraction import mean_differences
from introspection_lit.steering.vector_bank import RANDOM_SPLITS, VectorBank, random_unit_vectors


def small_bank(hidden: int = 64) -> VectorBank:
    """A bank of five directions a split, three layers."""
    activations = torch.randn(4, 1, 3, hidden, generator=torch.Generator().manual_seed(0))
    concepts = torch.nn.functional.normalize(mean_differences(activations), dim=-1)
    directions = {split: random_unit_vectors(5, hidden, 0, split) for split in RANDOM_SPLITS} | {"concept": concepts}
    names = {split: [f"{split}-{i}" for i in range(len(rows))] for split, rows in directions.items()}
    return VectorBank(directions, names, torch.tensor([1.0, 2.0, 3.0]), {"base_model": "m", "revision": "", "seed": "0"})


def random_bank(rows: int = 8, hidden: int = 16) -> VectorBank:
    """A bank of random directions, some in each split, for a model of six layers."""
    directions = {split: random_unit_vectors(rows, hidden, 0, split) for split in RANDOM_SPLITS}
    names = {split: [f"{split}-{number}" for number in range(rows)] for split in RANDOM_SPLITS}
    return VectorBank(directions, names, torch.ones(6), {"base_model": "m", "revision": ""})
