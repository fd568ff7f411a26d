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
from introspection_lit.tasks.questionnaire import CONCEPTS, IN_LINES, LINES, STEERING, UNEQUAL, VISIBLE, PairKinds
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
        """Index of the context of both trials of a pair."""
        return draw_in_rounds(self.seed, self.split, "context", pair, self.contexts)


# In comparisons, the strength of the weaker half as a share of the stronger; drawn log-uniformly between them.
WEAKER = (0.2, 0.6)
# Share of the pairs of identification in which nothing is added to the first cache.
NOTHING_SHARE = 0.2


@dataclass(frozen=True)
class MixedPlan(PairedPlan):
    """Trials of a plan in pairs, some of which are pairs of two caches that are steered differently.

    Attributes:
        pairs: The plan that contexts, directions, bands and strengths come from.
        kinds: The kind of each pair.
        more_contexts: Contexts that follow the others in the split's list: those of numbered lines; of visible signals, the
            same contexts again, with a text that says that there is one.
        concepts: Number of concepts that can be added.
        concept_vectors: Split of the vector bank that they come from; empty: that of the trial's split.
    """

    pairs: TrialPlan
    kinds: PairKinds
    more_contexts: int = 0
    concepts: int = 0
    concept_vectors: str = ""

    def __post_init__(self) -> None:
        for name in ("seed", "split", "contexts", "questions", "vectors", "bands", "strengths"):
            object.__setattr__(self, name, getattr(self.pairs, name))

    def trial(self, number: int) -> Trial:
        """Make trial ``number``."""
        pair, second = divmod(number, 2)
        kind = self.kinds.of(pair)
        if kind == STEERING:
            return self.pairs.trial(number)
        if kind == VISIBLE:
            steered, context = bool(second), self.context_of(pair) + second * self.contexts
            return Trial(self.split, number, context, self.pairs.trial(number).question, steered)
        trial = self.pairs.trial(2 * pair + 1)._replace(number=number, context=self.context_of(pair))
        random = generator(self.seed, kind, self.split, pair)
        if kind == CONCEPTS:
            drawn = random.choice(self.concepts, 2, replace=False)
            if random.random() < NOTHING_SHARE and not second:
                return Trial(self.split, number, trial.context, trial.question, steered=False)
            return trial._replace(vector=int(drawn[second]), vectors=self.concept_vectors)
        places, weaker = [0, 1], 0.0
        if kind == IN_LINES:
            places = random.choice(LINES, 2, replace=False).tolist()
        elif kind == UNEQUAL:
            weaker = float(np.exp(random.uniform(*np.log(WEAKER))))
        parts = [weaker] * (LINES if kind == IN_LINES else len(places))
        parts[places[second]] = 1.0
        return trial._replace(parts=tuple(parts))

    def context_of(self, pair: int) -> int:
        """Index of the context of both trials of a pair."""
        if self.kinds.of(pair) != IN_LINES:
            return self.pairs.context_of(pair)
        return self.contexts + draw_in_rounds(self.seed, self.split, "lines", pair, self.more_contexts)


@dataclass(frozen=True)
class SeveralQuestionsPlan(PairedPlan):
    """Trials of a plan in pairs, whose caches are asked several questions each.

    Trials 2nj to 2nj + n - 1 ask the clean cache of pair j its n questions, the next n ask the steered cache the same. The
    number of the question, from 0 to n - 1, is the ``question`` of the trial.

    Attributes:
        pairs: The plan that contexts and interventions come from.
        each: Questions of each cache, n.
    """

    pairs: TrialPlan | MixedPlan
    each: int

    def __post_init__(self) -> None:
        for name in ("seed", "split", "contexts", "vectors", "bands", "strengths"):
            object.__setattr__(self, name, getattr(self.pairs, name))
        if isinstance(self.pairs, MixedPlan):
            object.__setattr__(self, "kinds", self.pairs.kinds)
        object.__setattr__(self, "questions", self.each)
        object.__setattr__(self, "trials_of_pair", 2 * self.each)

    def trial(self, number: int) -> Trial:
        """Make trial ``number``."""
        cache, question = divmod(number, self.each)
        return self.pairs.trial(cache)._replace(number=number, question=question)

    def context_of(self, pair: int) -> int:
        """Index of the context of all trials of a pair."""
        return self.pairs.context_of(pair)


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
