"""Mixed precision on the CPU without casting the same numbers again in every layer and every pass.

Autocast casts the input and the weight of each linear layer. It keeps the casts of weights that are trained, but makes
those of frozen weights anew in every pass (torch 2.13); and where several layers read the same input, as queries, keys,
values and their adapters do, it casts that once for each of them. The layers here keep both. What they compute is the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class CastOnce(nn.Linear):
    """A linear layer that keeps the casts which autocast would make again. Without autocast it is ``nn.Linear``."""

    def forward(self, input: Tensor) -> Tensor:
        """As ``nn.Linear``; ``(..., in)`` to ``(..., out)``."""
        kind = input.device.type
        if not torch.is_autocast_enabled(kind):
            return super().forward(input)
        dtype = torch.get_autocast_dtype(kind)
        weight = self.weight if self.weight.requires_grad else self._cast_weight(dtype)
        return nn.functional.linear(cast_input(input, dtype), weight, self.bias)

    def _cast_weight(self, dtype: torch.dtype) -> Tensor:
        weight = self.weight
        made_of = (weight.data_ptr(), weight._version, weight.device, dtype)
        kept: tuple[Any, Tensor] | None = self.__dict__.get("_kept")
        if kept is None or kept[0] != made_of:
            # A tensor made in inference mode, as validation is, could not be used in a backward pass.
            with torch.inference_mode(False), torch.no_grad():
                kept = self.__dict__["_kept"] = (made_of, weight.detach().to(dtype))
        return kept[1]


def cast_input(input: Tensor, dtype: torch.dtype) -> Tensor:
    """The cast of a tensor, which is kept with the tensor: the next layer that reads the same one finds it there."""
    if input.dtype == dtype or input.is_inference():  # whether the latter has changed since is not known
        return input.to(dtype)
    made_of = (input._version, dtype, torch.is_grad_enabled())
    kept: tuple[Any, Tensor] | None = getattr(input, "_kept_cast", None)
    if kept is None or kept[0] != made_of:
        kept = (made_of, input.to(dtype))
        input._kept_cast = kept  # type: ignore[attr-defined]
    return kept[1]


def cast_once(model: nn.Module) -> None:
    """Let the linear layers of a model keep their casts: half of the memory of float32 weights in addition, once used."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = CastOnce
