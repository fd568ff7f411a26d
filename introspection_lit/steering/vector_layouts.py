"""What the numbers of a file of directions are: which key names a layer, and what the rows of a tensor stand for."""

from __future__ import annotations

import re
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Layout = Literal["auto", "directions", "layers", "layers+1"]
# What can be said about a file: rows are directions for every layer; rows are the layers of one direction; the same with
# the embeddings first, as in the hidden states of transformers.
LAYOUTS: tuple[str, ...] = get_args(Layout)[1:]
PLAIN = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
NO_LAYER = 10**9  # stands for a layer number that no model has
NEGATIVE = -1  # and this for all that count from the end
# As in direction.3, layer_3, layers.3, layer-3 and model.layers.3.
_LAYER = re.compile(r"(?:direction\.|(?:model\.)?layers?[ ._-]?)?(-?)([0-9]+)", re.IGNORECASE)


def layer_of(key: object) -> int | None:
    """The layer that a key names, as an integer or as in ``direction.3`` or ``layer_3``; None if it is another name."""
    if isinstance(key, int) and not isinstance(key, bool):
        return max(NEGATIVE, min(key, NO_LAYER))
    match = _LAYER.fullmatch(key) if isinstance(key, str) else None
    if match is None:
        return None
    if match[1]:
        return NEGATIVE
    return min(int(match[2].lstrip("0")[:10] or 0), NO_LAYER)


def value_problem(value: Any) -> str | None:
    """Check that an entry holds plain tensors of floating-point numbers only; a sentence if not.

    Args:
        value: A tensor, or a dict of tensors by layer.
    """
    for part in value.values() if isinstance(value, dict) else (value,):
        if type(part) not in (Tensor, torch.nn.Parameter):
            return f"expected a tensor of floating-point numbers, got {type(part).__name__}."
        plain = not part.is_nested and part.layout == torch.strided and part.device.type == "cpu" and not part.is_quantized
        if part.dtype not in PLAIN or not plain:
            return f"expected a plain tensor of floating-point numbers, got {part.dtype} ({part.layout}, {part.device})."
    return None


def by_layout(value: Any, n_layers: int, layout: Layout) -> tuple[Any, str | None]:
    """Turn an entry round so that the rows of a tensor ``(n, hidden)`` are directions, and layers count from the first.

    Args:
        value: A tensor, or a dict of tensors by layer.
        n_layers: Number of decoder layers of the model.
        layout: What the file says; with ``auto`` the shape decides.

    Returns:
        The entry, a tensor ``(n, layers, hidden)`` where rows were layers; and a sentence for the user if only the shape
        says so.

    Raises:
        ValueError: It is no plain tensor of numbers, its shape can mean two things, or does not fit the layout.
    """
    if problem := value_problem(value):
        raise ValueError(problem)
    if isinstance(value, dict):
        return ({layer - 1: part for layer, part in value.items() if layer} if layout == "layers+1" else value), None
    shape, single = tuple(value.shape)[:8], value.dim() == 3 and value.shape[1] == 1 < n_layers
    value = value[:, 0] if single else value  # (layers, 1, hidden), as some tools keep a direction
    rows = value.shape[-2] if value.dim() in (2, 3) else 0
    if layout == "directions":
        return value, None
    if layout == "auto" and value.dim() == 2 and rows == n_layers and not single:
        raise ValueError(
            f"shape {shape} can mean {rows} directions or one with a direction for each of the {n_layers} layers. Say "
            "which with --layout directions or --layout layers."
        )
    if layout == "auto" and rows != n_layers + 1 and not (single and rows == n_layers):
        return value, None
    expected = n_layers if layout == "layers" or (layout == "auto" and rows == n_layers) else n_layers + 1
    if rows != expected:
        last = value.shape[-1] if value.dim() else "hidden"
        raise ValueError(
            f"it has shape {shape}. Expected ({expected}, {last}) or (n, {expected}, {last}) with --layout {layout}, for "
            f"the {n_layers} layers of this model."
        )
    before, said = (
        (", after a row for the embeddings, which is left out", "layers+1") if rows > n_layers else ("", "layers")
    )
    by_layer = value[..., rows - n_layers :, :]
    note = f"{shape} is read as a direction for each of the {n_layers} layers{before} (--layout {said})."
    note += f" If these are {rows} directions, give --layout directions." if value.dim() == 2 else ""
    return by_layer[None] if value.dim() == 2 else by_layer, note if layout == "auto" else None
