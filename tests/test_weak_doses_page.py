"""What docs/weak-doses.md says of directions, rank, dither and all runs together is what the results files say."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from full_size import NAMES, full_size_numbers, weak_dose
from project_paths import ROOT
from weak_doses import FOLDER, PAGE, alarms, loaded

from introspection_lit.evaluation.trial_table import CURVES
from introspection_lit.report.formatting import format_rate


def test_the_table_of_signs_and_ranks_agrees_with_the_results() -> None:
    """The smaller experiment's rows, with what each adapter detects of its own directions; and the full-size run."""
    results, full = loaded("signs"), loaded("full-size")
    recipes = yaml.safe_load((FOLDER / "signs.yaml").read_text(encoding="utf-8"))
    columns = [f"{vectors}_{number}" for number in ("auroc", "strength") for vectors in CURVES]
    assert f"Not run: {', '.join(name for name in recipes if name not in results['rows'])}." in PAGE

    def of_directions(name: str) -> tuple[list[str], str]:
        found = loaded(f"by-direction-{name}")
        return [format_rate(found["sets"][split]["auroc"]) for split in ("seen", "flipped", "heldout")], found["commit"]

    commits = {results["commit"], full["commit"]}
    for name, row in results["rows"].items():
        areas, commit = of_directions(name)
        commits.add(commit)
        numbers = [format_rate(row[column]["values"][0]) for column in columns]
        assert f"| {name} | {' | '.join([*numbers, *areas])} |" in PAGE
    areas, commit = of_directions("full-size")
    for each in commits | {commit}:
        assert f"`{each}`" in PAGE
        assert "+changes" not in each
    before = full_size_numbers(loaded("../smollm2-135m/seed-1"))
    for title, number in full_size_numbers(full).items():
        assert f"| {title} | {format_rate(before[title])} | {format_rate(number)} |" in PAGE
    assert f"own directions {areas[0]}, with their sign flipped {areas[1]}, held-out ones {areas[2]}" in " ".join(
        PAGE.split()
    )
    assert full["evidence"]["training"]["auroc"][-1] == pytest.approx(0.998, abs=5e-4)
    assert "validation AUROC of .998" in PAGE
    assert f"{100 * full['sets']['newkinds']['fpr']:.1f} % of 1,125 clean texts" in PAGE
    assert full["sets"]["newkinds"]["n_clean_distinct"] == 1125


def test_the_summary_agrees_with_the_results() -> None:
    """Row by row: AUROCs at .04 before and after each change, and false alarms."""

    def weak(run: dict[str, Any]) -> str:
        return format_rate(weak_dose(run, "random")["auroc"])

    def start(run: dict[str, Any]) -> str:
        return format_rate(full_size_numbers(run)["75 % detected from, random vectors"])[1:]

    summary = PAGE[: PAGE.index("## The smaller experiment")]
    rows = loaded("recipes")["rows"]
    before, after = (format_rate(rows[name]["random_auroc"]["values"][0]) for name in ("base", "smallest-batches"))
    seeds = [format_rate(row) for row in loaded("batches-of-4")["rows"]["base"]["random_auroc"]["values"]]
    assert f"AUROC at .04 {before} to {after} (other seeds {' and '.join(seeds)}) |" in summary
    names = ("full-size", "dither-5-rank-64", "merged-seed-1", "merged-late-seed-1")
    signs, dither, merged, late = (
        (weak(run), f"{100 * run['sets']['newkinds']['fpr']:.1f} %") for run in map(loaded, names)
    )
    heard, unheard = (
        format_rate(loaded(name)["evidence"]["curves"]["random"]["adapter"][0]["auroc"])
        for name in ("vanishing", "vanishing-dither-5-rank-64")
    )
    clip, full = ([loaded(f"{name}-{seed}") for seed in (0, 2)] for name in ("clip-10-seed", "merged-late-full-seed"))
    starts = [" and ".join(map(start, runs)) for runs in (clip, full)]
    full_size, other = (loaded("full-size"), loaded("../smollm2-135m/seed-1")), loaded("merged-late-seed-0")
    (rate,) = {f"{100 * run['sets']['newkinds']['fpr']:.1f} %".lstrip("0") for run in clip}
    (others,) = {weak(loaded(f"merged-late-full-seed-{seed}")) for seed in (0, 2)}
    for said in (
        f"full experiment {weak(loaded('../smollm2-135m/seed-1'))} to {signs[0]}, a part",
        f"bf16-mixed; 75 % detected from {' instead of '.join(map(start, full_size))}; "
        f"false alarms on unseen kinds {signs[1]} |",
        f"AUROC at 1e-6 {heard} to {unheard}), weak doses still are ({dither[0]});",
        f"on long texts, {dither[1]} |",
        f"false alarms {merged[1].lstrip('0')}, AUROC {merged[0]} |",
        f"false alarms {late[1].lstrip('0')}, AUROC {late[0]} in one run, {weak(other)} in another, "
        f"and [{others} in two more]",
        f"75 % detected from {starts[0]}, before from {starts[1]}; false alarms {rate}, "
        f"AUROC {' and '.join(map(weak, clip))} |",
    ):
        assert said in summary, said


