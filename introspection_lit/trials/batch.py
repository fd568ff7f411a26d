"""A batch of trials as padded tensors."""

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
    """A batch on its way from the data loader through the prefill to the step.

    Attributes:
        trials: What each row is.
        context_ids: Left-padded, ``(caches, context)``: one for each context and intervention.
        context_mask: 1 at tokens, ``(caches, context)``.
        contexts: The number of each cache's context in the split.
        cache_of: Which of the caches each row reads, ``(batch,)``; None: each row has its own, in order.
        lead_ids: Tokens with which every question of the batch begins, ``(lead,)``, if caches are shared: they are read
            once for each cache. None: there are none.
        question_ids: Right-padded, ``(batch, question)``, without the lead.
        question_mask: 1 at tokens, ``(batch, question)``.
        intervention: What is added to the residual stream of each cache.
        labels: True where steered, ``(batch,)``.
        inputs: A number for each distinct context and question, ``(batch,)`` int64.
        numbers: The number of each trial in its split, ``(batch,)`` int64.
        kinds: A number for each kind of context, ``(batch,)`` int64.
        answer_ids: Tokens of yes and no, ``(2,)``.
        total: Trials in the set: rows with this number or a higher one only fill up the last batches. None: no end.
        cache: The KV cache of the contexts, once the prefill has run.
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
        """The split that all its trials belong to."""
        return self.trials[0].split

    def to(self, device: torch.device, **options: Any) -> TrialBatch:
        """Move every tensor, in place; Lightning calls this before the prefill."""
        for owner in (self, self.intervention):
            for name, value in vars(owner).items():
                if isinstance(value, Tensor):
                    setattr(owner, name, value.to(device, **options))
        return self
