"""What grows, and at which sizes it is measured; the file of measurements, which an interrupted run goes on with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from introspection_lit.tools.scaling.formulas import Speed, fit
from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.files import write_file

CONTEXT, QUESTIONS, BATCH, KEPT, MANIFEST, TESTED = "context", "questions", "batch", "kept", "manifest", "tested"
# The sizes of each; small ones are measured in seconds.
SIZES: dict[str, tuple[int, ...]] = {
    CONTEXT: (32, 64, 128, 256, 512, 1024, 2048),
    QUESTIONS: (1, 2, 4, 8, 16),
    BATCH: (2, 4, 8, 16, 32),
    KEPT: (8, 32, 128, 256),
    MANIFEST: (1_000, 10_000, 100_000, 1_000_000),
    TESTED: (1_000, 10_000, 100_000),
}
Point = Mapping[str, Any]


class Axis(NamedTuple):
    """One thing that grows.

    Attributes:
        title: Heading and title of its panel.
        unit: What a size counts.
        what: What is measured.
        reason: Why it is a straight line, or why not.
        even: Sizes are even numbers.
    """

    title: str
    unit: str
    what: str
    reason: str
    even: bool = False


AXES = {
    CONTEXT: Axis(
        "Context length",
        "tokens",
        "a training step of two trials, one clean and one steered, of a context this long; nothing reused",
        "Straight but for attention, whose work grows with the square of the context, and which the formula above has. "
        "Short contexts pay for the question, which does not grow.",
    ),
    QUESTIONS: Axis(
        "Questions of a cache",
        "questions",
        "a training step over two caches, each asked so many detection questions; nothing reused",
        "Straight from a start: the prefill is paid once, and every question costs the same.",
    ),
    BATCH: Axis(
        "Batch",
        "trials",
        "a training step of so many trials, contexts of about 72 tokens, questions of 36; nothing reused",
        "Straight from a start, which is what a step costs however few trials it has.",
        even=True,
    ),
    KEPT: Axis(
        "Contexts kept",
        "contexts",
        "a training step of eight trials while the clean caches of so many contexts of about 40 tokens are kept",
        "The step does not depend on how many are kept; memory does, by the same number of bytes for each.",
    ),
    MANIFEST: Axis(
        "Trials of a manifest",
        "trials",
        "a manifest of so many trials is drawn, written, read back and checked, and a hundred batches of 32 are read",
        "Straight: a line for each trial. Memory stays: the file is a stream, and repeats are looked for on disk.",
        even=True,
    ),
    TESTED: Axis(
        "Trials of a test",
        "trials",
        "what follows the scoring of so many trials: analyses, intervals, trials.jsonl, results.json and report.html",
        "Straight from a start: 300 resamples for each interval, and the report's figures, whose number and size depend on "
        "test sets, kinds and strengths alone; so do results.json and report.html. trials.jsonl has a line for each trial.",
        even=True,
    ),
}


def read(path: Path) -> dict[str, Any]:
    """The measurements so far, by axis; empty without a file.

    Raises:
        ConfigurationError: The file is something else.
    """
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        for name, axis in found.items():
            if name not in AXES or any("seconds" not in point or "size" not in point for point in axis["points"]):
                raise ValueError(name)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        remedy = f"Expected the measurements of {', '.join(AXES)} that scripts/scaling.py writes: name another file."
        raise ConfigurationError([f"--json: {path} is something else. {remedy}"]) from error
    return dict(found)


def missing(found: Mapping[str, Any], name: str, sizes: Sequence[int], settings: Mapping[str, Any]) -> list[int]:
    """The sizes that are still to be measured, smallest first.

    Args:
        found: What :func:`read` returns.
        name: Of the axis.
        sizes: Wanted.
        settings: What the measurement depends on, such as model and threads.

    Raises:
        ConfigurationError: The sizes measured so far were measured with other settings.
    """
    axis = found.get(name)
    if axis is None:
        return sorted(set(sizes))
    if axis["settings"] != settings:
        raise ConfigurationError(
            [
                f"--json: {name} was measured with {axis['settings']}, now it would be with {dict(settings)}. "
                "Name another file, or go on with the former settings."
            ]
        )
    done = {point["size"] for point in axis["points"]}
    return sorted(set(sizes) - done)


def add(path: Path, name: str, point: Point, settings: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
    """Write a measurement into the file."""
    found = read(path)
    points = found.get(name, {}).get("points", [])
    point = {**point, "commit": provenance["commit"]}  # a run may have gone on with another build
    axis = {**provenance, "settings": dict(settings), "points": sorted([*points, point], key=lambda each: each["size"])}
    ordered = {each: axis if each == name else found[each] for each in AXES if each == name or each in found}
    write_file(path, json.dumps(ordered, indent=2, allow_nan=False) + "\n")


def line(points: Sequence[Point], key: str) -> Speed | None:
    """The straight line through a column (``seconds`` or ``memory``); None for fewer than two sizes, or if it falls."""
    try:
        return fit([point["size"] for point in points], [point[key] for point in points])
    except ValueError:
        return None
