"""An independent answer to "what should this model say": one pass, one row, no cache, no padding, hooks of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def answer(
    model: Any, layers: Sequence[nn.Module], context: Sequence[int], question: Sequence[int], added: dict[int, Tensor]
) -> Tensor:
    """The logits after a question, ``(vocabulary,)``, of a model that is steered at the context alone.

    Args:
        model: With an adapter, which acts on the question alone.
        layers: Its decoder layers.
        context: Tokens.
        question: Tokens.
        added: What is added to the output of some layers at every token of the context, ``(hidden,)`` each.
    """
    ids = torch.tensor([[*context, *question]])
    with _steered(layers, added, len(context)), _adapter_from(model, len(context)):
        logits: Tensor = model(input_ids=ids, use_cache=False).logits[0, -1]
    return logits


@contextmanager
def _steered(layers: Sequence[nn.Module], added: dict[int, Tensor], end: int) -> Iterator[None]:
    def hook_for(vector: Tensor) -> Any:
        def hook(module: Any, args: Any, output: Any) -> Any:
            first = output[0] if isinstance(output, tuple | list) else output
            steered = first.clone()
            # Gemma 3n: of several streams, the one on which the layers compute.
            stream = steered[module.config.altup_active_idx] if steered.dim() == 4 else steered
            stream[:, :end] += vector
            return type(output)((steered, *output[1:])) if isinstance(output, tuple | list) else steered

        return hook

    handles = [layers[number].register_forward_hook(hook_for(vector)) for number, vector in added.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _adapter_from(model: Any, start: int) -> Iterator[None]:
    """Let LoRA act from a token on."""

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(output[:, :start]), output[:, start:]], dim=1)

    ends = [module for name, module in model.named_modules() if ".lora_B." in name]
    handles = [module.register_forward_hook(hook) for module in ends]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
