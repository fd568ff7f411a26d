"""SIGTERM, Ctrl-C and SLURM's SIGUSR1: a fit finishes its step, writes a checkpoint that resumes exactly, and exits.

Lightning's own handlers lose the epoch: after Ctrl-C nothing is saved, and ``test`` and ``predict`` ignore SIGTERM. With
several processes its SIGTERM handler waits for the other ranks in the middle of whatever they are doing (docs/clusters.md).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def stopping_signals() -> tuple[signal.Signals, ...]:
    """The signals that end a run; SIGUSR1 is how SLURM is usually asked to say that the time is nearly up."""
    asked = "SLURM_JOB_ID" in os.environ and hasattr(signal, "SIGUSR1")
    return (*SIGNALS, signal.SIGUSR1) if asked else SIGNALS


class Interruption(Callback):
    """Stops a run at SIGTERM and Ctrl-C, in all processes after the same step, with a checkpoint that resumes exactly.

    The exit status is 128 and the number of the signal: 143 for SIGTERM, 130 for Ctrl-C, 138 for SIGUSR1. A second
    signal ends the run at once, without a checkpoint; so does the first one where there is no training to be saved.

    Attributes:
        received: The signal that has come; 0: none.
    """

    def __init__(self) -> None:
        self.received = 0
        self._unvalidated = False  # the checkpoint being written is from before a validation that is due

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's signal handlers, which it has just installed; it restores the original ones at the end."""
        self.received = signal.SIGTERM if trainer.received_sigterm else 0
        self._install(self._finish_step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Correct the validation interval: Lightning sets it in each epoch, and a resumed one has no start hook."""
        validate_after_steps(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Outside of a fit, a signal ends the run."""
        if trainer.state.fn != TrainerFn.FITTING:
            self._install(leave)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A signal ends the run, also one that came when a fit before had no step left to finish."""
        if number := _any_process(self.received, trainer):
            leave(number)
        self._install(leave)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A signal ends the run."""
        self._install(leave)

    def _install(self, handler: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in stopping_signals():
                signal.signal(number, handler)

    def _finish_step(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            leave(number, frame)
        self.received = number

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Stop if a signal has come and the step is complete: gradients that are being accumulated are not saved."""
        if not trainer.fit_loop.epoch_loop._should_accumulate():
            self._stop_if_signalled(trainer, unvalidated=validation_is_due(trainer))

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Stop if a signal has come while a fit is validating: the resumed run validates again."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._stop_if_signalled(trainer, unvalidated=True)

    def _stop_if_signalled(self, trainer: Trainer, unvalidated: bool) -> None:
        number = _any_process(self.received, trainer)
        if not number:
            return
        saver = trainer.checkpoint_callback
        place = "nothing was saved: checkpoints are switched off"
        if isinstance(saver, ModelCheckpoint) and not getattr(trainer, "fast_dev_run", False):
            self._unvalidated = unvalidated
            saver.save_last, saver.save_weights_only = True, False  # whatever the options: the run resumes from this one
            saver._save_last_checkpoint(trainer, saver._monitor_candidates(trainer))
            self._unvalidated = False
            place = f"go on with --ckpt_path {saver.last_model_path}"
        if trainer.is_global_zero:
            sys.stderr.write(f"\nstopped by {signal.Signals(number).name} after step {trainer.global_step}; {place}\n")
        raise SystemExit(128 + number)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Record that a validation is due, if one is."""
        loops = checkpoint.get("loops", {}).get("fit_loop")
        if loops is None or trainer.state.fn != TrainerFn.FITTING:
            return
        progress = loops["epoch_loop.batch_progress"]["total"]
        after_batch = progress["completed"] < progress["processed"]  # it is written at the end of a batch
        if self._unvalidated or (after_batch and validation_is_due(trainer)):
            validation_first(loops)


def leave(number: int, frame: FrameType | None = None) -> None:
    """End the process now, cleaning up.

    Raises:
        SystemExit: 128 and the number of the signal.
    """
    raise SystemExit(128 + number)


def validate_after_steps(trainer: Trainer) -> None:
    """Let validations in the middle of an epoch come at the ends of steps; nothing could go on from between their batches.

    So they come after the same steps, whatever the batches that a step is made of.
    """
    every, parts = trainer.val_check_batch, trainer.accumulate_grad_batches
    if isinstance(every, int) and every < trainer.num_training_batches:
        trainer.val_check_batch = max(parts, every - every % parts)


def validation_is_due(trainer: Trainer) -> bool:
    """Whether a validation comes right after the batch that has just ended."""
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def _any_process(number: int, trainer: Trainer) -> int:
    """The highest of all processes' numbers."""
    if trainer.world_size == 1:
        return number
    highest = torch.tensor(number, device=trainer.strategy.root_device)
    dist.all_reduce(highest, dist.ReduceOp.MAX)
    return int(highest.item())


def validation_first(loops: dict[str, Any]) -> None:
    """Change a checkpoint of the end of a batch or of a validation to one that begins with that validation.

    Lightning 2.6 would go on without: at the end of a batch it believes that a validation that is due has been made, and
    of one that was begun it repeats the first batches and leaves out the last ones. What it does for a validation that has
    begun and done nothing is right.

    Args:
        loops: The progress of the fit, ``checkpoint["loops"]["fit_loop"]``; changed in place.
    """
    for counts in (loops["epoch_loop.batch_progress"][name] for name in ("total", "current")):
        counts["completed"] = counts["processed"]
    validation = loops["epoch_loop.val_loop.batch_progress"]
    for counts in (validation["total"], validation["current"]):
        counts.update(dict.fromkeys(counts, 0))
    validation["total"] |= {"ready": 1, "started": 1}
    validation["is_last_batch"] = False
