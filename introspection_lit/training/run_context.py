"""What a run has once it is set up, and where its files go."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from lightning.pytorch import LightningModule, Trainer

if TYPE_CHECKING:
    from introspection_lit.training.datamodule import IntrospectionDataModule
    from introspection_lit.training.module import IntrospectionModule


def run_folder(trainer: Trainer) -> Path:
    """Where a run's files go. To be called on every process: the answer is broadcast."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def module_of(pl_module: LightningModule) -> IntrospectionModule:
    """The module, as what it is."""
    return cast("IntrospectionModule", pl_module)


def data_of(trainer: Trainer) -> IntrospectionDataModule:
    """The trainer's data module, as what it is."""
    return cast("IntrospectionDataModule", trainer.datamodule)  # type: ignore[attr-defined]
