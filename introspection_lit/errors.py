"""The error for a configuration that cannot work, raised before any model is loaded."""

from __future__ import annotations

from collections.abc import Sequence


class ConfigurationError(ValueError):
    """Everything that is wrong with a configuration, at once.

    Args:
        problems: One sentence or more for each: what was given, what was expected, what to do.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        plural = "problem" if len(self.problems) == 1 else "problems"
        super().__init__("\n".join([f"{len(self.problems)} {plural}:", *(f"  - {problem}" for problem in problems)]))
