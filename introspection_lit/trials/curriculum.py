"""The option ``data.curriculum``: training begins with other strengths, or without merged contexts."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

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
        merged_after: Contexts of ``data.merged`` are drawn after these trials alone. With the ``strengths`` of
            ``data.strengths`` nothing else changes.
    """

    strengths: tuple[float, float]
    trials: int
    merged_after: bool = False

    def problems(self, manifest: bool, merged: float) -> list[str]:
        """Errors in the settings.

        Args:
            manifest: Whether the training trials come from a file, ``data.manifest``.
            merged: Share of merged contexts, ``data.merged``.
        """
        problems = strength_problems("curriculum.strengths", self.strengths)
        if not 1 <= self.trials <= MAX_COUNT:
            expected = f"Expected how many trials the strengths move for, 1 to {MAX_COUNT}"
            problems.append(f"data.curriculum.trials: got {self.trials}. {expected}.")
        if self.merged_after and not merged:
            expected = "Expected a share in data.merged, such as 0.3. Give it, or leave merged_after out"
            problems.append(f"data.curriculum.merged_after: got true and no merged contexts. {expected}.")
        if manifest:
            found = "a manifest lists trials with their strengths"
            problems.append(f"data.curriculum: {found}. Leave data.manifest or data.curriculum out.")
        return problems

    def describe(self) -> dict[str, Any]:
        """The settings by name; ``merged_after`` only if it is so, as it was not recorded before it existed."""
        return {name: value for name, value in asdict(self).items() if value is not False}

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
