"""The section on changed caches: a table, a figure and a sentence that say what the rows say."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from pages import Read, save

from introspection_lit import report
from introspection_lit.evaluation.statistics import wilson_interval
from introspection_lit.report.deployment import deployed_figures, deployed_sentences, deployed_tables
from introspection_lit.report.shape import SHAPES
from introspection_lit.report.verdict import verdict_sentences
from introspection_lit.steering.change_names import CHANGES


def row(name: str, change: str, alarms: int, n: int = 60) -> dict[str, Any]:
    """A row of ``evidence.deployed``."""
    benign = change == "untouched" or CHANGES[change].benign
    return {
        "set": name, "change": change, "benign": benign, "n_clean": n, "alarms": alarms, "fpr": alarms / n,
        "fpr_interval": list(wilson_interval(alarms, n)), "n_steered": n, "tpr": 0.9, "tpr_interval": [0.8, 0.95],
        "auroc": 0.97, "auroc_interval": [0.95, 0.99],
        "auroc_untouched": None if change == "untouched" else 0.625,
        "auroc_untouched_interval": None if change == "untouched" else [0.5, 0.75],
    }  # fmt: skip


@pytest.fixture
def results() -> dict[str, Any]:
    """Results with two sets."""
    first = [row("deployed", "untouched", 0), row("deployed", "int8", 1), row("deployed", "int2", 30)]
    second = [row("deployed_newkinds", "evicted", 6), row("deployed_newkinds", "noise_20", 60)]
    return {"sets": {}, "threshold": 0.1, "evidence": {"deployed": [*first, row("deployed", "spliced", 12), *second]}}


def test_tables_have_every_row(results: dict[str, Any]) -> None:
    """A table for each set, with what each change does below it."""
    tables = deployed_tables(results["evidence"])
    assert [table.caption for table in tables] == ["Changed caches: deployed", "Changed caches: deployed_newkinds"]
    assert [line[:3] for line in tables[0].rows] == [
        ("untouched", "benign", "0 of 60"),
        ("int8", "benign", "1 of 60"),
        ("int2", "benign", "30 of 60"),
        ("spliced", "tampering", "12 of 60"),
    ]
    assert tables[0].rows[2][3].startswith("0.500 (0.37")
    assert tables[0].rows[0][-1] == ""
    assert tables[0].rows[1][-1] == "0.625 (0.500-0.750)"
    assert all(len(line) == len(tables[0].head) for line in tables[0].rows)
    assert CHANGES["int2"].text in tables[0].note
    assert CHANGES["evicted"].text not in tables[0].note


def test_figures_tell_benign_changes_from_tampering(results: dict[str, Any]) -> None:
    """Benign ones first, the worst at the top; a line at the limit."""
    figures = deployed_figures(results["evidence"])
    assert list(figures) == ["fpr-deployed", "fpr-deployed_newkinds"]
    panel = figures["fpr-deployed"].figure.axes[0]
    assert [label.get_text() for label in panel.get_yticklabels()] == [
        "int2 (60)", "int8 (60)", "untouched (60)", "spliced (60)",
    ]  # fmt: skip
    legend = {text.get_text() for text in figures["fpr-deployed"].figure.legends[0].get_texts()}
    assert legend == {"benign", "tampering", "3 %"}
    assert "int2 0.500" in figures["fpr-deployed"].alt
    assert "int8" not in figures["fpr-deployed"].alt


def test_sentence_names_benign_changes_above_the_limit(results: dict[str, Any]) -> None:
    """And no tampering; or the highest of those that keep to it."""
    (sentence,) = deployed_sentences(results)
    assert "int2 on deployed 0.500, evicted on deployed_newkinds 0.100" in sentence
    assert "noise_20" not in sentence
    assert "int8" not in sentence
    assert sentence in verdict_sentences(results)
    kept = copy.deepcopy(results)
    kept["evidence"]["deployed"] = [one for one in kept["evidence"]["deployed"] if one["fpr"] < 0.03 or not one["benign"]]
    (sentence,) = deployed_sentences(kept)
    assert "at most 0.03" in sentence
    assert "int8 on deployed" in sentence
    assert deployed_sentences({"evidence": {"deployed": []}}) == deployed_sentences({}) == []


def test_page_shows_it_and_rows_of_another_form_are_refused(results: dict[str, Any], tmp_path: Path) -> None:
    """The section is there with its figures; a rate of 7 or a missing name is an error."""
    folder = save(tmp_path, results)
    report.write_report(folder)
    page = (folder / "report.html").read_text(encoding="utf-8")
    Read(page)
    assert "As deployed" in page
    assert "Changed caches: deployed_newkinds" in page
    assert list(SHAPES["sets"](results, "")) == []
    for change in ({"fpr": 7}, {"auroc_untouched": "x"}, {"benign": "yes"}, {"change": None}):
        broken = copy.deepcopy(results)
        broken["evidence"]["deployed"][1] |= change
        assert list(SHAPES["sets"](broken, "")), change