def test_what_is_said_of_rounding() -> None:
    """The AUROC at a vanishing strength in both precisions, and the clean texts above the threshold in float32."""
    said = " ".join(PAGE.split())
    found = {name: loaded(name) for name in ("vanishing", "vanishing-float32")}
    areas = [
        [f"{row['auroc']:.3f}".lstrip("0") for row in run["evidence"]["curves"]["random"]["adapter"]]
        for run in found.values()
    ]
    assert f"its AUROC is {areas[0][0]}; the same adapter, on the same trials, in float32: {areas[1][0]} (" in said
    alarms = 100 * found["vanishing-float32"]["sets"]["doses"]["fpr"]
    assert f"At .04 it is {areas[0][1]}, in float32 {areas[1][1]}, where {alarms:.0f} % of the clean texts" in said
    assert [run["precision"] for run in found.values()] == ["bf16-mixed", "32-true"]


def test_the_table_of_dither_agrees_with_the_results() -> None:
    """Column by column, and what is said of kinds and of the runs that are not in it."""
    names = {
        "full-size": "vanishing",
        "dither-rank-64": "vanishing-dither-rank-64",
        "dither-5-rank-64": "vanishing-dither-5-rank-64",
        "dither-rank-16": "vanishing-dither-rank-16",
    }
    for title, cells in dither_numbers(names).items():
        assert f"| {title} | {' | '.join(cells)} |" in PAGE
    ours = {name: loaded(name) for name in names if name != "full-size"}
    both = {end: [loaded(f"{names[run]}{end}") for run in ours] for end in ("", "-float32")}
    assert [run["precision"] for pair in zip(*both.values(), strict=True) for run in pair] == ["bf16-mixed", "32-true"] * 3
    assert [run["commit"] for run in ours.values()] == ["468f5bbddf7e", "6aeab613553f", "468f5bbddf7e"]
    assert all(
        [run["commit"] for run in runs] == ["468f5bbddf7e", "a8df19b0e43d", "468f5bbddf7e"] for runs in both.values()
    )
    assert [run["lora"]["r"] for run in ours.values()] == [64, 64, 16]
    found = {name: alarms(loaded(name)) for name in names}
    least, more = found["dither-rank-64"], found["dither-5-rank-64"]
    assert [least[kind] for kind in ("bytecode", "logs")] == [20, 14]
    assert sorted(least, key=lambda kind: -least[kind])[:4] == ["bytecode", "logs", "turkish", "unicode"]
    without = found["full-size"]
    assert sorted(without, key=lambda kind: -without[kind])[:2] == ["bytecode", "logs"]
    assert without["turkish"] == 0
    cells = [
        row for row in ours["dither-rank-64"]["evidence"]["grid"] if (row["vectors"], row["strength"]) == ("random", 0.005)
    ]
    assert round(100 * sum(row["n"] * row["tpr"] for row in cells) / sum(row["n"] for row in cells)) == 14
    assert [more[kind] for kind in ("bytecode", "unicode", "japanese", "logs")] == [6, 4, 3, 3]
    assert [*more.values()].count(0) == 6
    rank_16 = found["dither-rank-16"]
    assert (rank_16.pop("latex"), rank_16.pop("manual"), sum(rank_16.values())) == (10, 1, 0)


