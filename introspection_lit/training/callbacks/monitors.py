"""Callbacks for the logger: trials per second, learning rate, histograms of log-odds."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor

from introspection_lit.report.log_odds_plot import log_odds_figure
from introspection_lit.training.logged import log_figure, showing
from introspection_lit.training.run_context import module_of

if TYPE_CHECKING:
    from introspection_lit.trials.batch import TrialBatch


class TrialsPerSecond(Callback):
    """Logs how many training trials are done a second, prefill included, over all processes."""

    def __init__(self) -> None:
        self.since = time.perf_counter()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock: an epoch that is resumed in its middle does not start (Lightning 2.6)."""
        self.since = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start it again."""
        self.since = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start it again: validation is not counted."""
        self.since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: TrialBatch, batch_idx: int
    ) -> None:
        """Log the rate of the batch that just ended."""
        now = time.perf_counter()
        rate = len(batch.trials) * trainer.world_size / (now - self.since)
        self.since = now
        pl_module.log("train/trials_per_second", rate, batch_size=len(batch.trials))


class LearningRate(LearningRateMonitor):
    """Lightning's monitor, silent instead of failing when there is no logger."""

    def __init__(self) -> None:
        super().__init__("step")

    def on_train_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Watch the optimiser if there is a logger."""
        if trainer.loggers:
            super().on_train_start(trainer, *args, **kwargs)


class LogOddsFigure(Callback):
    """Gives the histograms of clean and steered log-odds to the loggers at each validation."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the validation trials and the threshold that they have set."""
        module = module_of(pl_module)
        gathered = module.metrics_of("validation").trials
        if gathered and trainer.is_global_zero and showing(trainer) and not trainer.sanity_checking:
            figure = log_odds_figure({"validation": (gathered.scores, gathered.labels)}, module.threshold)
            log_figure(trainer, "validation/log_odds", figure)
