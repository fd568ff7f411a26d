"""Training that has diverged: finds the trial whose numbers are none, keeps the weights, and says how to replay it.

A step is checked once, after its backward passes and before gradients are clipped: clipping by a norm that is infinite or
nan would make the whole adapter nan. All processes agree on whether something is wrong, so that all of them stop.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.distributed as dist
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.nn.utils import get_total_norm

from introspection_lit.evaluation.metrics import NotFinite, require_finite
from introspection_lit.training.callbacks.replay_report import loss_and_gradients
from introspection_lit.training.checkpoint_files import DIVERGED
from introspection_lit.training.distributed import _gathered, is_sharded
from introspection_lit.training.fsdp_shards import plain_name
from introspection_lit.training.run_context import data_of
from introspection_lit.trials.replay import format_trial
from introspection_lit.trials.trial import Trial
from introspection_lit.utils.errors import RunError

if TYPE_CHECKING:
    from introspection_lit.training.datamodule import IntrospectionDataModule
    from introspection_lit.training.module import IntrospectionModule
    from introspection_lit.trials.batch import TrialBatch


# A loss scaled for float16 begins at 2**16 and is halved whenever gradients overflow: 32 times in a row is no bad luck.
SMALLEST_SCALE = 2.0**-16
ADVICE = "Lower model.learning_rate or data.strengths, or use another trainer.precision (32-true is the safest)."


class Scored(NamedTuple):
    """What a batch of a step has given, where it was computed.

    Attributes:
        trials: Its trials.
        loss: ``()``.
        scores: Log-odds, ``(batch,)``.
        masses: ``(batch,)``.
    """

    trials: list[Trial]
    loss: Tensor
    scores: Tensor
    masses: Tensor

    def broken(self) -> list[Trial]:
        """The trials whose own scores are not finite."""
        finite = (self.scores.isfinite() & self.masses.isfinite()).tolist()
        return [trial for trial, fine in zip(self.trials, finite, strict=True) if not fine]


class Suspect(NamedTuple):
    """A trial that may be the cause.

    Attributes:
        batch: Which of the step's batches it was in, from 1.
        process: Which process's, from 1.
        trial: The trial.
    """

    batch: int
    process: int
    trial: Trial


def check_step(module: IntrospectionModule, scored: Sequence[Scored]) -> None:
    """Check losses, scores and gradients of a step before it is made; to be called on every process.

    Gradients that overflow under a gradient scaler (float16) are no error: it leaves the step out. Without one it is.

    Args:
        module: With its gradients, of all the step's batches together.
        scored: What this process's batches of the step have given.

    Raises:
        RunError: A number is none. The weights of before the step are kept.
    """
    trainer = module.trainer
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    device = trainer.strategy.root_device
    seen = [torch.stack([batch.loss.float(), batch.scores.abs().amax(), batch.masses.amax()]) for batch in scored]
    if scaler is None:
        seen.append(_gradient_norm(module).to(device)[None])
    elif scaler.get_scale() < SMALLEST_SCALE:
        seen.append(torch.full((1,), torch.nan, device=device))
    wrong = (~torch.cat(seen).isfinite()).any().float()
    if trainer.world_size > 1:
        dist.all_reduce(wrong, dist.ReduceOp.MAX)
    if wrong.item():
        raise RunError([_story(module, scored)])


def _gradient_norm(module: IntrospectionModule) -> Tensor:
    """The norm of this process's gradients, ``()`` float32."""
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    return get_total_norm(gradients).float() if gradients else torch.zeros(())