def test_what_is_said_of_a_larger_dither() -> None:
    """Its false alarms, where most of them are, and what it detects."""
    said, larger = " ".join(PAGE.split()), loaded("dither-10-rank-64")
    found = alarms(larger)
    assert {*sorted(found, key=lambda kind: -found[kind])[:2]} == {"bytecode", "logs"}
    areas = [format_rate(full_size_numbers(larger)[f"AUROC at .04, {name}"])[1:] for name in NAMES.values()]
    assert f"false alarms are {100 * larger['sets']['newkinds']['fpr']:.1f} %" in said
    assert f"at an AUROC of {' and '.join(areas)} at .04" in said
    assert larger["commit"] == "a8df19b0e43d"
    assert 0.35 < larger["evidence"]["controls"][0]["auroc"] < 0.65  # one of the six runs of docs/validity.md


def test_the_false_alarms_of_dither_by_length_are_those_of_the_results() -> None:
    """Classes, alarms and texts; nearly all of the alarms, which docs/validity.md counts, are in the upper two classes."""
    run = loaded("dither-5-rank-64")
    lengths = [(row["tokens"][1], row["alarms"], row["n_clean"]) for row in run["evidence"]["lengths"][:3]]
    assert lengths == [(65, 0, 535), (90, 1, 551), (111, 7, 220)]
    assert [run["evidence"]["lengths"][3][key] for key in ("n_trained", "alarms", "n_clean")] == [0, 13, 75]
    assert sum(alarms(run).values()) == 21
    trained = [row["n_trained"] for row in run["evidence"]["lengths"]]
    assert round(100 * sum(trained[2:]) / sum(trained)) == 5


def test_the_check_list_counts_the_runs_that_do_not_hear_rounding() -> None:
    """All runs with dither of the folder; their AUROCs at 1e-6 are asserted with their tables."""
    names = [file.stem for kind in ("dither", "merged", "clip") for file in FOLDER.glob(f"{kind}-*.json")]
    assert (len(names), len({loaded(name)["seed"] for name in names})) == (13, 3)
    validity = (ROOT / "docs" / "validity.md").read_text(encoding="utf-8")
    assert "with it none of thirteen runs, three seeds (" in validity


def dither_numbers(names: dict[str, str]) -> dict[str, list[str]]:
    """Cells of the table of dither, by title: of each shorter test and its tests at 1e-6 in both precisions."""
    full = {name: loaded(name) for name in names}
    small = {name: (loaded(rounding), loaded(f"{rounding}-float32")) for name, rounding in names.items()}
    cells = {"validation AUROC": [format_rate(run["evidence"]["training"]["auroc"][-1]) for run in full.values()]}
    for place, strength in enumerate(("1e-6", ".04")):
        for number, precision in enumerate(("bf16-mixed", "float32")):
            points = [pair[number]["evidence"]["curves"]["random"]["adapter"][place] for pair in small.values()]
            cells[f"AUROC at {strength}, 75 trials, {precision}"] = [format_rate(point["auroc"]) for point in points]
    for number, precision in enumerate(("bf16-mixed", "float32")):
        rates = [pair[number]["sets"]["doses"]["fpr"] for pair in small.values()]
        cells[f"FPR on their clean texts, {precision}"] = [format_rate(rate) for rate in rates]
    numbers = [full_size_numbers(run) for run in full.values()]
    cells |= {title: [format_rate(column[title]) for column in numbers] for title in numbers[0]}
    unseen = [run["sets"]["newkinds"] for run in full.values()]
    assert {row["n_clean_distinct"] for row in unseen} == {1125}
    cells["FPR on 1,125 texts of unseen kinds"] = [format_rate(row["fpr"]) for row in unseen]
    return cells
