"""Independent random streams, named by words instead of by arithmetic on seeds."""

from __future__ import annotations

import zlib

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
