"""The trials of a test as columns: what was done in each, and what every observer said."""

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
    """Trials, one at each place of every column, ``(n,)``.

    Attributes:
        sets: The test set.
        kinds: The kind of context.
        contexts: The context's fingerprint.
        inputs: A text for each distinct context and question.
        vectors: The direction's name, with its kind; empty if clean.
        bands: ``first..last``; empty if clean.
        strengths: 0 if clean.
        steered: The label.
        roles: ``detection``, ``clear yes`` or ``clear no``.
        unseen: The kind of context is one that training and validation have not.
        scores: The log-odds that each observer gives to "steered", by the observer's name; nan where it was not asked.
    """

    sets: NDArray[np.str_]
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
    def of(cls, rows: Iterable[Mapping[str, Any]], trained_kinds: Iterable[str]) -> TrialTable:
        """Make a table.

        Args:
            rows: As :meth:`~introspection_lit.trials.split.Split.describe` gives them, with ``scores`` by observer.
            trained_kinds: Kinds of context of training and validation.
        """
        rows, trained = list(rows), set(trained_kinds)
        observers = dict.fromkeys(name for row in rows for name in row["scores"])

        def texts(name: str) -> NDArray[np.str_]:
            return np.array([row[name] for row in rows], dtype=str)

        steered = np.array([row["steered"] for row in rows], dtype=bool)
        return cls(
            texts("split"),
            texts("kind"),
            texts("context_key"),
            np.array([f"{row['context_key']} {row['question_text']}" for row in rows], dtype=str),
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

    def where(self, chosen: NDArray[np.bool_]) -> TrialTable:
        """Some of the trials."""
        columns = {name: column[chosen] for name, column in vars(self).items() if name != "scores"}
        return TrialTable(**columns, scores={name: scores[chosen] for name, scores in self.scores.items()})

    def of_sets(self, *names: str) -> TrialTable:
        """The trials of some test sets."""
        return self.where(np.isin(self.sets, names))

    def scored(self, observer: str) -> TrialTable:
        """The trials that an observer was asked about."""
        return self.where(np.isfinite(self.scores[observer]) if observer in self.scores else np.zeros(len(self), bool))

    def clean(self) -> TrialTable:
        """The clean trials, each distinct input once: a model that always answers the same cannot be counted twice."""
        once = np.zeros(len(self), bool)
        chosen = np.flatnonzero(~self.steered)
        _, first = np.unique(self.inputs[chosen], return_index=True)
        once[chosen[first]] = True
        return self.where(once)

    def bands_of(self) -> list[str]:
        """The bands, lowest first."""
        return sorted(set(self.bands[self.steered]), key=lambda band: tuple(map(int, band.split(".."))))

    @property
    def clusters(self) -> list[NDArray[np.str_]]:
        """What trials have in common that makes them less than independent: direction and context."""
        return [self.vectors, self.contexts]


# Test sets in which the question of the training is asked about contexts as they are.
PLAIN_SETS = tuple(
    name
    for name, source in SOURCES.items()
    if source.questions == "train" and source.contexts not in ("odd", "train", "validation")
)
# Those of them with directions added as usual.
USUAL_SETS = tuple(name for name in PLAIN_SETS if SOURCES[name].sign == 1 and SOURCES[name].positions == 1)
# What kind of direction a detection curve is about, and where it comes from.
CURVES = {RANDOM: "doses", "concept": "doses_concept"}
