"""Plans: map a trial's number to its context, question and intervention.

Trial ``i`` is a pure function of (seed, split, i): it does not depend on the number of trials, workers or processes, nor on
their order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from introspection_lit.steering.bands import Bands
from introspection_lit.tasks.questionnaire import PairKinds
from introspection_lit.trials.curriculum import Curriculum
from introspection_lit.trials.trial import Trial
from introspection_lit.utils.seeds import draw_in_rounds, generator, round_order


class Plan(ABC):
    """Maps a trial's number to its content.

    Attributes:
        contexts: Number of contexts.
        questions: Number of questions.
        vectors: Number of directions.
        bands: Bands of layers, (first, last) inclusive.
        strengths: Lowest and highest strength.
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
            number: Number of the batch.
            size: Trials in a batch.
            lengths: Tokens of each context.
            pool: Number of batches that may be sorted by length together.
            share: (part, parts): which of the equal parts of the batch; (0, 1) is all of it.
        """


class PairedPlan(Plan):
    """Trials in pairs: 2j is clean and 2j + 1 is steered, with the same context and question.

    Half of any even number of trials is steered, and the two trials of a pair differ in the intervention alone.

    Attributes:
        trials_of_pair: Trials that belong to a pair; more than two if each cache is asked several questions.
        kinds: The kind of each pair.
    """

    seed: int
    split: str
    trials_of_pair: int = 2
    kinds: PairKinds = PairKinds(0, "")

    @abstractmethod
    def context_of(self, pair: int) -> int:
        """Index of the context of both trials of a pair."""

    def batch(
        self, number: int, size: int, lengths: Sequence[int], pool: int, share: tuple[int, int] = (0, 1)
    ) -> list[Trial]:
        """The trials of a batch, with contexts of similar length to save padding.

        The pairs of ``pool`` batches are sorted by the length of the context and cut into batches, which come in random
        order. ``size`` is a multiple of the trials of a pair. Each kind of pairs is sorted by itself and spread evenly over
        the batches, so that every batch has all kinds in the same shares.
        """
        pool_number, position = divmod(number, pool)
        each = size // self.trials_of_pair
        pairs = range(pool_number * pool * each, (pool_number + 1) * pool * each)
        by_length = sorted(pairs, key=lambda pair: (lengths[self.context_of(pair)], pair))
        if len(set(self.kinds.kinds)) > 1:
            by_length = self._spread_kinds(by_length)
        slot = int(round_order(self.seed, self.split, "pool", pool_number, pool)[position])
        batch = equal_part(by_length[slot * each : (slot + 1) * each], share)
        return [self.trial(self.trials_of_pair * pair + place) for pair in batch for place in range(self.trials_of_pair)]

    def _spread_kinds(self, pairs: Sequence[int]) -> list[int]:
        """The pairs in an order in which each kind keeps its own order and is spread evenly."""
        of_kind: dict[str, list[int]] = {}
        for pair in pairs:
            of_kind.setdefault(self.kinds.of(pair), []).append(pair)
        places = [
            ((place + 0.5) / len(group), kind, pair) for kind, group in of_kind.items() for place, pair in enumerate(group)
        ]
        return [pair for _, _, pair in sorted(places)]


@dataclass(frozen=True)
class TrialPlan(PairedPlan):
    """An unlimited number of paired trials.

    Contexts, questions and directions are drawn in rounds without replacement: none repeats before all have been used.

    Attributes:
        seed: The experiment's seed.
        split: Name of the split; names the random stream.
        contexts: Number of contexts.
        questions: Number of questions.
        vectors: Number of directions.
        bands: Bands to draw from, (first, last) layer inclusive.
        strengths: Lowest and highest strength; drawn log-uniformly between them.
        curriculum: What the first trials have instead of ``strengths`` and all ``contexts``; None: all are alike.
        both_signs: Half of the steered trials, drawn at random, subtract the direction.
        single: How many contexts, the first ones, are not merged.
    """

    seed: int
    split: str
    contexts: int
    questions: int
    vectors: int
    bands: Bands
    strengths: tuple[float, float]
    curriculum: Curriculum | None = None
    both_signs: bool = False
    single: int = 0

    def trial(self, number: int) -> Trial:
        """Make trial ``number``."""
        pair, steered = divmod(number, 2)
        context = self.context_of(pair)
        question = draw_in_rounds(self.seed, self.split, "question", pair, self.questions)
        if not steered:
            return Trial(self.split, number, context, question, steered=False)
        random = generator(self.seed, "trial", self.split, number)
        low, high = np.log(self.strengths if self.curriculum is None else self.curriculum.range_at(number, self.strengths))
        return Trial(
            self.split,
            number,
            context,
            question,
            steered=True,
            vector=draw_in_rounds(self.seed, self.split, "vector", pair, self.vectors),
            band=self.bands[int(random.integers(len(self.bands)))],
            strength=float(np.exp(random.uniform(low, high))),
            opposite=self.both_signs and bool(random.integers(2)),
        )

    def context_of(self, pair: int) -> int:
        """Index of the context of both trials of a pair."""
        begins = self.curriculum is not None and self.curriculum.merged_after and 2 * pair < self.curriculum.trials
        return draw_in_rounds(self.seed, self.split, "context", pair, self.single if begins else self.contexts)


@dataclass(frozen=True)
class OncePlan(Plan):
    """Each context and question once clean, followed by steered trials with every band and strength equally often.

    Unlike in pairs, clean trials do not repeat as long as there are enough contexts. Trials 0 to ``clean - 1`` are clean;
    trial ``clean + j`` is steered and has the context and question of clean trial ``j % clean``.

    Attributes:
        seed: The experiment's seed.
        split: Name of the split; names the random stream.
        contexts: Number of contexts.
        questions: Number of questions.
        vectors: Number of directions.
        bands: Bands of layers, each used equally often.
        strengths: Lowest and highest strength; drawn log-uniformly between them if there are no ``steps``.
        total: Number of trials. At most three quarters of them are clean, or half if there are ``steps``.
        steps: Fixed strengths, each used equally often.
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
        """Number of clean trials."""
        return min(self.contexts * self.questions, self.total // 2 if self.steps else 3 * self.total // 4)

    def trial(self, number: int) -> Trial:
        """Make trial ``number``; numbers beyond the last trial start again at the first."""
        place = number % self.total
        clean_place = place if place < self.clean else (place - self.clean) % self.clean
        turn, context = divmod(clean_place, self.contexts)
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
        """The trials of a batch, with contexts of similar length to save padding."""
        order = _by_length(self, tuple(lengths))
        places = equal_part(range(number * size, (number + 1) * size), share)
        return [self.trial(order[place] if place < self.total else place) for place in places]


@lru_cache(maxsize=64)
def _by_length(plan: OncePlan, lengths: tuple[int, ...]) -> list[int]:
    """All trial numbers of a plan, sorted by the length of the context and then by context."""
    trials = [plan.trial(number) for number in range(plan.total)]
    return sorted(range(plan.total), key=lambda n: (lengths[trials[n].context], trials[n].context, n))


def equal_part(items: Sequence[int], share: tuple[int, int]) -> Sequence[int]:
    """Part ``share[0]`` of ``share[1]`` equal parts of a sequence."""
    part, parts = share
    each = len(items) // parts
    return items[part * each : (part + 1) * each]


def draw_strength(seed: int, split: str, number: int, strengths: tuple[float, float]) -> float:
    """Draw the strength of trial ``number``, log-uniformly between the lowest and the highest."""
    low, high = np.log(strengths)
    return float(np.exp(generator(seed, "strength", split, number).uniform(low, high)))
