"""Independent random streams, named by words instead of by arithmetic on seeds."""

from __future__ import annotations

import zlib
from functools import lru_cache

import numpy as np


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """Make the random generator of a named stream.

    Two streams whose names differ in any word or number are statistically independent (numpy ``SeedSequence``), so that
    held-out vectors cannot be the first rows of the training vectors drawn again.

    Args:
        seed: The experiment's seed, at least 0.
        names: The stream, for example ``"vectors", "heldout"`` or ``"trial", "train", 17``.
    """
    words = [name if isinstance(name, int) else zlib.crc32(name.encode()) for name in names]
    return np.random.default_rng([seed, *words])


def draw_in_rounds(seed: int, split: str, what: str, position: int, size: int) -> int:
    """An item of an unlimited random sequence of integers in which each round has every integer below ``size`` once.

    Args:
        seed: The experiment's seed.
        split: Name of the split.
        what: Names the random stream: for example ``context``, ``question`` or ``vector``.
        position: Position in the sequence, from 0.
        size: Length of a round.
    """
    round_number, place = divmod(position, size)
    return int(round_order(seed, split, what, round_number, size)[place])


@lru_cache(maxsize=64)
def round_order(seed: int, split: str, what: str, round_number: int, size: int) -> np.ndarray:
    """The random order of the integers below ``size`` in one round, ``(size,)``."""
    return generator(seed, "order", split, what, round_number).permutation(size)
