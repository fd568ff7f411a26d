"""A batch of trials as padded tensors, and later with its KV cache and its reference answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from introspection_lit.steering.cache_changes import CacheChange
from introspection_lit.steering.intervention import Intervention
from introspection_lit.trials.trial import Trial


@dataclass
class References:
    """The questions of a batch whose right answer is what the untrained model predicts from the clean cache.

    Attributes:
        cache_of: Index of the clean cache that each reads, ``(references,)``.
        question_ids: Right-padded tokens, ``(references, question)``.
        question_mask: 1 at tokens, 0 at padding, ``(references, question)``.
        place: The reference of each row of the batch, ``(batch,)``; -1: none.
        marks: Position of each question mark, ``(references,)``; -1: there is no early loss.
        log_probabilities: The answers, ``(references, vocabulary)``; None before they have been computed.
        early_log_probabilities: The predictions at the question marks, ``(references, vocabulary)``.
    """

    cache_of: Tensor
    question_ids: Tensor
    question_mask: Tensor
    place: Tensor
    marks: Tensor
    log_probabilities: Tensor | None = None
    early_log_probabilities: Tensor | None = None


@dataclass
class Texts:
    """Plain texts on which the adapter should change nothing: clean contexts of a batch.

    Attributes:
        caches: Index of the cache whose context each text is, ``(texts,)``.
        weights: Factor of each text's loss, ``(texts,)``; 0 for a text that only fills up a batch without any.
        log_probabilities: Of the untrained model, ``(texts, context, vocabulary)``; None before they have been computed.
    """

    caches: Tensor
    weights: Tensor
    log_probabilities: Tensor | None = None


@dataclass
class EarlyAnswers:
    """What the rows of a batch should predict at the question mark, before the answer words are named.

    Attributes:
        marks: Position of the question mark, ``(batch,)``; of rows without one, of the answer.
        tokens: Token of the answer in plain words, ``(batch,)``; -1: what the row's reference predicts there.
        factors: Factor of the loss in the row's loss, ``(batch,)``; 0: none.
    """

    marks: Tensor
    tokens: Tensor
    factors: Tensor


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
        answer_ids: Token ids of the answer words of each row, of two the one for "steered" first, ``(batch, words)``.
        targets: Index of the right answer, ``(batch,)``; -1: the right answer is one of ``references``.
        tasks: The task of each row.
        all_tasks: The tasks of the split, in order; empty for a single question.
        weights: Factor of each row's loss in the batch's, ``(batch,)``; None: the split asks a single question.
        references: Questions that are answered by the untrained model; None: there are none.
        texts: Plain texts; None: there are none.
        has_texts: Whether other batches of the split have plain texts.
        early: What is predicted at the question marks; None: nothing is trained there.
        total: Trials in the split; rows with this number or a higher one are padding. None: unlimited.
        cache: The KV cache of the contexts; None before the prefill.
        changes: The change of each cache besides steering; None: none is changed.
        cache_mask: 1 where a changed cache may be read, ``(caches, context)``; None: ``context_mask``.
        next_positions: Position of the first question token after each cache, ``(caches,)``; None: as many as tokens.
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
    targets: Tensor
    tasks: list[str]
    all_tasks: tuple[str, ...] = ()
    weights: Tensor | None = None
    references: References | None = None
    texts: Texts | None = None
    has_texts: bool = False
    early: EarlyAnswers | None = None
    total: int | None = None
    cache: Cache | None = None
    changes: list[CacheChange] | None = None
    cache_mask: Tensor | None = None
    next_positions: Tensor | None = None

    @property
    def readable(self) -> Tensor:
        """1 where a cache may be read, ``(caches, context)``."""
        return self.context_mask if self.cache_mask is None else self.cache_mask

    @property
    def split(self) -> str:
        """Name of the split; all trials of a batch belong to one."""
        return self.trials[0].split

    def select(self, rows: Sequence[int]) -> TrialBatch:
        """Some rows, with the same caches and without references, texts and early answers."""
        index = torch.tensor(rows, dtype=torch.long, device=self.question_ids.device)
        names = ("question_ids", "question_mask", "labels", "inputs", "numbers", "kinds", "answer_ids", "targets")
        return replace(
            self,
            trials=[self.trials[row] for row in rows],
            tasks=[self.tasks[row] for row in rows],
            cache_of=index if self.cache_of is None else self.cache_of[index],
            weights=None if self.weights is None else self.weights[index],
            references=None,
            texts=None,
            early=None,
            **{name: getattr(self, name)[index] for name in names},
        )

    def to(self, device: torch.device, **options: Any) -> TrialBatch:
        """Move every tensor to a device, in place; Lightning calls this before the prefill."""
        for owner in (self, self.intervention, self.references, self.texts, self.early):
            for name, value in vars(owner).items() if owner is not None else ():
                if isinstance(value, Tensor):
                    setattr(owner, name, value.to(device, **options))
        return self
