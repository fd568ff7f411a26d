"""Progress in lines, for output that is no terminal: a batch job's log file has no use for a bar that redraws itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import rich
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar

SECONDS = 60.0


@dataclass
class Count:
    """Batches of one pass over data: how many it has, when it began, when it was last spoken of, and how many were read."""

    total: int
    began: float
    said: float
    read: int = 0


class ProgressLines(ProgressBar):
    """Says once a minute how far training, validation, test or prediction is, and the AUROC of each validation.

    Args:
        seconds: Between two lines.
        clock: The time in seconds; it never goes back.
    """

    def __init__(self, seconds: float = SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._seconds, self._clock, self._shown = seconds, clock, True
        self._counts: dict[str, Count] = {}

    def disable(self) -> None:
        """Say nothing; Lightning calls it in all processes but the first."""
        self._shown = False

    def enable(self) -> None:
        """Say it again."""
        self._shown = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print at once: output that is no terminal is kept back otherwise."""
        if self._shown:
            print(*args, **kwargs | {"flush": True})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count: an epoch that is resumed in its middle does not start (Lightning 2.6)."""
        self._begin("epoch", self.total_train_batches)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        self._begin("epoch", self.total_train_batches)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Say how far the epoch is."""
        if self._due("epoch") and self._shown:
            shown = {name: number for name, number in trainer.progress_bar_metrics.items() if name.startswith("train/")}
            self._say("epoch", f"epoch {trainer.current_epoch + 1}", batch_idx + 1, **shown)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        self._begin("validation", trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Say how far the validation is."""
        self._count("validation")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what it found."""
        found = trainer.callback_metrics.get("validation/auroc")
        if found is not None and not trainer.sanity_checking:
            self.print(f"step {trainer.global_step}: validation/auroc {found:.3f}")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        self._begin("test", trainer.num_test_batches)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Say how far the test is."""
        self._count("test")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        self._begin("prediction", trainer.num_predict_batches)

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Say how far the prediction is."""
        self._count("prediction")

    def _begin(self, what: str, batches: float | Sequence[float]) -> None:
        now = self._clock()
        self._counts[what] = Count(int(sum(batches) if isinstance(batches, Sequence) else batches), now, now)

    def _count(self, what: str) -> None:
        """Count a batch, and say how far it is if it is time."""
        if self._due(what):
            self._say(what, what)

    def _due(self, what: str) -> bool:
        """Count a batch; is it time for a line?"""
        count = self._counts[what]
        count.read += 1
        return self._clock() - count.said >= self._seconds

    def _say(self, what: str, title: str, place: int | None = None, **numbers: float) -> None:
        """Say which batch it was, and how long those after it will take if they take as long as those before it."""
        count, now = self._counts[what], self._clock()
        count.said, place = now, count.read if place is None else place
        minutes = (now - count.began) / count.read * (count.total - place) / 60
        left = f"about {minutes:.0f} min left" if minutes >= 1 else "less than a minute left"
        shown = (f"{name} {number:.3f}" for name, number in numbers.items())
        self.print(", ".join((f"{title}: batch {place} of {count.total}", left, *shown)))


def progress_bar() -> ProgressBar:
    """A bar in a terminal or a notebook, lines elsewhere."""
    console = rich.get_console()
    return RichProgressBar() if console.is_terminal or console.is_jupyter else ProgressLines()
