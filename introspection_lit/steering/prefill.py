"""The prefill: the no-grad pass over the contexts, steered, that fills the KV cache."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from introspection_lit.steering.intervention import Intervention, steer

if TYPE_CHECKING:
    from peft import PeftModel


class Forward(Protocol):
    """A causal language model's forward, possibly through a wrapper such as DDP or FSDP."""

    def __call__(self, **kwargs: Any) -> Any:
        """Run the model."""


@contextmanager
def prefill_mode(model: PeftModel, adapter: bool) -> Iterator[None]:
    """Put a model in the mode in which caches are written: eval, no gradient, adapter off.

    Args:
        model: The model with its LoRA adapter.
        adapter: Leave the adapter on. The claim under test is that it *reads* caches, so by default it is off.
    """
    training = model.training
    model.eval()
    off: AbstractContextManager[Any] = nullcontext() if adapter else model.disable_adapter()
    try:
        with torch.no_grad(), off:
            yield
    finally:
        model.train(training)


def pad(rows: Sequence[Sequence[int]], pad_token: int, side: str) -> tuple[Tensor, Tensor]:
    """Pad token lists to the longest.

    Args:
        rows: Token ids.
        pad_token: The token id at padded positions.
        side: ``left`` or ``right``: where the padding goes.

    Returns:
        Ids and mask (1 at tokens), both ``(batch, longest)`` int64.
    """
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_token)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(rows):
        place = slice(width - len(tokens), None) if side == "left" else slice(len(tokens))
        ids[row, place] = torch.tensor(tokens, dtype=torch.long)
        mask[row, place] = 1
    return ids, mask


def no_logits(ids: Tensor) -> Tensor:
    """Positions, none of them, for ``logits_to_keep`` of a pass whose logits nobody wants: the head is skipped."""
    return torch.empty(0, dtype=torch.long, device=ids.device)


def position_ids(mask: Tensor) -> Tensor:
    """Positions that padding does not shift: ``(batch, seq)`` mask to ``(batch, seq)`` positions from 0."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def fill_cache(forward: Forward, cache: Cache, ids: Tensor, mask: Tensor) -> None:
    """Read left-padded contexts, ``(batch, context)`` ids and mask, into a cache; nobody wants their logits."""
    forward(
        input_ids=ids,
        attention_mask=mask,
        position_ids=position_ids(mask),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=no_logits(ids),
    )


def steered_cache(
    forward: Forward,
    model: PeftModel,
    layers: Sequence[nn.Module],
    context_ids: Tensor,
    context_mask: Tensor,
    intervention: Intervention,
    adapter: bool = False,
) -> Cache:
    """Run the contexts through the model under an intervention and keep the KV cache.

    Args:
        forward: What to call; the model itself or the wrapper around it.
        model: The model with its adapter.
        layers: Its decoder layers.
        context_ids: Left-padded tokens, ``(batch, context)``.
        context_mask: 1 at tokens, 0 at padding, ``(batch, context)``.
        intervention: What to add, row by row.
        adapter: Leave the adapter on while the cache is written.

    Returns:
        A cache of ``context`` positions without gradient; padding is inside, to be masked.
    """
    cache = DynamicCache(config=model.get_base_model().config)
    with prefill_mode(model, adapter), steer(layers, intervention):
        fill_cache(forward, cache, context_ids, context_mask)
    return cache


def fork(cache: Cache) -> Cache:
    """Copy a cache without copying its tensors.

    A forward pass appends to the cache it is given. The appended tensors are new ones, so a shallow copy is enough to
    ask several questions of the same cache, or the same question twice.
    """
    forked = copy.copy(cache)
    forked.layers = [copy.copy(layer) for layer in cache.layers]
    return forked
