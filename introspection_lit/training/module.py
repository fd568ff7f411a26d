"""The Lightning module: the question pass, its loss, metrics and optimiser, and what a checkpoint holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor, nn

from introspection_lit.evaluation.metrics import DetectionMetrics, NotFinite, choose_threshold
from introspection_lit.models.adapter_weights import load_adapter
from introspection_lit.models.adapters import adapter_settings, base_mismatches, read_adapter
from introspection_lit.models.architecture import find_decoder_layers
from introspection_lit.models.architectures import Architecture
from introspection_lit.models.autocast import cast_once
from introspection_lit.models.base_identity import BaseIdentity
from introspection_lit.models.base_model import BaseModel, Lora
from introspection_lit.models.loading import add_lora, load_model
from introspection_lit.tasks.scoring import Answers, read
from introspection_lit.training.checkpoint_checks import identity_problems, tensor_problems
from introspection_lit.training.distributed import fail_together, is_sharded, leave_base_alone, one_loads_for_all
from introspection_lit.training.fsdp import adapter_shapes
from introspection_lit.training.losses import Scored, batch_loss, detection_rows
from introspection_lit.training.reading import question_attention, read_batch
from introspection_lit.trials.batch import TrialBatch
from introspection_lit.trials.test_sets import CHOICES, SOURCES, TEST_SETS
from introspection_lit.utils.errors import ConfigurationError, RunError
from introspection_lit.utils.seeds import generator

if TYPE_CHECKING:
    from introspection_lit.utils.lazy_types import PeftModel, PreTrainedModel

# Makes the error for scores that are NaN or infinite, of a split and its trials' numbers.
ExplainNotFinite = Callable[[str, list[int], NotFinite], RunError]


def _explain_not_finite(split: str, numbers: list[int], error: NotFinite) -> RunError:
    return RunError([f"{split}: {error.problems[0]} First trial {min(numbers)}."])


class IntrospectionModule(LightningModule):
    """A frozen model with a LoRA adapter that learns to tell steered from clean KV caches.

    Args:
        base: The base model, and how to load it.
        lora: The adapter.
        adapter: A PEFT adapter, folder or hub id, to validate, test or predict with, instead of a checkpoint; ``lora`` then
            is ignored.
        adapter_base: ``recorded``: the base model must be the one that the adapter or the checkpoint was made for. ``any``:
            you say that it matches, such as a quantised copy; names and shapes of the tensors must fit all the same.
        threshold: Decision threshold on the log-odds, for adapters without one of their own. Default: that of validation,
            or 0.
        max_fpr: The share of false alarms that the threshold may have on each kind of validation context, seen or expected;
            1: no limit (see :func:`~introspection_lit.evaluation.metrics.choose_threshold`).
        loss: ``full``: cross-entropy over the whole vocabulary at the answer position. ``pairwise``: over the two answers
            alone, which lets their mass drift.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Of AdamW.
        warmup: Share of the steps over which the learning rate rises; over the rest it falls linearly to 0.
        recompute: Save memory: keep only each decoder layer's input for the backward pass, and run the layer again there
            (see :func:`~introspection_lit.steering.activation_checkpointing.recompute_layers`). Gradients are the same.
    """

    def __init__(
        self,
        base: BaseModel = BaseModel(),
        lora: Lora = Lora(),
        adapter: str | None = None,
        adapter_base: Literal["recorded", "any"] = "recorded",
        threshold: float | None = None,
        max_fpr: float = 1.0,
        loss: Literal["full", "pairwise"] = "full",
        learning_rate: float = 2e-4,
        weight_decay: float = 0.0,
        warmup: float = 0.1,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.base, self.lora = base, lora
        self.base_identity = BaseIdentity(base, adapter_base == "any")
        self.adapter, self.given_threshold = adapter, threshold
        self.max_fpr, self.loss = max_fpr, loss
        self.learning_rate, self.weight_decay, self.warmup = learning_rate, weight_decay, warmup
        self.recompute = recompute
        self.threshold = threshold or 0.0
        self.validated: dict[str, float] = {}  # the last validation, for the checkpoint
        self.strict_loading = False  # checkpoints hold the adapter only
        self.metrics = nn.ModuleDict({f"{split}_trials": DetectionMetrics(threshold=0.0) for split in SOURCES})
        self.metrics_of("validation").max_fpr = max_fpr
        self.summaries: dict[str, dict[str, Any]] = {}  # the last of each split, for callbacks
        self.several_tasks = False  # the last validation was over several tasks
        self.scored: list[Scored] = []  # the batches since the last optimiser step; FiniteNumbers checks and empties it
        self.explain: ExplainNotFinite = _explain_not_finite  # FiniteNumbers replaces it by one that knows the trials
        self.shape = {
            "r": lora.r,
            "alpha": lora.alpha,
            "target_modules": sorted(lora.target_modules or ()),
            "layers": sorted(lora.layers),
        }
        self.layers: list[nn.Module] = []
        self.model: PeftModel

    def adapt_to(self, found: Architecture) -> None:
        """Use the attention implementation and the target modules that were chosen for the architecture."""
        if found.attention != self.base.implementation:
            self.base = replace(self.base, attention=found.attention)
        if self.adapter is None:
            self.lora = replace(self.lora, target_modules=found.targets)
            self.shape["target_modules"] = sorted(found.targets)

    def configure_model(self) -> None:
        """Load the base model and put the adapter on it; a second call does nothing.

        Raises:
            ConfigurationError: The weights cannot be read, or the decoder layers or target modules not found.
        """
        if self.layers:
            return
        # A plain list: the layers are found inside the model, not registered a second time.
        try:
            model = self._load_base()
            layers = find_decoder_layers(model, self.base.decoder_layers)
            self.model = add_lora(model, self.lora).train() if self.adapter is None else self._load_adapter(model)
        except ConfigurationError:
            raise
        except ValueError as error:
            raise ConfigurationError([str(error)]) from error
        self.layers = layers
        leave_base_alone(self)
        if self.trainer.strategy.root_device.type == "cpu" and not is_sharded(self.trainer):
            cast_once(self.model)

    def _load_base(self) -> PreTrainedModel:
        """The base model: whole on this process's device; for several processes of FSDP, in the first one only."""
        device = self.trainer.strategy.root_device
        if not one_loads_for_all(self.trainer):
            return load_model(self.base, device)
        from introspection_lit.training.fsdp_loading import load_shared

        return load_shared(self.base, self.trainer.global_rank, device)

    def _load_adapter(self, model: PreTrainedModel) -> PeftModel:
        """Put the adapter ``model.adapter`` on the model, and use its threshold."""
        adapter = read_adapter(str(self.adapter))
        if problems := base_mismatches(adapter, self.base_identity):  # of a hub id whose weights were not there before
            raise ConfigurationError(problems)
        load = partial(load_adapter, model, adapter, self.base_identity)
        loaded = fail_together(load) if one_loads_for_all(self.trainer) else load()
        self.shape = adapter_settings(adapter)
        if adapter.description and self.given_threshold is None:
            self.threshold = adapter.description["threshold"]
        return loaded

    def forward(self, **inputs: Any) -> Any:
        """Run the language model; prefill and question pass both call it, through the wrapper of DDP or FSDP."""
        return self.model(**inputs)

    def answer_logits(self, batch: TrialBatch) -> Tensor:
        """Run the question pass: logits at the answer position, ``(rows, vocabulary)``."""
        return read_batch(self, batch)[:, 0]

    def _step(self, batch: TrialBatch, gather: bool = True) -> tuple[Tensor, Answers]:
        """Score a batch of any split and add it to the metrics; returns its loss ``()`` and its answers."""
        if batch.early is None:
            logits, early = self.answer_logits(batch), None
        else:
            logits, early = read_batch(self, batch, batch.early.marks).unbind(dim=1)
        with question_attention(self.base, self.model):
            loss, parts = batch_loss(self, batch, logits, self.loss, early)
        training, size = batch.split == "train", len(batch.trials)
        if gather:
            named = {f"{batch.split}/loss_{task}": part for task, part in parts.items()}
            self.log_dict(named, on_step=training, on_epoch=not training, sync_dist=True, batch_size=size)
        answers = read(logits, batch.answer_ids, batch.targets)
        if gather:
            metrics = self.metrics_of(batch.split)
            metrics.total = batch.total
            rows = detection_rows(batch)
            columns = (answers.log_odds, batch.labels, answers.mass, batch.inputs, batch.numbers, batch.kinds)
            metrics.update(*(column[rows] for column in columns))
        return loss, answers

    def metrics_of(self, split: str) -> DetectionMetrics:
        """The metrics of a split."""
        metrics = self.metrics[f"{split}_trials"]
        assert isinstance(metrics, DetectionMetrics)
        return metrics

    def training_step(self, batch: TrialBatch, batch_idx: int) -> Tensor:
        """The loss of a training batch; the callback FiniteNumbers checks it once the optimiser step is complete."""
        loss, answers = self._step(batch)
        self.scored.append(Scored(batch.trials, loss.detach(), answers.log_odds, answers.mass))
        size = len(batch.trials)
        self.log("train/loss", loss, prog_bar=True, sync_dist=True, batch_size=size)
        self.log("train/mass_step", answers.mass.mean(), sync_dist=True, batch_size=size)
        return loss

    def validation_step(self, batch: TrialBatch, batch_idx: int) -> None:
        """Score a validation batch."""
        loss, _ = self._step(batch)
        self.several_tasks = batch.weights is not None
        self.log("validation/loss", loss, on_epoch=True, sync_dist=True, batch_size=len(batch.trials))

    def test_step(self, batch: TrialBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Score a batch of one of the test sets; returns ``log_odds``, ``mass`` and ``given``, each ``(batch,)``."""
        return self._step(batch)[1]._asdict()

    def predict_step(self, batch: TrialBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Score a batch.

        Returns:
            ``log_odds``, ``mass`` and ``decision`` (True: steered), each ``(batch,)``. Where the question is which part or
            which concept, ``given``, the index of the answer, instead of a decision.
        """
        _, answers = self._step(batch, gather=False)
        if batch.split in CHOICES:
            return answers._asdict()
        return {"log_odds": answers.log_odds, "mass": answers.mass, "decision": answers.log_odds > self.threshold}

    def on_train_epoch_end(self) -> None:
        """Log the metrics of the epoch's training trials at threshold 0."""
        if self.metrics_of("train").update_called:  # False if the run was resumed after the last step of an epoch
            self._log_summary("train", threshold=0.0)

    def on_validation_epoch_end(self) -> None:
        """Set the threshold while fitting, and log the validation metrics at the threshold."""
        fitting = self.trainer.state.fn == "fit"
        summary = self._log_summary("validation", None if fitting else self.threshold)
        gathered = self.metrics_of("validation").trials
        if not fitting and gathered is not None:
            now = choose_threshold(gathered, self.max_fpr)
            rank_zero_info(f"threshold: {self.threshold:.4f} is stored; this validation would set {now:.4f}")
        if fitting and not self.trainer.sanity_checking:
            self.threshold = summary["threshold"]
            self.validated = {name: summary[name] for name in ("auroc", "accuracy", "tpr", "fpr", "mass")}
        # For choosing a checkpoint: the AUROC, and between equal ones (1.000 comes early) the lower loss. AUROCs differ by
        # at least half a pair of trials; what the loss adds is below half of that. Of several tasks, the loss over all.
        loss = self.trainer.callback_metrics["validation/loss"]
        if self.several_tasks:
            self.log("validation/selection", torch.exp(-loss))
            return
        smallest = 0.25 / max(summary["n_steered"] * summary["n_clean"], 1)
        self.log("validation/selection", summary["auroc"] + smallest * torch.exp(-loss).item())

    def on_test_epoch_end(self) -> None:
        """Log the metrics of every test set at the stored threshold; where one of several answers is right, at 0."""
        for split in TEST_SETS:
            if self.metrics_of(split).update_called:
                self._log_summary(split, 0.0 if split in CHOICES else self.threshold)

    def _log_summary(self, split: str, threshold: float | None) -> dict[str, Any]:
        metrics = self.metrics_of(split)
        metrics.threshold = threshold
        try:
            summary = metrics.compute()
        except NotFinite as error:
            raise self.explain(split, [int(metrics.trial_numbers[row]) for row in error.rows], error) from error
        if split in CHOICES:  # nothing is detected: there are no false alarms
            summary = {name: summary[name] for name in ("accuracy", "mass")} | {
                "n": summary["n_steered"] + summary["n_clean"]
            }
        self.summaries[split] = summary
        for name in ("auroc", "accuracy", "tpr", "fpr", "mass", "threshold"):
            if name not in summary:
                continue
            on_bar = (split, name) == ("validation", "auroc")
            self.log(f"{split}/{name}", summary[name], prog_bar=on_bar, rank_zero_only=True)
        metrics.reset()
        return summary

    def on_fit_start(self) -> None:
        """Turn dropout on: models come out of ``from_pretrained`` in eval mode, and Lightning leaves them so."""
        self.model.train()
        self.seed = torch.initial_seed()

    def on_train_batch_start(self, batch: TrialBatch, batch_idx: int) -> None:
        """Make dropout a function of (seed, epoch, batch, process), so that a resumed run equals an uninterrupted one."""
        random = generator(self.seed, "dropout", self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(random.integers(2**63)))

    def configure_optimizers(self) -> Any:
        """AdamW on the adapter, with linear warm-up and decay."""
        from transformers import get_linear_schedule_with_warmup

        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=self.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        # Lightning has made the loader to count its batches, before it knows where a resumed run goes on: it makes another.
        self.trainer.fit_loop._combined_loader = None
        schedule = get_linear_schedule_with_warmup(optimizer, round(self.warmup * steps), steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def problems(self) -> list[str]:
        """Errors in the settings of optimiser and threshold."""
        settings = f"learning_rate {self.learning_rate}, weight_decay {self.weight_decay}, warmup {self.warmup}"
        problems = []
        if not (0 < self.learning_rate < math.inf and 0 <= self.weight_decay < math.inf and 0 <= self.warmup <= 1):
            expected = "Expected learning_rate > 0, weight_decay >= 0 and a warmup share in [0, 1], all of them finite"
            problems.append(f"model: got {settings}. {expected}.")
        if not 0 <= self.max_fpr <= 1:
            problems.append(f"model.max_fpr: got {self.max_fpr}. Expected a share in [0, 1].")
        if not math.isfinite(self.given_threshold or 0.0):
            problems.append(f"model.threshold: got {self.given_threshold}. Expected a log-odds, which is finite.")
        return problems

    def identity(self) -> dict[str, Any]:
        """Settings that a checkpoint and the configuration it is loaded into must share."""
        return {
            **self.base_identity.record(),
            "dtype": self.base.dtype,
            "quantization": self.base.quantization,
            "lora": self.shape,
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the adapter, drop the base weights; add threshold and identity."""
        adapter = {name: tensor for name, tensor in checkpoint["state_dict"].items() if "lora_" in name}
        expected = sum("lora_" in name for name, _ in self.model.named_parameters())
        assert len(adapter) == expected, f"{len(adapter)} of {expected} adapter tensors would be saved"
        checkpoint["state_dict"] = adapter
        checkpoint["introspection"] = {"threshold": self.threshold, "validation": self.validated, **self.identity()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint belongs to this model, and use its threshold.

        Raises:
            ConfigurationError: It was made by another program, for another base model or another adapter shape.
        """
        saved = checkpoint.get("introspection")
        problems = identity_problems(saved, self.identity(), self.base_identity)
        if problems or saved is None:
            raise ConfigurationError(problems)
        if self.trainer.state.fn == "fit" and "optimizer_states" not in checkpoint:
            alone = "ckpt_path: the checkpoint holds weights alone, such as those of training that has diverged: training "
            raise ConfigurationError([f"{alone}cannot go on from it. Use another one."])
        if problems := tensor_problems(checkpoint.get("state_dict", {}), adapter_shapes(self)):
            raise ConfigurationError(problems)
        self.threshold = saved["threshold"] if self.given_threshold is None else self.given_threshold
        self.validated = saved["validation"]
