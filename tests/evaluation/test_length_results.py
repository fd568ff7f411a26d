"""Rates in long conversations: against counts by hand, on trials whose scores are known."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from introspection_lit.evaluation.length_results import long_results, rates_by_length
from introspection_lit.evaluation.trial_table import TrialTable
from introspection_lit.report.lengths import (
    context_lengths_table,
    draw_lengths,
    length_plots,
    length_sentences,
    length_tables,
)
from introspection_lit.report.shape import SHAPES
from introspection_lit.trials.test_sets import MANY

CLASSES = [(24, 64), (65, 128), (129, 256)]
THRESHOLD = 1.0
# Of each conversation: its class, its exchanges, what is steered in the steered trial, and the scores of clean and steered.
WHOLE: tuple[float, ...] = ()
CASES = [
    (0, 1, WHOLE, -3.0, 4.0),
    (0, 1, WHOLE, -2.0, 0.5),  # missed
    (1, 2, (1.0, 0.0), -3.0, -1.0),  # missed; one exchange later
    (1, 2, (0.0, 1.0), 2.0, 3.0),  # a false alarm
    (2, 5, (1.0, 0.0, 0.0, 0.0, 0.0), 2.0, 5.0),  # a false alarm; four exchanges later
    (2, 5, (0.0, 1.0, 1.0, 0.0, 0.0), -1.0, 5.0),  # two exchanges later
    (2, 9, WHOLE, -1.0, 5.0),
]


def rows(name: str = "long") -> list[dict[str, Any]]:
    """Clean and steered trials of :data:`CASES`, and a trial of another set."""
    made = []
    for number, (length, exchanges, parts, clean, steered) in enumerate(CASES):
        for label, score in ((False, clean), (True, steered)):
            row: dict[str, Any] = {
                "split": name,
                "number": 2 * number + label,
                "kind": "joined",
                "context_key": f"c{number}",
            }
            row |= {"question_text": "Was it?", "vectors": "heldout", "vector_name": f"v{number}" if label else None}
            row |= {"band": [0, 1], "strength": 0.5 * label, "steered": label, "role": "detection"}
            row |= {"tokens": CLASSES[length][1] - 3, "exchanges": exchanges, "scores": {"adapter": score}}
            made.append(row | ({"parts": list(parts), "divided": "exchanges"} if label and parts else {}))
    other = {name: value for name, value in made[0].items() if name not in ("tokens", "exchanges")}
    return [*made, other | {"split": "heldout"}]


@pytest.fixture
def found() -> dict[str, Any]:
    """Results of both sets."""
    both = long_results([*rows(), *rows("long_newkinds")], ["chat"], THRESHOLD, CLASSES, 128)
    assert both is not None
    return both


def test_rates_are_those_counted_by_hand(found: dict[str, Any]) -> None:
    """False alarms and hits of each class of lengths and exchanges."""
    of_length = {tuple(row["tokens"]): row for row in found["by_length"] if row["set"] == "long"}
    counts = ("n_clean", "alarms", "n_steered", "tpr", "n_part", "part_tpr")
    assert {ends: tuple(row[name] for name in counts) for ends, row in of_length.items()} == {
        (24, 64): (2, 0, 2, 0.5, 0, None),
        (65, 128): (2, 1, 0, None, 2, 0.5),
        (129, 256): (3, 1, 1, 1.0, 2, 1.0),
    }
    assert of_length[129, 256]["fpr"] == pytest.approx(1 / 3)
    assert of_length[129, 256]["auroc"] == 1.0
    of_exchanges = {tuple(row["exchanges"]): row["n_clean"] for row in found["by_exchanges"] if row["set"] == "long"}
    assert of_exchanges == {(1, 1): 2, (2, 3): 2, (4, 7): 2, (8, MANY): 1}
    assert found["trained"] == 128


def test_what_came_after_the_steered_exchanges_is_counted(found: dict[str, Any]) -> None:
    """Trials that are steered as a whole do not count here."""
    after = {tuple(row["after"]): (row["n_steered"], row["tpr"]) for row in found["by_part"] if row["set"] == "long"}
    assert after == {(0, 0): (1, 1.0), (1, 1): (1, 0.0), (2, 3): (1, 1.0), (4, MANY): (1, 1.0)}


def test_there_is_nothing_without_long_conversations() -> None:
    """Results, figure, tables and sentences."""
    assert long_results(rows()[-1:], ["chat"], THRESHOLD, CLASSES, 128) is None
    assert length_plots({}) == {}
    assert length_tables({"long": None}) == []
    assert length_sentences({"evidence": {"long": None}}) == []


def test_report_shows_every_class_and_what_is_longer_than_trained(found: dict[str, Any]) -> None:
    """In the figure's table, in the text for screen readers, and the tables beside it."""
    figure = draw_lengths(found)
    assert figure is not None
    cells = {(row[0], row[1]): row[2:] for row in figure.table.rows}
    assert cells["trained kinds", "129 to 256"][:2] == ("no", "3")
    assert cells["unseen kinds", "65 to 128"][0] == "yes"
    assert "Highest FPR: 65 to 128 tokens, trained kinds, 0.500" in figure.alt
    labels = figure.figure.axes[0].get_legend_handles_labels()[1]
    assert "longer than trained" in labels
    by_exchanges, by_part = length_tables({"long": found})
    assert [row[1] for row in by_exchanges.rows][:4] == ["1", "2 to 3", "4 to 7", "8 or more"]
    assert [row[1] for row in by_part.rows][:4] == ["0", "1", "2 to 3", "4 or more"]


