"""What a test's scored trials say: every analysis of them in one place, and the file that lists them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from introspection_lit.evaluation import analysis, controls
from introspection_lit.evaluation.as_exported import compare_exported
from introspection_lit.evaluation.choice_results import choice_rows
from introspection_lit.evaluation.deployment import deployed_rows
from introspection_lit.evaluation.length_results import long_results, rates_by_length
from introspection_lit.evaluation.task_results import task_rows
from introspection_lit.evaluation.trial_table import PLAIN_SETS, TrialTable
from introspection_lit.utils.files import atomic_file

Row = Mapping[str, Any]


def analyse_rows(
    rows: Sequence[Row],
    trials: TrialTable,
    trained: Collection[str],
    threshold: float,
    weakest: float,
    summaries: Mapping[str, dict[str, Any]],
    classes: Sequence[tuple[int, int]] = (),
    longest_trained: int = 0,
    both_signs: bool = False,
    tokens: Mapping[str, int] | None = None,
    trained_tokens: Sequence[int] = (),
) -> dict[str, Any]:
    """Run every analysis that needs nothing but the scored trials.

    Args:
        rows: The trials, as in ``trials.jsonl``.
        trials: The same as a table.
        trained: Kinds of context of training and validation.
        threshold: The stored threshold, in nats.
        weakest: The lowest strength used in training.
        summaries: The metrics of each test set.
        classes: Of the lengths of conversations.
        longest_trained: Tokens of the longest conversation in training.
        both_signs: Whether training had both signs of its directions.
        tokens: Length of each context, by its fingerprint.
        trained_tokens: Lengths of the contexts of training; none: nothing is said of lengths.

    Returns:
        The part of ``evidence`` in ``results.json`` that follows from them.
    """
    return {
        **analysis.analyse(trials, threshold, weakest),
        "lengths": rates_by_length(trials.of_sets(*PLAIN_SETS), threshold, tokens or {}, trained_tokens),
        "controls": controls.control_rows(summaries, trials, both_signs),
        "tasks": task_rows(trials),
        "choices": choice_rows(rows, trained),
        "as_exported": compare_exported(trials, threshold),
        "long": long_results(rows, trained, threshold, classes, longest_trained),
        "deployed": deployed_rows(rows, threshold),
    }


def write_trials(path: Path, rows: Sequence[Row]) -> None:
    """Write the trials, a JSON line each, atomically and as a stream: a copy of them all as text is never in memory."""
    with atomic_file(path) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
