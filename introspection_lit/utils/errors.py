"""Our errors: what cannot work, found before a model is loaded, and what stopped a run that could."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
# Control characters but for tabs and new lines, marks that turn the direction of writing, halves of surrogate pairs.
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    r"""A text of a file as a terminal can be shown it: what would steer the terminal is written out, as in ``\x1b``."""
    return CONTROLS.sub(lambda found: ascii(found.group())[1:-1], text)


class IntrospectionError(Exception):
    """What a user can do something about.

    Args:
        problems: One sentence or more for each: what was given, what was expected, what to do.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = [visible(str(problem)) for problem in problems]
        plural = "problem" if len(self.problems) == 1 else "problems"
        super().__init__("\n".join([f"{len(self.problems)} {plural}:", *(f"  - {problem}" for problem in self.problems)]))


class ConfigurationError(IntrospectionError, ValueError):
    """Everything that is wrong with a configuration or with the files it names, at once; before any model is loaded."""


class RunError(IntrospectionError, RuntimeError):
    """What stopped a run in the middle: no room left, a full disk, a number that is not one. Says what was kept."""


class Problems:
    """Collects problems, so that a user sees them all at once."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, problems: Iterable[str | None]) -> None:
        """Add those that are not None."""
        self.found += [problem for problem in problems if problem is not None]

    def attempt(self, action: Callable[..., T], *args: Any) -> T | None:
        """Run something that may raise; its problems are added and None comes back."""
        try:
            return action(*args)
        except ConfigurationError as error:
            self.found += error.problems
        except ValueError as error:
            self.found.append(str(error))
        return None

    def raise_if_any(self) -> None:
        """Raise them all.

        Raises:
            ConfigurationError: There is at least one.
        """
        if self.found:
            raise ConfigurationError(self.found)
