"""The prefill: the steered forward pass over the contexts, without gradient, that fills the KV cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from introspection_lit.steering.intervention import Intervention, steer
from introspection_lit.utils.cache_option import cache_option

if TYPE_CHECKING:
    from peft import PeftModel


class Forward(Protocol):
    """A causal language model's forward, possibly through a wrapper such as DDP or FSDP."""

    def __call__(self, **kwargs: Any) -> Any:
        """Run the model."""


@contextmanager
def prefill_mode(model: PeftModel, adapter: bool) -> Iterator[None]:
    """The mode of the model while caches are written: eval, no gradient, adapter off.

    At the end every module gets the mode back that it had, and every weight whether it is trained.

    Args:
        model: The model with its LoRA adapter.
        adapter: Leave the adapter on. It is meant to *read* caches, so normally it is off.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer  # PEFT takes a second to import: not for --help
    from peft.utils.other import AuxiliaryTrainingWrapper

    # One walk over the modules: PEFT's own context takes seven (findings/peft-disable-adapter-walks.sh).
    modules = list(model.modules())
    training = [module for module in modules if module.training]
    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)  # all that can be switched off
    reading: list[Any] = [] if adapter else [m for m in modules if isinstance(m, kinds) and not m.disable_adapters]
    frozen = [parameter for module in reading for parameter in module.parameters() if not parameter.requires_grad]
    for module in training:
        module.training = False
    for module in reading:
        module.enable_adapters(False)
    try:
        with torch.no_grad():
            yield
    finally:
        for module in reading:
            module.enable_adapters(True)
        for parameter in frozen:  # enabling makes an adapter trainable that was loaded for inference (PEFT issue 3447)
            if parameter.requires_grad:
                parameter.requires_grad_(False)
        for module in training:
            module.training = True


def pad(rows: Sequence[Sequence[int]], pad_token: int, side: str) -> tuple[Tensor, Tensor]:
    """Pad lists of tokens to the length of the longest.

    Args:
        rows: Token ids, a list for each row.
        pad_token: The token id at padded positions.
        side: ``left`` or ``right``: the side of the padding.

    Returns:
        Ids and mask (1 at tokens, 0 at padding), both ``(batch, longest)`` int64.
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
    """An empty index for ``logits_to_keep``, which skips the language-model head."""
    return torch.empty(0, dtype=torch.long, device=ids.device)


def position_ids(mask: Tensor) -> Tensor:
    """Positions from 0 that do not count padding, ``(batch, seq)``, from a ``(batch, seq)`` mask."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def fill_cache(forward: Forward, cache: Cache, ids: Tensor, mask: Tensor) -> None:
    """Run left-padded contexts, ids and mask ``(batch, context)``, through the model to fill a cache; no logits."""
    forward(
        input_ids=ids,
        attention_mask=mask,
        position_ids=position_ids(mask),
        **{cache_option(forward): cache},
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
    """Run contexts through the model under an intervention and return the KV cache.

    Args:
        forward: The model, or its DDP or FSDP wrapper.
        model: The model with its adapter.
        layers: Its decoder layers.
        context_ids: Left-padded tokens, ``(batch, context)``.
        context_mask: 1 at tokens, 0 at padding, ``(batch, context)``.
        intervention: What to add to each row.
        adapter: Leave the adapter on while the cache is written.

    Returns:
        A cache of ``context`` positions without gradient; positions at padding must be masked.
    """
    cache = DynamicCache(config=model.get_base_model().config)
    with prefill_mode(model, adapter), steer(layers, intervention):
        fill_cache(forward, cache, context_ids, context_mask)
    return cache
