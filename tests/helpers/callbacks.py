"""Callbacks that tests put into runs by their class path: they watch a training, or break it."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch.utils._python_dispatch import TorchDispatchMode


class Operations(TorchDispatchMode):
    """Notes every operation, with the type of its first tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[str, torch.dtype | None]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first = next((argument.dtype for argument in args if isinstance(argument, torch.Tensor)), None)
        self.seen.add((func.overloadpacket.__name__, first))
        return func(*args, **(kwargs or {}))


class Recorder(Callback):
    """Notes the operations of training, prefill to optimiser."""

    operations: ClassVar[Operations] = Operations()

    def on_train_start(self, *args: Any) -> None:
        """Begin."""
        self.operations.__enter__()

    def on_train_end(self, *args: Any) -> None:
        """End."""
        self.operations.__exit__(None, None, None)


class Leaning(Callback):
    """Makes the model prefer a token in each epoch: that for ``steered`` or ``clean``, or ``other``, which is neither."""

    def __init__(self, epochs: list[str]) -> None:
        self.epochs = epochs

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lean."""
        upright = type(pl_module).answer_logits

        def leaning(batch: Any) -> torch.Tensor:
            yes, no = batch.answer_ids[0].tolist()
            token = {"steered": yes, "clean": no, "other": max(yes, no) + 1}[self.epochs[trainer.current_epoch]]
            added = torch.zeros(pl_module.model.config.vocab_size)
            added[token] = 50.0
            return upright(pl_module, batch) + added

        pl_module.answer_logits = leaning


class Broken(Callback):
    """Puts a nan into the weights of a layer, before anything is predicted."""

    def __init__(self, layer: int) -> None:
        self.layer = layer

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Break it."""
        pl_module.layers[self.layer].mlp.down_proj.weight.data[0, 0] = torch.nan


class Float16(Callback):
    """A gradient scaler on the CPU, where Lightning has none; overflows as often as it is told.

    Args:
        overflows: Steps, from the first on, with a gradient that is infinite.
        scale: What the loss is scaled by at first.
    """

    def __init__(self, overflows: int, scale: float = 2.0**16) -> None:
        self.overflows, self.scale = overflows, scale
        self.moved: list[bool] = []
        self.before: torch.Tensor | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the scaler where it would be on a GPU."""
        scaler = torch.amp.GradScaler("cpu", init_scale=self.scale)
        trainer.strategy.precision_plugin = MixedPrecision("16-mixed", "cpu", scaler)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Overflow."""
        weight = next(parameter for name, parameter in pl_module.named_parameters() if "lora_B" in name)
        self.before = weight.detach().clone()
        if trainer.fit_loop.epoch_loop.batch_idx < self.overflows:
            weight.grad[0, 0] = torch.inf

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """See whether the step was made."""
        weight = next(parameter for name, parameter in pl_module.named_parameters() if "lora_B" in name)
        self.moved.append(not torch.equal(weight, self.before))
