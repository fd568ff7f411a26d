"""A trial: which context and question, and what is added to the cache."""

from __future__ import annotations

from typing import NamedTuple


class Trial(NamedTuple):
    """Everything that defines a trial, by number.

    A tuple, because Lightning walks through batches and refuses frozen dataclasses.

    Attributes:
        split: The split it belongs to.
        number: Its number in the split.
        context: Number of the context among those of the split.
        question: Number of the question among those of the split.
        steered: The label.
        vector: Number of the direction among those of the split; -1 if not steered.
        band: First and last layer steered, inclusive; (-1, -1) if not steered.
        strength: In the unit of the experiment; 0 if not steered.
    """

    split: str
    number: int
    context: int
    question: int
    steered: bool
    vector: int = -1
    band: tuple[int, int] = (-1, -1)
    strength: float = 0.0

    def as_row(self) -> dict[str, object]:
        """The trial as plain values, for JSON."""
        return {**self._asdict(), "band": list(self.band)}
