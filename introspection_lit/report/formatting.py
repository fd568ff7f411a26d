"""Formats numbers for the report: rates, intervals, strengths, counts; and looks values up in the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MISSING = "not measured"
NOT_REACHED = "not reached"
# Result of a control as symbol and word, so that it does not depend on colour.
HELD = {True: "✓ held", False: "✗ not held", None: "? not judged"}


def format_rate(value: float | None) -> str:
    """A share, an AUROC, bits or log-odds, with three decimals; the perplexity of a ruined model in scientific notation."""
    return MISSING if value is None else f"{value:.3f}" if abs(value) < 1e6 else f"{value:.2e}"


def format_interval(ends: Sequence[float | None] | None) -> str:
    """An interval of rates, "" if there is none."""
    return "" if not ends or None in ends else f"{ends[0]:.3f}-{ends[1]:.3f}"


def format_rate_with_interval(value: float | None, ends: Sequence[float | None] | None) -> str:
    """A rate, followed by its interval in brackets if there is one."""
    return (
        f"{format_rate(value)} ({format_interval(ends)})"
        if value is not None and format_interval(ends)
        else format_rate(value)
    )


def format_strength(value: float | None, missing: str = NOT_REACHED) -> str:
    """A strength with two significant digits, in positional notation."""
    if value is None:
        return missing
    return str(np.format_float_positional(float(value), precision=2, fractional=False, trim="-"))


def format_strength_interval(ends: Sequence[float | None] | None) -> str:
    """An interval of strengths; an end outside the tested range is None and is left out."""
    low, high = ends or (None, None)
    if low is None:
        return "" if high is None else f"up to {format_strength(high)}"
    return f"{format_strength(low)}-{format_strength(high)}" if high is not None else f"{format_strength(low)} or more"


def format_percent(share: float) -> str:
    """A share as a percentage without decimals, such as 75 %."""
    return f"{100 * share:.0f} %"


def format_count(value: int | None) -> str:
    """A count with thousands separators."""
    return MISSING if value is None else f"{value:,d}"


def format_band(band: Sequence[int]) -> str:
    """A band of layers, both ends inclusive, such as 3..7."""
    return f"{band[0]}..{band[1]}"


def shorten(text: str, most: int = 24) -> str:
    """A label of at most ``most`` characters for a figure, without its middle if longer; dollar signs are escaped."""
    text = " ".join(str(text).split())
    text = text if len(text) <= most else f"{text[: most // 2 - 1]}...{text[-(most - most // 2 - 2) :]}"
    return escape_dollars(text)


def escape_dollars(text: str) -> str:
    """Escape dollar signs, between which matplotlib would parse a formula."""
    return text.replace("$", r"\$")


def lookup(results: Mapping[str, Any], *keys: str) -> Any:
    """The value at a path of keys; None if a key is missing."""
    value: Any = results
    for key in keys:
        value = value.get(key) if value else None
    return value
