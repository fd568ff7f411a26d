"""The option ``data.curriculum``: training trials begin with other strengths, and end with those of ``data.strengths``."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from introspection_lit.models.base_model import MAX_COUNT
from introspection_lit.steering.bands import strength_problems


@dataclass(frozen=True)
class Curriculum:
    """A range of strengths that moves while training, such as from strong, which is easy, to weak.

    The strength of trial ``i`` is drawn log-uniformly between two ends. On a log scale, these are ``i / trials`` of the way
    from ``strengths`` to ``data.strengths``, where they stay from trial ``trials`` on. So a trial depends on its number
    alone, not on the length of the training. Validation and tests have no curriculum.

    Attributes:
        strengths: Lowest and highest strength at the beginning, in ``data.strength_unit``.
        trials: Number of trials after which the strengths are those of ``data.strengths``; counted as in
            ``data.trials_per_epoch``.
    """

    strengths: tuple[float, float]
    trials: int

    def problems(self, manifest: bool) -> list[str]:
        """Errors in the settings.

        Args:
            manifest: Whether the training trials come from a file, ``data.manifest``.
        """
        problems = strength_problems("curriculum.strengths", self.strengths)
        if not 1 <= self.trials <= MAX_COUNT:
            expected = f"Expected how many trials the strengths move for, 1 to {MAX_COUNT}"
            problems.append(f"data.curriculum.trials: got {self.trials}. {expected}.")
        if manifest:
            found = "a manifest lists trials with their strengths"
            problems.append(f"data.curriculum: {found}. Leave data.manifest or data.curriculum out.")
        return problems

    def for_caches(self, questions: int) -> Curriculum:
        """The same, counted in caches that are asked so many questions each."""
        return replace(self, trials=-(-self.trials // questions))

    def range_at(self, number: int, strengths: tuple[float, float]) -> tuple[float, float]:
        """Lowest and highest strength of trial ``number``.

        Args:
            number: Number of the trial.
            strengths: ``data.strengths``, with which the curriculum ends.
        """
        if number >= self.trials:
            return strengths
        start, end = np.log(self.strengths), np.log(strengths)
        low, high = np.exp(start + (end - start) * number / self.trials)
        return float(low), float(high)
