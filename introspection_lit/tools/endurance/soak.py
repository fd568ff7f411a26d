"""Trains for a long time and watches whether anything grows: memory, hooks, open files, tensors, cached entries.

Half of the time is one long fit, as a real run is; it shows what grows with every step, batch and validation. The other
half is many short lives: a new model is trained, trained on from its last checkpoint by another trainer with a smaller
micro-batch, tested with all that a test gathers, and thrown away; that shows what grows with every run. Everything is on
that a real run has: TensorBoard with figures, checkpoints, kept caches, sharing, batches of varying width.
"""

from __future__ import annotations

import gc
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer

from introspection_lit.models.loading import load_tokenizer
from introspection_lit.tools.endurance.footprint import Footprint, footprint, most_encoded, most_remembered
from introspection_lit.tools.pipeline import as_arguments
from introspection_lit.training import experiment_setup as preparation
from introspection_lit.training.batch_size import largest_part
from introspection_lit.training.run_context import run_folder

if TYPE_CHECKING:
    from introspection_lit.cli import IntrospectionCLI
    from introspection_lit.training.datamodule import IntrospectionDataModule


LONG, SHORT, RESUMED, REST = "one long fit", "short fit", "resumed fit", "between lives"
# Below this nothing can be said of a trend: some warm up, and two points make a line.
FEWEST_SAMPLES, FEWEST_LIVES = 6, 4
# Of the time, how long each short fit lasts.
SHARE_OF_FIT = 1 / 60
# Fits end by the clock.
ENDLESS = {"trainer.max_epochs": "100000", "trainer.max_steps": "-1"}
# Epochs of seconds, with a validation, a figure and a checkpoint after each; what the user gives comes after, and wins.
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
    """One moment of a soak.

    Attributes:
        scene: What was going on; always after the first step of an epoch, or between lives.
        life: Number of the life; 0: the long fit.
        seconds: Since the beginning.
        steps: Training batches so far, over all fits.
        trials_per_second: Of training since the sample before, validations and checkpoints included; 0 between lives.
        holds: What the process held.
    """

    scene: str
    life: int
    seconds: float
    steps: int
    trials_per_second: float
    holds: Footprint


class Soak(NamedTuple):
    """What a soak has seen.

    Attributes:
        samples: In order of time.
        most_encoded: Most conversations that the splits could ever remember.
        most_remembered: Most entries that the package's function caches could ever have; None: one has no limit.
    """

    samples: list[Sample]
    most_encoded: int
    most_remembered: int | None


class Recorder:
    """Takes samples while fits run, and ends each when its time is up.

    Args:
        every: Seconds between two samples, at least; they wait for the next epoch, so that all are of like moments.
        told: Is told of each sample.
    """

    def __init__(self, every: float, told: Callable[[Sample], None] = lambda _: None) -> None:
        self.every, self.told = every, told
        self.samples: list[Sample] = []
        self.began = self.last = time.perf_counter()
        self.scene, self.life, self.until = LONG, 0, float("inf")
        self.steps, self.trials, self.most_encoded = 0, 0, 0

    def enter(self, scene: str, life: int, seconds: float = 0.0) -> None:
        """Begin a fit that is to last so long, or a rest."""
        self.scene, self.life, self.until = scene, life, time.perf_counter() + seconds
        self.last, self.trials = float("-inf"), 0

    def take(self, module: LightningModule | None = None, data: IntrospectionDataModule | None = None) -> None:
        """Take a sample."""
        now = time.perf_counter()
        holds = footprint(module, data)
        holds = holds._replace(objects=holds.objects - 2 * len(self.samples))  # a sample is two objects
        sample = Sample(self.scene, self.life, now - self.began, self.steps, self.trials / (now - self.last), holds)
        if data is not None:
            self.most_encoded = max(self.most_encoded, most_encoded(data))
        self.samples.append(sample)
        self.told(sample)
        self.last, self.trials = time.perf_counter(), 0


class Sampling(Callback):
    """Lets a recorder look at one fit; a new one for each, since Lightning hangs the model on its callbacks.

    Args:
        recorder: Takes the samples.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take a sample after the first step of an epoch, if one is due."""
        recorder = self.recorder
        recorder.steps += 1
        recorder.trials += len(batch.trials)
        if batch_idx == 0 and time.perf_counter() - recorder.last >= recorder.every:
            recorder.take(pl_module, trainer.datamodule)  # type: ignore[attr-defined]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the fit when its time is up; the checkpoint of this epoch is written after this."""
        recorder = self.recorder
        enough = recorder.scene != LONG or len(recorder.samples) >= FEWEST_SAMPLES
        trainer.should_stop = enough and time.perf_counter() >= recorder.until


