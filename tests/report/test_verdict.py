"""The verdict says what the numbers say, and what they leave open."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from pages import ends, three
from results_example import example

from introspection_lit.report.verdict import detection_strength_text, verdict_sentences


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """Everything there can be."""
    return example()


def changed(results: dict[str, Any], change: Callable[[dict[str, Any]], Any]) -> str:
    """The verdict on changed results."""
    copy = json.loads(json.dumps(results))
    change(copy)
    return " ".join(verdict_sentences(copy))


def test_verdict(results: dict[str, Any]) -> None:
    """What fails first, at which strength it holds, the worst cell and kind, and what beats the adapter."""
    said = " ".join(verdict_sentences(results))
    evidence = results["evidence"]
    assert "on 4: training vectors, held-out random, concepts, unseen kinds. The first to fail is unseen questions" in said
    assert "On random vectors 75 % are detected at 1 % FPR from strength 0.037 on (95 %: 0.031-0.044)." in said
    cell, row = evidence["worst"]["cell"], evidence["worst"]["fpr"]
    assert f"is {three(cell['tpr'])} ({cell['vectors']} vectors, layers {cell['band'][0]}..{cell['band'][1]}" in said
    assert not row["seen"]
    assert f"{row['kind']} (unseen): FPR {three(row['fpr'])} ({ends(row['fpr_interval'])})" in said
    assert "On held-out random the reference 'linear probe' has a higher AUROC than the adapter: 1.000" in said
    assert "Controls held: 4 of 6; not held: odd; not judged: scattered." in said


def test_verdict_does_not_overclaim(results: dict[str, Any]) -> None:
    """Not reached, bounds, overlaps, leaks and a small mass are said."""
    said = changed(results, lambda r: r["evidence"]["detection_strength"]["concept"].update(strength=None))
    assert "not reached on concept vectors" in said
    said = changed(
        results, lambda r: r["evidence"]["detection_strength"]["random"].update(strength=0.01, interval=[None, 0.02])
    )
    assert "from strength at most 0.01 on (95 %: up to 0.02)" in said
    said = changed(
        results, lambda r: r["evidence"]["detection_strength"]["random"].update(strength=3.1, interval=[2, None])
    )
    assert "from strength 3.1, beyond the 1.3 tested on (95 %: 2 or more)" in said
    said = changed(results, lambda r: r["sets"]["heldout"].update(mass=0.013))
    assert "mass: held-out random 0.013" in said
    said = changed(results, lambda r: r["evidence"]["leaks"].update(shared_messages=3, unseen_kinds_in_training=["rust"]))
    assert "Training and test share 3 messages, kinds called unseen (rust)" in said

    def separate(r: dict[str, Any]) -> None:
        for row in r["evidence"]["references"]:
            row["auroc_interval"] = [row["auroc"] - 1e-4, row["auroc"] + 1e-4]

    assert "the intervals do not overlap" in changed(results, separate)

    def level(r: dict[str, Any]) -> None:
        for row in r["evidence"]["references"]:
            row["auroc"] = 0.9999 if row["observer"] == "adapter" else min(row["auroc"], 0.99994)

    assert "No reference (untrained, with info, linear probe, norms, text) has a higher AUROC" in changed(results, level)

    def fails(r: dict[str, Any]) -> None:
        for row in r["sets"].values():
            row["tpr"] = 0.1

    assert "nowhere. The first to fail is training vectors: misses steering (TPR 0.10)." in changed(results, fails)
    assert detection_strength_text({}, "random") == ("not measured", "")
    assert verdict_sentences({}) == []
