"""The residual stream in what a decoder layer returns, which is not the same for all architectures."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def residual(layer: nn.Module, output: Any) -> Tensor:
    """The residual stream after a decoder layer, ``(batch, seq, hidden)``.

    Layers return it alone, or first in a tuple or a list. Gemma 3n's return several streams, ``(streams, batch, seq,
    hidden)``: the residual stream is the active one, on which a layer computes; the others are predicted from it and
    corrected by it (AltUp, Baykal et al. 2023, arXiv:2301.13310).

    Args:
        layer: The decoder layer.
        output: What its forward returned.

    Raises:
        ValueError: There is no such tensor.
    """
    hidden = output[0] if isinstance(output, tuple | list) else output
    if isinstance(hidden, Tensor) and hidden.dim() == 4:
        hidden = hidden[_active(layer, hidden)]
    if not isinstance(hidden, Tensor) or hidden.dim() != 3:
        shape = tuple(hidden.shape) if isinstance(hidden, Tensor) else type(hidden).__name__
        raise ValueError(f"{type(layer).__name__} returns {shape}. Expected a residual stream (batch, seq, hidden).")
    return hidden


def with_residual(layer: nn.Module, output: Any, hidden: Tensor) -> Any:
    """What a decoder layer returned, with another residual stream, ``(batch, seq, hidden)``."""
    first = output[0] if isinstance(output, tuple | list) else output
    if first.dim() == 4:
        active = _active(layer, first)
        first = first.clone()
        first[active] = hidden
        hidden = first
    return type(output)((hidden, *output[1:])) if isinstance(output, tuple | list) else hidden


def _active(layer: nn.Module, streams: Tensor) -> int:
    config: Any = getattr(layer, "config", None)
    if getattr(config, "altup_num_inputs", None) != len(streams):
        shape = tuple(streams.shape)
        raise ValueError(f"{type(layer).__name__} returns {shape}: several residual streams of a kind that is not known.")
    return int(config.altup_active_idx)
