"""Trials: which context, question and intervention trial ``i`` of a split has.

Trial ``i`` is a pure function of (seed, split, i), so that any number of trials, workers or processes, in any order,
sees the same ones.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from introspection_lit.seeds import generator


@dataclass(frozen=True)
class Source:
    """What the trials of a split are made of.

    Attributes:
        vectors: The split of the bank that directions come from.
        contexts: The split of the contexts.
        questions: ``train`` or ``heldout``.
    """

    vectors: str
    contexts: str
    questions: str = "train"


# Every split of an experiment.
SOURCES = {
    "train": Source("train", "train"),
    "validation": Source("validation", "validation"),
    "seen": Source("train", "seen"),
    "heldout": Source("heldout", "heldout"),
    "concept": Source("concept", "concept"),
    "newkinds": Source("heldout", "newkinds"),
    "newquestions": Source("heldout", "heldout", "heldout"),
    "concept_pca": Source("concept_pca", "concept"),
    "imported": Source("imported", "concept"),
}
TEST_SETS = tuple(split for split in SOURCES if split not in ("train", "validation"))
DEFAULT_TEST_SETS = ("seen", "heldout", "concept", "newkinds")


class Trial(NamedTuple):
    """Everything that defines a trial, by number.

    A tuple, because Lightning walks through batches and refuses frozen dataclasses.

    Attributes:
        split: The split it belongs to.
        number: Its number in the split.
        context: Number of the context among those of the split.
        question: Number of the question among those of the split.
        steered: The label.
        vector: Number of the direction among those of the split; -1 if not steered.
        band: First and last layer steered, inclusive; (-1, -1) if not steered.
        strength: In the unit of the experiment; 0 if not steered.
    """

    split: str
    number: int
    context: int
    question: int
    steered: bool
    vector: int = -1
    band: tuple[int, int] = (-1, -1)
    strength: float = 0.0

    def as_row(self) -> dict[str, object]:
        """The trial as plain values, for JSON."""
        return {**self._asdict(), "band": list(self.band)}


Bands = tuple[tuple[int, int], ...]


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
    def batch(self, number: int, size: int, lengths: Sequence[int], pool: int) -> list[Trial]:
        """The trials of a batch.

        Args:
            number: The batch's number.
            size: Trials in a batch.
            lengths: Tokens of each context.
            pool: Batches that may be sorted by length together.
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

    def batch(self, number: int, size: int, lengths: Sequence[int], pool: int) -> list[Trial]:
        """The trials of a batch, with contexts of similar length so that little is padded.

        Batches are cut from pools of ``pool`` batches, sorted by the length of the context. Together they hold the same
        trials as without sorting. ``size`` is even, and half of the trials are steered.
        """
        which, place = divmod(number, pool)
        pairs = range(which * pool * size // 2, (which + 1) * pool * size // 2)
        by_length = sorted(pairs, key=lambda pair: (lengths[self.context_of(pair)], pair))
        slot = int(shuffled(self.seed, self.split, "pool", which, pool)[place])
        chosen = by_length[slot * size // 2 : (slot + 1) * size // 2]
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
        question = self._dealt("question", pair, self.questions)
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
            vector=self._dealt("vector", pair, self.vectors),
            band=self.bands[int(random.integers(len(self.bands)))],
            strength=float(np.exp(random.uniform(low, high))),
        )

    def context_of(self, pair: int) -> int:
        """The context that both trials of a pair have."""
        return self._dealt("context", pair, self.contexts)

    def _dealt(self, what: str, position: int, size: int) -> int:
        round_number, place = divmod(position, size)
        return int(shuffled(self.seed, self.split, what, round_number, size)[place])


@lru_cache(maxsize=64)
def shuffled(seed: int, split: str, what: str, round_number: int, size: int) -> np.ndarray:
    """The order of a round: numbers up to ``size``, ``(size,)``."""
    return generator(seed, "order", split, what, round_number).permutation(size)
