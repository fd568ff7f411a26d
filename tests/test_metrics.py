"""Summaries of trials by hand, and gathering over batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from statsmodels.stats.proportion import proportion_confint

from introspection_lit import metrics
from introspection_lit.errors import ConfigurationError
from introspection_lit.statistics import best_threshold


def draw(seed: int, n: int = 300, gap: float = 1.5):
    """Scores of clean and steered trials, in nats."""
    random = np.random.default_rng(seed)
    labels = random.random(n) < 0.4
    scores = (30 * (random.standard_normal(n) + gap * labels)).astype(np.float32)
    return torch.from_numpy(scores), torch.from_numpy(labels)


def test_interval_counts_distinct_clean_inputs() -> None:
    """One clean prompt asked fifty times is one input, not fifty."""
    scores = torch.cat([torch.full((50,), -1.0), torch.full((50,), 1.0)])
    labels = torch.arange(100) >= 50
    inputs = torch.where(labels, torch.arange(100), 7)
    summary = metrics.summarise(scores, labels, torch.ones(100), inputs, 0.0)
    assert (summary["n_clean"], summary["n_clean_distinct"], summary["fpr"]) == (50, 1, 0.0)
    assert summary["fpr_interval"] == pytest.approx(proportion_confint(0, 1, method="wilson"))


def test_summary_of_a_known_table() -> None:
    """Rates, accuracy and counts by hand."""
    scores = torch.tensor([1.0, 2.0, -1.0, 0.5, -2.0, -3.0])
    labels = torch.tensor([True, True, True, False, False, False])
    summary = metrics.summarise(scores, labels, torch.full((6,), 0.9), torch.arange(6), 0.0)
    assert summary["tpr"] == pytest.approx(2 / 3)
    assert summary["fpr"] == pytest.approx(1 / 3)
    assert summary["accuracy"] == pytest.approx(4 / 6)
    assert summary["auroc"] == pytest.approx(8 / 9)
    assert summary["mass"] == pytest.approx(0.9)
    assert (summary["n_steered"], summary["n_clean"], summary["n_clean_distinct"]) == (3, 3, 3)


def test_metric_over_batches_equals_summary_of_all() -> None:
    """Gathering in pieces changes nothing; without a threshold the best one is taken; reset forgets."""
    scores, labels = draw(0)
    metric = metrics.DetectionMetrics(threshold=None)
    for part in range(0, 300, 7):
        piece = slice(part, part + 7)
        numbers = torch.arange(300)[piece]
        metric.update(scores[piece], labels[piece], torch.ones(len(scores[piece])), numbers, numbers)
    best = best_threshold(scores, labels)
    assert metric.compute() == metrics.summarise(scores, labels, torch.ones(300), torch.arange(300), best)
    metric.reset()
    metric.total = 8  # two trials only filled up the batch
    metric.update(scores[:10], labels[:10], torch.ones(10), torch.arange(10), torch.arange(10))
    assert metric.compute() == metrics.summarise(
        scores[:8], labels[:8], torch.ones(8), torch.arange(8), best_threshold(scores[:8], labels[:8])
    )


def test_metric_keeps_to_the_false_alarms_allowed() -> None:
    """A threshold of its own allows no more false alarms than ``max_fpr``, and one given is taken as it is."""
    scores, labels = draw(1, gap=0.5)
    metric = metrics.DetectionMetrics()
    metric.update(scores, labels, torch.ones(300), torch.arange(300), torch.arange(300))
    free = metric.compute()
    metric.max_fpr, metric._computed = 0.02, None
    strict = metric.compute()
    assert strict["fpr"] <= 0.02 < free["fpr"]
    metric.threshold, metric._computed = -1000.0, None
    assert metric.compute()["fpr"] == 1.0


def test_a_score_that_is_no_number_is_refused() -> None:
    """A nan would outrank every score."""
    metric = metrics.DetectionMetrics()
    metric.update(
        torch.tensor([0.0, torch.nan]), torch.tensor([True, False]), torch.ones(2), torch.arange(2), torch.arange(2)
    )
    with pytest.raises(ConfigurationError, match="1 of 2 trials gave no finite score"):
        metric.compute()
