"""A batch of trials as padded tensors, and later with its KV cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from introspection_lit.steering.intervention import Intervention
from introspection_lit.trials.trial import Trial


@dataclass
class TrialBatch:
    """A batch on its way from the data loader through the prefill to the training or test step.

    A row is a trial. Rows with the same context and intervention share a cache.

    Attributes:
        trials: The trial of each row.
        context_ids: Left-padded tokens, ``(caches, context)``.
        context_mask: 1 at tokens, 0 at padding, ``(caches, context)``.
        contexts: Index of each cache's context in the split.
        cache_of: Index of the cache that each row reads, ``(batch,)``; None: row ``i`` reads cache ``i``.
        question_prefix_ids: Tokens that all questions begin with, ``(prefix,)``, if caches are shared: read once for each
            cache. None: questions are read in full by every row.
        question_ids: Right-padded tokens without that prefix, ``(batch, question)``.
        question_mask: 1 at tokens, 0 at padding, ``(batch, question)``.
        intervention: What is added to the residual stream of each cache.
        labels: True where steered, ``(batch,)``.
        inputs: Hash of context and question, ``(batch,)`` int64: equal for rows with the same input.
        numbers: Number of each trial in its split, ``(batch,)`` int64.
        kinds: Hash of the context's kind, ``(batch,)`` int64.
        answer_ids: Token ids of yes ("steered") and no, ``(2,)``.
        total: Trials in the split; rows with this number or a higher one are padding. None: unlimited.
        cache: The KV cache of the contexts; None before the prefill.
    """

    trials: list[Trial]
    context_ids: Tensor
    context_mask: Tensor
    contexts: list[int]
    cache_of: Tensor | None
    question_prefix_ids: Tensor | None
    question_ids: Tensor
    question_mask: Tensor
    intervention: Intervention
    labels: Tensor
    inputs: Tensor
    numbers: Tensor
    kinds: Tensor
    answer_ids: Tensor
    total: int | None = None
    cache: Cache | None = None

    @property
    def split(self) -> str:
        """Name of the split; all trials of a batch belong to one."""
        return self.trials[0].split

    def to(self, device: torch.device, **options: Any) -> TrialBatch:
        """Move every tensor to a device, in place; Lightning calls this before the prefill."""
        for owner in (self, self.intervention):
            for name, value in vars(owner).items():
                if isinstance(value, Tensor):
                    setattr(owner, name, value.to(device, **options))
        return self
