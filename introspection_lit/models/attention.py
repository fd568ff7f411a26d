"""Which attention implementation runs where, of those that compute the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from introspection_lit.models.base_model import BaseModel, Implementation

if TYPE_CHECKING:
    from introspection_lit.utils.lazy_types import PeftModel


def question_attention(base: BaseModel, model: PeftModel, recompute: bool) -> AbstractContextManager[None]:
    """The attention implementation for the question pass, under the autocast of the moment.

    Args:
        base: Options of the model.
        model: It and its adapter.
        recompute: Layers run again in the backward pass, after the block: as they did in it, so nothing is changed.
    """
    device, inner = model.device.type, model.get_base_model()
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else inner.dtype
    switchable = getattr(type(inner), "_supports_attention_backend", False) and not recompute
    eager = switchable and base.eager_for_questions(device, dtype == torch.bfloat16)
    return attention(model, "eager") if eager else nullcontext()


@contextmanager
def attention(model: PeftModel, implementation: Implementation) -> Iterator[None]:
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
