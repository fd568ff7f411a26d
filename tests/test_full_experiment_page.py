"""The full experiment in docs/results.md: its tables and sentences are those of the results files."""

from __future__ import annotations

import json
from collections.abc import Callable

from project_paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
FULL = ROOT / "docs" / "results" / "smollm2-135m"
# Of the full experiment: each seed, and seed 0 as it was trained before, in batches of 32.
SEEDS = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(FULL.glob("seed-*.json"))]
BEFORE = json.loads((FULL / "batches-of-32" / "results.json").read_text(encoding="utf-8"))


def goals(results: dict) -> dict[str, str]:
    """The table of goals: each goal, and what a results file of the full experiment says of it."""
    found = results["evidence"]
    unseen = [row for row in found["kinds"] if not row["seen"]]
    assert all(row["n_clean"] >= 300 for row in unseen)
    worst = max(unseen, key=lambda row: (row["fpr"], row["fpr_interval"][1]))
    kept = sum(row["fpr"] <= 0.01 for row in unseen)
    low, high = worst["fpr_interval"]
    cells = {
        f"FPR on each of {len(unseen)} unseen kinds, at least 300 distinct clean inputs each | at most .01": f"{kept} of "
        f"{len(unseen)}; worst: {worst['kind']} {worst['fpr']:.3f} ({low:.3f}-{high:.3f})"
    }
    for name in ("random", "concept"):
        bands = [row for row in found["grid"] if row["vectors"] == name and row["strength"] == 0.16]
        cell = min(bands, key=lambda row: row["tpr"])
        cells[f"TPR at .16, {name} vectors, lowest of {len(bands)} bands | at least .99"] = (
            f"{cell['tpr']:.3f} (layers {cell['band'][0]}..{cell['band'][1]}, n = {cell['n']})"
        )
    for name in ("random", "concept"):
        point = next(row for row in found["curves"][name]["adapter"] if row["strength"] == 0.04)
        low, high = point["auroc_interval"]
        cells[f"AUROC at .04, {name} vectors | at least .93"] = (
            f"{point['auroc']:.3f} ({low:.3f}-{high:.3f}), n = {point['n']}"
        )
    for name in ("random", "concept"):
        fit = found["detection_strength"][name]
        low, high = fit["interval"]
        cells[f"75 % detected at 1 % FPR from strength, {name} vectors | at most .045"] = (
            f"{fit['strength']:.3f} ({low:.3f}-{high:.3f})"
        )
    return cells


def controls(results: dict) -> dict[str, str]:
    """The table of controls, likewise."""
    return {
        f"`{row['name']}` | {row['expected']}": f"AUROC {row['auroc']:.3f}"
        + (f", TPR {row['tpr']:.3f}, FPR {row['fpr']:.3f}" if row["tpr"] is not None else "")
        + f": {'held' if row['held'] else '**not held**'}"
        for row in results["evidence"]["controls"]
    }


def side_by_side(cells: Callable[[dict], dict[str, str]]) -> list[str]:
    """A table's rows: the seeds, then the run in batches of 32."""
    columns = [cells(results) for results in (*SEEDS, BEFORE)]
    return [f"| {' | '.join((title, *(column[title] for column in columns)))} |" for title in columns[0]]


def sayings(runs: list[dict]) -> list[str]:
    """What docs/results.md says of the full experiment outside its tables, seed by seed."""

    def each(text: Callable[[dict], str]) -> str:
        return " and ".join(map(text, runs))

    def area(observer: str) -> str:
        return each(
            lambda run: next(
                f"{row['auroc']:.2f}".lstrip("0")
                for row in run["evidence"]["references"]
                if (row["set"], row["observer"]) == ("heldout", observer)
            )
        )

    def weak(vectors: str) -> str:
        points = [next(p for p in run["evidence"]["curves"][vectors]["adapter"] if p["strength"] == 0.04) for run in runs]
        return " and ".join(f"{100 * point['tpr']:.0f} %" for point in points)

    def perplexity(run: dict) -> str:
        found = [run["evidence"]["side_effects"]["perplexity"][state]["perplexity"] for state in ("off", "on")]
        return f"from {found[0]:.0f} to {found[1]:.1e}"

    assert all(run["sets"]["newkinds"]["n_clean_distinct"] == 4480 for run in runs)
    unseen = [{row["kind"]: row["fpr"] for row in run["evidence"]["kinds"] if not row["seen"]} for run in runs]
    worst = max(sum(column[kind] for column in unseen) / len(unseen) for kind in unseen[0])
    rates = each(lambda run: f"{run['sets']['newkinds']['fpr']:.4f}".lstrip("0"))
    return [
        f"on 4,480 distinct clean inputs of unseen kinds the FPR is {rates}, and {worst:.4f} on the worst kind in the mean",
        f"odd texts set it off in {each(lambda run: format(100 * run['sets']['odd']['fpr'], '.1f'))} %",
        f"at .04, {weak('random')} (random) and {weak('concept')} (concepts) are detected at 1 % FPR",
        f"the norms of keys and values reach an AUROC of {area('norms')}, a linear probe on the same cache "
        f"{area('linear probe')}, the text {area('text')}, the untrained model {area('untrained')}, and "
        f"{area('with info')} with the info prompt",
        f"the perplexity of held-out texts rises {each(perplexity)}",
    ]


def test_goals_and_controls_are_those_of_the_results() -> None:
    """Row by row, with what was not reached; from runs without uncommitted changes."""
    for row in (*side_by_side(goals), *side_by_side(controls)):
        assert row in RESULTS, row
    assert all(said in " ".join(RESULTS.split()) for said in sayings(SEEDS)), sayings(SEEDS)
    for results in (*SEEDS, BEFORE):
        held = [row["held"] for row in results["evidence"]["controls"]]
        assert (len(held), held.count(False)) == (6, 3)
        assert "+changes" not in results["commit"]
        assert results["commit"] in RESULTS
    assert "Three of six controls did not hold" in README
    assert [results["seed"] for results in SEEDS] == [0, 1]
    for results, place in ((SEEDS[0], FULL), (SEEDS[1], FULL), (BEFORE, FULL / "batches-of-32")):
        assert results["command"] in (place / "README.md").read_text(encoding="utf-8")
