"""Fits the psychometric function: the probability of detection as a function of steering strength."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import ndtr, ndtri, xlogy

from introspection_lit.evaluation.statistics import Floats, clustered_bootstrap
from introspection_lit.utils.errors import ConfigurationError

LAPSE_BOUNDS, WIDTH_BOUNDS = (0.0, 0.1), (0.05, 2.0)
# A strength is not extrapolated further than this many times the largest one tested.
MAX_EXTRAPOLATION = 3.0


class Psychometric(NamedTuple):
    """A psychometric function: P(detected) = guess + (1 - guess - lapse) * Phi((log10(strength) - location) / width).

    Source: Wichmann & Hill 2001, Perception & Psychophysics 63, 1293-1313, equation 1.

    Attributes:
        guess: The false-alarm rate, in [0, 1].
        lapse: The share missed at any strength, in [0, .1].
        location: log10 of the strength half-way up the rise.
        width: Standard deviation of the rise, in decades of strength.
    """

    guess: float
    lapse: float
    location: float
    width: float

    def probability(self, strengths: ArrayLike) -> Floats:
        """P(detected) at strengths above 0; the result has the shape of ``strengths``."""
        rise = ndtr((np.log10(np.asarray(strengths, dtype=float)) - self.location) / self.width)
        return np.asarray(self.guess + (1 - self.guess - self.lapse) * rise)

    def strength_at(self, share: float) -> float:
        """The strength at which this share is detected; inf if it is never reached, 0 if the guess rate reaches it."""
        if share <= self.guess:
            return 0.0
        if share >= 1 - self.lapse:
            return math.inf
        exponent = self.location + self.width * ndtri((share - self.guess) / (1 - self.guess - self.lapse))
        return float(10.0**exponent)


def fit_psychometric(
    strengths: ArrayLike, detected: ArrayLike, guess: float, weights: ArrayLike | None = None
) -> Psychometric:
    """Fit a psychometric function by maximum likelihood.

    The lapse rate is kept in [0, .1], the width in [.05, 2] decades and the location within one decade of the strengths
    tested. Where the data do not determine a parameter (one strength, all or none detected), one maximum is returned.

    Differs from the paper: the guess rate is fixed instead of fitted, and bounds replace the paper's priors.

    Args:
        strengths: Of steered trials, above 0, ``(n,)``.
        detected: True where the score was above the threshold, ``(n,)``.
        guess: The false-alarm rate at that threshold, in [0, 1].
        weights: At least 0, ``(n,)``; by default all 1.

    Raises:
        ConfigurationError: No trials, a strength that is not above 0, or a guess outside [0, 1].
    """
    levels, place = _levels(strengths, guess)
    weights = np.ones(len(place)) if weights is None else np.asarray(weights, dtype=float)
    totals, hits = np.bincount(place, weights), np.bincount(place, weights * np.asarray(detected, dtype=bool))
    if totals.sum() <= 0:
        raise ConfigurationError([f"weights: got a sum of {totals.sum()}. Expected more than 0."])
    return _fit(levels, totals, hits, guess)


def _levels(strengths: ArrayLike, guess: float) -> tuple[Floats, NDArray[np.intp]]:
    """log10 of the distinct strengths, ``(levels,)``, and the level of each trial, ``(n,)``."""
    strengths = np.asarray(strengths, dtype=float)
    problems = []
    if not (len(strengths) and np.isfinite(strengths).all() and (strengths > 0).all()):
        problems.append(f"strengths: got {np.unique(strengths)}. Expected one trial or more, all steered (strength > 0).")
    if not 0 <= guess <= 1:
        problems.append(f"guess: got {guess}. Expected a false-alarm rate in [0, 1].")
    if problems:
        raise ConfigurationError(problems)
    distinct, place = np.unique(strengths, return_inverse=True)
    return np.log10(distinct), place


def _fit(levels: Floats, totals: NDArray, hits: NDArray, guess: float) -> Psychometric:
    """Fit counts at each level, all ``(levels,)``: the best curve of a coarse grid, refined by L-BFGS-B."""
    shares, scale = hits / np.maximum(totals, 1e-300), totals / totals.sum()

    def loss(curve: Floats, rise: Floats) -> tuple[Floats, Floats]:
        """Mean negative log-likelihood of curves ``(..., 3)``, and P(detected) ``(..., levels)``."""
        probability = np.clip(guess + (1 - guess - curve[..., 2:]) * rise, 1e-12, 1 - 1e-12)
        return -(xlogy(shares, probability) + xlogy(1 - shares, 1 - probability)) @ scale, probability

    def slope(curve: Floats) -> tuple[float, Floats]:
        """The loss of one curve and its gradient ``(3,)``."""
        location, width, lapse = curve
        z = (levels - location) / width
        rise = ndtr(z)
        value, probability = loss(curve, rise)
        rise_slope = (1 - guess - lapse) * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) / width
        outer = scale * ((1 - shares) / (1 - probability) - shares / probability)
        return float(value), np.array([-outer @ rise_slope, -outer @ (rise_slope * z), -outer @ rise])

    bounds = [(levels[0] - 1, levels[-1] + 1), WIDTH_BOUNDS, (LAPSE_BOUNDS[0], min(LAPSE_BOUNDS[1], 1 - guess))]
    # Of equally likely curves argmin takes the first: the one with the highest location, the most cautious claim.
    locations = np.linspace(bounds[0][1], bounds[0][0], 31)
    grid = np.stack(np.meshgrid(locations, np.geomspace(*WIDTH_BOUNDS, 7), np.linspace(*bounds[2], 3), indexing="ij"), -1)
    curves = grid.reshape(-1, 3)
    values, _ = loss(curves, ndtr((levels - curves[:, :1]) / curves[:, 1:2]))
    fit = minimize(slope, curves[values.argmin()], jac=True, method="L-BFGS-B", bounds=bounds)
    location, width, lapse = (float(value) for value in fit.x)
    return Psychometric(guess, lapse, location, width)


def detection_strength(
    strengths: ArrayLike,
    detect: Callable[[Floats | None], ArrayLike],
    guess: float,
    clusters: Sequence[ArrayLike],
    share: float = 0.75,
    resamples: int = 300,
    seed: int = 0,
) -> dict[str, Any]:
    """The strength at which a share of steered trials is detected, by :func:`fit_psychometric`. Lower is better.

    Args:
        strengths: Of steered trials, above 0, ``(n,)``.
        detect: Returns ``(n,)``, True where the score is above the threshold: without weights the run's threshold, with
            those of a resample the threshold that it gives.
        guess: The false-alarm rate at that threshold; fixed.
        clusters: As in :func:`clustered_bootstrap`, of the steered trials, then of any clean ones that set the threshold.
        share: Share of trials to be detected, in (0, 1).
        resamples: Refits for the interval.
        seed: Of the resamples.

    Returns:
        ``strength``, ``interval`` (95 %, low and high), ``location``, ``width``, ``lapse``, ``guess`` and ``share``, ready
        for JSON. A strength is None if it is more than 3 times the largest one tested, if the guess rate reaches the
        share, or if only one strength was tested. Strengths below the smallest one tested are reported as the smallest,
        which is then an upper bound.

    Raises:
        ConfigurationError: As :func:`fit_psychometric` and :func:`clustered_bootstrap`.
    """
    curve = fit_psychometric(strengths, detect(None), guess)
    levels, place = _levels(strengths, guess)
    tested = np.asarray(strengths, dtype=float)

    def refit(weights: Floats) -> float:
        own, hit = weights[: len(place)], np.asarray(detect(weights), dtype=bool)
        totals = np.bincount(place, own)
        return _fit(levels, totals, np.bincount(place, own * hit), guess).strength_at(share) if totals.any() else math.nan

    def reported(strength: float) -> float | None:
        known = len(levels) > 1 and 0 < strength <= MAX_EXTRAPOLATION * tested.max()
        return max(strength, float(tested.min())) if known else None

    interval = clustered_bootstrap(refit, clusters, resamples, seed=seed)
    result = {"strength": reported(curve.strength_at(share)), "interval": [reported(end) for end in interval]}
    return result | curve._asdict() | {"share": share}
