"""Plans made of others: some exchanges of a context alone are steered, caches of tasks of their own, several questions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from introspection_lit.tasks.questionnaire import CONCEPTS, IN_LINES, LINES, STEERING, UNEQUAL, VISIBLE, PairKinds
from introspection_lit.trials import trial as divisions
from introspection_lit.trials.plans import PairedPlan, TrialPlan
from introspection_lit.trials.trial import Trial
from introspection_lit.utils.seeds import draw_in_rounds, generator

# Share of the steered trials over several exchanges in which all of them are steered.
WHOLE_SHARE = 0.5


@dataclass(frozen=True)
class ExchangesPlan(PairedPlan):
    """Trials of a plan in pairs; of several exchanges of a context, all are steered, or only some, one after another.

    So the question can come right after the steered exchanges, or several exchanges later.

    Attributes:
        pairs: The plan that contexts and interventions come from.
        exchanges: Number of exchanges of each context.
    """

    pairs: TrialPlan
    exchanges: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("seed", "split", "contexts", "questions", "vectors", "bands", "strengths"):
            object.__setattr__(self, name, getattr(self.pairs, name))

    def trial(self, number: int) -> Trial:
        """Make trial ``number``."""
        trial = self.pairs.trial(number)
        count = self.exchanges[trial.context]
        random = generator(self.seed, "exchanges", self.split, number)
        if not trial.steered or count == 1 or random.random() < WHOLE_SHARE:
            return trial
        length = int(random.integers(1, count))
        first = int(random.integers(count - length + 1))
        return trial._replace(
            parts=tuple(float(first <= place < first + length) for place in range(count)), divided=divisions.IN_EXCHANGES
        )

    def context_of(self, pair: int) -> int:
        """Index of the context of both trials of a pair."""
        return self.pairs.context_of(pair)


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

    pairs: TrialPlan | ExchangesPlan
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
        trial = self.pairs.trial(2 * pair + 1)._replace(number=number, context=self.context_of(pair), parts=(), divided="")
        random = generator(self.seed, kind, self.split, pair)
        if kind == CONCEPTS:
            drawn = random.choice(self.concepts, 2, replace=False)
            if random.random() < NOTHING_SHARE and not second:
                return Trial(self.split, number, trial.context, trial.question, steered=False)
            return trial._replace(vector=int(drawn[second]), vectors=self.concept_vectors, opposite=False)
        places, weaker = [0, 1], 0.0
        if kind == IN_LINES:
            places = random.choice(LINES, 2, replace=False).tolist()
        elif kind == UNEQUAL:
            weaker = float(np.exp(random.uniform(*np.log(WEAKER))))
        parts = [weaker] * (LINES if kind == IN_LINES else len(places))
        parts[places[second]] = 1.0
        return trial._replace(parts=tuple(parts), divided=divisions.IN_LINES if kind == IN_LINES else "")

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

    pairs: TrialPlan | ExchangesPlan | MixedPlan
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
