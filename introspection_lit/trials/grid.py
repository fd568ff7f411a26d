"""The grid of a benchmark: all combinations of context, direction, band, strength and question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from introspection_lit.steering.bands import Bands
from introspection_lit.steering.limits import LEAST_STRENGTH, MOST_STRENGTH
from introspection_lit.steering.vector_bank import OPTIONAL_SPLITS
from introspection_lit.tasks.questions import FALSE_QUESTIONS, TRUE_QUESTIONS
from introspection_lit.trials.plans import Plan, equal_part
from introspection_lit.trials.trial import Trial

# Roles of questions in reports.
DETECTION, CLEAR_YES, CLEAR_NO = "detection", "clear yes", "clear no"


@dataclass(frozen=True)
class Grid:
    """The option ``data.grid``: ``predict`` scores this grid instead of the test sets.

    Attributes:
        vectors: Splits of the vector bank whose directions are used.
        random_vectors: Number of directions of each random split; of the other splits all are used.
        contexts: Number of contexts, evenly from all kinds, of a conversation file or of the split ``heldout``. By default
            8, or all conversations of the file.
        info: Conditions, each a value of ``data.info`` (the text before the question).
        bands: Bands of layers, as in ``data.bands``.
        strengths: Strengths, in ``data.strength_unit``.
        true_questions: Control questions whose answer is the word for "true", with ``{yes}`` and ``{no}`` for the words.
        false_questions: Control questions whose answer is the other word.
    """

    vectors: list[str] = field(default_factory=lambda: ["heldout", "concept"])
    random_vectors: int = 50
    contexts: int | None = None
    info: list[str] = field(default_factory=lambda: ["none"])
    bands: list[str | list[int]] = field(default_factory=lambda: ["middle"])
    strengths: list[float] = field(default_factory=lambda: [1.0])
    true_questions: list[str] = field(default_factory=lambda: list(TRUE_QUESTIONS))
    false_questions: list[str] = field(default_factory=lambda: list(FALSE_QUESTIONS))

    def problems(self) -> list[str]:
        """Check counts, strengths and names; a sentence for each problem."""
        problems = []
        if (
            (self.contexts is not None and self.contexts < 1)
            or self.random_vectors < 1
            or not self.vectors
            or not self.info
        ):
            shown = f"{self.contexts} contexts, {self.random_vectors} random vectors, {self.vectors} and {self.info}"
            problems.append(f"data.grid: got {shown}. Expected at least one context, vector, kind of vector and info.")
        if not self.strengths or not all(LEAST_STRENGTH <= strength <= MOST_STRENGTH for strength in self.strengths):
            expected = f"Expected some, each above 0, from {LEAST_STRENGTH:g} to {MOST_STRENGTH:g}"
            problems.append(f"data.grid.strengths: got {self.strengths}. {expected}.")
        known = ("train", "heldout", "concept", *OPTIONAL_SPLITS)
        unknown = [name for name in self.vectors if name not in known]
        return problems + [f"data.grid.vectors: {name!r} is none of {', '.join(known)}." for name in unknown]

    def roles(self, questions: int) -> list[str]:
        """The role of each question, where the first ``questions`` ask about steering."""
        controls = [CLEAR_YES] * len(self.true_questions) + [CLEAR_NO] * len(self.false_questions)
        return [DETECTION] * questions + controls


@dataclass(frozen=True)
class GridPlan(Plan):
    """The trials of a grid: contexts in the outer loop, then clean and every intervention, then the questions.

    Neighbours share a context and an intervention, so that one prefill serves all questions.

    Attributes:
        split: Name of the split.
        contexts: Number of contexts.
        questions: Number of questions.
        vectors: Number of directions.
        bands: Bands of layers, (first, last) inclusive.
        each_strength: All strengths.
    """

    split: str
    contexts: int
    questions: int
    vectors: int
    bands: Bands
    each_strength: tuple[float, ...]

    @property
    def strengths(self) -> tuple[float, float]:  # type: ignore[override]
        """Lowest and highest strength."""
        return min(self.each_strength), max(self.each_strength)

    @property
    def interventions(self) -> int:
        """Number of combinations of direction, band and strength."""
        return self.vectors * len(self.bands) * len(self.each_strength)

    @property
    def total(self) -> int:
        """Number of trials."""
        return self.contexts * (1 + self.interventions) * self.questions

    def trial(self, number: int) -> Trial:
        """Make trial ``number``; numbers beyond the last trial start again at the first."""
        rest, question = divmod(number % self.total, self.questions)
        context, intervention = divmod(rest, 1 + self.interventions)
        if intervention == 0:
            return Trial(self.split, number, context, question, steered=False)
        rest, strength = divmod(intervention - 1, len(self.each_strength))
        vector, band = divmod(rest, len(self.bands))
        return Trial(
            self.split, number, context, question, True, vector, self.bands[band], float(self.each_strength[strength])
        )

    def batch(
        self, number: int, size: int, lengths: Sequence[int], pool: int, share: tuple[int, int] = (0, 1)
    ) -> list[Trial]:
        """The trials from ``number * size`` on, in order."""
        return [self.trial(place) for place in equal_part(range(number * size, (number + 1) * size), share)]


def split_name(info: str, vectors: str) -> str:
    """The name of the grid's split for one condition (``info``) and one split of the bank."""
    return f"grid/{info}/{vectors}"


def info_of(split: str) -> str:
    """The condition (``info``) in the name of a grid's split; it may be a path with slashes."""
    return split.split("/", 1)[1].rpartition("/")[0]
