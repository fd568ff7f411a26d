"""From results to the sections of a report page."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from introspection_lit.report.curves import curves, rocs
from introspection_lit.report.drawing import histograms
from introspection_lit.report.heatmaps import heat_maps
from introspection_lit.report.kinds import kind_figures
from introspection_lit.report.parts import FigureOfReport, Page, Section, Table, part
from introspection_lit.report.reading import RESULTS
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


def figures(results: Mapping[str, Any]) -> dict[str, FigureOfReport]:
    """Draw every figure that a run has numbers for.

    Args:
        results: Of ``results.json``.

    Returns:
        By a name that is fit for a file, in the order of the report; empty without ``evidence``.
    """
    return page(Run(Path(RESULTS), results, {}, None)).figures


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