def _story(module: IntrospectionModule, scored: Sequence[Scored]) -> str:
    """What is wrong with a step, in words. Every process tells the same one."""
    trainer, data = module.trainer, data_of(module.trainer)
    size = sum(_gathered(trainer, sum(len(batch.trials) for batch in scored)))
    lost = [(number, batch) for number, batch in enumerate(scored, start=1) if not batch.loss.isfinite()]
    losses = [loss for part in _gathered(trainer, [float(batch.loss) for _, batch in lost]) for loss in part]
    suspects = _all(trainer, [(number, trial) for number, batch in enumerate(scored, 1) for trial in batch.broken()])
    what = f"the loss is {losses[0]}" if losses else "the loss is finite, but the scores are not"
    how = f"{len(suspects)} of the step's {size} trials gave no finite score"
    if not suspects and losses:
        suspects = _all(trainer, [(number, trial) for number, batch in lost for trial in batch.trials])
        how = f"every trial gave a finite score; it is the loss of one of {len(suspects)} trials"
    if not suspects:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scaled = f", even of the loss times {scaler.get_scale():.3g}" if scaler is not None else ""
        what = f"the loss is finite, but its gradient is not{scaled}"
        suspects, how = _by_gradient(module, scored, size)
    first = suspects[0]
    batches = f" (batch {first.batch} of {len(scored)} of the step)" if len(scored) > 1 else ""
    process = f" (process {first.process} of {trainer.world_size})" if trainer.world_size > 1 else ""
    return _told(
        data,
        f"training has diverged after {trainer.global_step} steps, in epoch {trainer.current_epoch}: {what}. {how}, first "
        f"{format_trial(data.describe(first.trial))}{batches}{process}.",
        first.trial,
    )


def _by_gradient(module: IntrospectionModule, scored: Sequence[Scored], size: int) -> tuple[list[Suspect], str]:
    """The trials whose own gradients are not finite; all of the step if there are none, or if they cannot be had."""
    trainer, data = module.trainer, data_of(module.trainer)
    trials = [(number, trial) for number, batch in enumerate(scored, start=1) for trial in batch.trials]
    if not is_sharded(trainer):
        found = _all(trainer, [(number, trial) for number, trial in trials if not _differentiable(data, trial)])
        if found:
            return found, f"Alone, {len(found)} of the step's {size} trials have a gradient that is not finite"
    return _all(trainer, trials), f"It is the gradient of the step's {size} trials together"


def _differentiable(data: IntrospectionDataModule, trial: Trial) -> bool:
    """Whether loss and gradient of a trial alone are finite."""
    loss, gradients = loss_and_gradients(data, trial)
    return bool(loss.isfinite() & get_total_norm(list(gradients.values())).isfinite())


def broken_scores(module: IntrospectionModule, error: NotFinite, trials: Sequence[Trial]) -> RunError:
    """Say of which trials the scores are not finite; of metrics to be called on every process.

    Args:
        module: That scored them.
        error: What was found.
        trials: Which trials, at least one.
    """
    trainer, data = module.trainer, data_of(module.trainer)
    first = min(trials, key=lambda trial: trial.number)
    when = f" after {trainer.global_step} steps" if trainer.state.fn == "fit" else ""
    what = f"{first.split}{when}: {error.problems[0]} First {format_trial(data.describe(first))}."
    return RunError([_told(data, what, first, advice="")])


@dataclass
class Predictions:
    """What a run of ``predict`` has scored, for its check.

    Attributes:
        trials: How many trials, in this process.
        broken: Those whose scores are not finite.
    """

    trials: int = 0
    broken: list[Trial] = field(default_factory=list)

    def check(self, module: IntrospectionModule, batch: TrialBatch, scores: Tensor, masses: Tensor) -> None:
        """Check a batch; what only fills up the last one does not count.

        Raises:
            RunError: A score, or a mass, is not finite; among several processes see :meth:`check_all`.
        """
        wanted = [row for row, trial in enumerate(batch.trials) if batch.total is None or trial.number < batch.total]
        self.trials += len(wanted)
        try:
            require_finite(scores[wanted], masses[wanted])
        except NotFinite as error:
            self.broken += [batch.trials[wanted[row]] for row in error.rows]
            if module.trainer.world_size == 1:
                raise broken_scores(module, error, self.broken) from error

    def check_all(self, module: IntrospectionModule) -> None:
        """Check what all processes have scored, so that none ends well while another does not.

        Raises:
            RunError: A score is not finite.
        """
        broken = [trial for part in _gathered(module.trainer, self.broken) for trial in part]
        if broken:
            error = NotFinite(list(range(len(broken))), sum(_gathered(module.trainer, self.trials)))
            raise broken_scores(module, error, broken)


