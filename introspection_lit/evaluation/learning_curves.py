"""Reads a run's learning curves from its TensorBoard files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


VALIDATION_METRICS = ("auroc", "tpr", "fpr", "mass", "threshold")


def learning_curves(folder: Path) -> dict[str, Any] | None:
    """Read the metrics of every validation and the training loss.

    Args:
        folder: The run's folder.

    Returns:
        ``steps`` with ``auroc``, ``tpr``, ``fpr``, ``mass`` and ``threshold`` of each validation, and ``loss_steps`` with
        the training ``loss``; None if the run did not train or did not log to TensorBoard.
    """
    if not any(folder.glob("events.out.tfevents.*")):
        return None
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    logged = events.Tags()["scalars"]
    if any(f"validation/{name}" not in logged for name in VALIDATION_METRICS):
        return None
    metrics = {name: _series(events, f"validation/{name}") for name in VALIDATION_METRICS}
    losses = _series(events, "train/loss") if "train/loss" in logged else {}
    steps = {"steps": sorted(metrics["auroc"]), "loss_steps": sorted(losses)}
    values = {name: [series.get(step) for step in steps["steps"]] for name, series in metrics.items()}
    return steps | values | {"loss": [losses[step] for step in steps["loss_steps"]]}


def _series(events: EventAccumulator, tag: str) -> dict[int, float]:
    """Values by step. A resumed run may have logged a step twice; the last value counts."""
    return {event.step: round(event.value, 6) for event in events.Scalars(tag)}
