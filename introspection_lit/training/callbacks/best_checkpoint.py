"""The checkpoint callback: the best adapter so far and the last one, also after a resume."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_utilities.core.rank_zero import rank_zero_warn

from introspection_lit.training.callbacks.interruption import validation_is_due
from introspection_lit.training.run_context import run_of
from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.files import atomic_file
from introspection_lit.utils.paths import inside_folder


class BestCheckpoint(ModelCheckpoint):
    """Lightning's callback; after a resume it still knows the best checkpoint so far, and it always keeps the last one.

    A resumed run has a folder of its own, and Lightning 2.6 then forgets the score (not the path): the first validation
    after the resume would count as the best. It also writes ``last.ckpt`` only together with a best one, so that a stopped
    run would resume from its best epoch instead of its last. Here a resumed run copies the best checkpoints so far from the
    folder of the run before, which stays unchanged, and removes a checkpoint only after the last one that names its
    successor is written. With ``every_n_train_steps``, Lightning would save the best by the score of an earlier
    validation, or none: here ``last.ckpt`` is saved at that interval, at the ends of steps, and the best after validations.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        inexact = {
            "train_time_interval": self._train_time_interval is not None,
            "save_on_exception": self.save_on_exception,
        }
        if problems := [
            f"checkpoint.{option}: would save between the batches of a step, from where nothing goes on as it was. Use "
            "checkpoint.every_n_train_steps; SIGTERM and Ctrl-C leave a checkpoint anyway."
            for option, given in inexact.items()
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
        """The key of this callback's state in a checkpoint; it depends on the monitor, not on how often is saved."""
        usual = {"every_n_train_steps": 0, "every_n_epochs": 1, "train_time_interval": None}
        return self._generate_state_key(monitor=self.monitor, mode=self.mode, **usual)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the folder of the run, and of the run that it resumes."""
        self.dirpath = self.dirpath or os.path.join(run_of(trainer).folder, "checkpoints")
        super().setup(trainer, pl_module, stage)
        path = run_of(trainer).checkpoint
        self.resumed_from = Path(path).parent if path and stage == "fit" else None
        self.writes = trainer.is_global_zero

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **options: Any) -> None:
        """Save at ``every_n_train_steps``; only a validation decides which checkpoint is the best."""
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
        """Keep the last checkpoint where validations come at other times than the ends of epochs."""
        super().on_validation_end(trainer, pl_module)
        if not self._should_save_on_train_epoch_end(trainer):
            self._keep_last(trainer)
        self._remove_outdated(trainer)

    def _saves_after_this(self, trainer: Trainer) -> bool:
        """Whether a validation follows this batch, after which the last checkpoint is saved anyway."""
        last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        return validation_is_due(trainer) and (last or not self._should_save_on_train_epoch_end(trainer))

    def _keep_last(self, trainer: Trainer) -> None:
        if not self._should_skip_saving_checkpoint(trainer):  # as it does where one of this step is there
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_last_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Any]) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]  # Lightning 2.6 asks everywhere but at the end
            super()._save_last_checkpoint(trainer, monitor_candidates)

    def _remove_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        """Remove the file later: a process killed before the last checkpoint is written still needs it."""
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
            self.last_model_path = last if Path(last).is_file() and inside_folder([last], self.resumed_from) else ""
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
        if not source.is_file() or not inside_folder([source], folder):
            return ""
        if self.writes and source.resolve() != own.resolve():
            with atomic_file(own) as unfinished:
                shutil.copyfile(source, unfinished)
        return self._named(path)

    def _named(self, path: str) -> str:
        """A checkpoint in this run's folder, spelled as Lightning does, which compares texts: ``.`` and ``//`` are kept."""
        return os.path.join(str(self.dirpath), Path(path).name)
