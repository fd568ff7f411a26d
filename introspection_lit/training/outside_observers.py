"""Observers from outside fitted on the adapter's training trials: on features of the caches, and on whole caches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from introspection_lit.evaluation.cache_reader import (
    Batch,
    CacheReader,
    fit_reader,
    layer_states,
    reader_scores,
    tokens_to_read,
)
from introspection_lit.evaluation.observers import Features, Observers, cache_features, concatenate
from introspection_lit.training.options import DEFAULT_BATCH_SIZE
from introspection_lit.trials.batch import TrialBatch
from introspection_lit.trials.changed_plans import without_curriculum
from introspection_lit.trials.loaders import SplitBatches
from introspection_lit.trials.split import Split
from introspection_lit.utils.errors import ConfigurationError

if TYPE_CHECKING:
    from introspection_lit.training.run_context import RunContext


def features_of(run: RunContext, batch: TrialBatch) -> Features:
    """Features of a batch with its caches, for the outside observers."""
    assert batch.cache is not None
    contexts = run.splits[batch.split].contexts
    texts = ["\n".join(turn.content for turn in contexts[trial.context].turns) for trial in batch.trials]
    seen = cache_features(batch.cache, batch.readable, texts)
    own = cache_rows(batch).cpu().numpy()
    return Features(seen.means[own], seen.norms[own], texts)


def cache_rows(batch: TrialBatch) -> torch.Tensor:
    """The row of the cache that each trial of a batch reads, ``(batch,)``."""
    return torch.arange(len(batch.trials)) if batch.cache_of is None else batch.cache_of.cpu()


def training_split(run: RunContext) -> Split:
    """The training trials with their true labels and steering, also in control runs; each cache once.

    There is no curriculum: its first trials alone are no sample of ``data.strengths``.
    """
    split = replace(run.splits["train"], control="none").single_question()
    return replace(split, plan=without_curriculum(split.plan))


def training_batches(run: RunContext, n: int, device: torch.device) -> Iterator[TrialBatch]:
    """The first ``n`` training trials, in batches that do not depend on the training's, with their caches."""
    batches = SplitBatches(training_split(run), run.vector_bank, DEFAULT_BATCH_SIZE, 1)
    return (run.with_cache(batches[number].to(device)) for number in range(-(-n // DEFAULT_BATCH_SIZE)))


def fit_observers(run: RunContext, n: int, device: torch.device) -> Observers:
    """Fit the outside observers on the first ``n`` trials of the training."""
    contexts = training_split(run).contexts
    seen, labels, groups = [], [], []
    for batch in training_batches(run, n, device):
        seen.append(features_of(run, batch))
        labels.append(batch.labels.cpu().numpy())
        groups += [contexts[trial.context].key for trial in batch.trials]
    return Observers(concatenate(seen), np.concatenate(labels), groups)


def fit_cache_reader(run: RunContext, n: int, device: torch.device) -> CacheReader:
    """Train the cache reader on the first ``n`` trials of the training, each once.

    Raises:
        ConfigurationError: The model's layers keep no keys and values.
    """
    batches = training_batches(run, n, device)

    def next_batch(_: int) -> Batch:
        batch = next(batches)
        assert batch.cache is not None
        states = layer_states(batch.cache, batch.readable)
        if not states:
            raise ConfigurationError(["evidence.reader_trials: no layer of this model keeps keys and values."])
        rows = cache_rows(batch).to(device)  # trials may share a clean cache
        return [part[rows] for part in states], tokens_to_read(batch.readable)[rows], batch.labels

    return fit_reader(next_batch, -(-n // DEFAULT_BATCH_SIZE), run.options.seed)


def cache_reader_scores(reader: CacheReader, batch: TrialBatch) -> np.ndarray:
    """The reader's log-odds of each trial of a batch with its caches, ``(batch,)``."""
    assert batch.cache is not None
    return reader_scores(reader, batch.cache, batch.readable)[cache_rows(batch).numpy()]
