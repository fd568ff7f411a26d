"""Callbacks: what a run shows while it lasts and leaves behind when it ends."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from rich.console import Console
from rich.table import Table

from introspection_lit import report
from introspection_lit.checkpoint_files import read_checkpoint
from introspection_lit.collector import Evidence, data_of, module_of
from introspection_lit.descriptions import belonging
from introspection_lit.errors import ConfigurationError, RunError
from introspection_lit.export import export_adapter
from introspection_lit.figures import log_odds_figure
from introspection_lit.files import explained, save_figure, whole, write_whole
from introspection_lit.interruption import validation_is_due
from introspection_lit.provenance import protocol, provenance
from introspection_lit.seals import write_json
from introspection_lit.trial_table import USUAL_SETS
from introspection_lit.trials import SOURCES

if TYPE_CHECKING:
    from introspection_lit.batches import TrialBatch


def run_folder(trainer: Trainer) -> Path:
    """Where a run's files go. To be called on every process: the answer is broadcast."""
    return Path(trainer.log_dir or trainer.default_root_dir)


class ConfigWriter(SaveConfigCallback):
    """Writes the configuration into the run's folder, whole; a run that goes on there writes its own over it."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write ``config.yaml``, once."""
        folder = run_folder(trainer)
        if trainer.is_global_zero and not self.already_saved:
            write_whole(folder / self.config_filename, self.parser.dump(self.config, skip_none=False))
        self.already_saved = True


class TrialsPerSecond(Callback):
    """Logs how many training trials are done a second, prefill included, over all processes."""

    def __init__(self) -> None:
        self.since = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
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
        """Watch the optimiser, if anybody listens."""
        if trainer.loggers:
            super().on_train_start(trainer, *args, **kwargs)


