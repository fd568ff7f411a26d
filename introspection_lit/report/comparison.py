"""The report on several runs side by side: tables with a column for each run, figures with a line for each run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from introspection_lit.evaluation.rungs import RUNGS
from introspection_lit.report.detection_plots import METRIC_TITLES, draw_detection_curve, draw_roc
from introspection_lit.report.elements import Page, ReportFigure, Section, Table, present
from introspection_lit.report.formatting import HELD, MISSING, format_count, format_rate_with_interval, lookup
from introspection_lit.report.key_numbers import key_numbers
from introspection_lit.report.kind_rates import kind_rate_plots
from introspection_lit.report.tables import control_metrics_text, run_settings, side_effects_table
from introspection_lit.report.verdict import detection_strength_text, verdict_sentences

# Settings that differ between any two runs and are not compared.
TRIVIAL = ("time",)
Runs = Mapping[str, Mapping[str, Any]]


def comparison_page(runs: Runs) -> Page:
    """Build the page that compares runs.

    Args:
        runs: Results by label; two or more.
    """
    sections = [
        Section("headline", "Key numbers", tables=[compare_key_numbers(runs)]),
        Section(
            "verdict", "Verdicts", labelled={label: " ".join(verdict_sentences(results)) for label, results in runs.items()}
        ),
        Section("ladder", "Test sets", tables=present(compare_sets(runs), compare_strengths(runs))),
        Section("curves", "Detection against strength", figures=compare_curves(runs)),
        Section("roc", "ROC", figures=compare_rocs(runs)),
        Section(
            "kinds",
            "Kinds of text",
            figures=kind_rate_plots({label: lookup(r, "evidence", "kinds") or [] for label, r in runs.items()}),
        ),
        Section("controls", "Controls", tables=present(compare_controls(runs))),
        Section("references", "References", tables=present(compare_references(runs))),
        Section("side-effects", "Side effects", tables=present(compare_side_effects(runs))),
        Section("settings", "Settings that differ", tables=present(compare_settings(runs))),
        Section("repeat", "How to repeat", code={label: str(r.get("command") or MISSING) for label, r in runs.items()}),
    ]
    return Page(f"{len(runs)} runs side by side", ", ".join(runs), [section for section in sections if not section.empty])


def compare_key_numbers(runs: Runs) -> Table:
    """The key numbers, a column for each run."""
    tiles_by_label = [{tile.label.partition(":")[0]: tile for tile in key_numbers(results)} for results in runs.values()]
    rows = []
    for label in tiles_by_label[0]:
        tiles = [of_run[label] for of_run in tiles_by_label]
        # The worst kind differs between runs.
        kinds = [f", {tile.label.partition(': ')[2]}" if ": " in tile.label else "" for tile in tiles]
        rows.append(
            (label, *(f"{t.value} ({t.note}{kind})" if t.note else t.value for t, kind in zip(tiles, kinds, strict=True)))
        )
    return Table("Key numbers, a column for each run", ("number", *runs), rows)


def compare_sets(runs: Runs) -> Table | None:
    """AUROC, TPR and FPR of every test set, a column for each run."""
    names = list(dict.fromkeys(name for results in runs.values() for name in results.get("sets") or {}))
    order = [*(name for name in RUNGS if name in names), *(name for name in names if name not in RUNGS)]
    rows = []
    for name in order:
        summaries = [lookup(results, "sets", name) or {} for results in runs.values()]
        for title, key in (("AUROC", "auroc"), ("TPR", "tpr"), ("FPR", "fpr"), ("mass", "mass")):
            cells = [format_rate_with_interval(row.get(key), row.get(f"{key}_interval")) for row in summaries]
            rows.append((f"{RUNGS.get(name, name)}: {title}", *cells))
    if not rows:
        return None
    rows.append(
        ("distinct clean inputs", *(format_count(results.get("n_clean_distinct_total")) for results in runs.values()))
    )
    return Table("Test sets, a column for each run", ("test set", *runs), rows, "95 % intervals in brackets.")


def compare_strengths(runs: Runs) -> Table | None:
    """The strength at which 75 % are detected."""
    rows = []
    for vectors in _keys(runs, "detection_strength"):
        cells = [detection_strength_text(results, vectors) for results in runs.values()]
        rows.append((vectors, *(f"{value} ({ends})" if ends else value for value, ends in cells)))
    return Table("Strength at which 75 % are detected at 1 % FPR", ("vectors", *runs), rows) if rows else None


def compare_curves(runs: Runs) -> dict[str, ReportFigure]:
    """The adapters' detection curves, a figure for each type of vectors and unit of strength."""
    figures = {}
    units = list(dict.fromkeys(str(results.get("strength_unit") or "unit unknown") for results in runs.values()))
    for unit in units:
        same_unit = {label: r for label, r in runs.items() if str(r.get("strength_unit") or "unit unknown") == unit}
        for vectors in _keys(same_unit, "curves"):
            lines = {label: lookup(r, "evidence", "curves", vectors, "adapter") or [] for label, r in same_unit.items()}
            for key in METRIC_TITLES:
                name = f"{key}-{vectors}" if len(units) == 1 else f"{key}-{vectors}-{unit}"
                figures[name] = draw_detection_curve(vectors, lines, key, unit)
    return {name: figure for name, figure in figures.items() if figure}


