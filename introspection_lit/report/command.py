"""The command ``report``: reads the files of one run or several and writes one self-contained HTML page and figures."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from introspection_lit.report.comparison import comparison_page
from introspection_lit.report.page import Run, build_page, render_html, with_safe_names
from introspection_lit.report.pictures import data_url, to_picture, to_png
from introspection_lit.report.result_files import RESULTS, WRITER, read_results
from introspection_lit.utils.errors import ConfigurationError, IntrospectionError, visible
from introspection_lit.utils.files import write_file
from introspection_lit.utils.paths import inside_folder

SEEDS, CONTROLS = "seeds.json", "controls.json"


def main(args: Sequence[str]) -> None:
    """Run ``python -m introspection_lit report``.

    Args:
        args: Options, without the subcommand.

    Raises:
        SystemExit: 2, with a line on stderr, if the results cannot be read or the page cannot be written.
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
    options = parser.parse_args(args)
    try:
        runs = [load_run(path) for path in options.run]
        page = _write_page(runs, options.out or _default_output(options.run[0], runs))
    except (IntrospectionError, OSError) as error:
        problems = error.problems if isinstance(error, IntrospectionError) else [str(error)]
        sys.stderr.write(f"error: {' '.join(problems)}\n")
        raise SystemExit(2) from error
    sys.stdout.write(f"{page}\n")


def write_report(folder: Path) -> Path:
    """Write ``report.html`` and ``figures/NAME.png`` into a run's folder.

    Args:
        folder: Contains ``results.json``, and optionally ``config.yaml``, ``seeds.json`` and ``controls.json``.

    Returns:
        Path of the page.

    Raises:
        ConfigurationError: The results are missing or cannot be read.
    """
    return _write_page([load_run(folder)], folder / "report.html")


def load_run(path: Path) -> Run:
    """Read the results of a run, and of a folder also its settings, several seeds and control adapters.

    Args:
        path: A run's folder, or a results file.

    Raises:
        ConfigurationError: A file is missing, is not JSON, or has another form than this package writes.
    """
    if not path.exists():
        raise ConfigurationError([f"--run {path}: not there. Expected a run's folder or its {RESULTS}."])
    folder, file = (path, path / RESULTS) if path.is_dir() else (path.parent, path)
    seeds = folder / SEEDS
    if not file.exists() and not seeds.exists():
        raise ConfigurationError([f"--run {path}: no {RESULTS} in it. '{WRITER} --ckpt_path FILE' writes one."])
    config = folder / "config.yaml"
    readable = path.is_dir() and config.is_file() and inside_folder([config], folder)  # a link could show any file
    text = config.read_text(encoding="utf-8", errors="replace") if readable else None
    several = read_results(seeds, "seeds") if path.is_dir() and seeds.exists() else {}
    results = read_results(file) if file.exists() else {}
    more = folder / CONTROLS
    if path.is_dir() and results and more.is_file():
        evidence = results.get("evidence") or {}
        rows = [*read_results(more, "rows")["rows"], *(evidence.get("controls") or [])]
        results = results | {"evidence": evidence | {"controls": rows}}
    return Run(file, results, several, text)


def _write_page(runs: Sequence[Run], out: Path) -> Path:
    try:
        shown = (
            build_page(runs[0])
            if len(runs) == 1
            else comparison_page(dict(zip(run_labels(runs), (run.results for run in runs), strict=True)))
        )
        shown = shown._replace(
            sections=[section._replace(figures=with_safe_names(section.figures)) for section in shown.sections]
        )
        pictures = {name: to_picture(drawing.figure) for name, drawing in shown.figures.items()}
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError, RecursionError) as error:
        files = ", ".join(str(run.path) for run in runs)
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise ConfigurationError([f"{files}: results of another form than '{WRITER}' writes ({reason})."]) from error
    folder = out.parent / ("figures" if out.name == "report.html" else f"{out.stem}-figures")
    if not inside_folder([folder], out.parent):
        raise ConfigurationError([f"{folder}: a link to a folder elsewhere. Remove it, or name another place with --out."])
    for name, picture in pictures.items():
        write_file(folder / f"{name}.png", to_png(picture))
    write_file(out, render_html(shown, {name: data_url(picture) for name, picture in pictures.items()}))
    return out


def _default_output(path: Path, runs: Sequence[Run]) -> Path:
    folder = path if path.is_dir() else path.parent
    if len(runs) > 1:
        return folder / "compare.html"
    return folder / ("report.html" if path.is_dir() or path.name == RESULTS else f"{path.stem}-report.html")


def run_labels(runs: Sequence[Run]) -> list[str]:
    """Label runs by the shortest ends of their paths that differ."""
    paths = [run.path.resolve() for run in runs]
    parts = [path.parent.parts if path.name == RESULTS else path.with_suffix("").parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = [visible("/".join(names[-length:])) for names in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{number}: {name}" for number, name in enumerate(names, 1)]
