"""Two builds of the project, measured in turn on one machine: the ratio of their trials a second, and its spread."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.table import Table

from introspection_lit.utils.errors import ConfigurationError, RunError

Run = Mapping[str, Any]  # what one process of scripts/benchmark.py writes with --json
SCRIPT = Path("scripts", "benchmark.py")
KEPT = 600  # characters of a failed process's last words


def checkout(folder: Path) -> Path:
    """The folder of another build.

    Raises:
        ConfigurationError: It holds no checkout of the project.
    """
    folder = folder.expanduser().resolve()
    if missing := [
        str(part) for part in (SCRIPT, Path("introspection_lit", "__init__.py")) if not (folder / part).is_file()
    ]:
        raise ConfigurationError(
            [
                f"--against: {folder} has no {missing[0]}. Expected the folder of another checkout, as made by "
                "git worktree add FOLDER COMMIT."
            ]
        )
    return folder


def run_once(folder: Path, words: Sequence[str]) -> Run:
    """Measure a build in a process of its own, which imports its package alone.

    Args:
        folder: Its checkout.
        words: Options of ``scripts/benchmark.py``.

    Raises:
        ConfigurationError: The build refuses the options.
        RunError: The process failed.
    """
    with TemporaryDirectory() as scratch:
        file = Path(scratch, "speed.json")
        command = [sys.executable, str(folder / SCRIPT), *words, "--rounds", "1", "--json", str(file)]
        done = subprocess.run(
            command, env=os.environ | {"PYTHONPATH": str(folder)}, capture_output=True, text=True, check=False
        )
        if done.returncode or not file.is_file():
            said = f"{folder} ended with exit status {done.returncode}:\n{done.stderr.strip()[-KEPT:]}"
            if done.returncode == 2:
                raise ConfigurationError(
                    [f"--against: {said}\nBoth builds get the same options: give those that both know."]
                )
            raise RunError([f"--against: {said}"])
        measured: Run = json.loads(file.read_text(encoding="utf-8"))
        return measured


def measure(this: Path, other: Path, words: Sequence[str], pairs: int, report: Callable[[str], None]) -> dict[str, Any]:
    """Measure two builds in turn, each time another one first.

    Args:
        this: A checkout.
        other: The one that it is compared with.
        words: Options of ``scripts/benchmark.py``.
        pairs: How often each is measured.
        report: Called with a line for each process.

    Returns:
        ``this`` and ``other``, the names of the builds' folders and their commits, and ``rows`` (see :func:`rows`).

    Raises:
        ConfigurationError: A build refuses the options.
        RunError: A process failed.
    """
    folders = {"this": this, "other": other}  # which may be the same: the spread of the machine
    done: list[dict[str, Run]] = [{} for _ in range(pairs)]
    for number, pair in enumerate(done):
        for build in folders if number % 2 == 0 else reversed(folders):
            pair[build] = run_once(folders[build], words)
            rates = ", ".join(f"{rate:.4g}" for rate in _rates(pair[build]).values())
            report(f"pair {number + 1} of {pairs}, {build} build: {rates} trials/s")
    builds = {name: {"folder": folder.name, "commit": done[0][name]["commit"]} for name, folder in folders.items()}
    return {**builds, "pairs": pairs, "rows": rows([(pair["this"], pair["other"]) for pair in done])}


def _rates(run: Run) -> dict[tuple[str, int], float]:
    """Trials a second by path and batch size; without rows for which memory was not enough."""
    measured = [row for row in run["rows"] if row["trials_per_second"] is not None]
    return {(row["path"], row["batch"]): row["trials_per_second"] for row in measured}


def rows(pairs: Sequence[tuple[Run, Run]]) -> list[dict[str, Any]]:
    """Compare the runs of two builds, row by row.

    Args:
        pairs: A run of this build and one of the other, measured one after the other.

    Returns:
        For each row that all runs have: ``path``, ``batch``; ``this`` and ``other``, the medians of trials a second; of the
        ratios of the pairs the ``ratio`` (geometric mean), its ``standard_error`` (None for one pair), ``lowest`` and
        ``highest``.
    """
    rates = [(_rates(first), _rates(second)) for first, second in pairs]
    table = []
    for key in rates[0][0]:
        if not all(key in side for pair in rates for side in pair):
            continue
        logs = [math.log(first[key] / second[key]) for first, second in rates]
        ratio = math.exp(statistics.fmean(logs))
        error = ratio * statistics.stdev(logs) / math.sqrt(len(logs)) if len(logs) > 1 else None
        sides = {name: statistics.median(pair[side][key] for pair in rates) for side, name in enumerate(("this", "other"))}
        spread = {"standard_error": error, "lowest": math.exp(min(logs)), "highest": math.exp(max(logs))}
        table.append({"path": key[0], "batch": key[1], **sides, "ratio": ratio, **spread})
    return table


def table(results: Mapping[str, Any]) -> Table:
    """The comparison in at most 80 columns."""
    shown = Table(title=f"Trials/s, this build over {results['other']['commit']}: {results['pairs']} pairs", padding=(0, 1))
    for column in ("training", "batch", "this", "other", "ratio", "±", "range"):
        shown.add_column(column, justify="left" if column == "training" else "right", no_wrap=True)
    for row in results["rows"]:
        error = "" if row["standard_error"] is None else f"{row['standard_error']:.3f}"
        numbers = f"{row['this']:.3g}", f"{row['other']:.3g}", f"{row['ratio']:.3f}", error
        shown.add_row(row["path"], str(row["batch"]), *numbers, f"{row['lowest']:.3f}-{row['highest']:.3f}")
    return shown
