"""A callback that writes down what a fit and its test did: losses, scores, speed and peak memory, in each process."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer

from introspection_lit.models.memory_estimate import estimate
from introspection_lit.tools.benchmark.hardware import peak, reset_peak, synchronise
from introspection_lit.training.batch_size import AUTO, step_load
from introspection_lit.training.run_context import RunContext, run_folder, run_of
from introspection_lit.utils.files import write_file

if TYPE_CHECKING:
    from introspection_lit.trials.batch import TrialBatch

GIB = 2.0**30
WARM_UP = 2  # optimiser steps that are not timed


class RunRecorder(Callback):
    """Writes ``recorded.rankN.json`` into the run's folder after a fit, and again after a test that follows it."""

    def __init__(self) -> None:
        self.losses, self.seconds, self.trials = list[float](), list[float](), list[int]()
        self.scores: dict[str, float] = {}
        self.found: dict[str, Any] = {}
        self.since, self.pending = 0.0, list[Any]()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the peak of memory: that of loading, and of trying batch sizes, does not count."""
        reset_peak(trainer.strategy.root_device)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start it again: validation is not counted."""
        self._start(trainer)

    def _start(self, trainer: Trainer) -> None:
        synchronise(trainer.strategy.root_device)
        self.since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: TrialBatch, batch_idx: int
    ) -> None:
        """Note time and loss of an optimiser step; Lightning divides the losses of micro-batches by their number."""
        self.pending.append((outputs["loss"].detach().float(), len(batch.trials)))
        if len(self.pending) < trainer.accumulate_grad_batches:
            return
        synchronise(trainer.strategy.root_device)
        now = time.perf_counter()
        self.losses.append(sum(loss.item() for loss, _ in self.pending))
        self.trials.append(sum(count for _, count in self.pending))
        self.seconds.append(now - self.since)
        self.since, self.pending = now, []

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what training did."""
        run = run_of(trainer)
        timed = slice(min(WARM_UP, len(self.seconds) - 1), None)
        self.found = {
            "world_size": trainer.world_size,
            "batch_size": run.batch_size,
            "accumulated": trainer.accumulate_grad_batches,
            "losses": self.losses,
            "trials_per_second": sum(self.trials[timed]) / sum(self.seconds[timed]),
            "peak_gib": peak(trainer.strategy.root_device) / GIB,
        }
        if run.options.batch_size == AUTO:
            self.found["auto"] = chosen(run)
        self._write(trainer)
        reset_peak(trainer.strategy.root_device)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: TrialBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Note the scores."""
        for trial, score in zip(batch.trials, outputs["log_odds"].tolist(), strict=True):
            if batch.total is None or trial.number < batch.total:  # else it only pads the last batch
                self.scores[f"{trial.split}:{trial.number}"] = score

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what the test found, too."""
        self.found |= {"scores": self.scores, "test_peak_gib": peak(trainer.strategy.root_device) / GIB}
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        write_file(
            run_folder(trainer) / f"recorded.rank{trainer.global_rank}.json", json.dumps(self.found, allow_nan=False)
        )


def chosen(run: RunContext) -> dict[str, Any]:
    """What ``data.batch_size auto`` chose, and what the memory estimate says of this size and of the next one."""
    assert run.trials_per_process is not None
    share, pair = run.trials_per_process, 2 * run.options.questions_of_cache
    larger = [size for size in range(run.batch_size + 1, share + 1) if share % size == 0 and size % pair == 0]
    sizes = {"chosen": run.batch_size, "next": larger[0] if larger else None}
    computed = {}
    for name, size in sizes.items():
        if size is not None:
            shape, load = step_load(run, size)
            computed[f"{name}_computed_gib"] = estimate(shape, run.module.base, run.module.lora, load).device / GIB
    return {**sizes, **computed}
