"""Splits of a configuration on a tiny model, and their trials."""

from __future__ import annotations

from pathlib import Path

from project_paths import CONFIG

from introspection_lit.cli import attach
from introspection_lit.training.experiment_setup import prepare
from introspection_lit.trials.split import Split
from introspection_lit.trials.trial import Trial


def splits_of(tiny: Path, contexts: list[str], *options: str) -> dict[str, Split]:
    """The splits of a configuration; no model is loaded."""
    words = ["--config", CONFIG, "--model.base.name_or_path", str(tiny), "--trainer.logger", "false"]
    return prepare(attach([*words, *contexts, *options]).datamodule.run).splits


def trials_of(split: Split, count: int) -> list[Trial]:
    """The first trials of a split."""
    return [split.plan.trial(number) for number in range(count)]
