"""The report: a results file in, one HTML page that needs nothing else out, with its figures beside it as pictures."""

from __future__ import annotations

import argparse
import base64
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from introspection_lit.descriptions import belonging
from introspection_lit.errors import ConfigurationError, IntrospectionError, visible
from introspection_lit.files import write_whole
from introspection_lit.report.compare import compare
from introspection_lit.report.curves import curves, rocs
from introspection_lit.report.drawing import histograms, png
from introspection_lit.report.heatmaps import heat_maps
from introspection_lit.report.kinds import kind_figures
from introspection_lit.report.parts import FigureOfReport, Page, Section, Table, part
from introspection_lit.report.reading import RESULTS, WRITER, read
from introspection_lit.report.tables import (
    controls_table,
    factual_table,
    ladder_table,
    leak_tables,
    odd_table,
    other_sets_table,
    references_table,
    seeds_tables,
    settings,
    side_effects_table,
    strengths_table,
)
from introspection_lit.report.terms import TERMS
from introspection_lit.report.tiles import tiles
from introspection_lit.report.training import learning_curves, lens
from introspection_lit.report.verdict import sentences

SEEDS, CONTROLS = "seeds.json", "controls.json"


class Run(NamedTuple):
    """What a report is made from.

    Attributes:
        path: The results file, or that of several seeds.
        results: Empty where there are only seeds.
        seeds: Numbers over several seeds, if there are any.
        config: The text of ``config.yaml`` beside it, if there is one.
    """

    path: Path
    results: Mapping[str, Any]
    seeds: Mapping[str, Any]
    config: str | None


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


def figures(results: Mapping[str, Any]) -> dict[str, FigureOfReport]:
    """Draw every figure that a run has numbers for.

    Args:
        results: Of ``results.json``.

    Returns:
        By a name that is fit for a file, in the order of the report; empty without ``evidence``.
    """
    return page(Run(Path(RESULTS), results, {}, None)).figures


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
    own = path.is_dir() and config.is_file() and belonging([config], folder)  # no link to what is not to be shown
    text = config.read_text(encoding="utf-8", errors="replace") if own else None
    several = read(seeds, "seeds") if path.is_dir() and seeds.exists() else {}
    results = read(file) if file.exists() else {}
    more = folder / CONTROLS
    if path.is_dir() and results and more.is_file():
        evidence = results.get("evidence") or {}
        rows = [*read(more, "rows")["rows"], *(evidence.get("controls") or [])]
        results = results | {"evidence": evidence | {"controls": rows}}
    return Run(file, results, several, text)


def page(run: Run) -> Page:
    """Lay out the report on one run; sections without data are left out."""
    results, evidence = run.results, run.results.get("evidence") or {}
    unit = str(results.get("strength_unit") or "unit unknown")
    code = {"Command": str(results["command"])} if results.get("command") else {}
    lenses = lens(evidence.get("lens") or {})
    sections = [
        Section("verdict", "Verdict", [" ".join(sentences(results))] if results else []),
        Section("key-numbers", "Key numbers", tiles=tiles(results) if results else []),
        Section("ladder", "Test sets", tables=_some(ladder_table(results), other_sets_table(results))),
        Section("seeds", "Several seeds", tables=seeds_tables(run.seeds)),
        Section(
            "curves", "Detection against strength", figures=curves(evidence, unit), tables=_some(strengths_table(evidence))
        ),
        Section("roc", "ROC", figures=rocs(evidence)),
        Section("heat-maps", "Where steering is missed", figures=heat_maps(evidence, unit)),
        Section("kinds", "Kinds of text", figures=kind_figures({"": evidence.get("kinds") or []})),
        Section("log-odds", "Log-odds", figures=histograms(evidence, results.get("threshold"))),
        Section("learning", "Learning", figures=learning_curves(evidence)),
        Section("lens", "Where the answer forms", figures={"lens": lenses} if lenses else {}),
        Section(
            "controls", "Controls", tables=_some(controls_table(evidence), factual_table(evidence), odd_table(evidence))
        ),
        Section("references", "References", tables=_some(references_table(evidence))),
        Section("side-effects", "Side effects", tables=_some(side_effects_table(evidence))),
        Section("leaks", "Leak audit", tables=leak_tables(evidence)),
        Section(
            "repeat",
            "How to repeat",
            tables=_some(_settings_table(results)),
            code=code | ({"config.yaml": run.config} if run.config else {}),
        ),
        Section("glossary", "Terms", terms=TERMS),
    ]
    kept = [section._replace(figures=_named(section.figures)) for section in sections if not section.empty]
    model = Path(str(results.get("base_model") or part(run.seeds, "experiment") or "unknown")).name
    facts = [("run of", "time"), ("commit", "commit"), ("seed", "seed")]
    said = ", ".join(f"{name} {results[key]}" for name, key in facts if results.get(key) is not None)
    return Page(f"Does {model} notice steering?", said, kept)


def _settings_table(results: Mapping[str, Any]) -> Table | None:
    rows = list(settings(results).items())
    return Table("Settings, versions and hardware", ("setting", "value"), rows) if rows else None


def _some(*tables: Table | None) -> list[Table]:
    return [table for table in tables if table]


def _named(found: Mapping[str, FigureOfReport]) -> dict[str, FigureOfReport]:
    """Figures under names that are safe as file names: parts of them come from the results."""
    named: dict[str, FigureOfReport] = {}
    for name, figure in found.items():
        safe = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:60] or "figure"
        while safe in named:
            safe += "-2"
        named[safe] = figure
    return named


def render(shown: Page, pictures: Mapping[str, bytes]) -> str:
    """Fill the template.

    Args:
        shown: The page; every text of it is escaped.
        pictures: A PNG for each of its figures.
    """
    environment = Environment(
        loader=PackageLoader("introspection_lit", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    inlined = {name: base64.b64encode(picture).decode() for name, picture in pictures.items()}
    return environment.get_template("report.html.j2").render(page=shown, pictures=inlined)


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
    if not belonging([folder], out.parent):
        raise ConfigurationError([f"{folder}: a link to a folder elsewhere. Remove it, or name another place with --out."])
    for name, picture in pictures.items():
        write_whole(folder / f"{name}.png", picture)
    write_whole(out, render(shown, pictures))
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
