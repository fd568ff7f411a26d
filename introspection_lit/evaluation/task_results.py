"""Does the adapter answer what it is asked, or say a word? From test sets that ask each cache several questions.

Questions are put to the clean and to the steered cache of a pair in the same words, so that whatever changes was changed by
the steering. Detection is asked in both orders of its answer words.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from introspection_lit.evaluation.analysis import auroc_interval, finite_or_none, rate_interval
from introspection_lit.evaluation.statistics import auroc
from introspection_lit.evaluation.trial_table import ADAPTER, TrialTable
from introspection_lit.tasks.questionnaire import QUESTIONS_OF_TEST_SETS
from introspection_lit.tasks.questions import load_facts

Row = dict[str, Any]
# Test sets that ask for detection in both orders of the answer words, and those about something else.
CODE_SETS = ("codes", "newcodes")
CLEAN_ANSWER_SETS = ("facts", "facts_bare", "reading")
# Observers that are asked the question; the others know nothing of it.
READERS = (ADAPTER, "untrained", "with info")
# Steering at least as strong as this counts for "right in both orders".
STRONG = 0.5


def task_rows(trials: TrialTable) -> list[Row]:
    """Summarise every test set with several questions, for the adapter and each other reader that scored all of it.

    Args:
        trials: All trials of the test.

    Returns:
        A row for each set and observer: ``set``, ``observer``, ``n``, ``auroc`` of steered against clean and its interval.
        For codes ``both_right``, the balanced share of caches (clean ones, and those steered at :data:`STRONG` or more)
        that are classified right in both orders at a threshold of 0. For other questions ``changed``, the share of answers
        that the steering changes, ``shift``, the mean change of the log-odds in nats, and for facts the ``accuracy`` on
        steered caches.
    """
    rows = []
    for name in (*CODE_SETS, *CLEAN_ANSWER_SETS):
        subset = _in_order(trials.of_sets(name))
        for observer in READERS if len(subset) else ():
            scores = subset.scores.get(observer, np.full(len(subset), np.nan))
            if not np.isfinite(scores).all():
                continue
            interval = auroc_interval(scores, subset)
            row = {"set": name, "observer": observer, "n": len(subset)}
            row |= {"auroc": finite_or_none(auroc(scores, subset.steered)), "auroc_interval": interval}
            rows.append(row | (_codes(subset, scores) if name in CODE_SETS else _clean_answers(subset, scores)))
    return rows


def _in_order(trials: TrialTable) -> TrialTable:
    """The trials sorted by number: questions of a cache, clean and steered caches of a pair come one after another."""
    order = np.argsort(trials.numbers)
    columns = {name: column[order] for name, column in vars(trials).items() if name != "scores"}
    return TrialTable(**columns, scores={name: scores[order] for name, scores in trials.scores.items()})


def _codes(trials: TrialTable, scores: NDArray[np.float64]) -> Row:
    right = ((scores > 0) == trials.steered).reshape(-1, QUESTIONS_OF_TEST_SETS).all(axis=1)
    caches = trials.where(np.arange(len(trials)) % QUESTIONS_OF_TEST_SETS == 0)
    groups = {"clean": ~caches.steered, "steered": caches.steered & (caches.strengths >= STRONG)}
    if not all(group.any() for group in groups.values()):
        return {"both_right": None}
    shares = {name: float(right[group].mean()) for name, group in groups.items()}
    counted = groups["clean"] | groups["steered"]
    return {
        "both_right": sum(shares.values()) / 2,
        "both_right_interval": rate_interval(right[counted], caches.where(counted)),
        **{f"both_right_{name}": share for name, share in shares.items()},
    }


def _clean_answers(trials: TrialTable, scores: NDArray[np.float64]) -> Row:
    pairs = scores.reshape(-1, 2, QUESTIONS_OF_TEST_SETS)
    clean, steered = pairs[:, 0].ravel(), pairs[:, 1].ravel()
    changed = (clean > 0) != (steered > 0)
    rows = trials.where(trials.steered)
    numbers: Row = {"changed": float(changed.mean()), "changed_interval": rate_interval(changed, rows)}
    numbers["shift"] = float((steered - clean).mean())
    answers = {fact.question: fact.answer == "yes" for fact in load_facts()}
    expected = [next((answers[fact] for fact in answers if fact in text), None) for text in rows.questions]
    if all(answer is not None for answer in expected):
        numbers["accuracy"] = float(((steered > 0) == np.array(expected, dtype=bool)).mean())
    return numbers