def compare_rocs(runs: Runs) -> dict[str, ReportFigure]:
    """The adapters' ROC curves, a figure for each test set."""
    figures = {}
    for name in _keys(runs, "roc"):
        lines = {label: lookup(results, "evidence", "roc", name, "adapter") for label, results in runs.items()}
        figures[f"roc-{name}"] = draw_roc(name, {label: line for label, line in lines.items() if line})
    return {name: figure for name, figure in figures.items() if figure}


def compare_controls(runs: Runs) -> Table | None:
    """Result and metrics of each control."""
    by_run = {label: {row["name"]: row for row in lookup(r, "evidence", "controls") or []} for label, r in runs.items()}
    names = dict.fromkeys(name for rows in by_run.values() for name in rows)
    rows = [
        (
            name,
            *(
                f"{HELD[controls[name].get('held')]}: {control_metrics_text(controls[name])}"
                if name in controls
                else MISSING
                for controls in by_run.values()
            ),
        )
        for name in names
    ]
    return Table("Controls, a column for each run", ("control", *runs), rows) if rows else None


def compare_references(runs: Runs) -> Table | None:
    """AUROC of every observer on every test set."""
    by_run = {
        label: {(row["set"], row["observer"]): row for row in lookup(results, "evidence", "references") or []}
        for label, results in runs.items()
    }
    rows = []
    for name, observer in dict.fromkeys(place for of_run in by_run.values() for place in of_run):
        observations = [of_run.get((name, observer), {}) for of_run in by_run.values()]
        cells = [format_rate_with_interval(row.get("auroc"), row.get("auroc_interval")) for row in observations]
        rows.append((f"{RUNGS.get(name, name)}: {observer}", *cells))
    return Table("AUROC of the adapter and of references", ("test set: observer", *runs), rows) if rows else None


def compare_side_effects(runs: Runs) -> Table | None:
    """Adapter off → on, with the change."""
    tables = {label: side_effects_table(results.get("evidence") or {}) for label, results in runs.items()}
    cells = {
        label: {row[0]: f"{row[1]} → {row[2]} ({row[3]})" for row in table.rows} for label, table in tables.items() if table
    }
    names = dict.fromkeys(name for of_run in cells.values() for name in of_run)
    rows = [(name, *(cells.get(label, {}).get(name, MISSING) for label in runs)) for name in names]
    return Table("Adapter off → on (change)", ("measure", *runs), rows) if rows else None


def compare_settings(runs: Runs) -> Table | None:
    """The settings that differ between runs."""
    by_run = {label: run_settings(results) for label, results in runs.items()}
    names = dict.fromkeys(name for of_run in by_run.values() for name in of_run)
    rows = [(name, *(of_run.get(name, "none") for of_run in by_run.values())) for name in names if name not in TRIVIAL]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    return Table("Settings and measured values that differ", ("setting", *runs), rows) if rows else None


def _keys(runs: Runs, name: str) -> list[str]:
    return list(dict.fromkeys(key for results in runs.values() for key in lookup(results, "evidence", name) or {}))
