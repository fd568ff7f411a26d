"""Combinators that describe the expected shape of data from files and list where it differs.

Null means "not measured" or "not set": it is right everywhere but under :func:`required`.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

# Yields what is wrong with a value at a place.
Check = Callable[[Any, str], Iterator[str]]
MAX_ITEMS = 1_000_000  # no file of ours has longer lists; figures and tables of them would fill the memory


def problems(check: Check, value: Any, place: str = "") -> list[str]:
    """The first five problems of a value."""
    return list(itertools.islice(check(value, place), 5))


def single(expected: str, accepts: Callable[[Any], bool]) -> Check:
    """A value that a predicate accepts.

    Args:
        expected: Describes it, for messages.
        accepts: The predicate; never called with None.
    """

    def check(value: Any, place: str) -> Iterator[str]:
        if value is not None and not accepts(value):
            yield _problem(value, place, expected)

    return check


def number(low: float = -math.inf, high: float = math.inf, whole: bool = False) -> Check:
    """A finite number in a range, both ends included."""
    bounds = f" from {low:g}" * (low > -math.inf) + f" to {high:g}" * (high < math.inf)

    def accepts(value: Any) -> bool:
        right_type = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        return right_type and low <= value <= high and (whole or abs(value) < 1e308)  # a float holds no larger integer

    return single(f"a {'whole ' if whole else ''}number{bounds}", accepts)


def text(pattern: str = "(?s:.*)", expected: str = "a text") -> Check:
    """A text that a regular expression matches as a whole."""
    return single(expected, lambda text: isinstance(text, str) and re.fullmatch(pattern, text) is not None)


def choice(*options: Any) -> Check:
    """One of some texts."""
    return single(f"one of {', '.join(map(repr, options))}", lambda chosen: isinstance(chosen, str) and chosen in options)


def either(expected: str, *checks: Check) -> Check:
    """A value that one of several checks accepts."""
    return single(expected, lambda value: any(not problems(check, value) for check in checks))


def required(item: Check) -> Check:
    """A value that is not null."""

    def check(value: Any, place: str) -> Iterator[str]:
        yield from [f"{place} is missing"] if value is None else item(value, place)

    return check


def listed(item: Check, length: int | None = None) -> Check:
    """A list, of a length if one is given."""
    expected = f"a list of at most {MAX_ITEMS}" if length is None else f"a list of {length}"

    def check(value: Any, place: str) -> Iterator[str]:
        if value is None:
            return
        if not isinstance(value, list | tuple) or length not in (None, len(value)) or len(value) > MAX_ITEMS:
            yield _problem(value, place, expected)
            return
        for index, inner in enumerate(value):
            yield from item(inner, f"{place}[{index}]")

    return check


def named(item: Check) -> Check:
    """An object with any names."""
    return fields(others=item)


def fields(needed: str = "", equally_long: str = "", /, *, others: Check | None = None, **known: Check) -> Check:
    """An object with fields that are known, and maybe others.

    Args:
        needed: Names of those that must be there and not null.
        equally_long: Names of lists that go together.
        others: What other fields must look like; default: anything.
        known: What each field must look like.
    """
    checks = known | {name: required(known.get(name, ANYTHING)) for name in needed.split()}

    def check(value: Any, place: str) -> Iterator[str]:
        if value is None:
            return
        if not isinstance(value, dict) or len(value) > MAX_ITEMS or not all(isinstance(name, str) for name in value):
            yield _problem(value, place, "an object")
            return
        for name, inner in checks.items():
            yield from inner(value.get(name), _join(place, name))
        for name, inner in value.items():
            if others and name not in checks:
                yield from others(inner, _join(place, name))
        lengths = {name: len(value[name]) for name in equally_long.split() if isinstance(value.get(name), list)}
        if len(set(lengths.values())) > 1:
            yield f"{place} has lists of different lengths: {lengths}"

    return check


def unknown(value: Any, place: str) -> Iterator[str]:
    """No value at all, of ``others`` in :func:`fields`."""
    yield f"{place} is unknown"


ANYTHING = single("", lambda _: True)
FLAG, TEXT, COUNT = single("true or false", lambda flag: isinstance(flag, bool)), text(), number(0, whole=True)
FLAGS, TEXTS, COUNTS = listed(required(FLAG)), listed(required(TEXT)), listed(required(COUNT))


def _join(place: str, name: object) -> str:
    shown = str(name)[:60] if str(name).isprintable() else ascii(str(name)[:60])
    return f"{place}.{shown}" if place else shown


def _problem(value: Any, place: str, expected: str) -> str:
    sized = isinstance(value, list | tuple | dict)
    shown = f"a {type(value).__name__} of {len(value)}" if sized else repr(value)[:60]
    return f"{place} is {shown}, expected {expected}"
