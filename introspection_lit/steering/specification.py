"""Steering as a researcher writes it down: a direction, a strength, a band of layers and a unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from introspection_lit.steering.bands import layer_scale, resolve_bands
from introspection_lit.steering.limits import LEAST_STRENGTH, MOST_STRENGTH
from introspection_lit.utils.errors import ConfigurationError


@dataclass(frozen=True, eq=False)
class Steering:
    """What is added to the residual stream at every token of a conversation while the model reads it.

    Attributes:
        direction: ``(hidden,)``: the same at every layer; or ``(layers, hidden)``: one for each layer's output. Each is
            scaled to length 1; at layers where it is zero nothing is added.
        strength: In ``unit``, above 0.
        band: Steered layers: ``early``, ``middle``, ``late`` (thirds), ``all``, or (first, last), both inclusive.
        unit: ``relative``: a share of each layer's median residual norm, divided by the square root of the number of layers
            in the band (see :func:`~introspection_lit.steering.bands.layer_scale`); ``absolute``: the length that is added
            at each layer.
    """

    direction: Tensor
    strength: float
    band: str | Sequence[int] = "middle"
    unit: Literal["relative", "absolute"] = "relative"

    def added(
        self, n_layers: int, hidden: int, residual_norms: Tensor | None, reach: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Direction and length at each layer, as in :class:`~introspection_lit.steering.intervention.Intervention`.

        Args:
            n_layers: Decoder layers of the model.
            hidden: Its hidden size.
            residual_norms: Median norm of the residual stream after each layer, ``(layers,)``; needed for ``relative``.
            reach: Number of the first layers whose output reaches the cache; None: of all but the last.

        Returns:
            Directions of length 1 (or 0), ``(layers, hidden)``, and lengths, 0 outside the band, ``(layers,)``. Float32.

        Raises:
            ConfigurationError: The direction, the strength, the band or the unit cannot be used.
        """
        rows = torch.as_tensor(self.direction).detach().double().cpu()
        if tuple(rows.shape) not in ((hidden,), (n_layers, hidden)) or not rows.isfinite().all() or not rows.any():
            expected = f"Expected ({hidden},) or ({n_layers}, {hidden}), finite and not zero"
            raise ConfigurationError([f"steering.direction: got shape {tuple(rows.shape)}. {expected}."])
        if not LEAST_STRENGTH <= self.strength <= MOST_STRENGTH:
            expected = f"Expected a number from {LEAST_STRENGTH:g} to {MOST_STRENGTH:g}; to subtract, negate the direction"
            raise ConfigurationError([f"steering.strength: got {self.strength}. {expected}."])
        if self.unit not in ("relative", "absolute"):
            raise ConfigurationError([f"steering.unit: got {self.unit!r}. Expected 'relative' or 'absolute'."])
        if self.unit == "relative" and residual_norms is None:
            needed = "relative strengths are shares of the residual norms, which a vector bank holds, and there is none"
            action = "Give a bank (detector.bank = VectorBank.load(Path(FILE))), or unit='absolute'"
            raise ConfigurationError([f"steering.unit: {needed}. {action}."])
        (band,) = resolve_bands([self.band], n_layers, reach=reach)
        lengths = layer_scale(
            self.strength, band, torch.zeros(n_layers) if residual_norms is None else residual_norms, self.unit
        )
        directions = functional.normalize(rows, dim=-1).float().expand(n_layers, hidden)
        if not directions[lengths > 0].any():
            raise ConfigurationError([f"steering.direction: it is zero at all layers of the band {list(band)}."])
        return directions, lengths
