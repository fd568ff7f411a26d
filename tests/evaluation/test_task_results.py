"""Right in both orders, answers changed by steering: against counts by hand on observers whose behaviour is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from introspection_lit.evaluation.task_results import task_rows
from introspection_lit.evaluation.trial_table import ADAPTER, TrialTable
from introspection_lit.report.verdict import answer_sentences
from introspection_lit.tasks.questions import load_facts

# The score of a trial: of its set, whether it is steered, its strength, its question's number (the order) and its pair.
Score = Callable[[str, bool, float, int, int], float]
PAIRS = 20


def row_of(rows: list[dict[str, Any]], name: str, observer: str = ADAPTER) -> dict[str, Any] | None:
    """The row of a set and an observer; None: there is none."""
    return next((row for row in rows if row["set"] == name and row["observer"] == observer), None)


def honest(name: str, steered: bool, strength: float, question: int, pair: int) -> float:
    """Knows about steering of .5 and more, in both orders; other answers stay."""
    if name in ("codes", "newcodes"):
        return 3.0 if steered and strength >= 0.5 else -3.0
    return 1.0 if (pair + question) % 2 else -1.0


def says_yes(name: str, steered: bool, strength: float, question: int, pair: int) -> float:
    """Says the first word of the first order over steered caches, whatever is asked."""
    if name in ("codes", "newcodes"):
        said = 2.0 if steered else -2.0
        return said if question == 0 else -said
    return 2.0 if steered else -2.0


def knows_nothing(name: str, steered: bool, strength: float, question: int, pair: int) -> float:
    """Like an untrained model: its answers have nothing to do with the steering."""
    return 1.0 if (pair + question) % 2 else -1.0


def half_honest(name: str, steered: bool, strength: float, question: int, pair: int) -> float:
    """Follows the answer words, and says yes to anything else over steered caches."""
    return (honest if name in ("codes", "newcodes") else says_yes)(name, steered, strength, question, pair)


def table(**observers: Score) -> TrialTable:
    """Trials of four sets, shuffled: two questions to the clean and the steered cache of each pair."""
    facts, rows = load_facts(), []
    for name in ("codes", "newcodes", "facts", "reading"):
        for number in range(4 * PAIRS):
            pair, rest = divmod(number, 4)
            steered, question = bool(rest // 2), rest % 2
            strength = [0.3, 0.6, 1.0, 2.0][pair % 4] if steered else 0.0
            text = f"Introspection query: {facts[pair].question} Answer yes or no." if name == "facts" else f"{question}?"
            row: dict[str, Any] = {"split": name, "number": number, "kind": "chat", "context_key": f"c{pair}"}
            row |= {"question_text": text, "vectors": "heldout", "vector_name": f"v{pair}" if steered else None}
            row |= {"band": [0, 1], "strength": strength, "steered": steered, "role": "detection"}
            scores = {key: score(name, steered, strength, question, pair) for key, score in observers.items()}
            rows.append(row | {"scores": scores})
    order = np.random.default_rng(0).permutation(len(rows))
    return TrialTable.from_rows([rows[place] for place in order], ["chat"])


def test_who_answers_and_who_says_a_word_are_told_apart() -> None:
    """Both orders right, or never; answers that stay, or that follow the steering."""
    rows = task_rows(table(adapter=honest, untrained=says_yes))
    own, other = (row_of(rows, "codes", observer) for observer in (ADAPTER, "untrained"))
    assert own is not None
    assert other is not None
    assert (own["both_right"], own["both_right_clean"], own["both_right_steered"]) == (1, 1, 1)
    assert other["both_right"] == 0
    assert other["auroc"] == pytest.approx(0.5)
    assert own["auroc"] == pytest.approx(1 - 0.5 * 0.25)  # a quarter of the caches is steered below .5, scored as clean
    facts, changed = (row_of(rows, "facts", observer) for observer in (ADAPTER, "untrained"))
    assert facts is not None
    assert changed is not None
    assert (facts["changed"], facts["shift"], facts["auroc"]) == (0, 0, 0.5)
    assert (changed["changed"], changed["shift"], changed["auroc"]) == (1, 4, 1)
    truth = [fact.answer == "yes" for fact in load_facts()[:PAIRS]]
    assert changed["accuracy"] == pytest.approx(np.mean(truth))  # it says yes to all
    expected = [((pair + question) % 2 == 1) == truth[pair] for pair in range(PAIRS) for question in (0, 1)]
    assert facts["accuracy"] == pytest.approx(np.mean(expected))
    reading = row_of(rows, "reading")
    assert reading is not None
    assert "accuracy" not in reading
    assert row_of(rows, "facts_bare") is None


def test_observers_that_did_not_score_everything_are_left_out() -> None:
    """Their numbers would be of other trials."""
    partly = lambda *trial: np.nan if trial[4] == 3 else 0.0  # noqa: E731
    rows = task_rows(table(adapter=honest, untrained=partly, norms=honest))  # norms are asked nothing
    assert {row["observer"] for row in rows} == {ADAPTER}


@pytest.mark.parametrize(
    ("observer", "beginning"),
    [
        (honest, "It answers what it is asked."),
        (says_yes, "It says a word."),
        (knows_nothing, "It does not follow the answer words."),
        (half_honest, "It follows the answer words, but steering also moves other answers."),
    ],
)
def test_verdict_says_which(observer: Score, beginning: str) -> None:
    """In plain words, with both numbers."""

    def strong(name: str, steered: bool, strength: float, question: int, pair: int) -> float:
        return observer(name, steered, 1.0, question, pair)

    rows = task_rows(table(adapter=strong, untrained=lambda *trial: honest(trial[0], False, *trial[2:])))
    (sentence,) = answer_sentences({"sets": {}, "evidence": {"tasks": rows}})
    assert sentence.startswith(beginning)
    assert "AUROC" in sentence


def test_verdict_of_the_single_question_is_that_of_its_controls() -> None:
    """``swapped`` and ``factual``; without them nothing is said."""
    sets = {"swapped": {"auroc": 0.0}, "factual": {"auroc": 1.0}}
    assert answer_sentences({"sets": sets, "evidence": None})[0].startswith("It says a word.")
    sets = {"swapped": {"auroc": 0.99}, "factual": {"auroc": 0.52}}
    assert answer_sentences({"sets": sets})[0].startswith("It answers what it is asked.")
    assert answer_sentences({"sets": {"heldout": {"auroc": 1.0}}}) == []
