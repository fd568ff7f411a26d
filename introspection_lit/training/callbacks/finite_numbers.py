"""Stops a run at NaN or infinite numbers: finds the trial that produced them, keeps the weights, says how to replay it.

A step is checked once, after its backward passes and before gradients are clipped: clipping by a norm that is infinite or
nan would make the whole adapter nan. All processes agree on whether something is wrong, so that all of them stop.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from introspection_lit.evaluation.metrics import NotFinite, require_finite
from introspection_lit.training.callbacks.replay_report import loss_and_gradients
from introspection_lit.training.checkpoint_files import DIVERGED
from introspection_lit.training.distributed import gather_objects, is_sharded
from introspection_lit.training.fsdp_shards import plain_name
from introspection_lit.training.losses import Scored
from introspection_lit.training.module import IntrospectionModule
from introspection_lit.training.run_context import RunContext, module_of, run_of
from introspection_lit.trials.replay import format_trial
from introspection_lit.trials.trial import Trial
from introspection_lit.utils.errors import RunError

if TYPE_CHECKING:
    from introspection_lit.trials.batch import TrialBatch


# A loss scaled for float16 begins at 2**16 and is halved whenever gradients overflow: 32 times in a row is no bad luck.
SMALLEST_SCALE = 2.0**-16
ADVICE = "Lower model.learning_rate or data.strengths, or use another trainer.precision (32-true is the safest)."


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


def check_step(module: IntrospectionModule, scored: Sequence[Scored]) -> Tensor | None:
    """Check losses, scores and gradients of a step before it is made; to be called on every process.

    Gradients that overflow under a gradient scaler (float16) are no error: it leaves the step out. Without one it is.

    Args:
        module: With its gradients, of all the step's batches together.
        scored: What this process's batches of the step have given.

    Returns:
        The norm of this process's gradients before clipping, ``()`` float32, under FSDP of its shard; None under a gradient
        scaler.

    Raises:
        RunError: A loss, score or gradient is NaN or infinite. The weights of before the step are kept.
    """
    trainer, norm = module.trainer, None
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    device = trainer.strategy.root_device
    seen = [torch.stack([batch.loss.float(), batch.scores.abs().amax(), batch.masses.amax()]) for batch in scored]
    if scaler is None:
        norm = _gradient_norm(module).to(device)
        seen.append(norm[None])
    elif scaler.get_scale() < SMALLEST_SCALE:
        seen.append(torch.full((1,), torch.nan, device=device))
    wrong = (~torch.cat(seen).isfinite()).any().float()
    if trainer.world_size > 1:
        dist.all_reduce(wrong, dist.ReduceOp.MAX)
    if wrong.item():
        raise RunError([_explain_step(module, scored)])
    return norm


def _gradient_norm(module: IntrospectionModule) -> Tensor:
    """The norm of this process's gradients, ``()`` float32."""
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    return get_total_norm(gradients).float() if gradients else torch.zeros(())


def _explain_step(module: IntrospectionModule, scored: Sequence[Scored]) -> str:
    """A message on what is wrong with a step, the same in every process."""
    trainer, run = module.trainer, run_of(module.trainer)
    size = sum(gather_objects(sum(len(batch.trials) for batch in scored)))
    lost = [(number, batch) for number, batch in enumerate(scored, start=1) if not batch.loss.isfinite()]
    losses = [loss for part in gather_objects([float(batch.loss) for _, batch in lost]) for loss in part]
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
    return _explain(
        run,
        f"training has diverged after {trainer.global_step} steps, in epoch {trainer.current_epoch}: {what}. {how}, first "
        f"{format_trial(run.describe(first.trial))}{batches}{process}.",
        first.trial,
    )


def _by_gradient(module: IntrospectionModule, scored: Sequence[Scored], size: int) -> tuple[list[Suspect], str]:
    """The trials whose own gradients are not finite; all of the step if there are none, or if they cannot be had."""
    trainer, run = module.trainer, run_of(module.trainer)
    trials = [(number, trial) for number, batch in enumerate(scored, start=1) for trial in batch.trials]
    if not is_sharded(trainer):
        found = _all(trainer, [(number, trial) for number, trial in trials if not _differentiable(run, trial)])
        if found:
            return found, f"Alone, {len(found)} of the step's {size} trials have a gradient that is not finite"
    return _all(trainer, trials), f"It is the gradient of the step's {size} trials together"


def _differentiable(run: RunContext, trial: Trial) -> bool:
    """Whether loss and gradient of a trial alone are finite."""
    loss, gradients = loss_and_gradients(run, trial)
    return bool(loss.isfinite() & get_total_norm(list(gradients.values())).isfinite())


def explain_scores(run: RunContext, trials: Sequence[Trial], error: NotFinite) -> RunError:
    """The error for scores that are NaN or infinite. Collective while fitting: every rank must call it.

    Args:
        run: The run that scored them.
        trials: Whose scores they are, at least one.
        error: What was found.
    """
    trainer = run.trainer
    first = min(trials, key=lambda trial: trial.number)
    when = f" after {trainer.global_step} steps" if trainer.state.fn == "fit" else ""
    what = f"{first.split}{when}: {error.problems[0]} First {format_trial(run.describe(first))}."
    return RunError([_explain(run, what, first, advice="")])


