"""Trials: which context, question and intervention trial ``i`` of a split has.

Trial ``i`` is a pure function of (seed, split, i), so that any number of trials, workers or processes, in any order,
sees the same ones.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from introspection_lit.steering.bands import Bands
from introspection_lit.trials.trial import Trial
from introspection_lit.utils.seeds import generator


class Plan(ABC):
    """Says which trial is which.

    Attributes:
        contexts: How many contexts its trials have.
        questions: How many questions.
        vectors: How many directions.
        bands: Bands of its trials, first and last layer, inclusive.
        strengths: The lowest and the highest strength of its trials.
    """

    contexts: int
    questions: int
    vectors: int
    bands: Bands
    strengths: tuple[float, float]

    @abstractmethod
    def trial(self, number: int) -> Trial:
        """Make trial ``number``."""

    @abstractmethod
    def batch(
        self, number: int, size: int, lengths: Sequence[int], pool: int, share: tuple[int, int] = (0, 1)
    ) -> list[Trial]:
        """The trials of a batch, or of a part of it.

        Args:
            number: The batch's number.
            size: Trials in a batch.
            lengths: Tokens of each context.
            pool: Batches that may be sorted by length together.
            share: Which of how many equal parts, if not all.
        """


class PairedPlan(Plan):
    """Trials in pairs: 2j is clean and 2j + 1 steered, with the same context and question.

    So half of any even number of trials is steered, and nothing but the intervention tells the two apart.
    """

    seed: int
    split: str

    @abstractmethod
    def context_of(self, pair: int) -> int:
        """The context that both trials of a pair have."""

    def batch(
        self, number: int, size: int, lengths: Sequence[int], pool: int, share: tuple[int, int] = (0, 1)
    ) -> list[Trial]:
        """The trials of a batch, with contexts of similar length so that little is padded.

        Batches are cut from pools of ``pool`` batches, sorted by the length of the context. Together they hold the same
        trials as without sorting. ``size`` is even, and half of the trials are steered.
        """
        which, place = divmod(number, pool)
        pairs = range(which * pool * size // 2, (which + 1) * pool * size // 2)
        by_length = sorted(pairs, key=lambda pair: (lengths[self.context_of(pair)], pair))
        slot = int(round_order(self.seed, self.split, "pool", which, pool)[place])
        chosen = equal_part(by_length[slot * size // 2 : (slot + 1) * size // 2], share)
        return [self.trial(2 * pair + steered) for pair in chosen for steered in (0, 1)]


@dataclass(frozen=True)
class TrialPlan(PairedPlan):
    """The trials of one split, without end.

    Contexts, questions and directions come in shuffled rounds: none is used again before all have been used.

    Attributes:
        seed: The experiment's seed.
        split: Names the random stream.
        contexts: How many contexts there are.
        questions: How many questions.
        vectors: How many directions.
        bands: Bands to draw from, first and last layer, inclusive.
        strengths: Lowest and highest strength; drawn log-uniformly between them.
    """

    seed: int
    split: str
    contexts: int
    questions: int
    vectors: int
    bands: Bands
    strengths: tuple[float, float]

    def trial(self, number: int) -> Trial:
        """Make trial ``number``."""
        pair, steered = divmod(number, 2)
        context = self.context_of(pair)
        question = draw_in_rounds(self.seed, self.split, "question", pair, self.questions)
        if not steered:
            return Trial(self.split, number, context, question, steered=False)
        random = generator(self.seed, "trial", self.split, number)
        low, high = np.log(self.strengths)
        return Trial(
            self.split,
            number,
            context,
            question,
            steered=True,
            vector=draw_in_rounds(self.seed, self.split, "vector", pair, self.vectors),
            band=self.bands[int(random.integers(len(self.bands)))],
            strength=float(np.exp(random.uniform(low, high))),
        )

    def context_of(self, pair: int) -> int:
        """The context that both trials of a pair have."""
        return draw_in_rounds(self.seed, self.split, "context", pair, self.contexts)


@dataclass(frozen=True)
class OncePlan(Plan):
    """Each context and question once clean, and then steered: every band (and strength, if there are steps) as often.

    Unlike pairs, no clean trial comes twice as long as there are contexts for it. Trials 0 to ``clean - 1`` are clean;
    trial ``clean + j`` is steered and has the context and question of clean trial ``j``, or ``j - clean``, and so on.

    Attributes:
        seed: The experiment's seed.
        split: Names the random stream.
        contexts: How many contexts there are.
        questions: How many questions.
        vectors: How many directions.
        bands: Each of them.
        strengths: Lowest and highest strength; drawn log-uniformly between them if there are no steps.
        total: How many trials there are, clean ones included: at most three quarters of them are clean, or half if there
            are steps.
        steps: Each of these strengths instead.
    """

    seed: int
    split: str
    contexts: int
    questions: int
    vectors: int
    bands: Bands
    strengths: tuple[float, float]
    total: int
    steps: tuple[float, ...] = ()

    @property
    def clean(self) -> int:
        """How many trials are clean."""
        return min(self.contexts * self.questions, self.total // 2 if self.steps else 3 * self.total // 4)

    def trial(self, number: int) -> Trial:
        """Make trial ``number``; beyond the last one it starts again."""
        place = number % self.total
        asked = place if place < self.clean else (place - self.clean) % self.clean
        turn, context = divmod(asked, self.contexts)
        context = draw_in_rounds(self.seed, self.split, "context", context, self.contexts)
        question = (context + turn) % self.questions
        if place < self.clean:
            return Trial(self.split, number, context, question, steered=False)
        steered, steps = place - self.clean, max(len(self.steps), 1)
        band, step = divmod(draw_in_rounds(self.seed, self.split, "cell", steered, len(self.bands) * steps), steps)
        strength = self.steps[step] if self.steps else draw_strength(self.seed, self.split, place, self.strengths)
        vector = draw_in_rounds(self.seed, self.split, "vector", steered, self.vectors)
        return Trial(self.split, number, context, question, True, vector, self.bands[band], strength)

    def batch(
        self, number: int, size: int, lengths: Sequence[int], pool: int, share: tuple[int, int] = (0, 1)
    ) -> list[Trial]:
        """The trials of a batch, with contexts of similar length so that little is padded."""
        order = _by_length(self, tuple(lengths))
        places = equal_part(range(number * size, (number + 1) * size), share)
        return [self.trial(order[place] if place < self.total else place) for place in places]


@lru_cache(maxsize=64)
def _by_length(plan: OncePlan, lengths: tuple[int, ...]) -> list[int]:
    """The numbers of a plan's trials, those with short contexts first, neighbours with the same context."""
    trials = [plan.trial(number) for number in range(plan.total)]
    return sorted(range(plan.total), key=lambda n: (lengths[trials[n].context], trials[n].context, n))


def equal_part(items: Sequence[int], share: tuple[int, int]) -> Sequence[int]:
    """Part ``share[0]`` of ``share[1]`` equal parts."""
    part, parts = share
    each = len(items) // parts
    return items[part * each : (part + 1) * each]


def draw_strength(seed: int, split: str, number: int, strengths: tuple[float, float]) -> float:
    """A strength for trial ``number``, log-uniformly between two."""
    low, high = np.log(strengths)
    return float(np.exp(generator(seed, "strength", split, number).uniform(low, high)))


def draw_in_rounds(seed: int, split: str, what: str, position: int, size: int) -> int:
    """Number ``position`` of endless shuffled rounds of the numbers up to ``size``."""
    round_number, place = divmod(position, size)
    return int(round_order(seed, split, what, round_number, size)[place])


@lru_cache(maxsize=64)
def round_order(seed: int, split: str, what: str, round_number: int, size: int) -> np.ndarray:
    """The order of a round: numbers up to ``size``, ``(size,)``."""
    return generator(seed, "order", split, what, round_number).permutation(size)
