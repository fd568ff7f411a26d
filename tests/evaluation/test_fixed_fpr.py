"""The threshold at a given FPR is an estimate: it is resampled with the trials that it decides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from introspection_lit.evaluation.analysis import FPR, detection_strengths, dose_response, rate_interval
from introspection_lit.evaluation.fixed_fpr import FixedFpr
from introspection_lit.evaluation.psychometric import detection_strength, fit_psychometric
from introspection_lit.evaluation.trial_table import ADAPTER, TrialTable

CLEAN, STEERED = 300, 400


def experiment(seed: int, clean: int = CLEAN, strengths: tuple[float, ...] = (0.1,)) -> TrialTable:
    """Clean contexts of normal scores, and others steered with directions of their own, further up with the dose."""
    random = np.random.default_rng(seed)
    strengths = (*[0.0] * clean, *np.repeat(strengths, STEERED))
    scores = random.normal(np.log10(np.maximum(strengths, 0.005) / 0.005) * 1.8)
    rows = [
        {
            "split": "doses",
            "number": number,
            "kind": "chat",
            "context_key": f"c{number}",
            "question_text": "Well?",
            "role": "detection",
            "vectors": "heldout",
            "vector_name": f"v{number}",
            "band": (0, 1),
            "strength": strength,
            "steered": strength > 0,
            "scores": {ADAPTER: float(score)},
        }
        for number, (strength, score) in enumerate(zip(strengths, scores, strict=True))
    ]
    return TrialTable.from_rows(rows, ("chat",))


@pytest.mark.parametrize("clean", [3, 99, 100, 301])
def test_resampled_threshold_is_that_of_repeated_inputs(clean: int) -> None:
    """An input that counts three times is three inputs; one that counts 0 times is not there."""
    trials = experiment(0, clean)
    at, steered = FixedFpr(trials, ADAPTER, FPR), trials.where(trials.steered)
    for seed in range(20):
        counts = np.random.default_rng(seed).poisson(1.0, clean)
        counts[0] += 1
        repeated = np.sort(np.repeat(trials.scores[ADAPTER][:clean], counts))
        threshold = repeated[::-1][int(0.01 * len(repeated))]
        weights = np.concatenate([np.ones(len(steered)), counts])
        assert (at.detected(steered, weights) == (steered.scores[ADAPTER] > threshold)).all()


def test_without_clean_inputs_the_threshold_is_fixed() -> None:
    """At 0, in every resample: there is nothing to estimate it from."""
    trials = experiment(0, clean=0)
    at = FixedFpr(trials, ADAPTER, FPR)
    assert at.threshold == 0.0
    assert (at.detected(trials, np.ones(len(trials))) == (trials.scores[ADAPTER] > 0)).all()


def spread(values: list[float]) -> float:
    """The width of the middle 95 %."""
    return float(np.ptp(np.quantile(values, [0.025, 0.975])))


def test_intervals_of_rates_are_as_wide_as_rates_vary() -> None:
    """Over repeated experiments, each with its own threshold; with a fixed one they would be about half as wide."""
    rates, widths, fixed = [], [], []
    for number in range(200):
        run = experiment(number)
        at, dosed = FixedFpr(run, ADAPTER, FPR), run.where(run.steered)
        rates.append(at.detected(dosed).mean())
        if number < 8:
            (point,) = dose_response(run, "random", ADAPTER)
            assert point["tpr"] == rates[-1]
            widths.append(np.ptp(point["tpr_interval"]))
            fixed.append(np.ptp(rate_interval(at.detected(dosed), dosed)))
    assert np.mean(widths) == pytest.approx(spread(rates), rel=0.25)
    assert np.mean(fixed) < 0.6 * spread(rates)


STRENGTHS = (0.05, 0.1, 0.2, 0.4, 0.8)


def log_width(fit: dict[str, Any]) -> float:
    """The width of an interval of strengths, in nats."""
    return float(np.ptp(np.log(fit["interval"])))


def with_a_fixed_threshold(run: TrialTable) -> dict[str, Any]:
    """The detection strength whose interval takes the threshold as given."""
    at, dosed = FixedFpr(run, ADAPTER, FPR), run.where(run.steered)
    hits = at.detected(dosed)
    return detection_strength(dosed.strengths, lambda _: hits, FPR, dosed.clusters)


def test_intervals_of_strengths_count_the_threshold() -> None:
    """One is wider than with a fixed threshold, about the same strength."""
    run = experiment(0, strengths=STRENGTHS)
    found, fixed = detection_strengths(run, "random"), with_a_fixed_threshold(run)
    assert found["strength"] == fixed["strength"]
    assert log_width(found) > 1.2 * log_width(fixed)


@pytest.mark.slow
def test_intervals_of_strengths_are_as_wide_as_strengths_vary() -> None:
    """Likewise, with a psychometric function fitted in each resample."""
    runs = [experiment(number, strengths=STRENGTHS) for number in range(60)]
    found = [detection_strengths(run, "random") for run in runs[:4]]
    wider, narrower = (
        np.mean([log_width(fit) for fit in fits]) for fits in (found, [with_a_fixed_threshold(run) for run in runs[:4]])
    )
    strengths = []
    for run in runs:
        at, dosed = FixedFpr(run, ADAPTER, FPR), run.where(run.steered)
        strengths.append(np.log(fit_psychometric(dosed.strengths, at.detected(dosed), FPR).strength_at(0.75)))
    assert strengths[:4] == pytest.approx([np.log(fit["strength"]) for fit in found])
    assert wider == pytest.approx(spread(strengths), rel=0.35)
    assert narrower < 0.7 * spread(strengths)
    assert wider > 1.3 * narrower
