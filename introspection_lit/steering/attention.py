"""Lets a model use another attention implementation for a while: they compute the same, up to rounding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft import PeftModel


@contextmanager
def attention(model: PeftModel, implementation: str) -> Iterator[None]:
    """Let a model use an attention implementation inside the block.

    Args:
        model: The model with its adapter.
        implementation: One that its architecture has.
    """
    base: Any = model.get_base_model()
    before = base.config._attn_implementation
    if implementation == before:
        yield
        return
    base.set_attn_implementation(implementation)
    try:
        yield
    finally:
        base.set_attn_implementation(before)
