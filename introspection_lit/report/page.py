"""Lays out the report on one run as sections, and renders a page as HTML."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from introspection_lit.report.deployment import deployed_figures, deployed_tables
from introspection_lit.report.detection_plots import detection_plots, roc_plots
from introspection_lit.report.drawing import histogram_plots
from introspection_lit.report.elements import Page, ReportFigure, Section, Table, present
from introspection_lit.report.exported import exported_table
from introspection_lit.report.formatting import lookup
from introspection_lit.report.heatmaps import confusions, heat_maps
from introspection_lit.report.key_numbers import key_numbers
from introspection_lit.report.kind_rates import kind_rate_plots
from introspection_lit.report.lengths import context_lengths_table, length_plots, length_tables
from introspection_lit.report.result_files import RESULTS
from introspection_lit.report.tables import (
    choices_table,
    controls_table,
    factual_table,
    ladder_table,
    leak_tables,
    odd_table,
    other_sets_table,
    references_table,
    run_settings,
    seeds_tables,
    side_effects_table,
    strengths_table,
    tasks_table,
)
from introspection_lit.report.terms import TERMS
from introspection_lit.report.training_plots import draw_logit_lens, learning_plots
from introspection_lit.report.verdict import verdict_sentences


class Run(NamedTuple):
    """The contents of a run's files.

    Attributes:
        path: Path of ``results.json``.
        results: Content of ``results.json``; empty if there is only ``seeds.json``.
        seeds: Content of ``seeds.json``; empty without.
        config: Text of ``config.yaml``; None without.
    """

    path: Path
    results: Mapping[str, Any]
    seeds: Mapping[str, Any]
    config: str | None


def draw_figures(results: Mapping[str, Any]) -> dict[str, ReportFigure]:
    """Draw every figure that a run has data for.

    Args:
        results: Content of ``results.json``.

    Returns:
        Figures by a name that is safe as a file name, in the order of the report; empty without ``evidence``.
    """
    return build_page(Run(Path(RESULTS), results, {}, None)).figures


def build_page(run: Run) -> Page:
    """Build the report on one run; sections without data are left out."""
    results, evidence = run.results, run.results.get("evidence") or {}
    unit = str(results.get("strength_unit") or "unit unknown")
    code = {"Command": str(results["command"])} if results.get("command") else {}
    lens = draw_logit_lens(evidence.get("lens") or {})
    sections = [
        Section("verdict", "Verdict", [" ".join(verdict_sentences(results))] if results else []),
        Section("key-numbers", "Key numbers", tiles=key_numbers(results) if results else []),
        Section("ladder", "Test sets", tables=present(ladder_table(results), other_sets_table(results))),
        Section("seeds", "Several seeds", tables=seeds_tables(run.seeds)),
        Section(
            "curves",
            "Detection against strength",
            figures=detection_plots(evidence, unit),
            tables=present(strengths_table(evidence)),
        ),
        Section(
            "answers",
            "Answers, or one word?",
            figures=confusions(evidence),
            tables=present(tasks_table(evidence), choices_table(evidence)),
        ),
        Section("as-exported", "As used", tables=present(exported_table(evidence))),
        Section("lengths", "Long conversations", figures=length_plots(evidence), tables=length_tables(evidence)),
        Section("deployed", "As deployed", figures=deployed_figures(evidence), tables=deployed_tables(evidence)),
        Section("roc", "ROC", figures=roc_plots(evidence)),
        Section("heat-maps", "Where steering is missed", figures=heat_maps(evidence, unit)),
        Section(
            "kinds",
            "Kinds of text",
            figures=kind_rate_plots({"": evidence.get("kinds") or []}),
            tables=present(context_lengths_table(evidence)),
        ),
        Section("log-odds", "Log-odds", figures=histogram_plots(evidence, results.get("threshold"))),
        Section("learning", "Learning", figures=learning_plots(evidence)),
        Section("lens", "Where the answer forms", figures={"lens": lens} if lens else {}),
        Section(
            "controls", "Controls", tables=present(controls_table(evidence), factual_table(evidence), odd_table(evidence))
        ),
        Section("references", "References", tables=present(references_table(evidence))),
        Section("side-effects", "Side effects", tables=present(side_effects_table(evidence))),
        Section("leaks", "Leak audit", tables=leak_tables(evidence)),
        Section(
            "repeat",
            "How to repeat",
            tables=present(_settings_table(results)),
            code=code | ({"config.yaml": run.config} if run.config else {}),
        ),
        Section("glossary", "Terms", terms=TERMS),
    ]
    sections = [section._replace(figures=with_safe_names(section.figures)) for section in sections if not section.empty]
    model = Path(str(results.get("base_model") or lookup(run.seeds, "experiment") or "unknown")).name
    facts = [("run of", "time"), ("commit", "commit"), ("seed", "seed")]
    subtitle = ", ".join(f"{name} {results[key]}" for name, key in facts if results.get(key) is not None)
    return Page(f"Does {model} notice steering?", subtitle, sections)


def _settings_table(results: Mapping[str, Any]) -> Table | None:
    rows = list(run_settings(results).items())
    return Table("Settings, versions and hardware", ("setting", "value"), rows) if rows else None


def with_safe_names(figures: Mapping[str, ReportFigure]) -> dict[str, ReportFigure]:
    """The figures under names that are safe as file names; parts of the names come from the results."""
    renamed: dict[str, ReportFigure] = {}
    for name, figure in figures.items():
        safe = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:60] or "figure"
        while safe in renamed:
            safe += "-2"
        renamed[safe] = figure
    return renamed


def render_html(page: Page, pictures: Mapping[str, str]) -> str:
    """Render a page with the template ``report.html.j2``.

    Args:
        page: The page; all of its texts are escaped.
        pictures: A data URL for each of its figures, by name.
    """
    environment = Environment(
        loader=PackageLoader("introspection_lit", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(page=page, pictures=pictures)
