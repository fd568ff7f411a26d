"""Statistics of scores and labels: pure functions, arrays in, plain floats out.

Everything that ``numpy.asarray`` takes will do, tensors on the CPU included. Scores are log-odds in nats, labels are True
where a trial was steered, and a trial counts as "steered" when its score is above the threshold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri
from scipy.stats import binomtest, nct

from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.seeds import generator

Floats = NDArray[np.float64]
NO_CLUSTER = ("", "-1", "-1.0")


def weighted_auroc(scores: ArrayLike, labels: ArrayLike, weights: ArrayLike) -> float:
    """Area under the ROC curve of weighted trials: how often a steered trial outscores a clean one, ties counted half.

    Args:
        scores: ``(n,)``.
        labels: True where steered, ``(n,)``.
        weights: At least 0, ``(n,)``.

    Returns:
        Chance .5, best 1; nan if a class is missing or has no weight.
    """
    _, place = np.unique(np.asarray(scores), return_inverse=True)
    weights, labels = np.asarray(weights, dtype=float), np.asarray(labels, dtype=bool)
    steered, clean = np.bincount(place, weights * labels), np.bincount(place, weights * ~labels)
    pairs = steered.sum() * clean.sum()
    return float(steered @ (np.cumsum(clean) - clean / 2) / pairs) if pairs > 0 else math.nan


def auroc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve: how often a steered trial outscores a clean one. Chance .5, best 1; nan without both."""
    return weighted_auroc(scores, labels, np.ones(len(np.asarray(labels))))


def rate(decisions: ArrayLike) -> float:
    """The share of decisions that are "steered", or the mean of probabilities, in [0, 1]; nan of none."""
    decisions = np.asarray(decisions, dtype=float)
    return float(decisions.mean()) if len(decisions) else math.nan


def tpr_at_fpr(scores: ArrayLike, labels: ArrayLike, fpr: float = 0.01) -> float:
    """The largest TPR of any threshold whose FPR is at most ``fpr``. Best 1; at chance it equals ``fpr``.

    With n clean trials an FPR below 1/n only allows none of them to be called steered. nan if a class is missing.
    """
    from sklearn.metrics import roc_curve  # sklearn takes a second: only where something is computed

    labels = np.asarray(labels, dtype=bool)
    if labels.all() or not labels.any():
        return math.nan
    false, true, _ = roc_curve(labels, np.asarray(scores), drop_intermediate=False)
    return float(true[false <= fpr].max())


def dprime(hits: int, n_steered: int, false_alarms: int, n_clean: int) -> float:
    """Sensitivity d' = z(TPR) - z(FPR) with the log-linear correction.

    Adds .5 to each count and 1 to each total (Hautus 1995, Behavior Research Methods 27, 46-51), so that rates of 0 and
    1 give finite values that grow with the number of trials, instead of a clamped constant. Chance 0; higher is better.
    """
    return float(ndtri((hits + 0.5) / (n_steered + 1)) - ndtri((false_alarms + 0.5) / (n_clean + 1)))


