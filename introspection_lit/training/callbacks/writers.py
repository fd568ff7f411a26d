"""Callbacks that write a run's files: configuration, results, report, predictions."""

from __future__ import annotations

import json
import math
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning_utilities.core.rank_zero import rank_zero_info
from rich.console import Console
from rich.table import Table

from introspection_lit import report
from introspection_lit.evaluation.trial_table import USUAL_SETS
from introspection_lit.report.deployment import deployed_sentences
from introspection_lit.report.exported import exported_sentences
from introspection_lit.report.lengths import length_sentences
from introspection_lit.report.log_odds_plot import log_odds_figure
from introspection_lit.report.verdict import answer_sentences
from introspection_lit.tasks.questionnaire import ANSWERS, KIND_OF
from introspection_lit.training.callbacks.evidence import Evidence
from introspection_lit.training.logged import log_figure, log_settings, showing
from introspection_lit.training.protocol import protocol
from introspection_lit.training.run_context import module_of, run_folder, run_of
from introspection_lit.trials.test_sets import CHOICES, LONG_SETS, OTHER_QUESTIONS, SOURCES
from introspection_lit.utils.checksums import write_json
from introspection_lit.utils.errors import RunError
from introspection_lit.utils.files import atomic_file, explain_write_errors, save_figure, write_file
from introspection_lit.utils.provenance import provenance

if TYPE_CHECKING:
    from introspection_lit.trials.batch import TrialBatch


class ConfigWriter(SaveConfigCallback):
    """Writes the configuration into the run's folder, whole; a run that goes on there writes its own over it.

    Of a training that went on from a checkpoint it leaves that out: tests with this file are of the training's end.
    Loggers with a page of their own get it as hyper-parameters.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write ``config.yaml``, once."""
        folder = run_folder(trainer)
        if trainer.is_global_zero and not self.already_saved:
            written = self.config.clone()
            if stage == "fit":
                written.ckpt_path = None
            write_file(folder / self.config_filename, self.parser.dump(written, skip_none=False))
            log_settings(trainer, yaml.safe_load(self.parser.dump(self.config, skip_none=False)))
        self.already_saved = True


def results_table(sets: dict[str, dict[str, Any]]) -> Table:
    """Lay the results of the test sets out as a table that fits 80 columns."""
    table = Table(title="Results at the stored threshold", padding=(0, 1))
    table.add_column("test set", no_wrap=True)
    for column in ("AUROC", "acc.", "TPR", "FPR", "FPR 95 %", "mass", "clean"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, row in sets.items():
        low, high = row["fpr_interval"]
        rates = (f"{row[key]:.3f}" for key in ("auroc", "accuracy", "tpr", "fpr"))
        table.add_row(name, *rates, f"{low:.3f}-{high:.3f}", f"{row['mass']:.3f}", str(row["n_clean_distinct"]))
    return table


class ResultsWriter(Callback):
    """After ``test``: prints a table and writes ``results.json`` and ``log_odds.png`` into the run's folder.

    Attributes:
        name: File name of the next test's results, without suffix.
        prints: Print the table.
    """

    def __init__(self) -> None:
        self.name, self.prints = "results", True

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the results of all test sets."""
        module, folder = module_of(pl_module), run_folder(trainer)
        if not trainer.is_global_zero:
            return
        run = run_of(trainer)
        sets = {name: module.summaries[name] for name in run.options.test_sets}
        gathered = {name: module.metrics_of(name).trials for name in run.options.test_sets if name not in CHOICES}
        groups = {name: trials for name, trials in gathered.items() if trials is not None}
        inputs = [number for trials in groups.values() for number in trials.inputs[~trials.labels].tolist()]
        evidence = next((c.found for c in trainer.callbacks if isinstance(c, Evidence)), None)  # type: ignore[attr-defined]
        results = {
            **provenance(),
            **module.identity(),
            "checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path else None,
            "adapter": module.adapter,
            "precision": str(trainer.precision),
            **protocol(run),
            "threshold": module.threshold,
            "n_clean_distinct_total": len(set(inputs)),
            "sets": sets,
            "evidence": evidence,
        }
        write_json(folder / f"{self.name}.json", results)
        if groups:
            figure = log_odds_figure({name: (t.scores, t.labels) for name, t in groups.items()}, module.threshold)
            save_figure(folder / f"{self.name.replace('results', 'log_odds')}.png", figure)
        if not self.prints:
            return
        console = Console()
        shown = (*USUAL_SETS, *LONG_SETS)
        headline = {name: row for name, row in sets.items() if name in shown and not SOURCES[name].doses}
        controls = {name: row for name, row in sets.items() if name in OTHER_QUESTIONS}
        usual = {name: row for name, row in ((headline or sets) | controls).items() if name not in CHOICES}
        if usual:
            console.print(results_table(usual))
        for name in (name for name in sets if name in CHOICES):
            chance = 1 / ANSWERS[KIND_OF[name]]
            console.print(f"{name}: {sets[name]['accuracy']:.3f} of {sets[name]['n']} answers right (chance {chance:g})")
        told = (answer_sentences, exported_sentences, length_sentences, deployed_sentences)
        for sentence in (sentence for part in told for sentence in part(results)):
            console.print(sentence, markup=False)
        if results["other_base"]:
            console.print(results["other_base"], markup=False, soft_wrap=True)
        console.print(
            f"clean: distinct clean inputs, {results['n_clean_distinct_total']} in all. Details: {folder}/results.json",
            soft_wrap=True,
            markup=False,
        )


class ReportWriter(Callback):
    """After ``test`` and its results: writes the report, and gives its figures to the loggers."""

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write ``report.html`` and ``figures/`` into the run's folder."""
        folder, callbacks = run_folder(trainer), trainer.callbacks  # type: ignore[attr-defined]
        wanted = any(isinstance(callback, Evidence) and callback.enabled and callback.report for callback in callbacks)
        if not (wanted and trainer.is_global_zero):
            return
        page = report.write_report(folder)
        if showing(trainer):
            results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
            for name, drawn in report.draw_figures(results).items():
                log_figure(trainer, f"test/{name}", drawn.figure)
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
        unfinished = self.writing.enter_context(atomic_file(self.path))
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
        run = run_of(trainer)
        assert self.file is not None
        for row, trial in enumerate(batch.trials):
            if batch.total is not None and trial.number >= batch.total:  # it only pads the last batch
                continue
            scored = {name: values[row].item() for name, values in outputs.items()}
            if not math.isfinite(scored["log_odds"] + scored["mass"]):  # of a replayed trial; JSON has no such numbers
                scored |= {name: str(scored[name]) for name in ("log_odds", "mass")} | {"decision": None}
            with explain_write_errors(self.path):
                self.file.write(json.dumps(run.describe(trial) | scored, ensure_ascii=False) + "\n")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the unfinished file, after Ctrl-C too."""
        with suppress(OSError, RunError):  # the error that stopped the run may be the disk's
            self.writing.__exit__(type(exception), exception, exception.__traceback__)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the file its name."""
        self.writing.close()
        rank_zero_info(f"predictions: {self.path}")
