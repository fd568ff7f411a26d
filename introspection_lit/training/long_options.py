"""The option ``data.long``: long and many-turned conversations."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from introspection_lit.models.base_model import MAX_COUNT
from introspection_lit.steering.bands import strength_problems

# The shortest length class of conversations ends here or later, in tokens; and most exchanges of a conversation.
SHORTEST, MOST_EXCHANGES = 24, 256
# How many times longer than in training conversations of validation are at most.
BEYOND = 4


@dataclass(frozen=True)
class LongOptions:
    """Long and many-turned conversations, joined from the contexts of a split (docs/long.md).

    Attributes:
        share: Of the contexts of training and validation; 0: none, and the test sets ``long`` and ``long_newkinds`` alone.
            With ``data.manifest``, whose lines name single contexts, there are none either.
        tokens: Fewest and most tokens of those of training; drawn log-uniformly between them.
        validation_tokens: The same of validation, which sets the threshold; by default up to four times as many, so that
            the threshold also suits conversations longer than any in training.
        exchanges: Most exchanges (a user message and its reply) of a conversation.
        test_tokens: Ends of the length classes of the test sets, ascending. Each class has as many trials.
        test_strength: The strength of their steered trials, in ``data.strength_unit``.
    """

    share: float = 0.25
    tokens: tuple[int, int] = (48, 512)
    validation_tokens: tuple[int, int] | None = None
    exchanges: int = 8
    test_tokens: list[int] = field(default_factory=lambda: [64, 128, 256, 512, 1024, 2048])
    test_strength: float = 0.5

    def problems(self) -> list[str]:
        """Errors in the settings."""
        problems, ends = [], self.test_tokens
        if not 0 <= self.share < 1 or not 1 <= self.exchanges <= MOST_EXCHANGES:
            got = f"share {self.share} and exchanges {self.exchanges}"
            problems.append(
                f"data.long: got {got}. Expected a share from 0 to below 1, and 1 to {MOST_EXCHANGES} exchanges."
            )
        for option, (fewest, most) in (("tokens", self.tokens), ("validation_tokens", self.tokens_of_validation)):
            if not SHORTEST <= fewest <= most <= MAX_COUNT:
                expected = f"Expected the fewest and the most, at least {SHORTEST}"
                problems.append(f"data.long.{option}: got {[fewest, most]}. {expected}.")
        if not ends or ends[0] < SHORTEST or any(low >= high for low, high in pairwise(ends)) or ends[-1] > MAX_COUNT:
            problems.append(
                f"data.long.test_tokens: got {ends}. Expected ascending numbers, the first at least {SHORTEST}."
            )
        return problems + strength_problems("long.test_strength", (self.test_strength, self.test_strength))

    @property
    def tokens_of_validation(self) -> tuple[int, int]:
        """Fewest and most tokens of validation."""
        return self.validation_tokens or (self.tokens[0], BEYOND * self.tokens[1])

    def classes(self) -> list[tuple[int, int]]:
        """Fewest and most tokens of each length class of the test sets."""
        return [(low + 1, high) for low, high in pairwise([0, *self.test_tokens])]
