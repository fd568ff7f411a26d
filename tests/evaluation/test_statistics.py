"""Statistics against scipy, scikit-learn, statsmodels, brute force and data simulated from known values."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import scipy
import torch
from packaging.version import Version
from scipy import stats
from scipy.integrate import quad
from sklearn.metrics import roc_auc_score
from statsmodels.stats.proportion import proportion_confint

from introspection_lit.evaluation import statistics
from introspection_lit.evaluation.psychometric import Psychometric
from introspection_lit.utils.errors import ConfigurationError

NEW_NAMES = Version(scipy.__version__) >= Version("1.15")  # the first with rng=
STRENGTHS = np.array([0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28])


def draw(seed: int, n: int = 300, gap: float = 1.5, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Scores of clean and steered trials, in nats, far beyond what a sigmoid resolves; and labels."""
    random = np.random.default_rng(seed)
    labels = random.random(n) < 0.4
    scores = (30 * (random.standard_normal(n) + gap * labels)).astype(np.float32)
    return np.round(scores / 10) if ties else scores, labels


def simulate(truth: Psychometric, each: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Strengths and detections of trials, ``each`` at every strength."""
    strengths = np.repeat(STRENGTHS, each)
    return strengths, np.random.default_rng(seed).random(len(strengths)) < truth.probability(strengths)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_auroc_matches_scipy_and_scikit_learn(seed: int, ties: bool) -> None:
    """The U statistic's share of pairs; with weights, scikit-learn's; tensors give the same as arrays."""
    scores, labels = draw(seed, ties=ties)
    pairs = labels.sum() * (~labels).sum()
    expected = stats.mannwhitneyu(scores[labels], scores[~labels]).statistic / pairs
    assert statistics.auroc(scores, labels) == pytest.approx(expected, abs=1e-12)
    assert statistics.auroc(torch.from_numpy(scores), torch.from_numpy(labels)) == pytest.approx(expected, abs=1e-12)
    weights = np.random.default_rng(seed).integers(0, 4, len(scores))
    weighted = roc_auc_score(labels, scores, sample_weight=weights)
    assert statistics.weighted_auroc(scores, labels, weights) == pytest.approx(weighted, abs=1e-12)
    repeated = statistics.auroc(np.repeat(scores, weights), np.repeat(labels, weights))
    assert repeated == pytest.approx(weighted, abs=1e-12)


def test_without_both_classes_there_is_no_number() -> None:
    """None of a class, or none with any weight."""
    scores, labels = np.arange(4.0), np.array([False, False, True, True])
    assert math.isnan(statistics.auroc(scores, labels & False))
    assert math.isnan(statistics.weighted_auroc(scores, labels, labels))
    assert math.isnan(statistics.tpr_at_fpr(scores, labels | True))
    assert math.isnan(statistics.rate([]))
    assert statistics.best_threshold(scores, labels & False) == 0.0
    assert math.isnan(statistics.information(scores, labels & False, scores, 2))
    assert math.isnan(statistics.information(scores, labels, np.zeros(4), 2))  # one group
    assert math.isnan(statistics.information(scores, labels, labels, 2))  # nothing clean among the other groups
    assert math.isnan(statistics.recalibrated_accuracy(scores, labels | True, scores))


def cuts(scores: np.ndarray, labels: np.ndarray) -> list[tuple[float, float]]:
    """TPR and FPR of a cut below, above and between all scores, one cut at a time."""
    edges = sorted(set(scores.tolist()))
    middles = [(a + b) / 2 for a, b in pairwise(edges)]
    places = [edges[0] - 1, *middles, edges[-1] + 1]
    return [(np.mean(scores[labels] > place), np.mean(scores[~labels] > place)) for place in places]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_tpr_at_fpr_is_the_best_of_all_cuts(seed: int, ties: bool) -> None:
    """Brute force over every threshold."""
    scores, labels = draw(seed, ties=ties)
    for limit in (0.0, 0.01, 0.05, 0.5):
        expected = max(true for true, false in cuts(scores, labels) if false <= limit)
        assert statistics.tpr_at_fpr(scores, labels, limit) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("max_fpr", [1.0, 0.2, 0.02, 0.0])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_best_threshold_is_the_best_of_all_cuts(seed: int, ties: bool, max_fpr: float) -> None:
    """Brute force: no cut with as few false alarms has a larger TPR - FPR."""
    scores, labels = draw(seed, gap=0.7, ties=ties)
    best = statistics.best_threshold(scores, labels, max_fpr)
    true, false = np.mean(scores[labels] > best), np.mean(scores[~labels] > best)
    assert false <= max_fpr
    allowed = [cut_true - cut_false for cut_true, cut_false in cuts(scores, labels) if cut_false <= max_fpr]
    assert true - false == pytest.approx(max(allowed), abs=1e-12)


def test_best_threshold_is_in_the_middle_of_the_widest_gap() -> None:
    """With perfect separation it keeps the same distance from both sides; of equally good gaps it takes the widest."""
    assert statistics.best_threshold([-3.0, -1.0, 5.0, 6.0], [False, False, True, True]) == pytest.approx(2.0)
    scores, labels = [0.0, 1.0, 2.0, 5.0], [False, True, False, True]
    assert statistics.best_threshold(scores, labels) == pytest.approx(3.5)  # as good as .5
    assert statistics.best_threshold([0.0, 3.0, 4.0, 5.0], labels) == pytest.approx(1.5)  # as good as 4.5
    assert statistics.best_threshold([0.0, 3.0, 4.0, 5.0], labels, max_fpr=0.0) == pytest.approx(4.5)


@pytest.mark.parametrize(("count", "total"), [(0, 300), (3, 300), (150, 300), (300, 300), (1, 1)])
def test_wilson_matches_statsmodels(count: int, total: int) -> None:
    """Including rates of 0 and 1, and other levels."""
    assert statistics.wilson_interval(count, total) == pytest.approx(proportion_confint(count, total, method="wilson"))
    wide = proportion_confint(count, total, alpha=0.01, method="wilson")
    assert statistics.wilson_interval(count, total, 0.99) == pytest.approx(wide, abs=1e-9)
    assert statistics.wilson_interval(0, 0) == (0.0, 1.0)


def test_dprime_is_log_linear_and_not_clamped() -> None:
    """Hautus's correction by hand; perfect rates give more with more trials, instead of a constant 4.65."""
    expected = stats.norm.ppf((45 + 0.5) / 51) - stats.norm.ppf((5 + 0.5) / 51)
    assert statistics.dprime(45, 50, 5, 50) == pytest.approx(expected)
    assert statistics.dprime(25, 50, 25, 50) == pytest.approx(0.0)
    assert statistics.dprime(50, 50, 0, 50) < statistics.dprime(500, 500, 0, 500)


def test_clustered_bootstrap_covers_where_the_ordinary_one_does_not() -> None:
    """200 data sets of 40 clusters of 10, nine tenths of the variance between clusters."""
    random, clusters = np.random.default_rng(0), np.repeat(np.arange(40), 10)
    covered = np.zeros(2)
    for seed in range(200):
        values = 3 * random.standard_normal(40)[clusters] + random.standard_normal(400)
        for number, factor in enumerate((clusters, np.arange(400))):
            low, high = statistics.clustered_bootstrap(
                lambda weights, values=values: float(weights @ values / weights.sum()), [factor], 200, seed=seed
            )
            covered[number] += low <= 0 <= high
    assert 0.88 <= covered[0] / 200 <= 0.99
    assert covered[1] / 200 < 0.6


def test_one_trial_per_cluster_is_the_ordinary_bootstrap() -> None:
    """Scipy's percentile interval, to a twentieth of its width; another seed gives another, the same seed the same."""
    values = np.random.default_rng(0).exponential(size=60)

    def interval(seed: int, level: float = 0.9) -> tuple[float, float]:
        return statistics.clustered_bootstrap(lambda w: float(w @ values / w.sum()), [range(60)], 4000, level, seed)

    seeded = {"rng" if NEW_NAMES else "random_state": 1}
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=4000, confidence_level=0.9, method="percentile", **seeded
    ).confidence_interval
    assert interval(0) == pytest.approx(tuple(expected), abs=(expected.high - expected.low) / 20)
    assert interval(0) == interval(0) != interval(1)


