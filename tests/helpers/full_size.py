"""What the docs say of runs of the full experiment, from their results files."""

from __future__ import annotations

from typing import Any

Run = dict[str, Any]
NAMES = {"random": "random vectors", "concept": "concepts"}


def full_size_numbers(run: Run) -> dict[str, float]:
    """Detection of weak and strong doses, by the title of its row."""
    found, numbers = run["evidence"], {}
    for vectors, name in NAMES.items():
        weak = next(row for row in found["curves"][vectors]["adapter"] if row["strength"] == 0.04)
        bands = [row["tpr"] for row in found["grid"] if (row["vectors"], row["strength"]) == (vectors, 0.16)]
        numbers |= {
            f"AUROC at .04, {name}": weak["auroc"],
            f"TPR at .04 and 1 % FPR, {name}": weak["tpr"],
            f"75 % detected from, {name}": found["detection_strength"][vectors]["strength"],
            f"TPR at .16, lowest band, {name}": min(bands),
        }
    return numbers


def unseen_kinds(run: Run) -> dict[str, dict[str, Any]]:
    """The rows of the kinds never trained on, by kind."""
    return {row["kind"]: row for row in run["evidence"]["kinds"] if not row["seen"]}
