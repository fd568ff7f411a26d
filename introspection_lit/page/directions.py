"""The directions that the page offers: random ones and concepts of the detector's bank, and those of a visitor's file."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from introspection_lit.steering.vector_bank import VectorBank
from introspection_lit.steering.vector_files import read_directions
from introspection_lit.utils.errors import ConfigurationError, visible

# Formats without code in them; a .pt file is read safely, too, but is nothing to take from strangers.
FORMATS = (".safetensors", ".gguf", ".npy")
MOST_BYTES = 4 * 2**20  # one direction of a model of 80 layers and 8,192 numbers each takes 2.6 million
MOST_DIRECTIONS = 50  # of a file: a longer list is none to choose from, and each visitor keeps theirs
RANDOM, CONCEPT, OWN = "random", "concept", "own"
SPLITS = {RANDOM: "heldout", CONCEPT: "concept"}


class OwnDirections(NamedTuple):
    """What a visitor's file holds.

    Attributes:
        by_name: ``(layers, hidden)`` each; zero at layers that the file leaves out.
        notes: What the file could also mean, in sentences.
    """

    by_name: dict[str, Tensor]
    notes: list[str]


def read_own(path: Path, n_layers: int, hidden: int) -> OwnDirections:
    """Read a file that a visitor has uploaded.

    Args:
        path: The file.
        n_layers: Decoder layers of the model.
        hidden: Its hidden size.

    Raises:
        ConfigurationError: It is too large, of another format, or does not fit the model. Places on this machine are not
            in the message.
    """
    if path.suffix not in FORMATS:
        raise ConfigurationError(
            [f"{visible(path.name)} is none of {', '.join(FORMATS)}. Save the direction in one of these."]
        )
    if (size := path.stat().st_size) > MOST_BYTES:
        raise ConfigurationError([f"{visible(path.name)} has {size:,} bytes; this page takes at most {MOST_BYTES:,}."])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = read_directions(path, n_layers, hidden)
        except ConfigurationError as error:
            raise ConfigurationError([_without_place(problem, path) for problem in error.problems]) from error
    if len(found) > MOST_DIRECTIONS:
        problem = f"{visible(path.name)} holds {len(found):,} directions; this page takes at most {MOST_DIRECTIONS}"
        raise ConfigurationError([f"{problem}. Save those to try in a file of their own."])
    return OwnDirections(found, [_without_place(str(each.message), path) for each in caught])


def _without_place(sentence: str, path: Path) -> str:
    return sentence.removeprefix("import: ").replace(str(path), path.name)


def choose(bank: VectorBank, own: OwnDirections | None, source: str, name: str | None) -> Tensor:
    """The direction that a visitor has chosen.

    Args:
        bank: The detector's.
        own: The visitor's file, if there is one.
        source: ``random``, ``concept`` or ``own``.
        name: Of the direction.

    Returns:
        ``(hidden,)``, or ``(layers, hidden)``.

    Raises:
        ConfigurationError: There is no such direction.
    """
    if source == OWN and own is None:
        raise ConfigurationError([f"There is no file yet. Give one ({', '.join(FORMATS)}), or choose another direction."])
    if source == OWN and own is not None:
        named = own.by_name
    elif source in SPLITS:
        named = dict(zip(bank.names[SPLITS[source]], bank.directions[SPLITS[source]], strict=True))
    else:
        raise ConfigurationError([f"got {source!r} as the kind of direction. Expected {RANDOM}, {CONCEPT} or {OWN}."])
    if name not in named:
        raise ConfigurationError([f"There is no direction {name!r} of this kind. Choose one of the list."])
    return named[name]
