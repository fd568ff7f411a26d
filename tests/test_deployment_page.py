"""The tables of docs/deployment.md are those of the results files, row by row."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from project_paths import ROOT

from introspection_lit.report.deployment import MOST_FALSE
from introspection_lit.steering.change_names import BENIGN

FOLDER = ROOT / "docs" / "results" / "deployment"
PAGE = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
RUNS = sorted(path.stem for path in FOLDER.glob("*.json"))
PRECISIONS = ("bf16", "int8", "nf4")
CHANGED = [name for name in RUNS if name not in PRECISIONS]


def read(name: str) -> dict[str, Any]:
    """A results file."""
    content: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return content


def table(results: dict[str, Any]) -> list[str]:
    """A row for each change: false alarms and detection on trained and on unseen kinds, and the distance from untouched."""
    rows = {(row["set"], row["change"]): row for row in results["evidence"]["deployed"]}
    made = []
    for change in dict.fromkeys(row["change"] for row in rows.values()):
        cells = [change if change not in BENIGN else f"**{change}**"]
        for name in ("deployed", "deployed_newkinds"):
            row = rows[name, change]
            low, high = row["fpr_interval"]
            cells += [f"{row['fpr']:.3f} ({low:.3f}-{high:.3f})", f"{row['tpr']:.3f}"]
            far = row["auroc_untouched"]
            cells.append("" if far is None else f"{far:.3f}")
        made.append(f"| {' | '.join(cells)} |")
    return made


@pytest.mark.parametrize("name", CHANGED)
def test_table_of_each_run_is_that_of_its_file(name: str) -> None:
    """With its commit, which had no uncommitted changes, and sixty distinct clean contexts or more for each change."""
    results = read(name)
    for row in table(results):
        assert row in PAGE, row
    assert f"`{results['commit']}`" in PAGE
    assert "+changes" not in results["commit"]
    assert f"{name}.json" in PAGE
    counts = Counter[str]()
    for row in results["evidence"]["deployed"]:
        counts[row["change"]] += row["n_clean"]
    assert min(counts.values()) >= 60


@pytest.mark.parametrize("name", [name for name in PRECISIONS if name in RUNS])
def test_rates_in_other_precisions_are_those_of_their_files(name: str) -> None:
    """On trained and on unseen kinds."""
    results = read(name)
    cells = [f"{results['sets'][split][rate]:.3f}" for split in ("heldout", "newkinds") for rate in ("fpr", "tpr", "auroc")]
    assert f"| {' | '.join(cells)} |" in PAGE
    assert f"`{results['commit']}`" in PAGE
    assert "+changes" not in results["commit"]


@pytest.mark.parametrize("name", CHANGED)
def test_benign_changes_above_the_limit_are_named(name: str) -> None:
    """Each with its set; and the page says how many there are."""
    rows = read(name)["evidence"]["deployed"]
    above = [
        f"{row['change']} on {row['set']} {row['fpr']:.3f}" for row in rows if row["benign"] and row["fpr"] > MOST_FALSE
    ]
    assert f"Benign changes above {MOST_FALSE:g} in `{name}.json`: {', '.join(above) or 'none'}." in " ".join(PAGE.split())
