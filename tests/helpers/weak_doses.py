"""What the tests of docs/weak-doses.md share: the page, and the results files that it is about."""

from __future__ import annotations

import json
from typing import Any

from full_size import VANISHING, full_size_numbers, unseen_kinds, worst_and_vanishing
from project_paths import ROOT

from introspection_lit.report.formatting import format_rate

FOLDER = ROOT / "docs" / "results" / "recipes"
PAGE = (ROOT / "docs" / "weak-doses.md").read_text(encoding="utf-8")


def loaded(name: str) -> dict[str, Any]:
    """A results file of the folder."""
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return found


def merged_rows(runs: list[dict[str, Any]], texts: int = 1125) -> list[str]:
    """The rows of a table of runs with merged contexts; none of them hears rounding."""
    columns = [full_size_numbers(run) for run in runs]
    for column, run in zip(columns, runs, strict=True):
        assert run["sets"]["newkinds"]["n_clean_distinct"] == texts
        column[f"FPR on {texts:,} texts of unseen kinds"] = run["sets"]["newkinds"]["fpr"]
        column |= worst_and_vanishing(run)
        assert 0.35 < column[VANISHING] < 0.65
    return [f"| {title} | {' | '.join(format_rate(column[title]) for column in columns)} |" for title in columns[0]]


def thresholds(run: dict[str, Any]) -> tuple[float, float]:
    """The stored threshold, and the one that 1 % of the clean texts of the test exceed."""
    return run["threshold"], run["evidence"]["max_fpr_threshold"]


def alarms(run: dict[str, Any]) -> dict[str, int]:
    """Clean texts above the threshold, by unseen kind."""
    return {kind: row["alarms"] for kind, row in unseen_kinds(run).items()}