class BestCheckpoint(ModelCheckpoint):
    """Lightning's callback, which after a resume still knows the best checkpoint so far, and keeps the last one.

    A resumed run has a folder of its own, and Lightning 2.6 then forgets the score (not the path): the first validation
    after the resume would count as the best, whatever came before. And it writes ``last.ckpt`` only where a best one is
    written too: a run that is stopped would go on from its best epoch, not from its last. Here a resumed run copies the
    best checkpoints so far from the folder that it goes on from, which stays as it was; and no checkpoint is removed before
    the last one that knows of its successor is there. With ``every_n_train_steps``, Lightning would save the best by the
    score of an earlier validation, or none at all: here it is the last checkpoint that is saved so often, at the end of
    steps, and the best one after validations as ever.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        amiss = {"train_time_interval": self._train_time_interval is not None, "save_on_exception": self.save_on_exception}
        if problems := [
            f"checkpoint.{option}: would save between the batches of a step, from where nothing goes on as it was. Use "
            "checkpoint.every_n_train_steps; SIGTERM and Ctrl-C leave a checkpoint anyway."
            for option, given in amiss.items()
            if given
        ]:
            raise ConfigurationError(problems)
        self.by_validation = str(self.monitor).startswith("validation/")
        often = self.by_validation and bool(self._every_n_train_steps)
        if often:
            self._every_n_epochs = 1
        self.save_last = bool(self.save_last) or often  # a link would be one to another step's
        self.outdated: list[str] = []
        self.resumed_from: Path | None = None
        self.writes = False

    @property
    def state_key(self) -> str:
        """Where a checkpoint has the best ones so far: by what they are compared by, not by how often they are saved."""
        usual = {"every_n_train_steps": 0, "every_n_epochs": 1, "train_time_interval": None}
        return self._generate_state_key(monitor=self.monitor, mode=self.mode, **usual)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the folder of the run, and that of the run it goes on from."""
        super().setup(trainer, pl_module, stage)
        path = data_of(trainer).checkpoint
        self.resumed_from = Path(path).parent if path and stage == "fit" else None
        self.writes = trainer.is_global_zero

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **options: Any) -> None:
        """Save what is to be saved every so many steps; which is the best, only a validation says."""
        steps = self._every_n_train_steps
        if not steps or trainer.global_step % steps or trainer.fit_loop.epoch_loop._should_accumulate():
            return
        if not self.by_validation:
            super().on_train_batch_end(trainer, *args, **options)
        elif not self._saves_after_this(trainer):
            self._keep_last(trainer)
        self._remove_outdated(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the last checkpoint, better or not."""
        super().on_train_epoch_end(trainer, pl_module)
        if self._should_save_on_train_epoch_end(trainer):
            self._keep_last(trainer)
        self._remove_outdated(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep it where validations come at other times than the ends of epochs."""
        super().on_validation_end(trainer, pl_module)
        if not self._should_save_on_train_epoch_end(trainer):
            self._keep_last(trainer)
        self._remove_outdated(trainer)

    def _saves_after_this(self, trainer: Trainer) -> bool:
        """Whether a batch is followed by a validation whose result is saved, and the last checkpoint with it."""
        last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        return validation_is_due(trainer) and (last or not self._should_save_on_train_epoch_end(trainer))

    def _keep_last(self, trainer: Trainer) -> None:
        if not self._should_skip_saving_checkpoint(trainer):  # as it does where one of this step is there
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def _remove_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        """Remember to remove a file; a process that is killed before it has written the last one still needs it."""
        self.outdated.append(filepath)

    def _remove_outdated(self, trainer: Trainer) -> None:
        outdated, self.outdated = self.outdated, []
        for path in outdated:
            super()._remove_checkpoint(trainer, path)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best checkpoints so far, with their scores.

        They are looked for by name beside the checkpoint that is resumed from: a path in a file may be that of another
        machine, or of anything.
        """
        if self.resumed_from is None:  # a test
            return
        if Path(str(self.dirpath)).resolve() == self.resumed_from.resolve():  # the same folder: go on with its last.ckpt
            last = self._named(state_dict["last_model_path"])
            self.last_model_path = last if Path(last).is_file() and belonging([last], self.resumed_from) else ""
        known = {*state_dict["best_k_models"], state_dict["best_model_path"]} - {""}
        taken = {path: self._take_over(path, self.resumed_from) for path in known}
        best = taken.get(state_dict["best_model_path"], "")
        if state_dict["best_model_path"] and not best:
            rank_zero_warn(f"the best checkpoint so far is not there any more: {state_dict['best_model_path']}")
        if not best:
            return
        self.best_model_path, self.best_model_score = best, state_dict["best_model_score"]
        self.best_k_models = {taken[path]: score for path, score in state_dict["best_k_models"].items() if taken[path]}
        self.kth_best_model_path, self.kth_value = "", state_dict["kth_value"]
        if self.best_k_models:
            choose = min if self.mode == "max" else max
            self.kth_best_model_path = choose(self.best_k_models, key=lambda path: self.best_k_models[path])
            self.kth_value = self.best_k_models[self.kth_best_model_path]

    def _take_over(self, path: str, folder: Path) -> str:
        """Copy a checkpoint of the run that is resumed into this one's folder; empty if there is none."""
        source, own = folder / Path(path).name, Path(self._named(path))
        if not source.is_file() or not belonging([source], folder):
            return ""
        if self.writes and source.resolve() != own.resolve():
            with whole(own) as unfinished:
                shutil.copyfile(source, unfinished)
        return self._named(path)

    def _named(self, path: str) -> str:
        """A checkpoint in this run's folder, spelled as Lightning does, which compares texts: ``.`` and ``//`` are kept."""
        return os.path.join(str(self.dirpath), Path(path).name)


class LogOddsFigure(Callback):
    """Puts the histograms of clean and steered log-odds into TensorBoard at each validation."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what the validation has gathered, at the threshold that it has set."""
        module = module_of(pl_module)
        gathered = module.metrics_of("validation").gathered
        if gathered and isinstance(trainer.logger, TensorBoardLogger) and not trainer.sanity_checking:
            figure = log_odds_figure({"validation": (gathered.scores, gathered.labels)}, module.threshold)
            trainer.logger.experiment.add_figure("validation/log_odds", figure, trainer.global_step)


class AdapterExport(Callback):
    """Exports the best adapter of a fit as a PEFT folder, ``adapter`` in the run's folder."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export the adapter of the best checkpoint; log its validation beside the hyper-parameters (hparams tab)."""
        module, data, folder = module_of(pl_module), data_of(trainer), run_folder(trainer)
        saver = trainer.checkpoint_callback
        if not isinstance(saver, ModelCheckpoint) or not saver.best_model_path or not trainer.is_global_zero:
            return
        checkpoint = read_checkpoint(saver.best_model_path)
        export_adapter(folder / "adapter", module, data, checkpoint)
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
        rank_zero_info(f"best adapter (step {checkpoint['global_step']}): {folder / 'adapter'}")


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
    """After ``test``: prints a table and writes ``results.json`` and ``log_odds.png`` into the run's folder.

    Attributes:
        name: What the files of the next test are called, if not ``results``.
        prints: Print the table.
    """

    def __init__(self) -> None:
        self.name, self.prints = "results", True

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the results of all test sets."""
        module, folder = module_of(pl_module), run_folder(trainer)
        if not trainer.is_global_zero:
            return
        data = data_of(trainer)
        sets = {name: module.summaries[name] for name in data.test_sets}
        gathered = {name: module.metrics_of(name).gathered for name in data.test_sets}
        groups = {name: trials for name, trials in gathered.items() if trials is not None}
        inputs = torch.cat([trials.inputs[~trials.labels] for trials in groups.values()])
        evidence = next((c.found for c in trainer.callbacks if isinstance(c, Evidence)), None)  # type: ignore[attr-defined]
        results = {
            **provenance(),
            **module.identity(),
            "checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path else None,
            "adapter": module.adapter,
            "precision": str(trainer.precision),
            **protocol(data),
            "threshold": module.threshold,
            "n_clean_distinct_total": len(torch.unique(inputs)),
            "sets": sets,
            "evidence": evidence,
        }
        write_json(folder / f"{self.name}.json", results)
        figure = log_odds_figure({name: (t.scores, t.labels) for name, t in groups.items()}, module.threshold)
        save_figure(folder / f"{self.name.replace('results', 'log_odds')}.png", figure)
        if not self.prints:
            return
        console = Console()
        headline = {name: row for name, row in sets.items() if name in USUAL_SETS and not SOURCES[name].doses}
        console.print(results_table(headline or sets))
        console.print(
            f"clean: distinct clean inputs, {results['n_clean_distinct_total']} in all. Details: {folder}/results.json",
            soft_wrap=True,
            markup=False,
        )


class ReportWriter(Callback):
    """After ``test`` and its results: writes the report, and puts its figures into TensorBoard."""

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write ``report.html`` and ``figures/`` into the run's folder."""
        folder, callbacks = run_folder(trainer), trainer.callbacks  # type: ignore[attr-defined]
        wanted = any(isinstance(callback, Evidence) and callback.enabled and callback.report for callback in callbacks)
        if not (wanted and trainer.is_global_zero):
            return
        page = report.write(folder)
        if isinstance(trainer.logger, TensorBoardLogger):
            results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
            for name, drawn in report.figures(results).items():
                trainer.logger.experiment.add_figure(f"test/{name}", drawn.figure, trainer.global_step)
        rank_zero_info(f"report: {page}")


class PredictionWriter(Callback):
    """During ``predict``: writes a JSON line for each trial to ``predictions.jsonl`` in the run's folder."""

    def __init__(self) -> None:
        self.path = Path()
        self.file: IO[str] | None = None
        self.writing = ExitStack()

    def _path(self, trainer: Trainer) -> Path:
        suffix = "" if trainer.world_size == 1 else f".rank{trainer.global_rank}"
        return run_folder(trainer) / f"predictions{suffix}.jsonl"

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the file under a name that says it is unfinished."""
        self.path = self._path(trainer)
        unfinished = self.writing.enter_context(whole(self.path))
        self.file = self.writing.enter_context(unfinished.open("w", encoding="utf-8"))

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: TrialBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the rows of a batch."""
        data = data_of(trainer)
        assert self.file is not None
        for row, trial in enumerate(batch.trials):
            if batch.total is not None and trial.number >= batch.total:  # it only filled up the last batch
                continue
            scored = {name: values[row].item() for name, values in outputs.items()}
            if not math.isfinite(scored["log_odds"] + scored["mass"]):  # of a replayed trial; JSON has no such numbers
                scored |= {name: str(scored[name]) for name in ("log_odds", "mass")} | {"decision": None}
            with explained(self.path):
                self.file.write(json.dumps(data.describe(trial) | scored, ensure_ascii=False) + "\n")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave nothing half-written behind, Ctrl-C included."""
        with suppress(OSError, RunError):  # what cannot be written is what stopped the run
            self.writing.__exit__(type(exception), exception, exception.__traceback__)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the file its name."""
        self.writing.close()
        rank_zero_info(f"predictions: {self.path}")
