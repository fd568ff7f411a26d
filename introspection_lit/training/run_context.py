"""The state of a run: its options, trainer and module, and after the set-up its splits, vector bank and wording."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from lightning.pytorch import LightningModule, Trainer
from transformers import Cache

from introspection_lit.contexts.context import fingerprint
from introspection_lit.models.lora_targets import USUAL
from introspection_lit.training.options import DEFAULT_BATCH_SIZE, DataOptions
from introspection_lit.trials import leaks
from introspection_lit.trials.manifest_plan import ManifestPlan

if TYPE_CHECKING:
    from introspection_lit.contexts.conversations import Phrasing
    from introspection_lit.models.architectures import Architecture
    from introspection_lit.steering.clean_caches import CleanCaches
    from introspection_lit.steering.vector_bank import VectorBank
    from introspection_lit.tasks.wording import Wording
    from introspection_lit.training.module import IntrospectionModule
    from introspection_lit.trials.batch import TrialBatch
    from introspection_lit.trials.split import Split
    from introspection_lit.trials.trial import Trial


class Experiment(NamedTuple):
    """What the set-up builds before a model is loaded (:func:`~introspection_lit.training.experiment_setup.prepare`).

    Attributes:
        splits: Training, validation and test sets, or the parts of a grid, by name.
        bank: The vector bank; None: it must be measured on the model.
        wording: Questions and answers.
        norm_contexts: Token ids of clean contexts, on which residual norms can be measured.
        replayed: The trials that ``data.replay`` names.
    """

    splits: dict[str, Split]
    bank: VectorBank | None
    wording: Wording
    norm_contexts: list[list[int]]
    replayed: list[Trial]


@dataclass
class RunContext:
    """What the parts of a run share; the data module makes it and fills it in.

    Attributes:
        options: The options of the data.
        attached_trainer: The trainer, once Lightning has attached the data module to it.
        checkpoint: The checkpoint that the command line will load; checked before the model is loaded.
        experiment: What the set-up has built; None before.
        architecture: What was decided about the model; None before the set-up.
        splits: By name; empty before the set-up.
        bank: The vector bank; None before the set-up.
        folder: The run's folder, the same in every process (:mod:`~introspection_lit.training.run_folders`); ``.`` before.
        exported: The folder of the adapter that this run has exported; None before.
        prefill: Makes the steered caches of a batch.
        clean_caches: Clean caches that are kept in host memory while training; None: none are.
        batch_size: Trials in a training batch of one process; decided at the set-up if the option is ``auto``.
        trials_per_process: Trials of an optimiser step in one process, if ``batch_size`` is chosen for them.
        trial_counts: Trials by split; a manifest decides how many an epoch of training has.
    """

    options: DataOptions
    attached_trainer: Trainer | None = None
    checkpoint: str | None = None
    experiment: Experiment | None = None
    architecture: Architecture | None = None
    splits: dict[str, Split] = field(default_factory=dict)
    bank: VectorBank | None = None
    folder: Path = Path()
    exported: Path | None = None
    prefill: Callable[[TrialBatch], Cache] | None = None
    clean_caches: CleanCaches | None = None
    batch_size: int = DEFAULT_BATCH_SIZE
    trials_per_process: int | None = None
    trial_counts: dict[str, int] = field(default_factory=dict)

    @property
    def trainer(self) -> Trainer:
        """The trainer of the run."""
        assert self.attached_trainer is not None, "the data module works inside a Trainer"
        return self.attached_trainer

    @property
    def module(self) -> IntrospectionModule:
        """The module that is trained or tested."""
        return module_of(self.trainer.lightning_module)

    @property
    def share_layers(self) -> bool:
        """Whether rows share the layers below the steering: the options and the architecture allow it."""
        return self.options.reuse.layers and (self.architecture is None or self.architecture.share)

    @property
    def usual_targets(self) -> list[str]:
        """Names of the modules that get an adapter by default."""
        return USUAL if self.architecture is None else self.architecture.usual

    @property
    def wording(self) -> Wording:
        """Questions and answers; known after the set-up."""
        assert self.experiment is not None, "the data module is not set up"
        return self.experiment.wording

    @property
    def phrasing(self) -> Phrasing:
        """System prompt, answers and answer prefix; known after the set-up."""
        return self.wording.phrasing

    @property
    def vector_bank(self) -> VectorBank:
        """The vector bank; known after the set-up."""
        assert self.bank is not None, "the data module is not set up"
        return self.bank

    def describe(self, trial: Trial) -> dict[str, Any]:
        """Everything that defines a trial, in words: a row of a table of predictions."""
        return self.splits[trial.split].describe(trial, self.vector_bank)

    def with_cache(self, batch: TrialBatch) -> TrialBatch:
        """Run the steered prefill: the batch gets the KV cache of its contexts."""
        assert self.prefill is not None, "the data module is not set up"
        batch.cache = self.prefill(batch)
        return batch

    def training_record(self) -> dict[str, Any]:
        """Fingerprints of what training has seen; see :func:`~introspection_lit.trials.leaks.training_record`."""
        plan = self.splits["train"].plan
        manifest = plan.fingerprint if isinstance(plan, ManifestPlan) else None
        record = leaks.training_record(self.splits, self.vector_bank, self.options.prefill_adapter)
        if self.options.chat_template is not None:
            record["chat_template"] = fingerprint(str(self.wording.tokenizer.chat_template))
        return record | {"manifest": manifest}

    def recorded_options(self) -> dict[str, Any]:
        """The options that decide what is trained on and how it is asked, by name as on the command line."""
        return {
            "seed_everything": self.options.seed,
            "model.base.revision": self.module.base.revision,
            **self.options.describe(),
        }


def run_of(trainer: Trainer) -> RunContext:
    """The run context of the trainer's data module."""
    return cast("RunContext", trainer.datamodule.run)  # type: ignore[attr-defined]


def module_of(pl_module: LightningModule) -> IntrospectionModule:
    """The module with its own type."""
    return cast("IntrospectionModule", pl_module)


def run_folder(trainer: Trainer) -> Path:
    """Where the files of a run go; known after the set-up."""
    return run_of(trainer).folder
