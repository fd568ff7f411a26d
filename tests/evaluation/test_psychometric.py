"""Psychometric functions: by hand, on simulated answers, and against a probit regression."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import scipy
import statsmodels.api
from packaging.version import Version
from scipy import stats
from scipy.optimize import differential_evolution

from introspection_lit.evaluation import psychometric
from introspection_lit.evaluation.psychometric import Psychometric
from introspection_lit.utils.errors import ConfigurationError

NEW_NAMES = Version(scipy.__version__) >= Version("1.15")  # the first with rng=
STRENGTHS = np.array([0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28])


def simulate(truth: Psychometric, each: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Strengths and detections of trials, ``each`` at every strength."""
    strengths = np.repeat(STRENGTHS, each)
    return strengths, np.random.default_rng(seed).random(len(strengths)) < truth.probability(strengths)


def test_psychometric_function_by_hand() -> None:
    """Half-way up at the location; one width above it, Phi(1); the inverse undoes it."""
    curve = Psychometric(guess=0.1, lapse=0.05, location=-1.0, width=0.5)
    assert curve.probability([0.1]) == pytest.approx([0.1 + 0.85 / 2])
    assert curve.probability([10**-0.5]) == pytest.approx([0.1 + 0.85 * stats.norm.cdf(1)])
    for share in (0.11, 0.5, 0.75, 0.94):
        assert curve.probability([curve.strength_at(share)]) == pytest.approx([share])
    assert [curve.strength_at(share) for share in (0.05, 0.1, 0.95, 0.97, 1.0)] == [0.0, 0.0, math.inf, math.inf, math.inf]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "truth", [Psychometric(0.02, 0.03, -1.0, 0.3), Psychometric(0.2, 0.0, -0.6, 0.15), Psychometric(0.0, 0.05, -1.2, 0.6)]
)
def test_fit_recovers_what_data_were_drawn_from(truth: Psychometric, seed: int) -> None:
    """Location, width and the 75 % strength within the error of 7 x 1,000 trials; no curve is likelier."""
    strengths, detected = simulate(truth, 1000, seed)
    found = psychometric.fit_psychometric(strengths, detected, truth.guess)
    assert found.location == pytest.approx(truth.location, abs=0.06)
    assert found.width == pytest.approx(truth.width, rel=0.15)
    assert found.lapse == pytest.approx(truth.lapse, abs=0.03)
    assert found.strength_at(0.75) == pytest.approx(truth.strength_at(0.75), rel=0.1)

    hits = detected.reshape(len(STRENGTHS), -1).sum(1)

    def loss(values: np.ndarray) -> float:
        lapse, location, width = values
        curve = Psychometric(truth.guess, lapse, location, width)
        return -float(stats.binom.logpmf(hits, 1000, curve.probability(STRENGTHS)).sum())

    seeded = {"rng" if NEW_NAMES else "seed": 0}
    best = differential_evolution(loss, [(0, 0.1), (-2, 1), (0.05, 2)], tol=1e-8, **seeded)  # another way to the top
    assert loss(np.array(found[1:])) == pytest.approx(best.fun, abs=1e-3)


def test_fit_without_lapses_is_a_probit_regression() -> None:
    """Statsmodels' probit of log10(strength); weights count like repeated trials."""
    hits, each = np.array([0, 1, 12, 30, 48, 60, 60]), 60
    strengths = np.concatenate([STRENGTHS, STRENGTHS])
    detected, weights = np.repeat([True, False], 7), np.concatenate([hits, each - hits])
    found = psychometric.fit_psychometric(strengths, detected, 0.0, weights)
    counts = np.stack([hits, each - hits], 1)
    family = statsmodels.api.families.Binomial(statsmodels.api.families.links.Probit())
    constant, slope = statsmodels.api.GLM(counts, statsmodels.api.add_constant(np.log10(STRENGTHS)), family).fit().params
    assert found.lapse == pytest.approx(0, abs=1e-6)
    assert found.location == pytest.approx(-constant / slope, abs=1e-3)
    assert found.width == pytest.approx(1 / slope, abs=1e-3)
    repeated = psychometric.fit_psychometric(np.repeat(strengths, weights), np.repeat(detected, weights), 0.0)
    assert repeated == pytest.approx(found)


