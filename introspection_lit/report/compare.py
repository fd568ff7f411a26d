"""Several runs side by side: the same numbers in columns, the same curves in one figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from introspection_lit.evaluation.rungs import RUNGS
from introspection_lit.report.curves import NAMES, detection_curve, roc
from introspection_lit.report.kinds import kind_figures
from introspection_lit.report.parts import HELD, MISSING, FigureOfReport, Page, Section, Table, count, part, with_interval
from introspection_lit.report.tables import measured, settings, side_effects_table
from introspection_lit.report.tiles import tiles
from introspection_lit.report.verdict import detection, sentences

# Settings that differ between any two runs and say nothing.
TRIVIAL = ("time",)
Runs = Mapping[str, Mapping[str, Any]]


def compare(runs: Runs) -> Page:
    """Put runs side by side.

    Args:
        runs: Results by label; two or more.
    """
    sections = [
        Section("headline", "Key numbers", tables=[headline_table(runs)]),
        Section("verdict", "Verdicts", labelled={label: " ".join(sentences(results)) for label, results in runs.items()}),
        Section("ladder", "Test sets", tables=_some(sets_table(runs), strengths_table(runs))),
        Section("curves", "Detection against strength", figures=curves(runs)),
        Section("roc", "ROC", figures=rocs(runs)),
        Section(
            "kinds",
            "Kinds of text",
            figures=kind_figures({label: part(r, "evidence", "kinds") or [] for label, r in runs.items()}),
        ),
        Section("controls", "Controls", tables=_some(controls_table(runs))),
        Section("references", "References", tables=_some(references_table(runs))),
        Section("side-effects", "Side effects", tables=_some(side_effects(runs))),
        Section("settings", "Settings that differ", tables=_some(settings_table(runs))),
        Section("repeat", "How to repeat", code={label: str(r.get("command") or MISSING) for label, r in runs.items()}),
    ]
    return Page(f"{len(runs)} runs side by side", ", ".join(runs), [section for section in sections if not section.empty])


def headline_table(runs: Runs) -> Table:
    """The key numbers, a column for each run."""
    found = [{tile.label.partition(":")[0]: tile for tile in tiles(results)} for results in runs.values()]
    rows = []
    for label in found[0]:
        each = [of_run[label] for of_run in found]
        # Of the worst kind each run has its own.
        kinds = [f", {tile.label.partition(': ')[2]}" if ": " in tile.label else "" for tile in each]
        rows.append(
            (label, *(f"{t.value} ({t.note}{kind})" if t.note else t.value for t, kind in zip(each, kinds, strict=True)))
        )
    return Table("Key numbers, a column for each run", ("number", *runs), rows)


def sets_table(runs: Runs) -> Table | None:
    """AUROC, TPR and FPR of every test set, a column for each run."""
    found = list(dict.fromkeys(name for results in runs.values() for name in results.get("sets") or {}))
    order = [*(name for name in RUNGS if name in found), *(name for name in found if name not in RUNGS)]
    rows = []
    for name in order:
        each = [part(results, "sets", name) or {} for results in runs.values()]
        for title, key in (("AUROC", "auroc"), ("TPR", "tpr"), ("FPR", "fpr"), ("mass", "mass")):
            cells = [with_interval(row.get(key), row.get(f"{key}_interval")) for row in each]
            rows.append((f"{RUNGS.get(name, name)}: {title}", *cells))
    if not rows:
        return None
    rows.append(("distinct clean inputs", *(count(results.get("n_clean_distinct_total")) for results in runs.values())))
    return Table("Test sets, a column for each run", ("test set", *runs), rows, "95 % intervals in brackets.")


def strengths_table(runs: Runs) -> Table | None:
    """The strength at which 75 % are detected."""
    rows = []
    for vectors in _keys(runs, "detection_strength"):
        cells = [detection(results, vectors) for results in runs.values()]
        rows.append((vectors, *(f"{value} ({ends})" if ends else value for value, ends in cells)))
    return Table("Strength at which 75 % are detected at 1 % FPR", ("vectors", *runs), rows) if rows else None


def curves(runs: Runs) -> dict[str, FigureOfReport]:
    """The adapters' curves in one figure for each sort of vectors; strengths of different units stay apart."""
    made = {}
    units = list(dict.fromkeys(str(results.get("strength_unit") or "unit unknown") for results in runs.values()))
    for unit in units:
        chosen = {label: r for label, r in runs.items() if str(r.get("strength_unit") or "unit unknown") == unit}
        for vectors in _keys(chosen, "curves"):
            lines = {label: part(r, "evidence", "curves", vectors, "adapter") or [] for label, r in chosen.items()}
            for key in NAMES:
                name = f"{key}-{vectors}" if len(units) == 1 else f"{key}-{vectors}-{unit}"
                made[name] = detection_curve(vectors, lines, key, unit)
    return {name: figure for name, figure in made.items() if figure}


