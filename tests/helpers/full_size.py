"""What the docs say of runs of the full experiment, from their results files."""

from __future__ import annotations

from typing import Any

Run = dict[str, Any]
NAMES = {"random": "random vectors", "concept": "concepts"}
WORST_KIND = "FPR of the worst of 14 unseen kinds"
VANISHING = "control `vanishing`: AUROC at 1e-6"


def full_size_numbers(run: Run) -> dict[str, float]:
    """Detection of weak and strong doses, by the title of its row."""
    found = run["evidence"]
    numbers: dict[str, float] = {}
    for vectors, name in NAMES.items():
        weak = weak_dose(run, vectors)
        bands = [row["tpr"] for row in found["grid"] if (row["vectors"], row["strength"]) == (vectors, 0.16)]
        numbers |= {
            f"AUROC at .04, {name}": weak["auroc"],
            f"TPR at .04 and 1 % FPR, {name}": weak["tpr"],
            f"75 % detected from, {name}": found["detection_strength"][vectors]["strength"],
            f"TPR at .16, lowest band, {name}": min(bands),
        }
    return numbers


def weak_dose(run: Run, vectors: str) -> dict[str, Any]:
    """The point of the adapter's curve at a strength of .04."""
    points: list[dict[str, Any]] = run["evidence"]["curves"][vectors]["adapter"]
    return next(row for row in points if row["strength"] == 0.04)


def unseen_kinds(run: Run) -> dict[str, dict[str, Any]]:
    """The rows of the kinds never trained on, by kind."""
    return {row["kind"]: row for row in run["evidence"]["kinds"] if not row["seen"]}


def worst_and_vanishing(run: Run) -> dict[str, float]:
    """The FPR of the worst unseen kind and, if the run has that control, its AUROC."""
    numbers = {WORST_KIND: max(row["fpr"] for row in unseen_kinds(run).values())}
    for control in run["evidence"]["controls"]:
        if control["name"] == "vanishing":
            numbers[VANISHING] = control["auroc"]
    return numbers
