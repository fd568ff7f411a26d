"""What a cache keeps for each row, whatever the architecture: keys and values, states of recurrent layers, or nothing.

``transformers`` has a class for each kind of layer, and some of its methods reach a part of them only: rows are selected
and caches are forked here instead (transformers 5.23: ``batch_select_indices`` raises on layers with a state, and leaves
the state of layers with attention *and* a state as it is).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from torch import Tensor
from transformers import Cache

# What has a place for each token, and along which dimension; a state has none. The first dimension is the row.
TOKENS = {"keys": 2, "values": 2, "indexer_keys": 1}
STATES = ("conv_states", "recurrent_states")


def row_tensors(layer: Any) -> dict[str, Tensor]:
    """The tensors that a layer of a cache keeps for its rows, by name.

    Args:
        layer: Of any kind; layers without anything of their own have none.

    Returns:
        ``keys`` and ``values``, ``(rows, heads, tokens, width)``, whose widths may differ; ``indexer_keys``,
        ``(rows, tokens, width)``; and ``conv_states.N`` and ``recurrent_states.N``, ``(rows, ...)``.
    """
    found = {name: getattr(layer, name, None) for name in TOKENS}
    for name in STATES:
        found |= {f"{name}.{number}": state for number, state in getattr(layer, name, {}).items()}
    return {name: tensor for name, tensor in found.items() if tensor is not None and tensor.numel()}


def tokens_dim(name: str) -> int | None:
    """The dimension of the tokens of a tensor of :func:`row_tensors`; None: it is a state of all of them."""
    return TOKENS.get(name)


def set_row_tensors(layer: Any, tensors: Mapping[str, Tensor]) -> None:
    """Replace tensors of a layer; none is written to in place."""
    for name, tensor in tensors.items():
        owner, _, number = name.partition(".")
        if number:
            setattr(layer, owner, getattr(layer, owner) | {int(number): tensor})
        else:
            setattr(layer, name, tensor)


def fill_layer(layer: Any, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors into a layer that has none yet, by the library's own methods, which keep count of tokens and states."""
    if "keys" in tensors:
        layer.update(tensors["keys"], tensors["values"])
    if "indexer_keys" in tensors:
        layer.update_indexer(tensors["indexer_keys"])
    for name, tensor in tensors.items():
        owner, _, number = name.partition(".")
        if owner == "conv_states":
            layer.update_conv_state(tensor, state_idx=int(number))
        elif owner == "recurrent_states":
            layer.update_recurrent_state(tensor, state_idx=int(number))


def select_rows(cache: Cache, rows: Tensor) -> None:
    """Let a cache consist of some of its rows, ``(new rows,)``, which may repeat; its tensors are replaced, not changed."""
    for layer in cache.layers:
        set_row_tensors(layer, {name: tensor[rows] for name, tensor in row_tensors(layer).items()})


def fork(cache: Cache) -> Cache:
    """Copy a cache without copying its tensors: what a forward pass does to the copy leaves the original as it is.

    Attention appends to a cache by making new tensors. Recurrent layers write their states in place, which the copy's
    layers do not; so their old states can be used in a backward pass, too.
    """
    forked = copy.copy(cache)
    forked.layers = [fork_layer(layer) for layer in cache.layers]
    return forked


def fork_layer(layer: Any) -> Any:
    """Copy a layer of a cache, as :func:`fork` does."""
    forked = copy.copy(layer)
    if hasattr(layer, "recurrent_states"):
        for name, value in vars(layer).items():
            if isinstance(value, dict):
                # A clone, because some kernels write a state that they are handed in place.
                own = {key: part.clone() if isinstance(part, Tensor) else part for key, part in value.items()}
                setattr(forked, name, own)
        forked.__class__ = _without_writing(type(layer))  # type: ignore[arg-type]
    return forked


@lru_cache(maxsize=64)
def _without_writing(kind: Any) -> type:
    """The class of layers of a kind that replace their states, where the library's write into them to keep the address."""
    if getattr(kind, "replaces_states", False):
        return kind

    class Replacing(kind):  # of one base, or instances of ``kind`` could not become ones of this class
        replaces_states = True
        _layer_type = None  # with one, transformers would register the class for layers of this type

        def update_conv_state(self, conv_states: Tensor, state_idx: int = 0, **options: Any) -> Tensor:
            renew(self.conv_states, state_idx)
            updated: Tensor = super().update_conv_state(conv_states, state_idx, **options)
            return updated

        def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **options: Any) -> Tensor:
            renew(self.recurrent_states, state_idx)
            updated: Tensor = super().update_recurrent_state(recurrent_states, state_idx, **options)
            return updated

    def renew(states: dict[int, Tensor | None], number: int) -> None:
        old = states[number]
        states[number] = None if old is None else old.clone()

    return Replacing
