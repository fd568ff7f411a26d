"""Another pass over contexts: caches whose halves were read apart, and the attention that each token receives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import Cache

from introspection_lit.steering.attention import attention
from introspection_lit.steering.intervention import Intervention
from introspection_lit.steering.prefill import position_ids, steered_cache
from introspection_lit.utils.errors import RunError

if TYPE_CHECKING:
    from peft import PeftModel


def chunked_cache(
    model: PeftModel, layers: Sequence[nn.Module], ids: Tensor, mask: Tensor, intervention: Intervention
) -> Cache:
    """Caches of contexts whose halves were read apart: the second half saw nothing of the first, at its own positions.

    Args:
        model: The model with its adapter, which is off.
        layers: Its decoder layers.
        ids: Left-padded contexts, ``(rows, context)``.
        mask: 1 at tokens, 0 at padding.
        intervention: What is added to each row.
    """
    places, lengths = position_ids(mask), mask.sum(dim=1)
    late = places >= lengths[:, None] // 2
    seen = torch.ones(ids.shape[1], ids.shape[1], device=ids.device).tril().bool() & mask[:, None, :].bool()
    seen = seen & (late[:, :, None] == late[:, None, :]) | torch.eye(ids.shape[1], device=ids.device).bool()
    dtype = model.get_input_embeddings().weight.dtype
    hidden = torch.zeros(seen.shape, dtype=dtype, device=ids.device).masked_fill(~seen, torch.finfo(dtype).min)

    def forward(**given: Any) -> Any:
        return model(**given | {"attention_mask": hidden[:, None], "position_ids": places})

    return steered_cache(forward, model, layers, ids, mask, intervention)


def received_attention(
    model: PeftModel, layers: Sequence[nn.Module], ids: Tensor, mask: Tensor, intervention: Intervention
) -> Tensor:
    """How much attention each token receives from the tokens of its own context, summed over those, in each layer and head.

    Args:
        model: The model with its adapter, which is off.
        layers: Its decoder layers.
        ids: Left-padded contexts, ``(rows, context)``.
        mask: 1 at tokens, 0 at padding.
        intervention: What is added to each row.

    Returns:
        ``(rows, layers, heads of keys, context)``: query heads that share a head of keys are summed.

    Raises:
        RunError: The model's attention does not give its weights.
    """
    found: dict[int, Tensor] = {}

    def hook_for(layer: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
            if isinstance(weights, Tensor) and weights.dim() == 4 and weights.shape[2:] == (ids.shape[1],) * 2:
                found[layer] = (weights * mask[:, None, :, None]).sum(dim=2)

        return hook

    handles = [child.register_forward_hook(hook_for(n)) for n, layer in enumerate(layers) for child in layer.children()]
    try:
        with attention([model], "eager"):
            cache = steered_cache(model, model, layers, ids, mask, intervention)
    finally:
        for handle in handles:
            handle.remove()
    if len(found) < len(layers):
        problem = f"heavy_hitters needs attention weights, and {len(layers) - len(found)} layers of the model give none"
        raise RunError([f"data.test_changes, data.benign: {problem}. Leave it out."])
    by_key_head = [found[n].reshape(len(ids), cache.layers[n].keys.shape[1], -1, ids.shape[1]) for n in range(len(layers))]
    return torch.stack([weights.sum(dim=2) for weights in by_key_head], dim=1)
