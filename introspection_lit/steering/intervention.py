"""Steering: adding directions to the residual stream of a running model, row by row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Intervention:
    """What is added to the residual stream of each row of a batch.

    To the output of layer ``l`` at row ``b``, position ``t``, ``scale[b, l] * direction[b, l]`` is added where
    ``positions[b, t]``. A row that is not steered has a scale of zero everywhere.

    Attributes:
        direction: Unit vectors, ``(batch, layers, hidden)``, or ``(batch, 1, hidden)`` for one direction at every layer.
        scale: The length added at each layer, ``(batch, layers)``: 0 outside the band.
        positions: True where a token is steered, ``(batch, seq)``; never at padding.
        first: The first steered layer of each row; the number of layers if it is clean. Found in ``scale``, once: before
            that goes to a device that would have to be waited for.
        last: The last steered layer of each row; -1 if it is clean.
    """

    direction: Tensor
    scale: Tensor
    positions: Tensor
    first: list[int] = field(default_factory=list)
    last: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.first:
            layers = [[layer for layer, length in enumerate(row) if length] for row in self.scale.tolist()]
            self.first = [steered[0] if steered else self.scale.shape[1] for steered in layers]
            self.last = [steered[-1] if steered else -1 for steered in layers]

    def addition(self, layer: int, rows: int | None = None) -> Tensor:
        """What is added to the output of a layer, ``(batch, seq, hidden)``; of the first ``rows`` rows only, if given."""
        direction = self.direction[:rows, min(layer, self.direction.shape[1] - 1)]
        added = self.scale[:rows, layer, None] * direction
        return added[:, None, :] * self.positions[:rows, :, None]

    def acts_at(self, layer: int, rows: int | None = None) -> bool:
        """Whether any row (of the first ``rows``) is steered at a layer, or below and above it."""
        return any(first <= layer <= last for first, last in zip(self.first[:rows], self.last[:rows], strict=True))

    def select(self, rows: Sequence[int]) -> Intervention:
        """The same for some of the rows, in the order given."""
        chosen = torch.tensor(rows, device=self.scale.device)
        return Intervention(
            self.direction[chosen],
            self.scale[chosen],
            self.positions[chosen],
            [self.first[row] for row in rows],
            [self.last[row] for row in rows],
        )


@contextmanager
def steer(layers: Sequence[nn.Module], intervention: Intervention) -> Iterator[None]:
    """Steer a model while the block runs; the hooks are gone afterwards, whatever happens inside.

    Args:
        layers: The model's decoder layers, in order. Steering is added to their *outputs*: the keys and values of layer
            ``l`` see what was added at layers below ``l``, so what is added at the last layer reaches no cache.
        intervention: What to add. Layers outside of every row's band are left alone.
    """

    def hook_for(layer: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            steered = hidden + intervention.addition(layer).to(hidden)
            return (steered, *output[1:]) if isinstance(output, tuple) else steered

        return hook

    handles = []
    try:
        for index, layer in enumerate(layers):
            if intervention.acts_at(index):
                handles.append(layer.register_forward_hook(hook_for(index)))
        yield
    finally:
        for handle in handles:
            handle.remove()
