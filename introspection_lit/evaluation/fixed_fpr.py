"""Detection at a given FPR: the threshold is an estimate on clean inputs, and intervals count its error as well."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from introspection_lit.evaluation.statistics import Floats
from introspection_lit.evaluation.trial_table import TrialTable


class FixedFpr:
    """The lowest threshold at which an observer's FPR over distinct clean inputs is at most a given one.

    With fewer than 1 / fpr clean inputs it is the highest score, which resamples can only lower: intervals then count its
    error upwards alone.

    Args:
        trials: Those whose clean inputs set the threshold.
        observer: Name of the scores to use.
        fpr: The largest FPR, in [0, 1).

    Attributes:
        threshold: On the log-odds, in nats; 0 without clean inputs.
    """

    def __init__(self, trials: TrialTable, observer: str, fpr: float) -> None:
        self.observer, self.fpr = observer, fpr
        self._clean = trials.scored(observer).clean()
        scores = self._clean.scores.get(observer, np.empty(0))
        self._falling = np.argsort(-scores)
        self._scores = scores[self._falling]
        self.threshold = 0.0  # without clean inputs
        self.threshold = self._resampled(np.ones(len(scores)))

    def _resampled(self, weights: Floats) -> float:
        """The threshold if each clean input counts ``weights`` times, ``(clean,)``; the run's own if none counts."""
        counted = np.cumsum(weights[self._falling])
        if not len(counted) or counted[-1] <= 0:
            return self.threshold
        return float(self._scores[np.searchsorted(counted, self.fpr * counted[-1], side="right")])

    def clusters(self, steered: TrialTable) -> list[NDArray[np.str_]]:
        """The factors of a clustered bootstrap over steered trials, then the clean inputs, ``(steered + clean,)`` each."""
        return [np.concatenate(pair) for pair in zip(steered.clusters, self._clean.clusters, strict=True)]

    def detected(self, steered: TrialTable, weights: Floats | None = None) -> NDArray[np.bool_]:
        """Which steered trials are above the threshold, ``(steered,)``; with ``weights``, above that of a resample.

        Args:
            steered: The trials.
            weights: Of the steered trials, then of the clean inputs, ``(steered + clean,)``.
        """
        threshold = self.threshold if weights is None else self._resampled(weights[len(steered) :])
        return np.asarray(steered.scores[self.observer] > threshold)
