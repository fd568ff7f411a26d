"""Rates under each change of the cache, against loops in plain numpy and scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from introspection_lit.evaluation import analysis
from introspection_lit.evaluation.deployment import deployed_rows
from introspection_lit.evaluation.statistics import wilson_interval
from introspection_lit.evaluation.trial_table import PLAIN_SETS, USUAL_SETS, TrialTable
from introspection_lit.steering.change_names import CHANGES
from introspection_lit.trials.test_sets import DEPLOYED

Rows = list[dict[str, Any]]
THRESHOLD = 0.25


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals are tested with the statistics; here only how they are used."""
    monkeypatch.setattr(analysis, "RESAMPLES", 20)


def trials(name: str, changes: tuple[str, ...], contexts: int = 40) -> Rows:
    """Pairs of a set: scores rise with the place of the change, and with steering."""
    random, rows = np.random.default_rng(0), Rows()
    for context in range(contexts):
        for place, change in enumerate(changes):
            for steered in (False, True):
                row = {
                    "split": name,
                    "number": len(rows),
                    "kind": "chat",
                    "context_key": f"c{context}",
                    "question_text": "Well?",
                    "role": "detection",
                    "vectors": "heldout",
                    "vector_name": f"v{context % 5}" if steered else None,
                    "band": (2, 4) if steered else (-1, -1),
                    "strength": 0.5 * steered,
                    "steered": steered,
                    "scores": {"adapter": float(random.normal() - 1.5 + 0.7 * place + 2 * steered), "untrained": 0.0},
                }
                rows.append(row | ({"change": change} if change else {}))
    return rows


def test_rates_are_those_of_a_loop() -> None:
    """By set and change, whatever the order of the trials; other sets do not count."""
    made = trials("deployed", ("", "int4", "noise_20")) + trials("deployed_newkinds", ("", "int4"), 20)
    made += trials("heldout", ("",))
    np.random.default_rng(1).shuffle(made)  # type: ignore[arg-type]
    found = deployed_rows(made, THRESHOLD)
    places = [(row["set"], row["change"], row["benign"]) for row in found]
    first = [("deployed", "untouched", True), ("deployed", "int4", True), ("deployed", "noise_20", False)]
    second = [("deployed_newkinds", "untouched", True), ("deployed_newkinds", "int4", True)]
    assert places in (first + second, second + first)
    for row in found:
        change = "" if row["change"] == "untouched" else row["change"]
        mine = [t for t in made if t["split"] == row["set"] and t.get("change", "") == change]
        clean, steered = ([t["scores"]["adapter"] for t in mine if t["steered"] == label] for label in (False, True))
        alarms = sum(score > THRESHOLD for score in clean)
        assert (row["n_clean"], row["alarms"], row["fpr"]) == (len(clean), alarms, alarms / len(clean))
        low, high = wilson_interval(alarms, len(clean))
        assert row["fpr_interval"][0] <= low < high <= row["fpr_interval"][1]
        assert row["tpr"] == pytest.approx(np.mean([score > THRESHOLD for score in steered]))
        assert row["tpr_interval"][0] <= row["tpr"] <= row["tpr_interval"][1]
        labels = [0] * len(clean) + [1] * len(steered)
        assert row["auroc"] == pytest.approx(roc_auc_score(labels, clean + steered))
        untouched = [
            t["scores"]["adapter"] for t in made if t["split"] == row["set"] and "change" not in t and not t["steered"]
        ]
        if change:
            expected = roc_auc_score([0] * len(untouched) + [1] * len(clean), untouched + clean)
            assert row["auroc_untouched"] == pytest.approx(expected)
            assert row["auroc_untouched_interval"][0] < expected < row["auroc_untouched_interval"][1]
        else:
            assert row["auroc_untouched"] is None


def test_without_untouched_caches_or_one_label_there_is_nothing_to_compare() -> None:
    """None instead of a number; no set, no rows."""
    made = trials("deployed", ("int8",))
    (row,) = deployed_rows(made, THRESHOLD)
    assert (row["auroc_untouched"], row["auroc_untouched_interval"]) == (None, None)
    (row,) = deployed_rows([t for t in made if t["steered"]], THRESHOLD)
    assert (row["n_clean"], row["fpr"], row["fpr_interval"], row["auroc"]) == (0, None, None, None)
    assert deployed_rows(trials("heldout", ("",)), THRESHOLD) == []


def test_changed_caches_are_no_plain_sets_and_each_change_is_an_input() -> None:
    """They do not move thresholds and kinds of the other analyses; their clean inputs are counted by change."""
    assert not set(DEPLOYED) & {*PLAIN_SETS, *USUAL_SETS}
    table = TrialTable.from_rows(trials("deployed", ("", *CHANGES), 3), ())
    assert table.distinct_clean() == {"deployed": 3 * (len(CHANGES) + 1)}
