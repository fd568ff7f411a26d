"""Steering: adds a direction to the residual stream of each row of a batch while a model runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from introspection_lit.steering.residual import residual, with_residual


@dataclass
class Intervention:
    """What is added to the residual stream of each row of a batch.

    The output of layer ``l`` at row ``b`` and position ``t`` becomes ``h + positions[b, t] * scale[b, l] *
    direction[b, l]``. Clean rows have a scale of zero at every layer.

    Attributes:
        direction: Unit vectors, ``(batch, layers, hidden)``, or ``(batch, 1, hidden)`` for one direction at every layer.
        scale: The length added at each layer, ``(batch, layers)``; 0 outside the band.
        positions: True at steered tokens, or the share of the length that is added there, ``(batch, seq)``; 0 at padding.
        first: First steered layer of each row; the number of layers for clean rows. Computed from ``scale`` while it is on
            the CPU, to avoid waiting for a GPU later.
        last: Last steered layer of each row; -1 for clean rows.
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
        """What is added to the output of a layer, ``(batch or rows, seq, hidden)``, for all or the first ``rows`` rows."""
        direction = self.direction[:rows, min(layer, self.direction.shape[1] - 1)]
        added = self.scale[:rows, layer, None] * direction
        return added[:, None, :] * self.positions[:rows, :, None]

    def acts_at(self, layer: int, rows: int | None = None) -> bool:
        """Whether a layer is between the first and last steered layer of any of the (first ``rows``) rows."""
        return any(first <= layer <= last for first, last in zip(self.first[:rows], self.last[:rows], strict=True))

    def select(self, rows: Sequence[int]) -> Intervention:
        """The intervention of some rows, in the given order."""
        index = torch.tensor(rows, device=self.scale.device)
        return Intervention(
            self.direction[index],
            self.scale[index],
            self.positions[index],
            [self.first[row] for row in rows],
            [self.last[row] for row in rows],
        )


@contextmanager
def steer(layers: Sequence[nn.Module], intervention: Intervention) -> Iterator[None]:
    """Steer a model inside the block; its hooks are always removed at the end.

    Args:
        layers: The model's decoder layers, in order. The direction is added to their *outputs*: keys and values of layer
            ``l`` depend on what was added below ``l``, so an addition at the last layer does not reach the cache.
        intervention: What to add. Layers outside every row's band get no hook.
    """

    def hook_for(layer: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            hidden = residual(module, output)
            return with_residual(module, output, hidden + intervention.addition(layer).to(hidden))

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
