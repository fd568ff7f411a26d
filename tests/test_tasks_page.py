"""The tables and sentences of docs/tasks.md, and what the README says of several tasks, are those of the results files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from project_paths import ROOT

from introspection_lit.report.verdict import answer_sentences
from introspection_lit.tools.task_numbers import NUMBERS, task_intervals, task_numbers

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
TASKS = ROOT / "docs" / "results" / "tasks"


# The columns of docs/tasks.md: the file, and the observer in it.
SEEDS = ("seed-0", "seed-1", "seed-2")
ADAPTERS = ("single", "visible", *SEEDS)
COLUMNS = (("seed-0", "untrained"), *((name, "adapter") for name in ADAPTERS))


def task_table() -> list[str]:
    """The rows of docs/tasks.md; an empty cell where a test did not ask."""
    read = {name: json.loads((TASKS / f"{name}.json").read_text(encoding="utf-8")) for name, _ in COLUMNS}
    columns = [task_numbers(read[name], observer) for name, observer in COLUMNS]
    intervals, rows = task_intervals(read["seed-0"], "adapter"), []
    for name, title in NUMBERS.items():
        values = ["" if column[name] is None else f"{column[name]:.3f}" for column in columns]
        ends = intervals[name]
        rows.append(f"| {title} | {' | '.join(values)} | {f'{ends[0]:.2f} to {ends[1]:.2f}' if ends else ''} |")
    return rows


def test_table_of_the_tasks_agrees_with_the_results() -> None:
    """Row by row; and the page says at which commit and with which seed."""
    for row in task_table():
        assert row in PAGE
    for name, _ in COLUMNS:
        results = json.loads((TASKS / f"{name}.json").read_text(encoding="utf-8"))
        assert results["commit"] in PAGE
        assert "+changes" not in results["commit"]


def test_the_page_says_how_often_concepts_are_named() -> None:
    """By the adapter and by the untrained model, with the information of both; by digit or letter neither does."""
    page = " ".join(PAGE.split())
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for seed in SEEDS:
        for row in json.loads((TASKS / f"{seed}.json").read_text(encoding="utf-8"))["evidence"]["choices"]:
            found.setdefault((row["set"], row["observer"]), []).append(row)
    trained, untrained, lettered = (
        found[key] for key in (("naming", "adapter"), ("naming", "untrained"), ("identification", "adapter"))
    )
    (caches,) = {row["n"] for row in trained}
    low, high = spread(trained, "accuracy", 100)
    assert f"in {low:.0f} to {high:.0f} % of {caches} caches" in page
    assert "the untrained model in {:.0f} to {:.0f} %".format(*spread(untrained, "accuracy", 100)) in page
    bits = (*spread(trained, "information"), max(row["information_by_chance"] for row in trained))
    assert "({:.1f} to {:.1f} bits; at most {:.1f} by chance)".format(*bits) in page
    assert (
        "in a digit or letter it does not: {:.2f} to {:.2f}".format(*spread(lettered, "accuracy")).replace(" 0.", " .")
        in page
    )


def spread(rows: Sequence[dict[str, Any]], name: str, factor: float = 1) -> tuple[float, float]:
    """The least and the largest value of a number."""
    values = [factor * row[name] for row in rows]
    return min(values), max(values)


# What answers by name have changed: rows of the table, before (answers in digits and letters alone) and now.
CHANGED = ("newcodes_both", "halves", "lines", "comparison", "identification", "naming", "reading", "perplexity")


def test_table_of_what_names_change_agrees_with_the_results() -> None:
    """The values of the three seeds, before and now; and the page says at which commits."""
    tables = []
    for kind in ("digits", "seed"):
        runs = [json.loads((TASKS / f"{kind}-{seed}.json").read_text(encoding="utf-8")) for seed in range(3)]
        assert [run["seed"] for run in runs] == [0, 1, 2]
        assert all(run["commit"] in PAGE for run in runs)
        tables.append([task_numbers(run, "adapter") for run in runs])
    for name in CHANGED:
        cells = [" ".join("-" if row[name] is None else f"{row[name]:.2f}" for row in rows) for rows in tables]
        assert f"| {NUMBERS[name]} | {cells[0]} | {cells[1]} |" in PAGE


def ablation_table() -> list[str]:
    """The rows of the ablations: the values of all seeds, in order; a column for each training."""
    rows = json.loads((TASKS / "ablations.json").read_text(encoding="utf-8"))["rows"]
    known = {name: found for name in NUMBERS for found in [[row.get(name) for row in rows.values()]] if any(found)}
    cells = {
        name: [" ".join(f"{value:.2f}" for value in cell["values"]) if cell else "" for cell in found]
        for name, found in known.items()
    }
    return [f"| {NUMBERS[name]} | {' | '.join(values)} |" for name, values in cells.items()]


def test_table_of_the_ablations_agrees_with_the_results() -> None:
    """Row by row, with a column for each training, and the commit."""
    results = json.loads((TASKS / "ablations.json").read_text(encoding="utf-8"))
    assert f"| | {' | '.join(name.replace('-', ' ').replace('_', ' ') for name in results['rows'])} |" in PAGE
    for row in ablation_table():
        assert row in PAGE
    assert f"`{results['commit']}`" in PAGE
    assert "+changes" not in results["commit"]


def test_readme_says_what_several_tasks_show() -> None:
    """With the digits of the worst of the three seeds."""
    runs = [json.loads((TASKS / f"{seed}.json").read_text(encoding="utf-8")) for seed in SEEDS]
    assert [run["seed"] for run in runs] == [0, 1, 2]
    found = [task_numbers(run, "adapter") | {"factual": run["sets"]["factual"]["auroc"]} for run in runs]
    lowest = {name: f"{min(seed[name] for seed in found):.3f}".removeprefix("0") for name in ("swapped", "newcodes")}
    factual = max((seed["factual"] for seed in found), key=lambda area: abs(area - 0.5))
    words = " ".join(README.split())
    assert f"`swapped` {lowest['swapped']}, `factual` {factual:.3f}".replace(" 0.", " .") in words
    assert f"answer words never trained on {lowest['newcodes']}" in words
    places = [f"{100 * min(seed[name] for seed in found):.0f} %" for name in ("halves", "lines", "naming")]
    where = "at strength .5 or more it names the half ({}) or the line ({}; chance is 25 %) of the text that was steered,"
    assert f"{where} and {{}} of held-out concepts.".format(*places) in words
    (verdict,) = {answer_sentences(run)[0].split(".")[0] for run in runs}
    assert f'says "{verdict}" of all three' in " ".join(PAGE.split())
