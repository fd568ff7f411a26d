"""Caches as deployed in the report: false alarms and detection under changes of the cache that are not steering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from introspection_lit.report.drawing import GREY, HEIGHT, ROW_HEIGHT, legend_below, new_figure, styled
from introspection_lit.report.elements import ReportFigure, Table
from introspection_lit.report.formatting import (
    format_interval,
    format_percent,
    format_rate,
    format_rate_with_interval,
    lookup,
)
from introspection_lit.report.log_odds_plot import CLEAN, STEERED
from introspection_lit.steering.change_names import CHANGES

Results = Mapping[str, Any]
Rows = Sequence[Mapping[str, Any]]
# A benign change may set off this share of false alarms, and no more.
MOST_FALSE = 0.03
SORTS = {True: "benign", False: "tampering"}


def rows_by_set(evidence: Results) -> dict[str, Rows]:
    """The rows of each test set with changed caches."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in lookup(evidence, "deployed") or []:
        found.setdefault(row["set"], []).append(row)
    return dict(found)


def deployed_tables(evidence: Results) -> list[Table]:
    """What changes do to false alarms and to detection, a table for each test set."""
    head = ("change", "sort", "alarms", "FPR", "TPR at .5", "AUROC", "against untouched")
    note = (
        "95 % intervals in brackets, at the stored threshold. Steered caches are changed too, at strength 0.5. Against "
        "untouched: AUROC of clean changed caches against clean untouched ones; .5: the change is not seen. {}"
    )
    tables = []
    for name, rows in rows_by_set(evidence).items():
        cells = [
            (
                row["change"],
                SORTS[bool(row["benign"])],
                f"{row.get('alarms', '?')} of {row.get('n_clean', '?')}",
                *(_cell(row, rate) for rate in ("fpr", "tpr", "auroc")),
                _cell(row, "auroc_untouched") if row.get("auroc_untouched") is not None else "",
            )
            for row in rows
        ]
        told = "; ".join(f"{row['change']}: {CHANGES[row['change']].text}" for row in rows if row["change"] in CHANGES)
        tables.append(Table(f"Changed caches: {name}", head, cells, note.format(f"{told}." if told else "").strip()))
    return tables


def _cell(row: Mapping[str, Any], rate: str) -> str:
    return format_rate_with_interval(row.get(rate), row.get(f"{rate}_interval"))


def deployed_figures(evidence: Results) -> dict[str, ReportFigure]:
    """The FPR of each change with its interval, a figure for each test set."""
    drawn = {f"fpr-{name}": draw_changes(name, rows) for name, rows in rows_by_set(evidence).items()}
    return {name: figure for name, figure in drawn.items() if figure}


@styled
def draw_changes(name: str, rows: Rows) -> ReportFigure | None:
    """Draw the FPR of each change of a test set; None without any. Benign changes first, each sort with the worst first."""
    rows = [row for row in rows if row.get("fpr") is not None]
    if not rows:
        return None
    rows = sorted(rows, key=lambda row: (not row["benign"], -row["fpr"]))
    figure, panel = new_figure(max(HEIGHT, 1.5 + ROW_HEIGHT * len(rows)))
    for benign, marker, colour in ((True, "o", CLEAN), (False, "D", STEERED)):
        heights = [height for height, row in enumerate(rows) if bool(row["benign"]) == benign]
        if not heights:
            continue
        x = np.array([rows[height]["fpr"] for height in heights], dtype=float)
        ends = [rows[height].get("fpr_interval") or [rows[height]["fpr"]] * 2 for height in heights]
        low, high = np.array(ends, dtype=float).T
        panel.errorbar(
            x,
            heights,
            xerr=np.clip([x - low, high - x], 0, None),
            fmt=marker,
            color=colour,
            markersize=5.5,
            markerfacecolor="white" if benign else colour,
            capsize=2,
            linewidth=1.2,
            label=SORTS[benign],
        )
    panel.axvline(MOST_FALSE, color=GREY, linewidth=1, linestyle="--", label=format_percent(MOST_FALSE))
    panel.set_xlim(-0.02, 1.02)
    panel.set_yticks(range(len(rows)), [f"{row['change']} ({row.get('n_clean', '?')})" for row in rows])
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.set_xlabel("FPR")
    legend_below(figure, panel)
    above = [f"{row['change']} {row['fpr']:.3f}" for row in rows if row["benign"] and row["fpr"] > MOST_FALSE]
    told = ", ".join(above) or "none"
    alt = f"FPR of {len(rows)} changes of the cache on {name}. Benign ones above {MOST_FALSE:g}: {told}."
    caption = (
        "95 % intervals; in brackets: distinct clean inputs. Circles: benign; diamonds: tampering that is no steering."
    )
    cells = [
        (row["change"], SORTS[bool(row["benign"])], format_rate(row["fpr"]), format_interval(row.get("fpr_interval")))
        for row in rows
    ]
    table = Table(f"False alarms by change: {name}", ("change", "sort", "FPR", "95 %"), cells)
    return ReportFigure(figure, f"False alarms by change of the cache: {name}", alt, caption, table)


def deployed_sentences(results: Results) -> list[str]:
    """Say which benign changes of the cache set off too many false alarms."""
    rows = [row for row in lookup(results, "evidence", "deployed") or [] if row["benign"] and row.get("fpr") is not None]
    if not rows:
        return []
    above = sorted((row for row in rows if row["fpr"] > MOST_FALSE), key=lambda row: -row["fpr"])
    if not above:
        worst = max(rows, key=lambda row: (row["fpr"], (row.get("fpr_interval") or [0, 0])[1]))
        kept = f"Changes of the cache that do no harm set off an FPR of at most {MOST_FALSE:g}"
        return [f"{kept}: the highest is {_cell(worst, 'fpr')}, {worst['change']} on {worst['set']}."]
    told = ", ".join(f"{row['change']} on {row['set']} {row['fpr']:.3f}" for row in above)
    return [f"Caches that are changed but not steered set it off (FPR above {MOST_FALSE:g}): {told}."]
