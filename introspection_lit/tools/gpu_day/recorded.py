"""Reads what :class:`~.recorder.RunRecorder` wrote, and compares runs of the same trials."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from introspection_lit.utils.errors import RunError


def read_recorded(folder: Path) -> dict[str, Any]:
    """What all processes of a run wrote, put together.

    Returns:
        ``world_size``, ``batch_size``, ``accumulated``; ``losses`` of each optimiser step, the mean over processes;
        ``trials_per_second``, the sum; ``peak_gib`` and ``test_peak_gib``, the largest; ``scores`` by trial; ``auto``.

    Raises:
        RunError: A process wrote nothing.
    """
    ranks = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("recorded.rank*.json"))]
    if not ranks or len(ranks) != ranks[0]["world_size"]:
        raise RunError([f"{folder.name}: {len(ranks)} processes wrote what they did. Expected all of the run."])
    merged: dict[str, Any] = {name: ranks[0][name] for name in ("world_size", "batch_size", "accumulated")}
    merged["losses"] = [statistics.fmean(losses) for losses in zip(*(rank["losses"] for rank in ranks), strict=True)]
    merged["trials_per_second"] = sum(rank["trials_per_second"] for rank in ranks)
    for name in ("peak_gib", "test_peak_gib"):
        if name in ranks[0]:
            merged[name] = max(rank[name] for rank in ranks)
    if "scores" in ranks[0]:
        merged["scores"] = {trial: score for rank in ranks for trial, score in rank["scores"].items()}
    return merged | ({"auto": ranks[0]["auto"]} if "auto" in ranks[0] else {})


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The largest differences of losses and scores between two runs of the same trials; 0 only if all bits are equal.

    Raises:
        RunError: They did not have the same steps and trials.
    """
    if len(one["losses"]) != len(other["losses"]) or one["scores"].keys() != other["scores"].keys():
        raise RunError(["two runs cannot be compared: they had other steps, or tested other trials."])
    losses = [abs(a - b) for a, b in zip(one["losses"], other["losses"], strict=True)]
    scores = [abs(score - other["scores"][trial]) for trial, score in one["scores"].items()]
    return {
        "steps": len(losses),
        "trials": len(scores),
        "largest_loss_difference": max(losses),
        "largest_score_difference": max(scores),
    }
