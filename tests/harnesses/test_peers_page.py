"""docs/where-people-work.md says what its results file holds."""

from __future__ import annotations

import json
import re

from project_paths import ROOT

PAGE = (ROOT / "docs" / "where-people-work.md").read_text(encoding="utf-8")
RESULTS = json.loads((ROOT / "docs" / "results" / "peers" / "quickstart.json").read_text())


def test_table_agrees_with_the_results() -> None:
    """The largest differences, two of them computed again from the trials."""
    trials = RESULTS["log_odds"]
    assert len(trials) == 20
    assert sum(trial["steered"] for trial in trials) == 10
    for name in ("lm_eval", "inspect"):
        assert max(abs(trial[name] - trial["test"]) for trial in trials) == RESULTS["largest_difference"][name] < 1e-3
    for name in ("nnsight", "transformer_lens"):
        assert all(abs(row["library"] - row["introspection_lit"]) <= 1e-4 for row in RESULTS[name])
    shown = re.findall(r"^\| (?:lm-eval|Inspect|nnsight|Transformer)(?:[^|]*\|){3} ([\d.e-]+) \|$", PAGE, re.MULTILINE)
    assert shown == [f"{value:.1e}" if value else "0" for value in RESULTS["largest_difference"].values()]


def test_table_of_five_surfaces_agrees_with_the_results() -> None:
    """Computed again from the trials, which all of them have been asked about."""
    compared = json.loads((ROOT / "docs" / "results" / "peers" / "surfaces.json").read_text(encoding="utf-8"))
    assert compared["not_asked"] == {}
    assert len(compared["trials"]) == 20
    for name, difference in compared["largest_difference"].items():
        assert max(abs(trial[name] - trial["test"]) for trial in compared["trials"]) == difference < 1e-3
        assert f"| {name} | {difference:.1e} |" in PAGE
    largest = max(compared["largest_difference"].values())
    assert f"on twenty of `make quickstart`'s model to {float(f'{largest:.1e}'):g} " in PAGE.replace("e-5", "e-05")
    assert f"`{compared['commit']}`" in PAGE


def test_page_names_the_versions() -> None:
    """With which it was measured, and which the tests use."""
    pinned = dict(
        line.split("==")
        for name in ("constraints.txt", "constraints-peers.txt")
        for line in (ROOT / name).read_text().splitlines()
        if "==" in line
    )
    pinned = {name.lower().replace("-", "_"): version for name, version in pinned.items()}
    for name, version in RESULTS["versions"].items():
        assert pinned.get(name, version) == version
        assert name in ("torch", "transformers", "peft") or version in PAGE
