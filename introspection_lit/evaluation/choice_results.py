"""How often an observer names what was done to a cache: which half or line was steered, which half more, which concept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from introspection_lit.evaluation.analysis import rate_interval
from introspection_lit.evaluation.task_results import READERS, STRONG, Row
from introspection_lit.evaluation.trial_table import TrialTable
from introspection_lit.trials.test_sets import CHOICES, OF_CONCEPTS
from introspection_lit.utils.seeds import generator

# Random orders of the guesses that say how much information wrong guesses seem to carry.
PERMUTATIONS = 200


def choice_rows(rows: Sequence[Mapping[str, Any]], trained_kinds: Iterable[str]) -> list[Row]:
    """Summarise every test set over caches of its own, for the adapter and each other reader that answered all of it.

    Args:
        rows: Rows of ``trials.jsonl``, with ``answers``, the index ``right`` and ``given`` by observer.
        trained_kinds: Kinds of context in training and validation.

    Returns:
        A row for each set and observer: ``set``, ``observer``, ``n``, ``chance``, ``accuracy`` and its interval, both also
        for trials steered at :data:`~introspection_lit.evaluation.task_results.STRONG` or more (``strong``), and the
        accuracy ``by_band``. Of ``identification`` and ``naming``: ``confusion``, the number of each (true, given) pair;
        ``information``, the mutual information of both in bits, and ``information_by_chance``, its mean over random orders
        of the guesses, since wrong guesses pile up on a few words and small samples seem to inform.
    """
    found = []
    for name in CHOICES:
        asked = [row for row in rows if row["split"] == name]
        for observer in READERS:
            if asked and all(observer in row.get("given", {}) for row in asked):
                found.append(_summary(name, observer, asked, trained_kinds))
    return found


def _summary(name: str, observer: str, rows: Sequence[Mapping[str, Any]], trained_kinds: Iterable[str]) -> Row:
    table = TrialTable.from_rows(rows, trained_kinds)
    right = np.array([row["given"][observer] == row["right"] for row in rows])
    strong = table.strengths >= STRONG
    summary: Row = {"set": name, "observer": observer, "n": len(rows), "chance": 1 / len(rows[0]["answers"])}
    summary |= {"accuracy": float(right.mean()), "accuracy_interval": rate_interval(right, table)}
    if strong.any():
        interval = rate_interval(right[strong], table.where(strong))
        summary |= {"strong": float(right[strong].mean()), "strong_interval": interval, "n_strong": int(strong.sum())}
    summary["by_band"] = {band: float(right[table.bands == band].mean()) for band in table.bands_of()}
    if name in OF_CONCEPTS:
        true = [row["answers"][row["right"]] for row in rows]
        given = [row["answers"][row["given"][observer]] for row in rows]
        counts = Counter(zip(true, given, strict=True))
        summary["confusion"] = [[*pair, count] for pair, count in sorted(counts.items())]
        summary["information"] = mutual_information(true, given)
        random = generator(0, "information", observer)
        shuffled = [mutual_information(true, random.permutation(given).tolist()) for _ in range(PERMUTATIONS)]
        summary["information_by_chance"] = float(np.mean(shuffled))
    return summary


def mutual_information(first: Sequence[str], second: Sequence[str]) -> float:
    """The mutual information of two columns, from their counts, in bits."""
    from sklearn.metrics import mutual_info_score

    return float(mutual_info_score(first, second) / np.log(2))
