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
# A rung holds if its AUROC, TPR and FPR all keep to these limits.
LOWEST_AUROC, LOWEST_TPR, HIGHEST_FPR = 0.95, 0.9, 0.05
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
