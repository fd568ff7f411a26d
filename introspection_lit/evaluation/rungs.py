"""The rungs of the generalisation ladder: test sets, closest to training first, their limits, and a verdict in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Titles of the test sets, closest to training first.
RUNGS = {
    "seen": "training vectors",
    "heldout": "held-out random",
    "concept": "concepts",
    "concept_pca": "concepts (PCA)",
    "imported": "from files",
    "newkinds": "unseen kinds",
    "newquestions": "unseen questions",
}
# Test sets that an adapter which says yes to anything fails, whatever the rungs show; and the AUROC of an honest one.
CONTROLS = {"swapped": ("yes and no exchanged", 1.0), "factual": ("factual questions", 0.5)}
# A rung holds if its AUROC, TPR and FPR all keep to these limits.
LOWEST_AUROC, LOWEST_TPR, HIGHEST_FPR = 0.95, 0.9, 0.05
# How far the AUROC of factual questions may lie from .5: small, because pooling questions of both answers halves it.
CONTROL_TOLERANCE = 0.05
# Summaries of test sets (:func:`~introspection_lit.evaluation.metrics.summarise`), by name.
Summaries = dict[str, dict[str, Any]]


def failures(row: Mapping[str, Any]) -> list[str]:
    """The limits that a test set misses, in words; empty if the rung holds.

    Args:
        row: The summary of a test set.
    """
    reasons = []
    if row["auroc"] < LOWEST_AUROC:
        reasons.append(f"does not tell them apart (AUROC {row['auroc']:.3f})")
    if row["tpr"] < LOWEST_TPR:
        reasons.append(f"misses steering (TPR {row['tpr']:.2f})")
    if row["fpr"] > HIGHEST_FPR:
        reasons.append(f"false alarms (FPR {row['fpr']:.2f})")
    return reasons


def control_verdict(rows: Summaries) -> str:
    """Say what the controls show: whether the adapter answers the question, or says yes whenever it is steered.

    Args:
        rows: Summaries of test sets, those of :data:`CONTROLS` among them or not.
    """
    measured = {name: rows[name]["auroc"] for name in CONTROLS if name in rows}
    if not measured:
        return "Controls: none were tested, so this does not show whether it answers or says yes to anything."
    told = ", ".join(f"{CONTROLS[name][0]} {value:.3f} (honest: {CONTROLS[name][1]:g})" for name, value in measured.items())
    follows = measured.get("swapped", 1.0) >= LOWEST_AUROC
    moved = measured.get("factual", 0.5) - 0.5
    if moved > CONTROL_TOLERANCE and not follows:
        meaning = "it says a word, whatever is asked"
    elif not follows:
        meaning = "it does not follow the answer words"
    elif abs(moved) > CONTROL_TOLERANCE:
        meaning = "it follows the answer words, but steering also moves other answers"
    else:
        meaning = "it answers what it is asked"
    return f"Controls, AUROC: {told}: {meaning}."


def ladder_verdict(name: str, rows: Summaries) -> str:
    """Say in one sentence which rungs hold.

    Args:
        name: The subject of the sentence, for example an adapter or an untrained model.
        rows: Summaries of its test sets, lowest rung first.
    """
    widest = max(rows.values(), key=lambda row: float(row["fpr_interval"][1]))
    unsure = (
        f" An FPR of up to {widest['fpr_interval'][1]:.2f} cannot be excluded (95 %, {widest['n_clean_distinct']} distinct "
        "clean inputs)."
    )
    failing = {RUNGS[rung]: failures(row) for rung, row in rows.items() if failures(row)}
    if not failing:
        return f"{name}: every rung holds.{unsure}"
    first, reasons = next(iter(failing.items()))
    others = [rung for rung in failing if rung != first]
    holding = "no rung holds" if len(failing) == len(rows) else f"the first rung to fail is {first!r}"
    also = f"; {', '.join(repr(rung) for rung in others)} too" if others and len(failing) < len(rows) else ""
    return f"{name}: {holding}: {first}: {', '.join(reasons)}{also}."
