"""Callbacks: what a run shows while it lasts and leaves behind when it ends."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from rich.console import Console
from rich.table import Table

from introspection_lit.export import export_adapter, load_checkpoint
from introspection_lit.figures import log_odds_figure
from introspection_lit.provenance import provenance

if TYPE_CHECKING:
    from introspection_lit.batches import TrialBatch
    from introspection_lit.data import IntrospectionDataModule
    from introspection_lit.module import IntrospectionModule


def run_folder(trainer: Trainer) -> Path:
    """Where a run's files go."""
    return Path(trainer.log_dir or trainer.default_root_dir)


class TrialsPerSecond(Callback):
    """Logs how many training trials are done a second, prefill included, over all processes."""

    def __init__(self) -> None:
        self.since = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Start the clock after a validation."""
        self.since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: TrialBatch, batch_idx: int
    ) -> None:  # noqa: ANN401
        """Log the rate of the batch that just ended."""
        now = time.perf_counter()
        rate = len(batch.trials) * trainer.world_size / (now - self.since)
        self.since = now
        pl_module.log("train/trials_per_second", rate, prog_bar=True, batch_size=len(batch.trials))


class LogOddsFigure(Callback):
    """Puts the histograms of clean and steered log-odds into TensorBoard at each validation."""

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: TrialBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw once the last batch is in."""
        module: IntrospectionModule = pl_module  # type: ignore[assignment]
        last = batch_idx + 1 == trainer.num_val_batches[dataloader_idx]
        if last and isinstance(trainer.logger, TensorBoardLogger) and not trainer.sanity_checking:
            scores, labels = module.metrics_of("validation").gathered()
            figure = log_odds_figure({"validation": (scores, labels)}, module.threshold)
            trainer.logger.experiment.add_figure("validation/log_odds", figure, trainer.global_step)


class AdapterExport(Callback):
    """Exports the best adapter of a fit as a PEFT folder, ``adapter`` in the run's folder."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export the adapter of the best checkpoint; log its validation beside the hyper-parameters (hparams tab)."""
        module: IntrospectionModule = pl_module  # type: ignore[assignment]
        data: IntrospectionDataModule = trainer.datamodule  # type: ignore[attr-defined]
        saver = trainer.checkpoint_callback
        if not isinstance(saver, ModelCheckpoint) or not saver.best_model_path or not trainer.is_global_zero:
            return
        checkpoint = load_checkpoint(saver.best_model_path)
        folder = run_folder(trainer) / "adapter"
        export_adapter(folder, module, data, checkpoint)
        if isinstance(trainer.logger, TensorBoardLogger):
            settings = {
                "learning_rate": module.learning_rate,
                "lora_r": module.lora.r,
                "loss": module.loss,
                "batch_size": data.batch_size,
                "strengths": str(list(data.strengths)),
                "seed": data.seed,
            }
            validated = checkpoint["introspection"]["validation"]
            trainer.logger.log_hyperparams(settings, {f"hp/validation_{name}": value for name, value in validated.items()})
        rank_zero_info(f"best adapter (step {checkpoint['global_step']}): {folder}")


def results_table(sets: dict[str, dict[str, Any]]) -> Table:
    """Lay the results of the test sets out as a table that fits 80 columns."""
    table = Table(title="Results at the stored threshold", padding=(0, 1))
    table.add_column("test set", no_wrap=True)
    for column in ("AUROC", "accuracy", "TPR", "FPR", "FPR 95 %", "mass", "clean"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, row in sets.items():
        low, high = row["fpr_interval"]
        rates = (f"{row[key]:.3f}" for key in ("auroc", "accuracy", "tpr", "fpr"))
        table.add_row(name, *rates, f"{low:.3f}-{high:.3f}", f"{row['mass']:.3f}", str(row["n_clean_distinct"]))
    return table


class ResultsWriter(Callback):
    """After ``test``: prints a table and writes ``results.json`` and ``log_odds.png`` into the run's folder."""

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the results of all test sets."""
        module: IntrospectionModule = pl_module  # type: ignore[assignment]
        data: IntrospectionDataModule = trainer.datamodule  # type: ignore[attr-defined]
        gathered = {name: module.metrics_of(name) for name in data.test_sets}
        sets = {name: metrics.compute() for name, metrics in gathered.items()}
        groups = {name: metrics.gathered() for name, metrics in gathered.items()}
        inputs = torch.cat([torch.cat(metrics.inputs)[~torch.cat(metrics.labels)] for metrics in gathered.values()])
        for metrics in gathered.values():
            metrics.reset()
        if not trainer.is_global_zero:
            return
        assert data.bank is not None
        folder = run_folder(trainer)
        results = {
            **provenance(),
            **module.identity(),
            "checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path else None,
            "seed": data.seed,
            "threshold": module.threshold,
            "strengths": list(data.test_strengths),
            "strength_unit": data.strength_unit,
            "bands": [list(band) for band in data.splits[data.test_sets[0]].plan.bands],
            "n_clean_distinct_total": len(torch.unique(inputs)),
            "largest_cosine_between_concepts": float(data.bank.concept_cosines().fill_diagonal_(0).abs().max()),
            "sets": sets,
        }
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "results.json", json.dumps(results, indent=2) + "\n")
        log_odds_figure(groups, module.threshold).savefig(folder / "log_odds.png", dpi=110)
        console = Console()
        console.print(results_table(sets))
        console.print(
            f"clean: distinct clean inputs, {results['n_clean_distinct_total']} in all. Everything: {folder / 'results.json'}",
            soft_wrap=True,
        )


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is complete or not there."""
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


class PredictionWriter(Callback):
    """During ``predict``: writes a JSON line for each trial to ``predictions.jsonl`` in the run's folder."""

    def __init__(self) -> None:
        self.file: IO[str] | None = None

    def _path(self, trainer: Trainer) -> Path:
        suffix = "" if trainer.world_size == 1 else f".rank{trainer.global_rank}"
        return run_folder(trainer) / f"predictions{suffix}.jsonl"

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Open the file under a name that says it is unfinished."""
        path = self._path(trainer)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.with_name(path.name + ".unfinished").open("w", encoding="utf-8")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ANN401
        batch: TrialBatch,
        batch_idx: int,  # noqa: ARG002
        dataloader_idx: int = 0,  # noqa: ARG002
    ) -> None:
        """Write the rows of a batch."""
        data: IntrospectionDataModule = trainer.datamodule  # type: ignore[attr-defined]
        assert self.file is not None
        for row, trial in enumerate(batch.trials):
            scored = {name: values[row].item() for name, values in outputs.items()}
            self.file.write(json.dumps(data.describe(trial) | scored, ensure_ascii=False) + "\n")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Give the file its name."""
        assert self.file is not None
        self.file.close()
        path = self._path(trainer)
        path.with_name(path.name + ".unfinished").replace(path)
        rank_zero_info(f"predictions: {path}")
