"""TensorBoard's event files: a write error ends the curves, not the run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn


class BestEffortWriter:
    """Wraps an event file: warns at the first write error, and discards everything after it.

    TensorBoard writes in a thread. After an error that thread dies, with what has not been written; the error comes up
    again at the next logged value, and once more when that ends the run. Records after a truncated one could not be read,
    so nothing is written after the first error.

    Args:
        file: TensorBoard's.
        name: For the message.
    """

    def __init__(self, file: Any, name: str) -> None:
        self.file, self.name, self.failed = file, name, False

    def write(self, data: bytes) -> None:
        """Write a record."""
        self._attempt(self.file.write, data)

    def flush(self) -> None:
        """Write what is waiting."""
        self._attempt(self.file.flush)

    def close(self) -> None:
        """Close the file, whatever state it is in."""
        self._attempt(self.file.flush)
        with suppress(OSError):
            self.file.close()

    @property
    def closed(self) -> bool:
        """Whether nothing can be written any more."""
        return bool(self.file.closed)

    def _attempt(self, action: Callable[..., Any], *arguments: Any) -> None:
        if self.failed:
            return
        try:
            action(*arguments)
        except OSError as error:
            self.failed = True
            reason = error.strerror or error
            rank_zero_warn(f"TensorBoard's curves end here: {self.name} cannot be written ({reason}). The run goes on.")


class CurvesMayFail(Callback):
    """Turns write errors of TensorBoard's event files into a warning; Lightning opens the files right before the set-up."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look for TensorBoard among the loggers."""
        for logger in trainer.loggers:
            wrap_event_file(getattr(logger, "experiment", None))


def wrap_event_file(experiment: Any) -> None:
    """Wrap the event file of a TensorBoard ``SummaryWriter`` in a :class:`BestEffortWriter`; other loggers are left alone.

    Args:
        experiment: Of a logger.
    """
    try:
        events = experiment._get_file_writer().event_writer
        records = events._async_writer._writer  # tensorboard 2: no public way leads to the file
        file, name = records._writer, events._file_name
    except AttributeError:
        return
    if not isinstance(file, BestEffortWriter):
        records._writer = BestEffortWriter(file, name)
