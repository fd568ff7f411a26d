"""The trials of a test as a table of columns: their conditions and every observer's score."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from introspection_lit.trials.test_sets import SOURCES

ADAPTER = "adapter"
RANDOM = "random"


@dataclass(frozen=True)
class TrialTable:
    """Trials as columns, each ``(n,)``.

    Attributes:
        sets: The test set.
        numbers: The trial's number in its set.
        questions: The question.
        kinds: The kind of context.
        contexts: The context's fingerprint.
        inputs: A text for each distinct context, change of its cache and question.
        vectors: Type and name of the direction; empty if clean.
        bands: Steered layers, ``first..last``; empty if clean.
        strengths: 0 if clean.
        steered: The label.
        roles: Role of the question: ``detection``, ``clear yes`` or ``clear no``.
        unseen: True for kinds of context that are in neither training nor validation.
        scores: Log-odds of "steered" by observer; NaN for trials that the observer did not score.
    """

    sets: NDArray[np.str_]
    numbers: NDArray[np.int64]
    questions: NDArray[np.str_]
    kinds: NDArray[np.str_]
    contexts: NDArray[np.str_]
    inputs: NDArray[np.str_]
    vectors: NDArray[np.str_]
    bands: NDArray[np.str_]
    strengths: NDArray[np.float64]
    steered: NDArray[np.bool_]
    roles: NDArray[np.str_]
    unseen: NDArray[np.bool_]
    scores: dict[str, NDArray[np.float64]]

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]], trained_kinds: Iterable[str]) -> TrialTable:
        """Make a table.

        Args:
            rows: Trials from :meth:`~introspection_lit.trials.split.Split.describe`, each with ``scores`` by observer.
            trained_kinds: Kinds of context in training and validation.
        """
        rows, trained = list(rows), set(trained_kinds)
        observers = dict.fromkeys(name for row in rows for name in row["scores"])

        def texts(name: str) -> NDArray[np.str_]:
            return np.array([row[name] for row in rows], dtype=str)

        steered = np.array([row["steered"] for row in rows], dtype=bool)
        return cls(
            texts("split"),
            np.array([row["number"] for row in rows], dtype=np.int64),
            texts("question_text"),
            texts("kind"),
            texts("context_key"),
            np.array([f"{row['context_key']} {row['question_text']} {row.get('change', '')}" for row in rows], dtype=str),
            np.array([f"{row['vectors']}/{row['vector_name']}" if row["steered"] else "" for row in rows], dtype=str),
            np.array(["{}..{}".format(*row["band"]) if row["steered"] else "" for row in rows], dtype=str),
            np.array([row["strength"] for row in rows], dtype=float),
            steered,
            texts("role"),
            np.array([row["kind"] not in trained for row in rows], dtype=bool),
            {name: np.array([row["scores"].get(name, np.nan) for row in rows], dtype=float) for name in observers},
        )

    def __len__(self) -> int:
        return len(self.sets)

    def where(self, selection: NDArray[np.bool_]) -> TrialTable:
        """The trials for which ``selection``, ``(n,)``, is True."""
        columns = {name: column[selection] for name, column in vars(self).items() if name != "scores"}
        return TrialTable(**columns, scores={name: scores[selection] for name, scores in self.scores.items()})

    def of_sets(self, *names: str) -> TrialTable:
        """The trials of these test sets."""
        return self.where(np.isin(self.sets, names))

    def scored(self, observer: str) -> TrialTable:
        """The trials that have a finite score of this observer."""
        return self.where(np.isfinite(self.scores[observer]) if observer in self.scores else np.zeros(len(self), bool))

    def clean(self) -> TrialTable:
        """One clean trial of each distinct input: a deterministic model answers the others alike."""
        first_of_input = np.zeros(len(self), bool)
        clean = np.flatnonzero(~self.steered)
        _, first = np.unique(self.inputs[clean], return_index=True)
        first_of_input[clean[first]] = True
        return self.where(first_of_input)

    def distinct_clean(self) -> dict[str, int]:
        """How many distinct clean inputs each test set has."""
        return {str(name): len(self.of_sets(str(name)).clean()) for name in dict.fromkeys(self.sets)}

    def bands_of(self) -> list[str]:
        """The bands that occur, lowest first."""
        return sorted(set(self.bands[self.steered]), key=lambda band: tuple(map(int, band.split(".."))))

    @property
    def clusters(self) -> list[NDArray[np.str_]]:
        """Factors of the clustered bootstrap, within which trials are not independent: direction and context."""
        return [self.vectors, self.contexts]


# Test sets with the questions of training, uncorrupted contexts of the usual length, unchanged caches and usual strengths.
PLAIN_SETS = tuple(
    name
    for name, source in SOURCES.items()
    if source.questions == "train"
    and source.contexts not in ("odd", "train", "validation")
    and not source.long
    and not source.changed
    and not source.strength
)
# Those with the usual intervention: no flipped sign, all positions.
USUAL_SETS = tuple(name for name in PLAIN_SETS if SOURCES[name].sign == 1 and SOURCES[name].positions == 1)
# The test set of each type of vectors that covers all strengths.
CURVES = {RANDOM: "doses", "concept": "doses_concept"}
