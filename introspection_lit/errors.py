"""Our errors: what cannot work, found before a model is loaded, and what stopped a run that could."""

from __future__ import annotations

from collections.abc import Sequence


class IntrospectionError(Exception):
    """What a user can do something about.

    Args:
        problems: One sentence or more for each: what was given, what was expected, what to do.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        plural = "problem" if len(self.problems) == 1 else "problems"
        super().__init__("\n".join([f"{len(self.problems)} {plural}:", *(f"  - {problem}" for problem in problems)]))


class ConfigurationError(IntrospectionError, ValueError):
    """Everything that is wrong with a configuration or with the files it names, at once; before any model is loaded."""


class RunError(IntrospectionError, RuntimeError):
    """What stopped a run in the middle: no room left, a full disk, a number that is not one. Says what was kept."""
