"""Reads the files that reports are made of: JSON that is whole, ours, as it was written, and of the form that is shown."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from introspection_lit.report.shape import SHAPES
from introspection_lit.utils.checksums import checksum_problem
from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.schema import problems

RESULTS = "results.json"
WRITER = "python -m introspection_lit test --config FILE"
LARGEST = 2**28  # bytes; ours have some 200,000


def read(file: Path, needed: str = "sets") -> dict[str, Any]:
    """Read results, or what is said of several seeds or control adapters.

    Args:
        file: JSON; NaN and infinity, which Python's writer allows, count as not measured.
        needed: The field that tells what it is, see :data:`~introspection_lit.report.shape.SHAPES`.

    Raises:
        ConfigurationError: It cannot be read, is not JSON or not whole, not ours, changed, or says what cannot be.
    """
    if not os.path.isfile(file):  # a pipe would be waited for
        raise ConfigurationError([f"{file}: cannot be read (no such file). Expected {RESULTS} as '{WRITER}' writes it."])
    try:
        if file.stat().st_size > LARGEST:
            raise ValueError(f"it has more than {LARGEST >> 20} MB")
        found = json.loads(file.read_text(encoding="utf-8"), parse_float=_finite, parse_constant=lambda _: None)
        json.dumps(found, ensure_ascii=False).encode()  # half a letter ("\\ud800") could not be written into a page
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ConfigurationError(
            [f"{file}: cannot be read: not whole JSON ({error.msg}, {where}). Was it cut? '{WRITER}' writes it again."]
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        reason = f"cannot be read: not JSON ({str(error)[:100]})"
        raise ConfigurationError([f"{file}: {reason}. Expected {RESULTS} as '{WRITER}' writes it."]) from error
    if not isinstance(found, dict) or not isinstance(found.get(needed), dict | list):
        raise ConfigurationError([f"{file}: JSON, but no results: {needed!r} is missing. Expected what '{WRITER}' writes."])
    if fault := checksum_problem(found):
        raise ConfigurationError([f"{file}: {fault}."])
    if faults := problems(SHAPES[needed], found):
        raise ConfigurationError([f"{file}: results of another form than '{WRITER}' writes: {'; '.join(faults)}."])
    return found


def _finite(text: str) -> float | None:
    return value if math.isfinite(value := float(text)) else None
