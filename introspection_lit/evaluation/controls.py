"""Control test sets that a real detector passes and a shortcut fails, with the limits that were set before any was run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from introspection_lit.evaluation.statistics import auroc, recalibrated_accuracy
from introspection_lit.evaluation.trial_table import ADAPTER, TrialTable
from introspection_lit.steering.limits import LEAST_STRENGTH

Row = dict[str, Any]


class Control(NamedTuple):
    """A control and its pass criterion: ``lowest <= metric <= highest``.

    Attributes:
        what: The change from the usual trials.
        expected: The result of a real detector.
        key: Name of the metric: ``auroc`` or ``fpr``.
        lowest: Smallest value that passes.
        highest: Largest value that passes.
    """

    what: str
    expected: str
    key: str
    lowest: float
    highest: float


CONTROLS = {
    "random labels": Control(
        "an adapter trained on labels that a coin decided",
        "cannot tell: AUROC near .5, or as untrained",
        "auroc",
        0.35,
        0.65,
    ),
    "no steering": Control(
        "an adapter trained on trials that are called steered but are clean",
        "cannot tell: AUROC near .5, or as untrained",
        "auroc",
        0.35,
        0.65,
    ),
    "factual": Control(
        "questions about the world, with the same steering",
        "no push toward yes: AUROC of steered against clean near .5",
        "auroc",
        0.35,
        0.65,
    ),
    "odd": Control(
        "clean but odd input: typos, shuffled words, rare letters, ...",
        "no false alarms: FPR at most .05",
        "fpr",
        0.0,
        0.05,
    ),
    "swapped": Control(
        "the answer words change places: no if steered, yes if not", "follows the new code: AUROC .95", "auroc", 0.95, 1.0
    ),
    "newquestions": Control("paraphrased questions never trained on", "still ranks: AUROC .95", "auroc", 0.95, 1.0),
    "flipped": Control(
        "the training directions with their sign flipped", "detected as well: AUROC .95", "auroc", 0.95, 1.0
    ),
    "scattered": Control(
        "the direction is added at a random half of the positions", "detected: AUROC .95", "auroc", 0.95, 1.0
    ),
    "vanishing": Control(
        f"a strength of {LEAST_STRENGTH:g}, which changes rounding only",
        "cannot tell rounding: AUROC near .5",
        "auroc",
        0.35,
        0.65,
    ),
}


# What ``flipped`` is where training had both signs of its directions.
TRAINED_SIGN = "the training directions with their sign flipped, on which it was trained as well"


def control_rows(sets: Mapping[str, Row], trials: TrialTable, both_signs: bool = False) -> list[Row]:
    """Evaluate every control that a test ran.

    Args:
        sets: Summaries of the test sets, by name.
        trials: All trials of the test.
        both_signs: Whether training had both signs of its directions.

    Returns:
        A row for each control that has clean and steered trials to compare: ``name``, ``what``, ``expected``, ``auroc``,
        ``tpr`` and ``fpr`` at the stored threshold,
        ``recalibrated`` (balanced accuracy at a threshold set on other contexts of the control), ``held`` and ``run``
        (None: this run).
    """
    rows = []
    for name in CONTROLS:
        if name not in sets:
            continue
        subset = trials.of_sets(name)
        scores = subset.scores[ADAPTER]
        numbers = {key: sets[name][key] for key in ("auroc", "tpr", "fpr")}
        recalibrated = recalibrated_accuracy(scores, subset.steered, subset.contexts)
        if name == "factual":  # the answers differ by question: one AUROC for each, and no common threshold
            areas = [area for area in _aurocs_by_question(subset) if not np.isnan(area)]  # a few trials: some of one class
            numbers, recalibrated = {"auroc": float(np.mean(areas)) if areas else None, "tpr": None, "fpr": None}, np.nan
        if numbers[CONTROLS[name].key] is None:
            continue
        row = control_row(name, numbers, None if np.isnan(recalibrated) else recalibrated)
        rows.append(row | {"what": TRAINED_SIGN} if both_signs and name == "flipped" else row)
    return rows


def control_row(
    name: str,
    numbers: Mapping[str, float | None],
    recalibrated: float | None,
    run: str | None = None,
    untrained: float | None = None,
) -> Row:
    """Evaluate one control; see :func:`control_rows`.

    Args:
        name: Of the control.
        numbers: ``auroc``, ``tpr`` and ``fpr``.
        recalibrated: Balanced accuracy at a threshold set for the control.
        run: The run, if the control needs an adapter of its own.
        untrained: AUROC of the model without an adapter. It raises the upper limit to .1 above it, because an adapter that
            learns nothing keeps the model's own AUROC.
    """
    control = CONTROLS[name]
    value = numbers[control.key]
    assert value is not None
    highest = max(control.highest, untrained + 0.1) if untrained is not None else control.highest
    description = {"name": name, "what": control.what, "expected": control.expected}
    held = bool(control.lowest <= value <= highest)
    return description | dict(numbers) | {"recalibrated": recalibrated, "held": held, "run": run}


def _aurocs_by_question(trials: TrialTable) -> list[float]:
    parts = [trials.where(trials.roles == role) for role in sorted(set(trials.roles))]
    return [auroc(part.scores[ADAPTER], part.steered) for part in parts]