def soak(
    arguments: Sequence[str], seconds: float, every: float = 5.0, told: Callable[[Sample], None] = lambda _: None
) -> Soak:
    """Train, resume and test for a time.

    Args:
        arguments: For the command line, without a subcommand, over those of :data:`SETTINGS`.
        seconds: How long; it takes somewhat longer, until the last life has ended.
        every: Seconds between two samples, at least.
        told: Is told of each sample.

    Raises:
        ConfigurationError: The configuration cannot work.
        OSError: This is not Linux, or the temporary folder has no room.
    """
    import introspection_lit.cli  # noqa: F401 - before the freeze

    recorder = Recorder(every, told)
    gc.collect()
    gc.freeze()  # what is there by now, some half a million objects, is not looked through again at every sample
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), one_tokenizer():
            warnings.filterwarnings("ignore", ".*dirpath has changed.*|.*number of training batches.*")
            ours = ENDLESS | {"trainer.logger.init_args.save_dir": folder}
            _run([*as_arguments(SETTINGS), *arguments, *as_arguments(ours)], recorder, seconds)
    finally:
        gc.unfreeze()
    return Soak(recorder.samples, recorder.most_encoded, most_remembered())


@contextmanager
def one_tokenizer() -> Iterator[None]:
    """Let all set-ups share a tokenizer.

    tokenizers 0.23 keeps the words that it has cached for a tokenizer which is gone as long as the thread lives: 12 MiB for
    a life with the built-in contexts, which would hide what is ours. A usual run has one tokenizer.
    """
    setattr(preparation, "load_tokenizer", lru_cache(load_tokenizer))  # noqa: B010 - another type, for mypy
    try:
        yield
    finally:
        setattr(preparation, "load_tokenizer", load_tokenizer)  # noqa: B010


def _run(words: Sequence[str], recorder: Recorder, seconds: float) -> None:
    """The long fit, then lives until the time is up."""
    recorder.enter(LONG, 0, seconds / 2)
    _fit(words, recorder)
    _rest(recorder)
    while recorder.life < FEWEST_LIVES or time.perf_counter() - recorder.began < seconds:
        recorder.life += 1
        _live(words, recorder, seconds * SHARE_OF_FIT)
        _rest(recorder)


def _put_together(words: Sequence[str], recorder: Recorder) -> IntrospectionCLI:
    from introspection_lit.cli import attach  # it imports Lightning's command line, with the signatures of all options

    cli = attach(list(words))
    cli.trainer.callbacks.insert(0, Sampling(recorder))  # type: ignore[attr-defined]
    return cli


def _fit(words: Sequence[str], recorder: Recorder) -> IntrospectionCLI:
    """A fit with a new model."""
    cli = _put_together(words, recorder)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    return cli


def _live(words: Sequence[str], recorder: Recorder, seconds: float) -> None:
    """Train, train on with another trainer, test, all with one model."""
    recorder.enter(SHORT, recorder.life, seconds)
    cli = _fit(words, recorder)
    data, last = cli.datamodule, run_folder(cli.trainer) / "checkpoints" / "last.ckpt"
    # The same steps in smaller micro-batches: what is recommended where memory was not enough.
    step = data.run.batch_size
    data.run.options = replace(data.options, effective_batch=step)
    data.run.batch_size = largest_part(step, lambda size: size < step) or step
    again = _put_together(words, recorder)
    recorder.enter(RESUMED, recorder.life, seconds)
    data.run.checkpoint = str(last)
    again.trainer.fit(cli.model, datamodule=data, ckpt_path=str(last))
    _quiet_results(again)
    again.trainer.test(cli.model, datamodule=data, ckpt_path="best", verbose=False)


def _quiet_results(cli: IntrospectionCLI) -> None:
    from introspection_lit.training.callbacks.writers import ResultsWriter

    for callback in cli.trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ResultsWriter):
            callback.prints = False


def _rest(recorder: Recorder) -> None:
    """Take a sample once a life is over and everything of it has been let go."""
    gc.collect()
    recorder.enter(REST, recorder.life)
    recorder.take()
