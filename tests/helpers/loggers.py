"""Loggers that tests put into runs by their class path: all their runs share a folder, as with Weights & Biases."""

from __future__ import annotations

from typing import Any, ClassVar

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment


class Shared(Logger):
    """As WandbLogger: a folder of all runs, the project's name, and a version only once it is open.

    Attributes:
        opened: How often any of them has been opened.
    """

    opened: ClassVar[int] = 0

    def __init__(self, save_dir: str = ".", version: str | None = None) -> None:
        super().__init__()
        self.folder, self.given, self.settings = save_dir, version, dict[str, Any]()
        self.open = False

    @property
    def experiment(self) -> Any:
        """Opened when it is first asked for."""
        return self._opened()

    @rank_zero_experiment
    def _opened(self) -> Any:
        if not self.open:
            self.open = True
            type(self).opened += 1
            self.given = self.given or f"id{self.opened}"
        return object()

    @property
    def save_dir(self) -> str | None:
        """Of all runs."""
        return self.folder

    @property
    def name(self) -> str | None:
        """The project."""
        return "project"

    @property
    def version(self) -> str | None:
        """None before it is open."""
        return self.given

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Nowhere."""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Kept."""
        self.settings |= params


class Nameless(Shared):
    """Knows no folder, no name and no version."""

    @property
    def save_dir(self) -> str | None:
        """None."""
        return None

    @property
    def name(self) -> str | None:
        """None."""
        return None

    @property
    def version(self) -> str | None:
        """None."""
        return None


class Closed(Shared):
    """Cannot be opened, as where nobody is logged in."""

    @property
    def experiment(self) -> Any:
        """Raises."""
        raise RuntimeError("api_key not configured\n(no-tty)")
