"""Combinators that describe the expected shape of JSON data and list where it differs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

# Says what is wrong with a value at a place; null always is fine: it means that nobody measured it.
Check = Callable[[Any, str], Iterator[str]]
# More numbers or rows than any test has; figures and tables of them would fill the machine.
MOST, LARGEST = 1_000_000, 1e9


def number(low: float = -LARGEST, high: float = LARGEST, whole: bool = False) -> Check:
    """A number in a range, both ends included."""
    wanted = f"a {'whole ' if whole else ''}number from {low:g} to {high:g}"

    def check(value: Any, place: str) -> Iterator[str]:
        kinds = int if whole else int | float
        fine = value is None or (isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high)
        if not fine or (isinstance(value, float) and not math.isfinite(value)):
            yield _wrong(value, place, wanted)

    return check


def one_of(kind: type, wanted: str) -> Check:
    """A value of a type."""

    def check(value: Any, place: str) -> Iterator[str]:
        if value is not None and not isinstance(value, kind):
            yield _wrong(value, place, wanted)

    return check


def listed(item: Check, length: int | None = None) -> Check:
    """A list, of a length if one is given."""
    wanted = f"a list of at most {MOST}" if length is None else f"a list of {length}"

    def check(value: Any, place: str) -> Iterator[str]:
        if value is None:
            return
        if not isinstance(value, list) or length not in (None, len(value)) or len(value) > MOST:
            yield _wrong(value, place, wanted)
            return
        for number, inner in enumerate(value):
            yield from item(inner, f"{place}[{number}]")

    return check


def named(item: Check) -> Check:
    """An object with any names."""

    def check(value: Any, place: str) -> Iterator[str]:
        if value is None:
            return
        if not isinstance(value, dict) or len(value) > MOST:
            yield _wrong(value, place, "an object")
            return
        for name, inner in value.items():
            shown = name[:60] if name.isprintable() else ascii(name[:60])
            yield from item(inner, f"{place}.{shown}" if place else shown)

    return check


def fields(needed: str = "", equally_long: str = "", /, **known: Check) -> Check:
    """An object with fields that are known, and maybe others.

    Args:
        needed: Names of those that must be there and not null.
        equally_long: Names of lists that go together.
        known: What each must look like.
    """

    def check(value: Any, place: str) -> Iterator[str]:
        if value is None:
            return
        if not isinstance(value, dict):
            yield _wrong(value, place, "an object")
            return
        found = []
        for name, inner in known.items():
            found += list(inner(value.get(name), f"{place}.{name}" if place else name))
        found += [f"{place}.{name} is missing" for name in needed.split() if value.get(name) is None]
        lengths = {name: len(value[name]) for name in equally_long.split() if isinstance(value.get(name), list)}
        if len(set(lengths.values())) > 1:
            found.append(f"{place} has lists of different lengths: {lengths}")
        yield from found

    return check


def _wrong(value: Any, place: str, wanted: str) -> str:
    shown = f"a {type(value).__name__} of {len(value)}" if isinstance(value, list | dict) else repr(value)[:60]
    return f"{place} is {shown}, expected {wanted}"
