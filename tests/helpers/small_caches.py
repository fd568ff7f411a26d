"""A tiny model with the clean caches of a few contexts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from introspection_lit.models.architecture import find_decoder_layers
from introspection_lit.models.base_model import Lora
from introspection_lit.models.loading import add_lora
from introspection_lit.steering.intervention import Intervention
from introspection_lit.steering.prefill import fill_cache, pad

CONTEXTS = [list(range(10, 22)), list(range(40, 45)), list(range(60, 81)), [7, 8]]


class Model(SimpleNamespace):
    """A tiny model with its clean caches of :data:`CONTEXTS`."""

    model: Any
    layers: list
    ids: Tensor
    mask: Tensor
    cache: DynamicCache


def cached(base: PreTrainedModel) -> Model:
    """A model with its adapter, which is not trained, and caches."""
    model = add_lora(base, Lora()).eval()
    ids, mask = pad(CONTEXTS, 0, "left")
    cache = DynamicCache(config=model.get_base_model().config)
    with torch.no_grad():
        fill_cache(model, cache, ids, mask)
    return Model(model=model, layers=find_decoder_layers(model), ids=ids, mask=mask, cache=cache)


def nothing_added(small: Model, contexts: list[list[int]]) -> Intervention:
    """The intervention of clean caches."""
    size = small.model.get_input_embeddings().weight.shape[1]
    rows, layers = len(contexts), len(small.layers)
    return Intervention(torch.zeros(rows, 1, size), torch.zeros(rows, layers), torch.ones(rows, max(map(len, contexts))))
