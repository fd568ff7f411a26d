"""A callback that makes the numbers of a trial infinite or nan, and remembers which trial it was and when."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class Poison(Callback):
    """Poisons one trial, whenever it comes.

    Args:
        call: Which batch of the split it is in, counted from 1; with ``number``, of no matter.
        row: Its place in the batch.
        number: Its number in the split, if it is known.
        what: ``scores``: its logits are nan. ``elsewhere``: one that is neither answer's is infinite, so that its log-odds
            are finite and its mass is not. ``gradient``: what comes back to its logits is infinite, the loss is finite.
        split: Its split.
        once: Only the first time.
        process: Only in this one, counted from 0.

    Attributes:
        hits: The trials that were poisoned, in words, by every one of these callbacks.
        weights: The adapter when it was poisoned first.
    """

    hits: ClassVar[list[dict[str, Any]]] = []
    weights: ClassVar[dict[str, torch.Tensor]] = {}

    def __init__(
        self,
        call: int = 0,
        row: int = 0,
        number: int = -1,
        what: str = "scores",
        split: str = "train",
        once: bool = False,
        process: int | None = None,
    ) -> None:
        self.call, self.row, self.number, self.what, self.split, self.once = call, row, number, what, split, once
        self.process, self.calls = process, 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put it between the model and the loss."""
        clean = type(pl_module).answer_logits

        def poisoned(batch: Any) -> torch.Tensor:
            logits = clean(pl_module, batch)  # type: ignore[arg-type, misc]
            here = batch.split == self.split and self.process in (None, trainer.global_rank)
            self.calls += here
            if here and self.calls == self.call and self.number < 0:
                self.number = batch.trials[self.row].number
            rows = torch.tensor([here and trial.number == self.number for trial in batch.trials])
            if rows.any():
                self._remember(trainer, pl_module, batch.trials[int(rows.nonzero()[0])])
                self.number = -2 if self.once else self.number
            return spoilt(logits, rows[:, None], self.what, batch.answer_ids)

        pl_module.answer_logits = poisoned  # type: ignore[assignment]

    def _remember(self, trainer: Trainer, module: LightningModule, trial: Any) -> None:
        if not self.hits:
            adapter = {name: tensor.detach().clone() for name, tensor in module.named_parameters() if "lora_" in name}
            self.weights.update(adapter)
        self.hits.append(trainer.datamodule.run.describe(trial))  # type: ignore[attr-defined]


def spoilt(logits: torch.Tensor, rows: torch.Tensor, what: str, answers: torch.Tensor) -> torch.Tensor:
    """Logits of which some rows, ``(batch, 1)``, are not what they were."""
    if what == "gradient":
        if logits.requires_grad:
            logits.register_hook(lambda gradient: torch.where(rows, torch.inf, gradient))
        return logits
    if what == "scores":
        return torch.where(rows, torch.nan, logits)
    other = torch.arange(logits.shape[1]) == int(answers.max()) + 1
    return torch.where(rows & other, torch.inf, logits)