def wilson_interval(count: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927), in [0, 1]; (0, 1) of nothing.

    Args:
        count: Successes.
        total: Independent trials.
        level: Confidence.
    """
    if total == 0:
        return 0.0, 1.0
    interval = binomtest(count, total).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def best_threshold(scores: ArrayLike, labels: ArrayLike, max_fpr: float = 1.0) -> float:
    """The threshold that maximises TPR - FPR (Youden's J), in the middle of the widest stretch that does.

    Args:
        scores: Log-odds, ``(n,)``.
        labels: True where steered, ``(n,)``; both classes present.
        max_fpr: Only thresholds with at most this share of false alarms are considered.

    Returns:
        A threshold in nats; scores above it count as steered. 0 if one class is missing.
    """
    scores, labels = np.asarray(scores, dtype=float), np.asarray(labels, dtype=bool)
    if labels.all() or not labels.any():
        return 0.0
    edges = np.unique(scores)  # ascending
    # A threshold between above[i] and upper[i]; the outermost ones would call everything or nothing steered.
    above, upper = np.append(edges[0] - 1, edges), np.append(edges, edges[-1] + 1)
    true, false = _share_above(scores[labels], above), _share_above(scores[~labels], above)
    youden = np.where(false <= max_fpr, true - false, -1.0)
    widths = np.where(youden >= youden.max() - 1e-12, upper - above, -1.0)
    best = int(widths.argmax())
    return float((above[best] + upper[best]) / 2)


def tolerance_limit(scores: ArrayLike, share: float, confidence: float = 0.95) -> float:
    """The value below which, with some confidence, at least a share of a normal population lies.

    Mean + k standard deviations, k from the non-central t distribution (Krishnamoorthy & Mathew 2009, "Statistical
    tolerance regions", section 2.2). Unlike a quantile it looks beyond the largest score seen, as it must for shares near
    1.

    Args:
        scores: A sample, ``(n,)``.
        share: Of the population, in (0, 1).
        confidence: In (0, 1).

    Returns:
        The limit; nan of fewer than two scores.
    """
    scores = np.asarray(scores, dtype=float)
    if len(scores) < 2:
        return math.nan
    root = math.sqrt(len(scores))
    factor = nct.ppf(confidence, len(scores) - 1, ndtri(share) * root) / root
    return float(scores.mean() + factor * scores.std(ddof=1))


def _share_above(scores: Floats, thresholds: Floats) -> Floats:
    """The share of scores above each threshold."""
    return (len(scores) - np.searchsorted(np.sort(scores), thresholds, side="right")) / len(scores)


def clustered_bootstrap(
    statistic: Callable[[Floats], float],
    clusters: Sequence[ArrayLike],
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a statistic of trials that share vectors, contexts or other things drawn at random.

    The pigeonhole bootstrap (Owen 2007, Annals of Applied Statistics 1, 386-411): the clusters of each factor are drawn
    with replacement, each factor on its own, and a trial weighs the product of how often its clusters were drawn. With one
    factor this is the ordinary bootstrap of clusters. With two, what varies from trial to trial within them counts up to
    three times: the interval is rather too wide than too narrow. With few clusters (under 20, say) it is too narrow.

    Args:
        statistic: Of the weights of the trials, ``(n,)``; resamples where it is nan are left out.
        clusters: For each factor the cluster of every trial, ``(n,)``, numbers or names; -1 or an empty name: none, and
            the factor weighs 1 (a clean trial has no vector).
        resamples: How often the clusters are drawn.
        level: Confidence.
        seed: Of the draws.

    Returns:
        Low and high; nan if more than half of the resamples are. An end may be infinite if values are.

    Raises:
        ConfigurationError: No factors, or factors of different length.
    """
    factors = [np.asarray(factor).astype(str) for factor in clusters]
    if len({factor.shape for factor in factors}) != 1:
        lengths = [len(factor) for factor in factors]
        raise ConfigurationError([f"clusters: got factors of length {lengths}. Expected one or more, of equal length."])
    random, drawn = generator(seed, "clustered bootstrap"), []
    indexed = [np.unique(factor, return_inverse=True) for factor in factors]
    places = [(len(names), np.flatnonzero(~np.isin(names, NO_CLUSTER)), place) for names, place in indexed]
    for _ in range(resamples):
        weights = np.ones(len(factors[0]))
        for size, real, place in places:
            counts = np.ones(size)
            if len(real):
                counts[real] = np.bincount(random.integers(len(real), size=len(real)), minlength=len(real))
            weights *= counts[place]
        drawn.append(statistic(weights))
    values = np.sort([value for value in drawn if not math.isnan(value)])
    if 2 * len(values) < resamples or not len(values):
        return math.nan, math.nan
    # Values that were drawn, not means of two: half-way to infinity there is nothing.
    tail = int((1 - level) / 2 * (len(values) - 1))
    return float(values[tail]), float(values[-1 - tail])


def information(scores: ArrayLike, labels: ArrayLike, groups: ArrayLike, folds: int = 5) -> float:
    """Usable information about the label in the score, in bits a trial, at equal odds of steered and clean.

    One bit minus the cross-entropy of a logistic calibration that was fitted on other groups; probabilities are kept in
    [1e-6, 1 - 1e-6]. Source: Xu et al. 2020, A theory of usable information under computational constraints, ICLR, with
    logistic functions of the score as the predictive family.

    Args:
        scores: Log-odds, ``(n,)``.
        labels: True where steered, ``(n,)``.
        groups: What a calibration must not have seen, for example the context, ``(n,)``.
        folds: Calibrations.

    Returns:
        Chance about 0 (a little below, too), best 1; nan if there are fewer groups than folds or a class is missing.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    scores, labels = np.asarray(scores, dtype=float), np.asarray(labels, dtype=bool)
    given = np.empty(len(scores))  # the probability of the true label
    splits = _cross_fits(labels, groups, folds)
    if not splits:
        return math.nan
    for others, own in splits:
        calibration = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
        calibration.fit(scores[others, None], labels[others])
        given[own] = calibration.predict_proba(scores[own, None])[np.arange(len(own)), labels[own].astype(int)]
    bits = -np.log2(np.clip(given, 1e-6, 1 - 1e-6))
    return float(1 - (bits[labels].mean() + bits[~labels].mean()) / 2)


def recalibrated_accuracy(scores: ArrayLike, labels: ArrayLike, groups: ArrayLike, folds: int = 2) -> float:
    """Balanced accuracy at a threshold that was chosen on other groups by :func:`best_threshold`.

    Compare with the accuracy at the stored threshold: the difference is what a threshold in the wrong place costs.

    Args:
        scores: Log-odds, ``(n,)``.
        labels: True where steered, ``(n,)``.
        groups: What a threshold must not have seen, for example the context, ``(n,)``.
        folds: Thresholds.

    Returns:
        Chance .5, best 1; nan if there are fewer groups than folds or a class is missing.
    """
    from sklearn.metrics import balanced_accuracy_score

    scores, labels = np.asarray(scores, dtype=float), np.asarray(labels, dtype=bool)
    decisions = np.zeros(len(scores), dtype=bool)
    splits = _cross_fits(labels, groups, folds)
    for others, own in splits:
        decisions[own] = scores[own] > best_threshold(scores[others], labels[others])
    return float(balanced_accuracy_score(labels, decisions)) if splits else math.nan


def _cross_fits(labels: NDArray[np.bool_], groups: ArrayLike, folds: int) -> list[tuple[NDArray, NDArray]]:
    """Trials to fit on, and trials of other groups to apply the fit to; no pairs if groups or classes are missing."""
    from sklearn.model_selection import GroupKFold

    groups = np.asarray(groups)
    if len(np.unique(groups)) < folds:
        return []
    splits = list(GroupKFold(folds).split(labels, groups=groups))
    return splits if all(0 < labels[others].sum() < len(others) for others, _ in splits) else []
