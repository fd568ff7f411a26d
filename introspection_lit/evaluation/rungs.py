"""The rungs of the ladder of generalisation: what each is, when it holds, and how far up it goes, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What each test set is, from the ground up.
RUNGS = {
    "seen": "training vectors",
    "heldout": "held-out random",
    "concept": "concepts",
    "concept_pca": "concepts (PCA)",
    "imported": "from files",
    "newkinds": "unseen kinds",
    "newquestions": "unseen questions",
}
# A rung holds if all three do.
LOWEST_AUROC, LOWEST_TPR, HIGHEST_FPR = 0.95, 0.9, 0.05
Summaries = dict[str, dict[str, Any]]


def failures(row: Mapping[str, Any]) -> list[str]:
    """Why a rung does not hold; nothing if it does.

    Args:
        row: The summary of a test set.
    """
    found = []
    if row["auroc"] < LOWEST_AUROC:
        found.append(f"does not tell them apart (AUROC {row['auroc']:.3f})")
    if row["tpr"] < LOWEST_TPR:
        found.append(f"misses steering (TPR {row['tpr']:.2f})")
    if row["fpr"] > HIGHEST_FPR:
        found.append(f"false alarms (FPR {row['fpr']:.2f})")
    return found


def verdict(name: str, rows: Summaries) -> str:
    """Say in words how far up the ladder a way of asking holds.

    Args:
        name: Of the way.
        rows: Its summaries, lowest rung first.
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
