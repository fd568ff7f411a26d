"""Damage: bytes that were cut, flipped or moved, JSON in which something is not as it was; and what is left in a folder."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from introspection_lit.utils.errors import IntrospectionError

# What a reader may say of a bad file; anything else comes from deep inside a library.
REFUSED = IntrospectionError
# Values that nobody means: booleans for numbers, numbers that no float holds, half a letter, a line of a megabyte.
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 10**30, -(10**30), 0.5, -0.5, 1e308, -1e308, math.nan, math.inf, -math.inf),
    *(
        "",
        "0.9",
        "train",
        "x" * 5000,
        "\ud800",
        "\x00\x1b[31m",
        "\u202e",
        [],
        {},
        [[]],
        [None],
        [1, "a"],
        {"a": None},
        {"": {}},
    ),
)
odd = st.sampled_from(ODD) | st.text(max_size=8) | st.floats() | st.integers()


def damaged(content: bytes, n: int, first: int = 0) -> Iterator[bytes]:
    """A file's content cut off, then with one bit changed, each at n places."""
    random = np.random.default_rng(0)
    for length in np.linspace(0, len(content) - 1, n).astype(int):
        yield content[:length]
    for place in [*range(min(first, len(content))), *random.integers(0, len(content), n)]:
        changed = bytearray(content)
        changed[place] ^= 1 << int(random.integers(8))
        yield bytes(changed)


def damaged_bytes(content: bytes) -> st.SearchStrategy[bytes]:
    """A file that was cut off, is empty, has other bytes in it, or parts twice or in another order."""
    size = len(content)
    place = st.integers(0, size)

    def changed(spots: list[tuple[int, int]]) -> bytes:
        made = bytearray(content)
        for where, byte in spots:
            made[where % size] = byte
        return bytes(made)

    # Headers, where damage does most, are as likely to be hit as all the rest.
    spot = st.tuples(st.integers(0, min(200, size - 1)) | st.integers(0, size - 1), st.integers(0, 255))
    return st.one_of(
        place.map(lambda end: content[:end]),
        place.map(lambda start: content[start:]),
        st.lists(spot, min_size=1, max_size=4).map(changed),
        st.tuples(place, st.binary(min_size=1, max_size=20)).map(lambda at: content[: at[0]] + at[1] + content[at[0] :]),
        st.tuples(place, place).map(lambda at: content[: at[0]] + content[at[1] :]),
        st.binary(max_size=300),
    )


def places(document: Any, most: int = 3) -> list[tuple[Any, ...]]:
    """The way to every value of a nested document; of lists, to the first ones only."""
    found: list[tuple[Any, ...]] = []
    keys = document if isinstance(document, dict) else range(min(len(document), most)) if isinstance(document, list) else ()
    for key in keys:
        found += [(key,), *((key, *rest) for rest in places(document[key], most))]
    return found


def mutated(document: Any, most: int = 2) -> st.SearchStrategy[Any]:
    """The document with one value or two replaced, left out, doubled or put under another name."""
    packed, way = pickle.dumps(document), st.sampled_from(places(document))
    how = st.sampled_from(("replace", "replace", "replace", "remove", "double", "rename"))

    def change(changes: list[tuple[tuple[Any, ...], str, Any, str]]) -> Any:
        made = pickle.loads(packed)
        for (*ways, last), how, value, name in changes:
            holder = made
            try:
                for key in ways:
                    holder = holder[key]
                if isinstance(holder, str) or holder[last] is holder:
                    continue
            except (KeyError, IndexError, TypeError):  # the change before has taken it away
                continue
            if how == "replace":
                holder[last] = copy.deepcopy(value)
            elif how == "remove":
                del holder[last]
            elif isinstance(holder, list):
                holder.insert(last, copy.deepcopy(holder[last]))
            else:
                holder[name] = holder[last] if how == "double" else holder.pop(last)
        return made

    return st.lists(st.tuples(way, how, odd, st.text(max_size=5)), min_size=1, max_size=most).map(change)


def left_in(folder: Path) -> list[str]:
    """What is in a folder, by name."""
    return sorted(path.name for path in folder.iterdir())


def nested_too_deeply(patch: pytest.MonkeyPatch) -> None:
    """Let whatever is read as JSON be brackets in brackets, more than Python's parser takes."""

    def fails(*_: Any, **__: Any) -> None:
        raise RecursionError("maximum recursion depth exceeded")

    patch.setattr(json, "loads", fails)