def test_two_factors_count_pure_noise_three_times() -> None:
    """Owen's result for crossed factors without effects of their own: (2 - 1/30)(2 - 1/30) - 1 times the variance."""
    values = np.random.default_rng(0).standard_normal((30, 30)).ravel()
    rows, columns = np.divmod(np.arange(900), 30)
    low, high = statistics.clustered_bootstrap(lambda w: float(w @ values / 900), [rows, columns], 4000)
    expected = math.sqrt(((2 - 1 / 30) ** 2 - 1) * values.var() / 900)
    assert (high - low) / (2 * 1.96) == pytest.approx(expected, rel=0.15)


def test_weights_are_products_of_draws() -> None:
    """Each cluster is drawn as a whole, factors on their own; trials of no cluster weigh what the other factor says."""
    vectors = np.array(["", "", "", "bread", "cats", "bread", "cats", "bread", "cats"])
    contexts = torch.tensor([0, 1, 2, 0, 0, 1, 1, 2, 2])
    seen: list[np.ndarray] = []
    statistics.clustered_bootstrap(lambda weights: float(seen.append(weights) or 0.0), [vectors, contexts], 500)
    drawn = np.array(seen)
    by_context = drawn[:, :3]
    assert (by_context.sum(1) == 3).all()
    bread = np.divide(drawn[:, 3::2], by_context, where=by_context > 0, out=np.full_like(by_context, np.nan))
    cats = np.divide(drawn[:, 4::2], by_context, where=by_context > 0, out=np.full_like(by_context, np.nan))
    assert set(np.unique(bread[~np.isnan(bread)])) == {0.0, 1.0, 2.0}
    np.testing.assert_array_equal(np.nanmin(bread + cats, 1), 2.0)
    np.testing.assert_array_equal(np.nanmax(bread + cats, 1), 2.0)
    assert by_context.mean(0) == pytest.approx(1.0, abs=0.15)
    numbers = np.array([-1, -1, -1, 0, 1, 0, 1, 0, 1])  # the same clusters by number: the same draws
    again: list[np.ndarray] = []
    statistics.clustered_bootstrap(lambda weights: float(again.append(weights) or 0.0), [numbers, contexts], 500)
    np.testing.assert_array_equal(drawn, np.array(again))


