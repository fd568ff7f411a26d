"""A trial: one context, one question, and the steering (if any) of the context's KV cache."""

from __future__ import annotations

from typing import NamedTuple

# Fields that most trials leave empty.
OPTIONAL = ("parts", "vectors", "divided", "opposite", "change")
# What parts of a context can be, if not equal parts of its tokens.
IN_LINES, IN_EXCHANGES = "lines", "exchanges"


class Trial(NamedTuple):
    """Everything that defines a trial, as indices into the lists of its split.

    It is a tuple because Lightning recurses into batches and rejects frozen dataclasses.

    Attributes:
        split: Name of its split.
        number: Its number in the split, from 0.
        context: Index of its context.
        question: Index of its question.
        steered: The label: True if a direction is added.
        vector: Index of the direction; -1 if not steered.
        band: First and last steered layer, inclusive; (-1, -1) if not steered.
        strength: The strength (also called dose), in ``data.strength_unit``; 0 if not steered.
        parts: Share of the strength in each of the parts that the context is divided into; empty: all of it everywhere.
        vectors: Split of the vector bank that the direction comes from; empty: that of the trial's split.
        divided: What the parts are: ``lines`` or ``exchanges`` of the context; empty: equal parts of its tokens.
        opposite: The direction is subtracted.
        change: What is done to the cache besides, a key of
            :data:`~introspection_lit.steering.change_names.CHANGES`; empty: nothing.
    """

    split: str
    number: int
    context: int
    question: int
    steered: bool
    vector: int = -1
    band: tuple[int, int] = (-1, -1)
    strength: float = 0.0
    parts: tuple[float, ...] = ()
    vectors: str = ""
    divided: str = ""
    opposite: bool = False
    change: str = ""

    def as_row(self) -> dict[str, object]:
        """The trial as plain values, for JSON; those of :data:`OPTIONAL` only where they are not empty."""
        row = {**self._asdict(), "band": list(self.band), "parts": list(self.parts)}
        return {name: value for name, value in row.items() if value or name not in OPTIONAL}


def subtracted(opposite: bool) -> str:
    """What messages add to a strength whose direction is subtracted; empty: it is added."""
    return ", subtracted" if opposite else ""
