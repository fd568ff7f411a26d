"""Activation checkpointing of the question pass: less memory, but every decoder layer runs twice."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache

from introspection_lit.steering.attention import attention, configurations
from introspection_lit.steering.caches import fork_layer


@contextmanager
def recompute_layers(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Store only the inputs of decoder layers for the backward pass, and run the layers again there.

    Method: Chen et al. 2016, arXiv:1604.06174, with one segment for each layer. Gradients equal those of a plain pass:
    dropout and autocast are the same in both runs (``torch.utils.checkpoint`` without reentrance), and so are the attention
    implementation and the KV cache.
    A layer appends to its cache and would read its own keys twice in the second run, so each run gets its own fork of the
    cache. The backward pass may run after the block has ended.

    The model's cache does not change: what the layers append is lost with the forks.

    Args:
        layers: The model's decoder layers, in order; layer ``i`` writes ``cache.layers[i]`` only. With FSDP, the wrapped
            modules, not the wrappers. Their ``forward`` is replaced inside the block and always restored.
    """
    overrides = [vars(layer).get("forward") for layer in layers]  # usually None: forward belongs to the class
    try:
        for index, layer in enumerate(layers):
            used = {config._attn_implementation for config in configurations([layer])}
            again = partial(attention, [layer], used.pop()) if len(used) == 1 else nullcontext
            layer.forward = _run_twice(layer.forward, index, again)
        yield
    finally:
        for layer, forward in zip(layers, overrides, strict=True):
            vars(layer).pop("forward", None)
            if forward is not None:
                layer.forward = forward


def _run_twice(
    forward: Callable[..., Any], index: int, again: Callable[[], AbstractContextManager[None]]
) -> Callable[..., Any]:
    """Checkpoint the ``forward`` of decoder layer ``index``; ``again`` makes the block of the second run."""

    def forked(value: Any) -> Any:
        return _fork_at(value, index) if isinstance(value, Cache) else value

    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        originals = [forked(value) for value in args]  # some layers take their cache by position
        named = {name: forked(value) for name, value in kwargs.items()}

        def run(*inputs: Any) -> Any:
            return forward(*map(forked, inputs), **{name: forked(value) for name, value in named.items()})

        return checkpoint(run, *originals, use_reentrant=False, context_fn=lambda: (nullcontext(), again()))

    return checkpointed


def _fork_at(cache: Cache, index: int) -> Cache:
    """Fork one layer of a cache; forking all layers for every layer would be slow in large models."""
    forked = copy.copy(cache)
    forked.layers = [fork_layer(layer) if place == index else layer for place, layer in enumerate(cache.layers)]
    return forked
