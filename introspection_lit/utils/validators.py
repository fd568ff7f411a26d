"""Predicates for single values read from JSON or YAML."""

from __future__ import annotations

from collections.abc import Callable

# math.isfinite fails for integers beyond it.
LARGEST = 1e308


def text(value: object) -> bool:
    """Whether it is a text."""
    return isinstance(value, str)


def texts(value: object) -> bool:
    """Whether it is a list of texts."""
    return isinstance(value, list) and all(map(text, value))


def whole(value: object) -> bool:
    """Whether it is a whole number from 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def finite(value: object) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST


def flag(value: object) -> bool:
    """Whether it is true or false."""
    return isinstance(value, bool)


def faults(content: object, expected: dict[str, Callable[[object], bool]], required: bool) -> list[str]:
    """Say what is wrong with the fields of a file.

    Args:
        content: The fields.
        expected: What each must look like.
        required: All must be there and none be None; more are allowed. Else none must, and others are not allowed.
    """
    if not isinstance(content, dict):
        return [f"expected fields by name, got {type(content).__name__}"]
    odd = [] if required else [f"{str(name)[:60]!r} is unknown" for name in content if name not in expected]
    for name, looks_right in expected.items():
        if name not in content:
            odd += [f"{name!r} is missing"] * required
        elif not looks_right(content[name]) and (required or content[name] is not None):
            odd.append(f"{name!r} is {str(content[name])[:60]!r}")
    return odd[:5]