def _told(data: IntrospectionDataModule, what: str, trial: Trial, advice: str = ADVICE) -> str:
    """What is wrong, what to do, and how to look at it."""
    lines, trainer = [what, advice] if advice else [what], data.running
    checkpoint: Path | str | None = trainer.ckpt_path
    command: str | None = None
    if trainer.state.fn != "fit":
        command = replay_command(data, trial, checkpoint)
    elif broken := _broken_weights(data.module):
        lines.append(f"No trial is to blame: the adapter itself has numbers that are not finite, in {broken}.")
    elif isinstance(checkpoint := _keep_weights(trainer), Path):
        lines.append(f"The weights of that moment are in {checkpoint}; earlier checkpoints are good.")
        command = replay_command(data, trial, checkpoint)
    else:
        lines.append(f"The weights of that moment were not saved: {checkpoint}.")
    if command is not None:
        lines.append(f"To look at that trial alone:\n    {command}")
    return "\n    ".join(lines)


def _broken_weights(module: IntrospectionModule) -> str:
    """The first tensor of the adapter with a number that is not finite, in any process; empty if there is none."""
    tensors = ((name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad)
    own = next((plain_name(name) for name, parameter in tensors if not parameter.isfinite().all()), "")
    return max(_gathered(module.trainer, own))


def _keep_weights(trainer: Trainer) -> Path | str:
    """Save the adapter as it is, beside the checkpoints; on every process. Says why, if it cannot."""
    saver = trainer.checkpoint_callback
    if not isinstance(saver, ModelCheckpoint) or saver.dirpath is None or getattr(trainer, "fast_dev_run", False):
        return "checkpoints are switched off"
    path = Path(saver.dirpath) / DIVERGED
    try:
        trainer.save_checkpoint(path, weights_only=True)
    except (OSError, RuntimeError, ValueError) as error:  # a full disk must not hide what went wrong first
        return " ".join(str(error).split()) or type(error).__name__
    return path


def replay_command(data: IntrospectionDataModule, trial: Trial, checkpoint: Path | str | None) -> str | None:
    """The command that scores one trial alone, with the options and vectors of this run; None where it cannot be.

    Args:
        data: Of the run.
        trial: Of one of its splits.
        checkpoint: The weights.
    """
    trainer = data.running
    config, bank = data.folder / "config.yaml", data.folder / "vectors.safetensors"
    if data.grid is not None or not config.is_file() or getattr(trainer, "fast_dev_run", False):
        return None
    words = ["python", "-m", "introspection_lit", "predict", "--config", str(config)]
    words += ["--ckpt_path", str(checkpoint)] if checkpoint is not None else []
    words += ["--data.bank", str(bank)] if data.bank_path is None and bank.is_file() else []
    if _fixed_version(config):  # else it would write into this run's folder, over its configuration
        words += ["--trainer.logger.init_args.version", "replay"]
    return shlex.join([*words, "--data.replay", f"{trial.split}:{trial.number}"])


def _fixed_version(config: Path) -> bool:
    """Whether a saved configuration says what the run's folder is called."""
    logger = yaml.safe_load(config.read_text(encoding="utf-8"))["trainer"]["logger"]
    return isinstance(logger, dict) and logger["init_args"].get("version") is not None


def _all(trainer: Trainer, own: list[tuple[int, Trial]]) -> list[Suspect]:
    """The suspects of all processes, those of the step's first batch first."""
    found = _gathered(trainer, own)
    everyone = [Suspect(batch, process, trial) for process, part in enumerate(found, 1) for batch, trial in part]
    return sorted(everyone, key=lambda suspect: suspect[:2])
