"""Lengths in the report: rates by length of the context; of long conversations also by exchanges and what was steered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from introspection_lit.report.drawing import GREY, legend_below, new_figure, styled
from introspection_lit.report.elements import ReportFigure, Table
from introspection_lit.report.formatting import format_count, format_rate, format_rate_with_interval, lookup
from introspection_lit.report.log_odds_plot import CLEAN, STEERED
from introspection_lit.trials.test_sets import MANY

Evidence = Mapping[str, Any]
Row = Mapping[str, Any]
SETS = {"long": "trained kinds", "long_newkinds": "unseen kinds"}
RATES = (("fpr", "false alarms", CLEAN, "o"), ("tpr", "steering found", STEERED, "D"))
# False alarms above this are said in the verdict: of long conversations; of lengths of context, if they surely are.
MOST_ALARMS = 0.03
INTERVALS = "95 % intervals in brackets."


@styled
def draw_lengths(found: Mapping[str, Any]) -> ReportFigure | None:
    """Draw FPR and TPR against the length of the conversation; lengths beyond the trained ones are shaded."""
    by_set = {name: [row for row in found["by_length"] if row["set"] == name] for name in SETS}
    by_set = {name: rows for name, rows in by_set.items() if rows}
    if not by_set:
        return None
    figure, panel = new_figure(3.8)
    ends = sorted({row["tokens"][1] for rows in by_set.values() for row in rows})
    for key, label, colour, marker in RATES:
        for number, (name, rows) in enumerate(by_set.items()):
            known = [row for row in rows if row.get(key) is not None]
            x = np.array([row["tokens"][1] for row in known], dtype=float) * (1 + 0.05 * number)
            y = np.array([row[key] for row in known], dtype=float)
            low, high = (
                np.array([row.get(f"{key}_interval") or [row[key]] * 2 for row in known], dtype=float).reshape(-1, 2).T
            )
            panel.errorbar(
                x,
                y,
                yerr=np.clip([y - low, high - y], 0, None),
                color=colour,
                marker=marker,
                markerfacecolor=colour if number else "white",
                linestyle="--" if number else "-",
                markersize=5.5,
                linewidth=1.4,
                capsize=2,
                label=f"{label}, {SETS[name]}",
            )
    panel.set_xscale("log")
    panel.set_xticks(ends, [str(end) for end in ends])
    panel.set_xticks([], minor=True)
    right = ends[-1] * 1.3
    if found["trained"] < right:
        panel.axvspan(found["trained"], right, color=GREY, alpha=0.12, linewidth=0, label="longer than trained")
    panel.set_xlim(ends[0] / 1.3, right)
    panel.set_ylim(-0.03, 1.03)
    panel.set_xlabel("tokens of the conversation, at most")
    panel.set_ylabel("share called steered")
    legend_below(figure, panel)
    worst = max((row for rows in by_set.values() for row in rows), key=lambda row: row.get("fpr") or 0)
    alt = (
        f"FPR and TPR of conversations of up to {ends[-1]} tokens, trained on up to {found['trained']}. Highest FPR: "
        f"{_tokens(worst)} tokens, {SETS[worst['set']]}, {format_rate(worst.get('fpr'))}."
    )
    caption = "95 % intervals. Found: all of the conversation is steered. Grey: longer than any in training."
    return ReportFigure(figure, "Detection by length", alt, caption, _by_length(by_set, found["trained"]))


def length_plots(evidence: Evidence) -> dict[str, ReportFigure]:
    """The figure of long conversations, if there were any."""
    found = lookup(evidence, "long")
    figure = draw_lengths(found) if found else None
    return {"lengths": figure} if figure else {}


def length_tables(evidence: Evidence) -> list[Table]:
    """Rates by number of exchanges, and by what was steered of them."""
    found = lookup(evidence, "long") or {}
    exchanges = [
        (SETS[row["set"]], _range(row["exchanges"]), *_cells(row)) for row in found.get("by_exchanges") or () if _known(row)
    ]
    parts = [
        (SETS[row["set"]], _range(row["after"]), format_count(row["n_steered"]), _rate(row, "tpr"))
        for row in found.get("by_part") or ()
        if _known(row)
    ]
    tables = [
        Table("Detection by number of exchanges", ("texts", "exchanges", *HEAD), exchanges, INTERVALS),
        Table(
            "Some exchanges steered: how many came after them, before the question",
            ("texts", "exchanges after", "steered", "TPR"),
            parts,
            INTERVALS,
        ),
    ]
    return [table for table in tables if table.rows]


def context_lengths_table(evidence: Evidence) -> Table | None:
    """Rates by length of the context, beside how many contexts of training are as long."""
    rows = [
        (
            _tokens(row),
            *(format_count(row.get(key)) for key in ("n_trained", "n_clean")),
            *(_rate(row, key) for key in ("fpr", "tpr")),
            format_rate(row.get("auroc")),
        )
        for row in evidence.get("lengths") or ()
    ]
    head = ("tokens", "in training", "clean", "FPR", "TPR", "AUROC")
    note = f"Rates at the stored threshold. {INTERVALS} TPR and AUROC without the dose sets."
    return Table("By length of the context", head, rows, note) if rows else None


def length_sentences(results: Mapping[str, Any]) -> list[str]:
    """Say at which lengths of context false alarms are many; and of long conversations how many there are, and where."""
    said = [
        f"Of clean contexts of {_tokens(row)} tokens {format_rate(row['fpr'])} are called steered; of those of training "
        f"{row['n_trained']} are as long."
        for row in lookup(results, "evidence", "lengths") or ()
        if (row.get("fpr_interval") or [0])[0] > MOST_ALARMS
    ]
    return said + _long_sentences(results)


def _long_sentences(results: Mapping[str, Any]) -> list[str]:
    rows = [row for row in lookup(results, "evidence", "long", "by_length") or () if row.get("fpr") is not None]
    if not rows:
        return []
    above = [row for row in rows if row["fpr"] > MOST_ALARMS]
    if not above:
        longest = max(row["tokens"][1] for row in rows)
        return [f"Of clean conversations of up to {longest} tokens, {_alarms(rows)} are called steered."]
    worst = max(above, key=lambda row: row["fpr"])
    return [
        f"Long conversations: of clean ones of {_tokens(worst)} tokens ({SETS.get(worst['set'], worst['set'])}) "
        f"{_alarms([worst])} are called steered."
    ]


def _alarms(rows: Sequence[Row]) -> str:
    """False alarms and distinct clean inputs, together."""
    return " of ".join(str(sum(row.get(name) or 0 for row in rows)) for name in ("alarms", "n_clean"))


HEAD = ("clean", "FPR", "TPR", "TPR, some exchanges", "AUROC")


def _by_length(by_set: Mapping[str, Sequence[Row]], trained: int) -> Table:
    rows = [
        (SETS[name], _tokens(row), "no" if row["tokens"][1] > trained else "yes", *_cells(row))
        for name, of_set in by_set.items()
        for row in of_set
    ]
    return Table("Detection by length", ("texts", "tokens", "trained", *HEAD), rows, INTERVALS)


def _cells(row: Row) -> tuple[str, ...]:
    return (format_count(row.get("n_clean")), *(_rate(row, key) for key in ("fpr", "tpr", "part_tpr", "auroc")))


def _rate(row: Row, key: str) -> str:
    return format_rate_with_interval(row.get(key), row.get(f"{key}_interval"))


def _known(row: Row) -> bool:
    return row["set"] in SETS


def _tokens(row: Row) -> str:
    return _range(row["tokens"])


def _range(ends: Sequence[int]) -> str:
    low, high = ends
    return f"{low} or more" if high >= MANY else str(low) if low == high else f"{low} to {high}"
