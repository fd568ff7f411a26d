"""Reads and checks ``results.json``, ``seeds.json`` and ``controls.json``: JSON, checksum, shape and ranges."""

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
MAX_BYTES = 2**28  # results of this package have some 200,000


def read_results(file: Path, required: str = "sets") -> dict[str, Any]:
    """Read and check a results file.

    Args:
        file: JSON; NaN and infinity, which Python's JSON writer allows, are read as None (not measured).
        required: The field that identifies the type of file, a key of :data:`~introspection_lit.report.shape.SHAPES`.

    Raises:
        ConfigurationError: The file cannot be read, is no complete JSON, lacks the field, was changed since it was
            written, or holds a value of a wrong type or outside its range.
    """
    if not os.path.isfile(file):  # reading a pipe could block
        raise ConfigurationError([f"{file}: cannot be read (no such file). Expected {RESULTS} as '{WRITER}' writes it."])
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES >> 20} MB")
        content = json.loads(file.read_text(encoding="utf-8"), parse_float=_finite_or_none, parse_constant=lambda _: None)
        json.dumps(content, ensure_ascii=False).encode()  # a lone surrogate ("\\ud800") cannot be written into a page
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ConfigurationError(
            [f"{file}: cannot be read: not whole JSON ({error.msg}, {where}). Was it cut? '{WRITER}' writes it again."]
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        reason = f"cannot be read: not JSON ({str(error)[:100]})"
        raise ConfigurationError([f"{file}: {reason}. Expected {RESULTS} as '{WRITER}' writes it."]) from error
    if not isinstance(content, dict) or not isinstance(content.get(required), dict | list):
        raise ConfigurationError(
            [f"{file}: JSON, but no results: {required!r} is missing. Expected what '{WRITER}' writes."]
        )
    if problem := checksum_problem(content):
        raise ConfigurationError([f"{file}: {problem}."])
    if errors := problems(SHAPES[required], content):
        raise ConfigurationError([f"{file}: results of another form than '{WRITER}' writes: {'; '.join(errors)}."])
    return content


def _finite_or_none(text: str) -> float | None:
    return value if math.isfinite(value := float(text)) else None
