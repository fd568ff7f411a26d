"""The scripts' parser, and types of their options: each function parses a text or raises with what was expected."""

from __future__ import annotations

import argparse
import json
import math
from argparse import ArgumentParser as Parser


def parser(
    description: str | None, epilog: str = "Any other option is one of `python -m introspection_lit fit`."
) -> Parser:
    """The parser of a script that passes on the options which it does not know.

    Args:
        description: The script's docstring, with an example.
        epilog: Says which options those are.
    """
    layout = argparse.RawDescriptionHelpFormatter
    return Parser(description=description, formatter_class=layout, epilog=epilog, allow_abbrev=False)


def positive(text: str) -> int:
    """A whole number above zero, for a script's options.

    Raises:
        argparse.ArgumentTypeError: The text is something else.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}. Expected a whole number, at least 1.")
    return int(text)


def finite_number(text: str) -> float:
    """A finite number, for a script's options.

    Raises:
        argparse.ArgumentTypeError: It is not a number, or NaN or infinite.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"got {text!r}. Expected a number.")
    return number


def seed(text: str) -> int:
    """A seed, for a script's options.

    Raises:
        argparse.ArgumentTypeError: The text is something else.
    """
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"got {text!r}. Expected a whole number from 0 to 4294967295.")
    return int(text)


def bands(text: str) -> list[str | list[int]]:
    """Bands, as a JSON list of names and of [first, last].

    Raises:
        argparse.ArgumentTypeError: The text is something else.
    """
    values = _json_list(text)
    if not values or not all(isinstance(band, str) or _is_pair(band) for band in values):
        hint = f" Did you mean '[{text}]'?" if _is_pair(values) else ""
        raise argparse.ArgumentTypeError(f"got {text!r}. Expected a list such as '[\"middle\", [21, 42]]'.{hint}")
    return values


def strengths(text: str) -> list[float]:
    """Strengths, as a JSON list of numbers above 0.

    Raises:
        argparse.ArgumentTypeError: The text is something else.
    """
    values = _json_list(text)
    if not values or not all(type(strength) in (int, float) and strength > 0 for strength in values):
        raise argparse.ArgumentTypeError(f"got {text!r}. Expected a list of numbers above 0, such as '[10, 20]'.")
    return [float(strength) for strength in values]


def _json_list(text: str) -> list:
    """The items of a JSON list; empty if the text is not one."""
    try:
        values = json.loads(text)
    except ValueError:
        return []
    return values if isinstance(values, list) else []


def _is_pair(band: object) -> bool:
    return isinstance(band, list) and len(band) == 2 and all(type(layer) is int for layer in band)