def test_verdict_names_the_worst_length_or_says_that_all_hold(found: dict[str, Any]) -> None:
    """At three per cent; with false alarms and clean inputs in numbers."""
    (sentence,) = length_sentences({"evidence": {"long": found}})
    assert sentence == "Long conversations: of clean ones of 65 to 128 tokens (trained kinds) 1 of 2 are called steered."
    quiet = copy.deepcopy(found)
    for row in quiet["by_length"]:
        row |= {"n_clean": 100, "alarms": 3, "fpr": 0.03}
    (sentence,) = length_sentences({"evidence": {"long": quiet}})
    classes = len(quiet["by_length"])
    said = f"{3 * classes} of {100 * classes} are called steered."
    assert sentence == f"Of clean conversations of up to 256 tokens, {said}"


def test_results_have_the_form_that_a_report_reads(found: dict[str, Any]) -> None:
    """And another form is refused."""
    content: dict[str, Any] = {"sets": {}, "evidence": {"long": found}}
    assert list(SHAPES["sets"](content, "")) == []
    found["by_length"][0]["fpr"] = 7
    assert list(SHAPES["sets"](content, "")) != []


# Lengths of a training's contexts: median 50, 95th percentile 90, longest 100; and of those that are tested.
TRAINED = [*[40] * 18, *[50] * 18, 90, 90, 90, 100]
TESTED = {"c0": 10, "c1": 50, "c2": 51, "c3": 90, "c4": 91, "c5": 100, "c6": 101}


def test_rates_by_length_are_those_of_the_contexts_of_each_class() -> None:
    """An end belongs to the class below it; a class without tested contexts has no row; without a training none has."""
    table = TrialTable.from_rows(rows("heldout")[:-1], ["joined"])
    made = rates_by_length(table, THRESHOLD, TESTED, TRAINED)
    assert [(row["tokens"], row["n_trained"], row["n_clean"], row["alarms"], row["n_steered"]) for row in made] == [
        ([1, 50], 36, 2, 0, 2),
        ([51, 90], 3, 2, 1, 2),
        ([91, 100], 1, 2, 1, 2),
        ([101, MANY], 0, 1, 0, 1),
    ]
    assert [row["tpr"] for row in made] == [0.5, 0.5, 1.0, 1.0]
    longer = rates_by_length(table, THRESHOLD, dict.fromkeys(TESTED, 200), TRAINED)
    assert [row["tokens"] for row in longer] == [[101, MANY]]
    equal = rates_by_length(table, THRESHOLD, dict.fromkeys(TESTED, 30), [30] * 5)
    assert [(row["tokens"], row["n_trained"]) for row in equal] == [([1, 30], 5)]
    assert rates_by_length(table, THRESHOLD, TESTED, []) == []
    assert list(SHAPES["sets"]({"sets": {}, "evidence": {"lengths": made}}, "")) == []


def test_lengths_of_contexts_are_a_table_and_a_sentence_where_alarms_are_surely_many() -> None:
    """One alarm in three is not; eighteen in a hundred are."""
    row = {"tokens": [101, MANY], "n_trained": 0, "n_steered": 5, "tpr": 1.0, "tpr_interval": [0.6, 1.0], "auroc": 0.9}
    few = row | {"n_clean": 3, "fpr": 1 / 3, "fpr_interval": [0.02, 0.7]}
    many = row | {"n_clean": 100, "fpr": 0.18, "fpr_interval": [0.12, 0.27]}
    table = context_lengths_table({"lengths": [few]})
    assert table is not None
    assert table.rows[0][:3] == ("101 or more", "0", "3")
    assert context_lengths_table({}) is None
    assert length_sentences({"evidence": {"lengths": [few]}}) == []
    assert length_sentences({"evidence": {"lengths": [many]}}) == [
        "Of clean contexts of 101 or more tokens 0.180 are called steered; of those of training 0 are as long."
    ]
