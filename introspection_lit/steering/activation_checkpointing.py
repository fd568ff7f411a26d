"""Activation checkpointing of the detection pass: less memory for a second run of every decoder layer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache


@contextmanager
def recompute_layers(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Keep only the inputs of decoder layers for the backward pass, and run the layers again there.

    Method: Chen et al. 2016, arXiv:1604.06174, with one segment for each layer. Gradients are those of a plain pass:
    dropout and autocast are the same in both runs (``torch.utils.checkpoint``, not the reentrant kind), and so is the KV
    cache. A layer appends to the cache it is given, and would read its own keys twice in the second run; so both runs get a
    fork of the cache as the layer found it. Backward may run after the block has ended.

    The cache that is given to the model stays as it was: what the layers append is gone with the forks.

    Args:
        layers: The model's decoder layers, in order: layer ``i`` writes ``cache.layers[i]`` and no other. Inside FSDP units
            the modules that are wrapped, not the wrappers. While the block runs they have another ``forward``; the old one
            is back afterwards, whatever happens inside.
    """
    before = [vars(layer).get("forward") for layer in layers]  # usually None: forward belongs to the class
    try:
        for index, layer in enumerate(layers):
            layer.forward = _run_twice(layer.forward, index)
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            vars(layer).pop("forward", None)
            if forward is not None:
                layer.forward = forward


def _run_twice(forward: Callable[..., Any], index: int) -> Callable[..., Any]:
    """Checkpoint the ``forward`` of decoder layer ``index``."""

    def checkpointed(*args: Any, past_key_values: Cache, **kwargs: Any) -> Any:
        found = _fork_at(past_key_values, index)

        def run(*inputs: Any) -> Any:
            return forward(*inputs, past_key_values=_fork_at(found, index), **kwargs)

        return checkpoint(run, *args, use_reentrant=False)

    return checkpointed


def _fork_at(cache: Cache, index: int) -> Cache:
    """Fork what one layer appends to; a fork of all layers for every layer would take time in large models."""
    forked = copy.copy(cache)
    forked.layers = [copy.copy(layer) if place == index else layer for place, layer in enumerate(cache.layers)]
    return forked
