"""Summaries of trials by hand, and gathering over batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from statsmodels.stats.proportion import proportion_confint

from introspection_lit.evaluation import metrics, statistics
from introspection_lit.evaluation.statistics import best_threshold
from introspection_lit.utils.errors import RunError


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
    with pytest.raises(RunError, match="1 of 2 trials gave no finite score"):
        metric.compute()


def test_limit_on_false_alarms_looks_beyond_the_scores_seen() -> None:
    """Kind by kind: the threshold is at the tolerance limit of the kind whose clean scores are highest."""
    random = np.random.default_rng(0)
    clean = np.concatenate([random.normal(-5, 1, 28), random.normal(-2, 1, 28), random.normal(-9, 1, 3)])
    scores = torch.tensor(np.concatenate([clean, random.normal(0, 9, 60)]))
    labels, kinds = torch.arange(119) >= 59, torch.tensor([0] * 28 + [1] * 28 + [2, 3, 4] + [0] * 60)
    trials = metrics.SplitScores(scores, labels, torch.ones(119), torch.arange(119), kinds)
    limit = statistics.tolerance_limit(clean[28:56], 0.99)
    assert metrics.choose_threshold(trials, 0.01) == pytest.approx(limit)
    assert limit > clean.max() + 0.5
    assert metrics.choose_threshold(trials, 1.0) == statistics.best_threshold(scores, labels)
    twice = metrics.SplitScores(*(torch.cat([column, column[:59]]) for column in trials))  # the same inputs again
    assert metrics.choose_threshold(twice, 0.01) == pytest.approx(limit)


def test_false_alarms_allowed_are_shares_of_distinct_inputs() -> None:
    """As the FPR that is reported: inputs that come twice in validation are one."""
    metric = metrics.DetectionMetrics()
    metric.max_fpr = 0.06
    low = torch.linspace(-3, -1, 18)
    scores = torch.cat([low, low, torch.tensor([0.0, 0.1]), torch.full((38,), -0.5)])
    inputs = torch.cat([torch.arange(18), torch.arange(18), torch.arange(18, 20), torch.arange(100, 138)])
    labels = torch.arange(76) >= 38
    metric.update(scores, labels, torch.ones(76), inputs, torch.arange(76))
    assert metric.compute()["fpr"] <= 0.06
