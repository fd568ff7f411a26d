"""Statistics of scores and labels: AUROC, thresholds, d', intervals, bootstrap, information. Arrays in, floats out.

Inputs may be anything that ``numpy.asarray`` takes, CPU tensors included. Scores are log-odds in nats, labels are True
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
# Cluster names of trials that belong to no cluster of a factor.
NO_CLUSTER = ("", "-1", "-1.0")


def weighted_auroc(scores: ArrayLike, labels: ArrayLike, weights: ArrayLike) -> float:
    """Area under the ROC curve of weighted trials: P(steered score > clean score) + P(equal) / 2.

    Args:
        scores: ``(n,)``.
        labels: True where steered, ``(n,)``.
        weights: At least 0, ``(n,)``.

    Returns:
        Chance .5, best 1; nan if a class is missing or has no weight.
    """
    return auroc_of_ranks(ranks(scores), labels, weights)


def ranks(scores: ArrayLike) -> NDArray[np.intp]:
    """The place of each score among the distinct ones, from 0, ``(n,)``."""
    return np.unique(np.asarray(scores), return_inverse=True)[1]


def auroc_of_ranks(place: NDArray[np.intp], labels: ArrayLike, weights: ArrayLike) -> float:
    """:func:`weighted_auroc` of scores whose :func:`ranks` are known, for many weights of the same scores."""
    weights, labels = np.asarray(weights, dtype=float), np.asarray(labels, dtype=bool)
    steered, clean = np.bincount(place, weights * labels), np.bincount(place, weights * ~labels)
    pairs = steered.sum() * clean.sum()
    return float(steered @ (np.cumsum(clean) - clean / 2) / pairs) if pairs > 0 else math.nan


def auroc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve, see :func:`weighted_auroc`. Chance .5, best 1; nan if a class is missing."""
    return weighted_auroc(scores, labels, np.ones(len(np.asarray(labels))))


def rate(decisions: ArrayLike) -> float:
    """The share of True decisions, or the mean of probabilities, in [0, 1]; nan for an empty array."""
    decisions = np.asarray(decisions, dtype=float)
    return float(decisions.mean()) if len(decisions) else math.nan


def tpr_at_fpr(scores: ArrayLike, labels: ArrayLike, fpr: float = 0.01) -> float:
    """The largest TPR of any threshold whose FPR is at most ``fpr``. Best 1; at chance it equals ``fpr``.

    With n clean trials an ``fpr`` below 1/n allows no false alarm at all. nan if a class is missing.
    """
    from sklearn.metrics import roc_curve  # sklearn takes a second to import

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
    """Wilson score interval of a proportion (Wilson 1927, JASA 22, 209-212), in [0, 1]; (0, 1) without trials.

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
    """The threshold that maximises TPR - FPR (Youden 1950, Cancer 3, 32-35).

    Args:
        scores: Log-odds, ``(n,)``.
        labels: True where steered, ``(n,)``.
        max_fpr: Thresholds with a higher FPR are not considered.

    Returns:
        The middle of the widest interval of optimal thresholds, in nats; 0 if a class is missing.
    """
    scores, labels = np.asarray(scores, dtype=float), np.asarray(labels, dtype=bool)
    if labels.all() or not labels.any():
        return 0.0
    edges = np.unique(scores)  # ascending
    # Thresholds in [lower[i], upper[i]) decide alike; those of the first interval call every trial steered, the last none.
    lower, upper = np.append(edges[0] - 1, edges), np.append(edges, edges[-1] + 1)
    true, false = _share_above(scores[labels], lower), _share_above(scores[~labels], lower)
    youden = np.where(false <= max_fpr, true - false, -1.0)
    widths = np.where(youden >= youden.max() - 1e-12, upper - lower, -1.0)
    best = int(widths.argmax())
    return float((lower[best] + upper[best]) / 2)


def tolerance_limit(scores: ArrayLike, share: float, confidence: float = 0.95) -> float:
    """Upper one-sided tolerance limit: with a given confidence, at least a share of a normal population lies below it.

    Mean + k standard deviations; k is a quantile of the non-central t distribution divided by sqrt(n) (Krishnamoorthy &
    Mathew 2009, "Statistical tolerance regions", section 2.2). Unlike a quantile it can exceed the largest score of the
    sample, which shares near 1 need.

    Args:
        scores: A sample, ``(n,)``.
        share: Of the population, in (0, 1).
        confidence: In (0, 1).

    Returns:
        The limit, in the unit of the scores; nan for fewer than two scores.
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
    """Percentile interval of a statistic of trials that share randomly drawn vectors, contexts or other factors.

    The pigeonhole bootstrap (Owen 2007, Annals of Applied Statistics 1, 386-411): the clusters of each factor are resampled
    with replacement, independently of the other factors, and a trial's weight is the product of the counts of its
    clusters. With one factor this is the ordinary cluster bootstrap. With two, variance between trials of the same
    clusters counts up to three times, so the interval is rather too wide than too narrow. With few clusters (fewer than
    about 20) it is too narrow.

    Args:
        statistic: Maps the trials' weights, ``(n,)``, to a value; resamples where it is nan are left out.
        clusters: For each factor the cluster of every trial, ``(n,)``, numbers or names; -1 or an empty name: the trial
            belongs to none and the factor's weight is 1 (a clean trial has no vector).
        resamples: Number of bootstrap samples.
        level: Confidence.
        seed: Of the resampling.

    Returns:
        Low and high end; nan if more than half of the values are. An end may be infinite if values are.

    Raises:
        ConfigurationError: No factors, or factors of different length.
    """
    factors = [np.asarray(factor).astype(str) for factor in clusters]
    if len({factor.shape for factor in factors}) != 1:
        lengths = [len(factor) for factor in factors]
        raise ConfigurationError([f"clusters: got factors of length {lengths}. Expected one or more, of equal length."])
    random, values = generator(seed, "clustered bootstrap"), []
    indexed = [np.unique(factor, return_inverse=True) for factor in factors]
    places = [(len(names), np.flatnonzero(~np.isin(names, NO_CLUSTER)), place) for names, place in indexed]
    for _ in range(resamples):
        weights = np.ones(len(factors[0]))
        for size, real, place in places:
            counts = np.ones(size)
            if len(real):
                counts[real] = np.bincount(random.integers(len(real), size=len(real)), minlength=len(real))
            weights *= counts[place]
        values.append(statistic(weights))
    ordered = np.sort([value for value in values if not math.isnan(value)])
    if 2 * len(ordered) < resamples or not len(ordered):
        return math.nan, math.nan
    # No interpolation between two values: one may be infinite.
    tail = int((1 - level) / 2 * (len(ordered) - 1))
    return float(ordered[tail]), float(ordered[-1 - tail])


