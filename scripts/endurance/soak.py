"""Endurance test: trains for a long time and samples what the process holds (:mod:`.footprint`).

Half of the time is one long fit, which shows what grows with steps and validations. The other half is many short lives: a
new model is trained, trained on from its last checkpoint by another trainer in smaller micro-batches, tested with all its
evidence, and thrown away; that shows what grows with runs. TensorBoard with figures, checkpoints, kept caches, sharing and
batches of varying width are on, as in a real run.
"""

from __future__ import annotations

import gc
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest.mock import patch

from lightning.pytorch import Callback, LightningModule, Trainer

from endurance.footprint import Footprint, footprint, most_encoded, most_remembered
from introspection_lit.models.loading import load_tokenizer
from introspection_lit.tools.pipeline import as_arguments
from introspection_lit.training import experiment_setup
from introspection_lit.training.batch_size import largest_part
from introspection_lit.training.callbacks.writers import ResultsWriter
from introspection_lit.training.run_context import run_folder

if TYPE_CHECKING:
    from introspection_lit.cli import IntrospectionCLI
    from introspection_lit.training.datamodule import IntrospectionDataModule

LONG, SHORT, RESUMED, REST = "one long fit", "short fit", "resumed fit", "between lives"
# Fewer say nothing about a trend: some belong to the warm-up, and a line has two points.
FEWEST_SAMPLES, FEWEST_LIVES = 6, 4
# Share of the time that each short fit lasts.
SHARE_OF_FIT = 1 / 60
# Fits end by the clock.
ENDLESS = {"trainer.max_epochs": "100000", "trainer.max_steps": "-1"}
# Epochs of seconds, with a validation, a figure and a checkpoint after each; the user's options come after these and win.
SETTINGS = {
    "trainer.accelerator": "cpu",
    "trainer.enable_progress_bar": "false",
    "trainer.enable_model_summary": "false",
    "trainer.num_sanity_val_steps": "0",
    "trainer.log_every_n_steps": "5",
    "model.base.name_or_path": "random:tiny",
    "data.batch_size": "16",
    "data.trials_per_epoch": "320",
    "data.validation_trials": "64",
    "data.test_trials": "{heldout: 32, concept: 32, newkinds: 32}",
    "evidence.probe_trials": "32",
    "evidence.texts": "4",
    "evidence.facts": "8",
}


class Sample(NamedTuple):
    """One moment: after the first step of an epoch, or between lives."""

    scene: str
    life: int  # 0: the long fit
    seconds: float  # since the beginning
    steps: int  # training batches so far, over all fits
    trials_per_second: float  # of training since the sample before, validations and checkpoints included
    holds: Footprint


class Soak(NamedTuple):
    """The samples in order of time, and the limits of the caches (see :mod:`.footprint`)."""

    samples: list[Sample]
    most_encoded: int
    most_remembered: int | None


class Recorder(Callback):
    """Takes samples while fits run, and ends each fit when its time is up.

    Args:
        every: Seconds between two samples, at least; a sample waits for the next epoch, so that all are of like moments.
        report: Called with each sample.
    """

    def __init__(self, every: float, report: Callable[[Sample], None] = lambda _: None) -> None:
        self.every, self.report = every, report
        self.samples: list[Sample] = []
        self.began = self.last = time.perf_counter()
        self.scene, self.life, self.until = LONG, 0, float("inf")
        self.steps, self.trials, self.most_encoded = 0, 0, 0

    def enter(self, scene: str, life: int, seconds: float = 0.0) -> None:
        """Begin a fit of so many seconds, or a rest."""
        self.scene, self.life, self.until = scene, life, time.perf_counter() + seconds
        self.last, self.trials = float("-inf"), 0

    def take(self, module: LightningModule | None = None, data: IntrospectionDataModule | None = None) -> None:
        """Take a sample."""
        now = time.perf_counter()
        holds = footprint(module, data)
        holds = holds._replace(objects=holds.objects - 2 * len(self.samples))  # a sample is two objects
        self.samples.append(
            Sample(self.scene, self.life, now - self.began, self.steps, self.trials / (now - self.last), holds)
        )
        if data is not None:
            self.most_encoded = max(self.most_encoded, most_encoded(data))
        self.report(self.samples[-1])
        self.last, self.trials = time.perf_counter(), 0

    def rest(self) -> None:
        """Take a sample after a life."""
        for name in ("log", "log_dict"):  # Lightning sets them to the module's methods, which would keep the model alive
            vars(self).pop(name, None)
        gc.collect()
        self.enter(REST, self.life)
        self.take()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take a sample after the first step of an epoch, if one is due."""
        self.steps += 1
        self.trials += len(batch.trials)
        if batch_idx == 0 and time.perf_counter() - self.last >= self.every:
            self.take(pl_module, trainer.datamodule)  # type: ignore[attr-defined]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the fit when its time is up; the checkpoint of this epoch is written after this."""
        enough = self.scene != LONG or len(self.samples) >= FEWEST_SAMPLES
        trainer.should_stop = enough and time.perf_counter() >= self.until


