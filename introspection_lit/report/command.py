"""The report: a results file in, one HTML page that needs nothing else out, with its figures beside it as pictures."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from introspection_lit.report.compare import compare
from introspection_lit.report.drawing import png
from introspection_lit.report.page import Run, _named, page, render
from introspection_lit.report.reading import RESULTS, WRITER, read
from introspection_lit.utils.errors import ConfigurationError, IntrospectionError, visible
from introspection_lit.utils.files import write_file
from introspection_lit.utils.paths import inside_folder

SEEDS, CONTROLS = "seeds.json", "controls.json"


def main(args: Sequence[str]) -> None:
    """Run ``python -m introspection_lit report``.

    Args:
        args: Options, without the subcommand.

    Raises:
        SystemExit: 2, with a line on stderr, if there is nothing to report on or no place to write to.
    """
    parser = argparse.ArgumentParser("python -m introspection_lit report", description="Make an HTML page of results.")
    parser.add_argument(
        "--run",
        action="append",
        required=True,
        type=Path,
        metavar="DIR",
        help=f"a run's folder, or its {RESULTS}; again for each run to compare",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="default: report.html beside the results, compare.html for several runs"
    )
    given = parser.parse_args(args)
    try:
        runs = [load(path) for path in given.run]
        written = _write(runs, given.out or _default_place(given.run[0], runs))
    except (IntrospectionError, OSError) as error:
        problems = error.problems if isinstance(error, IntrospectionError) else [str(error)]
        sys.stderr.write(f"error: {' '.join(problems)}\n")
        raise SystemExit(2) from error
    sys.stdout.write(f"{written}\n")


def write(folder: Path) -> Path:
    """Write ``report.html`` and ``figures/NAME.png`` into a run's folder.

    Args:
        folder: With ``results.json``; ``config.yaml`` and ``seeds.json`` are used if they are there.

    Returns:
        The page.

    Raises:
        ConfigurationError: There are no results, or they cannot be read.
    """
    return _write([load(folder)], folder / "report.html")


def load(path: Path) -> Run:
    """Read results, and what lies beside them: settings, other seeds, control adapters.

    Args:
        path: A folder, or a results file.

    Raises:
        ConfigurationError: Not there, not JSON, or not ours.
    """
    if not path.exists():
        raise ConfigurationError([f"--run {path}: not there. Expected a run's folder or its {RESULTS}."])
    folder, file = (path, path / RESULTS) if path.is_dir() else (path.parent, path)
    seeds = folder / SEEDS
    if not file.exists() and not seeds.exists():
        raise ConfigurationError([f"--run {path}: no {RESULTS} in it. '{WRITER} --ckpt_path FILE' writes one."])
    config = folder / "config.yaml"
    own = path.is_dir() and config.is_file() and inside_folder([config], folder)  # no link to what is not to be shown
    text = config.read_text(encoding="utf-8", errors="replace") if own else None
    several = read(seeds, "seeds") if path.is_dir() and seeds.exists() else {}
    results = read(file) if file.exists() else {}
    more = folder / CONTROLS
    if path.is_dir() and results and more.is_file():
        evidence = results.get("evidence") or {}
        rows = [*read(more, "rows")["rows"], *(evidence.get("controls") or [])]
        results = results | {"evidence": evidence | {"controls": rows}}
    return Run(file, results, several, text)


def _write(runs: Sequence[Run], out: Path) -> Path:
    try:
        shown = (
            page(runs[0])
            if len(runs) == 1
            else compare(dict(zip(labels(runs), (run.results for run in runs), strict=True)))
        )
        shown = shown._replace(sections=[section._replace(figures=_named(section.figures)) for section in shown.sections])
        pictures = {name: png(made.figure) for name, made in shown.figures.items()}
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError, RecursionError) as error:
        files = ", ".join(str(run.path) for run in runs)
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise ConfigurationError([f"{files}: results of another form than '{WRITER}' writes ({reason})."]) from error
    folder = out.parent / ("figures" if out.name == "report.html" else f"{out.stem}-figures")
    if not inside_folder([folder], out.parent):
        raise ConfigurationError([f"{folder}: a link to a folder elsewhere. Remove it, or name another place with --out."])
    for name, picture in pictures.items():
        write_file(folder / f"{name}.png", picture)
    write_file(out, render(shown, pictures))
    return out


def _default_place(given: Path, runs: Sequence[Run]) -> Path:
    folder = given if given.is_dir() else given.parent
    if len(runs) > 1:
        return folder / "compare.html"
    return folder / ("report.html" if given.is_dir() or given.name == RESULTS else f"{given.stem}-report.html")


def labels(runs: Sequence[Run]) -> list[str]:
    """Name runs by as much of the end of their paths as tells them apart."""
    paths = [run.path.resolve() for run in runs]
    parts = [path.parent.parts if path.name == RESULTS else path.with_suffix("").parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = [visible("/".join(names[-length:])) for names in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{number}: {name}" for number, name in enumerate(names, 1)]