def rocs(runs: Runs) -> dict[str, FigureOfReport]:
    """The adapters' ROC in one figure for each test set."""
    made = {}
    for name in _keys(runs, "roc"):
        lines = {label: part(results, "evidence", "roc", name, "adapter") for label, results in runs.items()}
        made[f"roc-{name}"] = roc(name, {label: line for label, line in lines.items() if line})
    return {name: figure for name, figure in made.items() if figure}


def controls_table(runs: Runs) -> Table | None:
    """What each control measured, and whether it held."""
    by = {label: {row["name"]: row for row in part(r, "evidence", "controls") or []} for label, r in runs.items()}
    names = dict.fromkeys(name for rows in by.values() for name in rows)
    rows = [
        (
            name,
            *(
                f"{HELD[found[name].get('held')]}: {measured(found[name])}" if name in found else MISSING
                for found in by.values()
            ),
        )
        for name in names
    ]
    return Table("Controls, a column for each run", ("control", *runs), rows) if rows else None


def references_table(runs: Runs) -> Table | None:
    """AUROC of every observer on every test set."""
    by = {
        label: {(row["set"], row["observer"]): row for row in part(results, "evidence", "references") or []}
        for label, results in runs.items()
    }
    rows = []
    for name, observer in dict.fromkeys(place for found in by.values() for place in found):
        found = [rows_of.get((name, observer), {}) for rows_of in by.values()]
        cells = [with_interval(row.get("auroc"), row.get("auroc_interval")) for row in found]
        rows.append((f"{RUNGS.get(name, name)}: {observer}", *cells))
    return Table("AUROC of the adapter and of references", ("test set: observer", *runs), rows) if rows else None


def side_effects(runs: Runs) -> Table | None:
    """Adapter off → on, with the change."""
    by = {label: side_effects_table(results.get("evidence") or {}) for label, results in runs.items()}
    cells = {
        label: {row[0]: f"{row[1]} → {row[2]} ({row[3]})" for row in table.rows} for label, table in by.items() if table
    }
    names = dict.fromkeys(name for found in cells.values() for name in found)
    rows = [(name, *(cells.get(label, {}).get(name, MISSING) for label in runs)) for name in names]
    return Table("Adapter off → on (change)", ("measure", *runs), rows) if rows else None


def settings_table(runs: Runs) -> Table | None:
    """Every setting that is not the same in all runs."""
    by = {label: settings(results) for label, results in runs.items()}
    names = dict.fromkeys(name for found in by.values() for name in found)
    rows = [(name, *(found.get(name, "none") for found in by.values())) for name in names if name not in TRIVIAL]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    return Table("Settings and measured values that differ", ("setting", *runs), rows) if rows else None


def _keys(runs: Runs, name: str) -> list[str]:
    return list(dict.fromkeys(key for results in runs.values() for key in part(results, "evidence", name) or {}))


def _some(*tables: Table | None) -> list[Table]:
    return [table for table in tables if table]