def soak(
    arguments: Sequence[str], seconds: float, every: float = 5.0, report: Callable[[Sample], None] = lambda _: None
) -> Soak:
    """Train, resume and test for a time.

    Args:
        arguments: For the command line, without a subcommand, over those of :data:`SETTINGS`.
        seconds: How long; it takes somewhat longer, until the last life has ended.
        every: Seconds between two samples, at least.
        report: Called with each sample.

    Raises:
        ConfigurationError: The configuration cannot work.
        OSError: This is not Linux, or the temporary folder has no room.
    """
    import introspection_lit.cli  # noqa: F401 - before the freeze

    recorder = Recorder(every, report)
    # tokenizers 0.23 keeps the cached words of a deleted tokenizer as long as the thread lives: 12 MiB for a life with the
    # built-in contexts, which would hide our own growth. A usual run has one tokenizer, and so have all lives together.
    one_tokenizer = patch.object(experiment_setup, "load_tokenizer", lru_cache(load_tokenizer))
    gc.collect()
    gc.freeze()  # half a million objects that exist by now need not be examined at every sample
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), one_tokenizer:
            warnings.filterwarnings("ignore", ".*dirpath has changed.*|.*number of training batches.*")
            words = [*as_arguments(SETTINGS), *arguments]
            words += as_arguments(ENDLESS | {"trainer.logger.init_args.save_dir": folder})
            recorder.enter(LONG, 0, seconds / 2)
            _fit(words, recorder)
            recorder.rest()
            while recorder.life < FEWEST_LIVES or time.perf_counter() - recorder.began < seconds:
                recorder.life += 1
                _live(words, recorder, seconds * SHARE_OF_FIT)
                recorder.rest()
    finally:
        gc.unfreeze()
    return Soak(recorder.samples, recorder.most_encoded, most_remembered())


def _attach(words: Sequence[str], recorder: Recorder) -> IntrospectionCLI:
    from introspection_lit.cli import attach

    cli = attach(list(words))
    cli.trainer.callbacks.insert(0, recorder)  # type: ignore[attr-defined]
    return cli


def _fit(words: Sequence[str], recorder: Recorder) -> IntrospectionCLI:
    """A fit with a new model."""
    cli = _attach(words, recorder)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    return cli


def _live(words: Sequence[str], recorder: Recorder, seconds: float) -> None:
    """Train, train on with another trainer, test, all with one model."""
    recorder.enter(SHORT, recorder.life, seconds)
    cli = _fit(words, recorder)
    data, last = cli.datamodule, str(run_folder(cli.trainer) / "checkpoints" / "last.ckpt")
    # The same steps in smaller micro-batches, as is recommended when memory was not enough.
    step = data.run.batch_size
    data.run.options = replace(data.options, effective_batch=step)
    data.run.batch_size = largest_part(step, lambda size: size < step) or step
    again = _attach(words, recorder)
    recorder.enter(RESUMED, recorder.life, seconds)
    data.run.checkpoint = last
    again.trainer.fit(cli.model, datamodule=data, ckpt_path=last)
    for callback in again.trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ResultsWriter):
            callback.prints = False
    again.trainer.test(cli.model, datamodule=data, ckpt_path="best", verbose=False)
