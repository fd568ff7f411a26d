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

    def at(self, layer: int, rows: int | None = None) -> Tensor:
        """What is added to the output of a layer, ``(batch, seq, hidden)``; of the first ``rows`` rows only, if given."""
        direction = self.direction[:rows, min(layer, self.direction.shape[1] - 1)]
        added = self.scale[:rows, layer, None] * direction
        return added[:, None, :] * self.positions[:rows, :, None]

    def touches(self, layer: int, rows: int | None = None) -> bool:
        """Whether any row (of the first ``rows``) is steered at a layer, or below and above it."""
        return any(first <= layer <= last for first, last in zip(self.first[:rows], self.last[:rows], strict=True))

    def of(self, rows: Sequence[int]) -> Intervention:
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
            steered = hidden + intervention.at(layer).to(hidden)
            return (steered, *output[1:]) if isinstance(output, tuple) else steered

        return hook

    handles = []
    try:
        for index, layer in enumerate(layers):
            if intervention.touches(index):
                handles.append(layer.register_forward_hook(hook_for(index)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_band(band: tuple[int, int], n_layers: int) -> str | None:
    """Say what is wrong with a band (first and last decoder layer, inclusive), if anything is."""
    first, last = band
    if not 0 <= first <= last < n_layers:
        return (
            f"the band {list(band)} is not inside the model's layers 0..{n_layers - 1}. Expected [first, last], "
            "both inclusive."
        )
    if first == n_layers - 1:
        return (
            f"the band {list(band)} is the last layer alone: its output reaches no key or value, so a steered trial "
            f"would be identical to a clean one. Start the band at layer {n_layers - 2} or below."
        )
    return None


def named_band(name: str, n_layers: int) -> tuple[int, int]:
    """Resolve ``early``, ``middle``, ``late`` (thirds of the layers that can reach the cache) or ``all``.

    Args:
        name: One of the four.
        n_layers: Decoder layers of the model, at least 4.

    Returns:
        First and last layer, inclusive.
    """
    reachable = n_layers - 1
    edges = [round(reachable * third / 3) for third in range(4)]
    if name == "all":
        return 0, reachable - 1
    third = ("early", "middle", "late").index(name)
    return edges[third], edges[third + 1] - 1


BAND_NAMES = ("early", "middle", "late", "all")


def layer_scale(strength: float, band: tuple[int, int], residual_norms: Tensor, unit: str = "relative") -> Tensor:
    """Turn a strength into the length added at each layer.

    Args:
        strength: In ``unit``.
        band: First and last layer steered, inclusive.
        residual_norms: Median norm of the residual stream after each layer, ``(layers,)``.
        unit: ``absolute``: the strength is the length added at each layer of the band, as in the literature.
            ``relative``: it is a fraction of the layer's median residual norm, divided by the square root of the number of
            layers in the band that reach the cache (the last one does not), so that bands of all widths are comparable.

    Returns:
        Lengths, ``(layers,)``; 0 outside the band.
    """
    first, last = band
    scale = torch.zeros_like(residual_norms, dtype=torch.float32)
    if unit == "absolute":
        scale[first : last + 1] = strength
    else:
        reaching = min(last, len(scale) - 2) - first + 1  # the last layer's output reaches no cache
        scale[first : last + 1] = strength * residual_norms[first : last + 1] / reaching**0.5
    return scale
