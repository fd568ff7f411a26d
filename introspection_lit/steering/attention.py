"""Lets models use another attention implementation for a while: they compute the same, up to rounding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


def configurations(modules: Iterable[nn.Module]) -> list[Any]:
    """The configurations that modules and those in them read their attention implementation from, each once."""
    found = (getattr(inner, "config", None) for module in modules for inner in module.modules())
    return list({id(config): config for config in found if hasattr(config, "_attn_implementation")}.values())


@contextmanager
def attention(modules: Iterable[nn.Module], implementation: str) -> Iterator[None]:
    """Let modules use an attention implementation inside the block.

    Args:
        modules: A model, or decoder layers.
        implementation: One that the architecture has.
    """
    before = [(config, config._attn_implementation) for config in configurations(modules)]
    try:
        for config, _ in before:
            config._attn_implementation = implementation
        yield
    finally:
        for config, standing in before:
            config._attn_implementation = standing