def test_resamples_without_a_number_are_left_out() -> None:
    """Unless they are more than half; infinite ends stay infinite."""
    calls = iter(range(300))

    def every(period: int, value: float) -> tuple[float, float]:
        return statistics.clustered_bootstrap(lambda _: value if next(calls) % period else 1.0, [range(5)], 100)

    assert every(2, math.nan) == (1.0, 1.0)
    assert every(3, math.nan) == pytest.approx((math.nan, math.nan), nan_ok=True)
    assert every(3, math.inf) == (1.0, math.inf)
    with pytest.raises(ConfigurationError, match=r"factors of length \[2, 3\]"):
        statistics.clustered_bootstrap(lambda _: 0.0, [range(2), range(3)])
    with pytest.raises(ConfigurationError, match=r"factors of length \[\]"):
        statistics.clustered_bootstrap(lambda _: 0.0, [])


@pytest.mark.parametrize("gap", [0.0, 0.5, 1.0, 2.0, 4.0])
def test_information_is_the_mutual_information_of_two_normals(gap: float) -> None:
    """By numerical integration; scale and place of the scores do not matter, nor does the share of steered trials."""
    labels = np.random.default_rng(0).random(4000) < 0.3
    scores = np.random.default_rng(1).standard_normal(4000) + gap * labels
    clean, steered = stats.norm(0, 1).pdf, stats.norm(gap, 1).pdf

    def entropy(x: float) -> float:
        mixed = (clean(x) + steered(x)) / 2
        return 0.0 if mixed == 0 else -mixed * math.log2(mixed)

    expected = quad(entropy, -10, gap + 10)[0] - math.log2(math.sqrt(2 * math.pi * math.e))
    contexts = np.arange(4000) // 8
    assert statistics.information(scores, labels, contexts) == pytest.approx(expected, abs=0.05)
    assert statistics.information(100 * scores - 1e4, labels, contexts) == pytest.approx(expected, abs=0.05)


def test_information_is_of_other_groups() -> None:
    """Where steering pushes the scores of one half of the groups up and of the other down, there is nothing to use."""
    groups = np.repeat([0, 1], 200)
    labels = np.arange(400) % 2 == 0
    scores = np.random.default_rng(0).standard_normal(400) + 3.0 * np.where(groups == 0, labels, ~labels)
    assert statistics.information(scores, labels, groups, folds=2) < -0.5
    assert statistics.recalibrated_accuracy(scores, labels, groups) < 0.4  # on its own groups: above .7
    separate = np.where(labels, 8.0, -8.0)
    assert 0.95 < statistics.information(separate, labels, groups, folds=2) <= 1
    # One half far out on the wrong side costs log2(1e6) bits a trial and no more; seen from there, the other half is at 0.
    far = np.where(groups == 0, separate, -1e6 * separate)
    expected = 1 - (math.log2(1e6) + 1) / 2
    assert statistics.information(far, labels, groups, folds=2) == pytest.approx(expected, abs=1e-3)


def test_recalibration_undoes_a_shift() -> None:
    """Balanced accuracy at 0 falls to chance, recalibrated it stays Phi(d'/2)."""
    labels = np.random.default_rng(0).random(4000) < 0.2
    scores = np.random.default_rng(1).standard_normal(4000) + 2.0 * labels + 30.0
    recalibrated = statistics.recalibrated_accuracy(scores, labels, np.arange(4000) // 4)
    assert recalibrated == pytest.approx(stats.norm.cdf(1.0), abs=0.03)
    assert statistics.rate((scores > 0)[~labels]) == 1.0
    noise = np.random.default_rng(2).standard_normal(4000)
    assert statistics.recalibrated_accuracy(noise, labels, np.arange(4000) // 4) == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize(
    ("n", "share", "factor"), [(10, 0.99, 3.981), (30, 0.99, 3.064), (30, 0.9, 1.777), (100, 0.95, 1.927)]
)
def test_tolerance_limit_of_published_tables(n: int, share: float, factor: float) -> None:
    """One-sided factors for 95 % confidence (Natrella 1963, table A-7)."""
    sample = np.arange(n, dtype=float)
    limit = (statistics.tolerance_limit(sample, share) - sample.mean()) / sample.std(ddof=1)
    assert limit == pytest.approx(factor, abs=0.001)
    assert math.isnan(statistics.tolerance_limit([1.0], share))