class FiniteNumbers(Callback):
    """Stops a run at the first NaN or infinite loss, score or gradient, and names the trial that it came from.

    A NaN outranks every score, so that an adapter that has diverged would have an AUROC of 1.
    """

    def __init__(self) -> None:
        self.predicted = 0  # trials that ``predict`` has scored in this process
        self.broken: list[Trial] = []  # those whose scores are NaN or infinite

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the module's metrics name the trials whose scores are NaN or infinite."""
        run = run_of(trainer)

        def explain(split: str, numbers: list[int], error: NotFinite) -> RunError:
            return explain_scores(run, [run.splits[split].plan.trial(number) for number in numbers], error)

        module_of(pl_module).explain = explain

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the batches of an earlier fit."""
        module_of(pl_module).scored = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Check the optimiser step that is about to be made, and log the norm of its gradients, before they are clipped.

        Raises:
            RunError: A loss, a score or the gradient is NaN or infinite.
        """
        module = module_of(pl_module)
        scored, module.scored = module.scored, []
        norm = check_step(module, scored)
        if norm is not None and not is_sharded(trainer):  # a process with a shard knows the norm of that alone
            pl_module.log("train/gradient_norm", norm)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the trials of an earlier ``predict``."""
        self.predicted, self.broken = 0, []

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: TrialBatch, *args: Any, **options: Any
    ) -> None:
        """Check a batch, unless trials are replayed to look at just such scores; rows that only fill it up do not count.

        Raises:
            RunError: A score is NaN or infinite. Several processes stop together, once all trials are scored.
        """
        run = run_of(trainer)
        if run.options.replay is not None:
            return
        rows = [row for row, trial in enumerate(batch.trials) if batch.total is None or trial.number < batch.total]
        self.predicted += len(rows)
        try:
            require_finite(outputs["log_odds"][rows], outputs["mass"][rows])
        except NotFinite as error:
            self.broken += [batch.trials[rows[row]] for row in error.rows]
            if trainer.world_size == 1:
                raise explain_scores(run, self.broken, error) from error

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop all processes if any has scores that are NaN or infinite.

        Raises:
            RunError: One has.
        """
        broken = [trial for part in gather_objects(self.broken) for trial in part]
        if broken:
            error = NotFinite(list(range(len(broken))), sum(gather_objects(self.predicted)))
            raise explain_scores(run_of(trainer), broken, error)


def _explain(run: RunContext, what: str, trial: Trial, advice: str = ADVICE) -> str:
    """A message: what is wrong, what to do, and the command that replays the trial."""
    lines, trainer = [what, advice] if advice else [what], run.trainer
    checkpoint: Path | str | None = trainer.ckpt_path
    command: str | None = None
    if trainer.state.fn != "fit":
        command = replay_command(run, trial, checkpoint)
    elif broken := _broken_weights(run.module):
        lines.append(f"No trial is to blame: the adapter itself has numbers that are not finite, in {broken}.")
    elif isinstance(checkpoint := _keep_weights(trainer), Path):
        lines.append(f"The weights of that moment are in {checkpoint}; earlier checkpoints are good.")
        command = replay_command(run, trial, checkpoint)
    else:
        lines.append(f"The weights of that moment were not saved: {checkpoint}.")
    if command is not None:
        lines.append(f"To look at that trial alone:\n    {command}")
    return "\n    ".join(lines)


def _broken_weights(module: IntrospectionModule) -> str:
    """Collective: the name of the first adapter tensor with a NaN or infinite value, on any rank; empty without one."""
    tensors = ((name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad)
    own = next((plain_name(name) for name, parameter in tensors if not parameter.isfinite().all()), "")
    return max(gather_objects(own))


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


def replay_command(run: RunContext, trial: Trial, checkpoint: Path | str | None) -> str | None:
    """The command that scores one trial alone, with the options and vectors of this run; None where it cannot be.

    Args:
        run: Of the run.
        trial: Of one of its splits.
        checkpoint: The weights.
    """
    trainer = run.trainer
    config, bank = run.folder / "config.yaml", run.folder / "vectors.safetensors"
    if run.options.grid is not None or not config.is_file() or getattr(trainer, "fast_dev_run", False):
        return None
    words = ["python", "-m", "introspection_lit", "predict", "--config", str(config)]
    words += ["--ckpt_path", str(checkpoint)] if checkpoint is not None else []
    words += ["--data.bank", str(bank)] if run.options.bank_path is None and bank.is_file() else []
    if _fixed_version(config):  # a folder of its own
        words += ["--trainer.logger.init_args.version", "null"]
    return shlex.join([*words, "--data.replay", f"{trial.split}:{trial.number}"])


def _fixed_version(config: Path) -> bool:
    """Whether a saved configuration says what the run's folder is called."""
    logger = yaml.safe_load(config.read_text(encoding="utf-8"))["trainer"]["logger"]
    return isinstance(logger, dict) and logger["init_args"].get("version") is not None


def _all(trainer: Trainer, own: list[tuple[int, Trial]]) -> list[Suspect]:
    """The suspects of all processes, those of the step's first batch first."""
    found = gather_objects(own)
    everyone = [Suspect(batch, process, trial) for process, part in enumerate(found, 1) for batch, trial in part]
    return sorted(everyone, key=lambda suspect: suspect[:2])