@pytest.mark.parametrize("guess", [0.0, 0.05, 0.95, 1.0])
@pytest.mark.parametrize("tested", [STRENGTHS, STRENGTHS[3:4]])
@pytest.mark.parametrize("which", ["all", "none", "one strength in two"])
def test_degenerate_data(guess: float, tested: np.ndarray, which: str) -> None:
    """Parameters in their bounds, heights as observed where the curve can have them, and JSON without nan."""
    strengths = np.tile(tested, 20)
    detected = {"all": strengths > 0, "none": strengths < 0, "one strength in two": np.arange(len(strengths)) % 2 == 0}[
        which
    ]
    clusters = np.arange(len(strengths)) // 7
    found = psychometric.fit_psychometric(strengths, detected, guess)
    assert 0 <= found.lapse <= 0.1
    assert 0.05 <= found.width <= 2
    assert np.log10(tested[0]) - 1 <= found.location <= np.log10(tested[-1]) + 1
    if len(tested) == 1 or which != "one strength in two":
        expected = max(detected.mean(), guess)
        assert found.probability(tested) == pytest.approx(np.full(len(tested), expected), abs=1e-3)
    told = psychometric.detection_strength(strengths, lambda _: detected, guess, [clusters], resamples=10)
    json.dumps(told, allow_nan=False)
    if len(tested) == 1 or which == "none" or guess > 0.75:
        assert (told["strength"], told["interval"]) == (None, [None, None])
    elif which == "all":
        assert (told["strength"], told["interval"]) == (tested[0], [tested[0]] * 2)  # at most the smallest


def test_strengths_that_cannot_be() -> None:
    """Clean trials have no place on the curve; shares are shares."""
    with pytest.raises(ConfigurationError, match="all steered") as raised:
        psychometric.fit_psychometric([0.0, 1.0], [False, True], 1.5)
    assert "guess: got 1.5" in str(raised.value)
    with pytest.raises(ConfigurationError, match="one trial or more"):
        psychometric.fit_psychometric([], [], 0.0)
    with pytest.raises(ConfigurationError, match="weights: got a sum of 0"):
        psychometric.fit_psychometric([1.0], [True], 0.0, [0.0])


@pytest.mark.slow
def test_detection_strength_and_its_interval() -> None:
    """The refit's 75 % strength; vectors that differ widen the interval, and it is about the right width without."""
    truth = Psychometric(0.02, 0.02, -1.0, 0.3)
    strengths, detected = simulate(truth, 200, 0)
    told = psychometric.detection_strength(strengths, lambda _: detected, 0.02, [np.arange(1400)], resamples=100)
    assert told["strength"] == pytest.approx(truth.strength_at(0.75), rel=0.15)
    assert told["share"] == 0.75
    low, high = told["interval"]
    assert low < told["strength"] < high
    again = [psychometric.fit_psychometric(*simulate(truth, 200, seed), 0.02).strength_at(0.75) for seed in range(1, 61)]
    spread = np.log(np.quantile(again, 0.975) / np.quantile(again, 0.025))
    assert np.log(high / low) == pytest.approx(spread, rel=0.35)
    random = np.random.default_rng(0)
    vectors = np.tile(np.arange(20), 70)
    shifted = strengths / 10 ** (0.4 * random.standard_normal(20)[vectors])
    detected = random.random(1400) < truth.probability(shifted)
    narrow, wide = (
        psychometric.detection_strength(strengths, lambda _: detected, 0.02, [factor], resamples=50)["interval"]
        for factor in (np.arange(1400), vectors)
    )
    assert np.log(wide[1] / wide[0]) > 1.5 * np.log(narrow[1] / narrow[0])


def test_strength_beyond_the_tested_is_none() -> None:
    """Up to three times the largest is told; beyond, and where lapses keep the curve below the share, nothing."""
    strengths = np.repeat(STRENGTHS, 500)
    alone = [np.arange(len(strengths))]
    for location, known in ((0.2, True), (1.0, False)):
        detected = np.random.default_rng(0).random(len(strengths)) < Psychometric(0, 0, location, 0.3).probability(
            strengths
        )
        told = psychometric.detection_strength(strengths, lambda _, hits=detected: hits, 0.0, alone, 0.75, resamples=20)
        assert (told["strength"] is not None) == known
        assert (told["interval"][1] is not None) == known
    told = psychometric.detection_strength(strengths, lambda _: strengths > 0.1, 0.0, alone, 1.0, resamples=20)
    assert told["strength"] is None