def information(scores: ArrayLike, labels: ArrayLike, groups: ArrayLike, folds: int = 5) -> float:
    """Usable information about the label in the score, in bits a trial, at equal odds of steered and clean.

    One bit minus the cross-entropy of a logistic calibration that was fitted on other groups; probabilities are clipped to
    [1e-6, 1 - 1e-6]. Source: Xu et al. 2020, A theory of usable information under computational constraints, ICLR, with
    logistic functions of the score as the predictive family.

    Args:
        scores: Log-odds, ``(n,)``.
        labels: True where steered, ``(n,)``.
        groups: Groups that cross-fitting keeps together, for example the context, ``(n,)``.
        folds: Number of cross-fitting folds.

    Returns:
        Chance about 0 (a little below, too), best 1; nan if there are fewer groups than folds or a class is missing.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    scores, labels = np.asarray(scores, dtype=float), np.asarray(labels, dtype=bool)
    true_label = np.empty(len(scores))  # its predicted probability
    splits = _cross_fits(labels, groups, folds)
    if not splits:
        return math.nan
    for others, own in splits:
        calibration = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
        calibration.fit(scores[others, None], labels[others])
        true_label[own] = calibration.predict_proba(scores[own, None])[np.arange(len(own)), labels[own].astype(int)]
    bits = -np.log2(np.clip(true_label, 1e-6, 1 - 1e-6))
    return float(1 - (bits[labels].mean() + bits[~labels].mean()) / 2)


def recalibrated_accuracy(scores: ArrayLike, labels: ArrayLike, groups: ArrayLike, folds: int = 2) -> float:
    """Balanced accuracy at a threshold that :func:`best_threshold` chose on other groups.

    Its difference from the accuracy at the stored threshold is the cost of a misplaced threshold.

    Args:
        scores: Log-odds, ``(n,)``.
        labels: True where steered, ``(n,)``.
        groups: Groups that cross-fitting keeps together, for example the context, ``(n,)``.
        folds: Number of cross-fitting folds.

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
    """Indices to fit on and indices of other groups to predict, for each fold; empty if groups or classes are missing."""
    from sklearn.model_selection import GroupKFold

    groups = np.asarray(groups)
    if len(np.unique(groups)) < folds:
        return []
    splits = list(GroupKFold(folds).split(labels, groups=groups))
    return splits if all(0 < labels[others].sum() < len(others) for others, _ in splits) else []
