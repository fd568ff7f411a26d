"""Metrics against scikit-learn, statsmodels and known cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import balanced_accuracy_score, roc_auc_score, roc_curve
from statsmodels.stats.proportion import proportion_confint

from introspection_lit import metrics


def draw(seed: int, n: int = 300, gap: float = 1.5, digits: int | None = None):
    """Scores of clean and steered trials, in nats, with ties if rounded."""
    random = np.random.default_rng(seed)
    labels = random.random(n) < 0.4
    scores = (30 * (random.standard_normal(n) + gap * labels)).astype(np.float32)
    scores = scores if digits is None else np.round(scores / 10.0, digits).astype(np.float32)
    return torch.from_numpy(scores), torch.from_numpy(labels)


@pytest.mark.parametrize("digits", [None, 0])
@pytest.mark.parametrize("seed", range(5))
def test_auroc_matches_scikit_learn(seed: int, digits: int | None) -> None:
    """Also for log-odds far beyond what a sigmoid resolves, and with ties."""
    scores, labels = draw(seed, digits=digits)
    assert metrics.auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    assert metrics.auroc(scores + 1000, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_tpr_at_fpr_matches_scikit_learn(seed: int) -> None:
    """The highest point of scikit-learn's ROC curve at FPR <= 5 %."""
    scores, labels = draw(seed)
    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert metrics.tpr_at_fpr(scores, labels, 0.05) == pytest.approx(true[false <= 0.05].max(), abs=1e-6)


@pytest.mark.parametrize(("count", "total"), [(0, 300), (3, 300), (150, 300), (300, 300), (1, 1)])
def test_wilson_matches_statsmodels(count: int, total: int) -> None:
    """Including rates of 0 and 1."""
    expected = proportion_confint(count, total, method="wilson")
    assert metrics.wilson_interval(count, total) == pytest.approx(expected, abs=1e-9)
    assert metrics.wilson_interval(0, 0) == (0.0, 1.0)


def test_dprime_is_log_linear_and_not_clamped() -> None:
    """Hautus's correction by hand; perfect rates give more with more trials, instead of a constant 4.65."""
    expected = norm.ppf((45 + 0.5) / 51) - norm.ppf((5 + 0.5) / 51)
    assert metrics.dprime(45, 50, 5, 50) == pytest.approx(expected)
    assert metrics.dprime(25, 50, 25, 50) == pytest.approx(0.0)
    assert metrics.dprime(50, 50, 0, 50) < metrics.dprime(500, 500, 0, 500)


@pytest.mark.parametrize("seed", range(5))
def test_best_threshold_maximises_balanced_accuracy(seed: int) -> None:
    """No other threshold does better, by scikit-learn's balanced accuracy."""
    scores, labels = draw(seed)
    best = metrics.best_threshold(scores, labels)
    ours = balanced_accuracy_score(labels, scores > best)
    others = [balanced_accuracy_score(labels, scores > float(score)) for score in scores]
    assert ours >= max(others) - 1e-9


def test_best_threshold_is_in_the_middle_of_the_gap() -> None:
    """With perfect separation it keeps the same distance from both sides; with one class it is 0."""
    scores, labels = torch.tensor([-3.0, -1.0, 5.0, 6.0]), torch.tensor([False, False, True, True])
    assert metrics.best_threshold(scores, labels) == pytest.approx(2.0)
    assert metrics.best_threshold(scores, torch.zeros(4, dtype=torch.bool)) == 0.0


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
    best = metrics.best_threshold(scores, labels)
    assert metric.compute() == metrics.summarise(scores, labels, torch.ones(300), torch.arange(300), best)
    metric.reset()
    metric.total = 8  # two trials only filled up the batch
    metric.update(scores[:10], labels[:10], torch.ones(10), torch.arange(10), torch.arange(10))
    assert metric.compute() == metrics.summarise(
        scores[:8], labels[:8], torch.ones(8), torch.arange(8), metrics.best_threshold(scores[:8], labels[:8])
    )
