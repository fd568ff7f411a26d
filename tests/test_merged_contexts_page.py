"""What docs/weak-doses.md says of merged contexts, and of clipping less with them, is what the results files say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from full_size import NAMES, full_size_numbers, unseen_kinds, weak_dose
from weak_doses import PAGE, alarms, loaded, merged_rows, thresholds

from introspection_lit.report.formatting import format_rate


def test_the_table_of_merged_contexts_agrees_with_the_results() -> None:
    """Column by column, with what is said of lengths and of the late band."""
    said = " ".join(PAGE.split())
    runs = [loaded(name) for name in ("dither-5-rank-64", "merged-seed-1", "merged-seed-0")]
    assert all(row in PAGE for row in merged_rows(runs))
    assert [(run["seed"], run["commit"]) for run in runs[1:]] == [(1, "b8c5d1f1f710"), (0, "b8c5d1f1f710")]
    without, seed_1, seed_0 = ([(row["alarms"], row["n_clean"]) for row in run["evidence"]["lengths"]] for run in runs)
    totals = [tuple(map(sum, zip(*counts, strict=True))) for counts in (seed_1, without, seed_0)]
    assert totals == [(3, 1381), (21, 1381), (9, 1386)]
    assert (
        "3 of 1,381 clean texts are in seed 1, without merged contexts 21, and of the 674 of more than 71 tokens 1." in said
    )
    assert [sum(column) for column in zip(*seed_1[1:], strict=True)] == [1, 674]
    stored, at_one = ([f"{number:.2f}" for number in numbers] for numbers in zip(*map(thresholds, runs[:2]), strict=True))
    assert f"which is {stored[0]} without merged contexts and {stored[1]} with them" in said
    assert f"the one that 1 % of the clean texts exceed is {at_one[0]} and {at_one[1]}." in said
    assert "In seed 0 it is 9 of 1,386, most of them of at most 71 tokens" in said
    assert seed_0[0][0] == 6
    worst = max(unseen_kinds(runs[2]).values(), key=lambda row: row["fpr"])
    sizes = [row["n_clean"] for row in unseen_kinds(runs[2]).values()]
    assert f"of {min(sizes)} to {max(sizes)} texts each, is at {100 * worst['fpr']:.1f} % in seed 0" in said
    late = [
        [
            format_rate(row["auroc"])[1:]
            for run in runs[:2]
            for row in run["evidence"]["grid"]
            if (row["vectors"], row["strength"], row["band"]) == (vectors, 0.04, [19, 28])
        ]
        for vectors in NAMES
    ]
    assert f"late band ({' and '.join(' to '.join(pair) for pair in late)})" in said


def test_what_is_said_of_merged_contexts_after_the_others() -> None:
    """Column by column, with what is said of learning, of false alarms and of the goals."""
    said = " ".join(PAGE.split())
    names = ("merged-late-seed-1", "merged-late-seed-0", "merged-batches-of-2", "merged-seed-1", "merged-seed-0")
    late, other, small, before, seed_0 = (loaded(name) for name in names)
    assert all(row in PAGE for row in merged_rows([late, other, small]))
    assert [(run["seed"], run["commit"]) for run in (late, other, small)] == [
        (1, "12f171946b6b"), (0, "d401d3b81ddb"), (0, "8526c4858dbf"),
    ]  # fmt: skip
    areas = [
        " and ".join(format_rate(full_size_numbers(run)[f"AUROC at .04, {name}"])[1:] for name in NAMES.values())
        for run in (late, before, small, seed_0, other)
    ]
    assert f"the AUROC at .04 is {areas[0]} in seed 1, with merged contexts from the beginning {areas[1]};" in said
    assert f"in seed 0, after as many steps as before, it is {areas[4]} instead of {areas[3]}." in said
    late_band = [
        " and ".join(
            format_rate(run["evidence"]["detection_strength"][vectors]["bands"]["19..28"]["strength"])[1:]
            for vectors in NAMES
        )
        for run in (late, other)
    ]
    assert f"in the late band 75 % are detected from {late_band[0]} on (seed 1), {late_band[1]} (seed 0)." in said
    ends = [format_rate(run["evidence"]["training"]["auroc"][-1])[1:] for run in (other, seed_0)]
    assert f"that of seed 0 ends at {ends[0]}, with merged contexts from the beginning at {ends[1]}." in said
    assert f"{areas[2]} where batches of 4 had {areas[3]}" in said
    points = [
        next(row for row in run["evidence"]["curves"][vectors]["adapter"] if row["strength"] == 0.04)["auroc_interval"]
        for run in (late, other)
        for vectors in NAMES
    ]
    ranges = [" to ".join(f"{end:.2f}".removeprefix("0") for end in interval) for interval in points]
    assert f"{ranges[0]} and {ranges[1]} in seed 1, {ranges[2]} and {ranges[3]} in seed 0." in said
    goals = {"AUROC at .04": (0.928, 1), "75 % detected from": (0, 0.045), "TPR at .16, lowest band": (0.99, 1)}
    for numbers in map(full_size_numbers, (late, other)):
        for title, (low, high) in goals.items():
            assert all(low <= round(numbers[f"{title}, {name}"], 3) <= high for name in NAMES.values())
    validated = [format_rate(area)[1:] for area in late["evidence"]["training"]["auroc"][2:]]
    assert late["evidence"]["training"]["steps"][2:] == [2999, 3999, 4999]
    assert f"from {validated[0]} after 3,000 steps, before any merged context, to {validated[1]} after 4,000" in said
    assert f"and {validated[2]} at the end" in said
    counts = [alarms(run) for run in (late, small, other)]
    totals = [sum(count.values()) for count in counts]
    assert f"{totals[0]} and {totals[2]} of 1,125 texts of unseen kinds, at most 2 of a kind (69 to 102 texts each)" in said
    sizes = [row["n_clean"] for run in (late, other) for row in unseen_kinds(run).values()]
    assert (min(sizes), max(sizes)) == (69, 102)
    assert [max(counts[0].values()), max(counts[2].values())] == [2, 2]
    longest = [run["evidence"]["lengths"][-1] for run in (late, other)]
    assert [row["alarms"] for row in longest] == [0, 0]
    assert min(row["tokens"][0] for row in longest) > 120
    assert f"none of {longest[0]['n_clean']} and of {longest[1]['n_clean']} clean texts of more than 120 tokens" in said
    headers = unseen_kinds(small)["headers"]
    assert f"{totals[1]} of 1,125, of which {headers['alarms']} of {headers['n_clean']} headers" in said
    lengths = [row["alarms"] / row["n_clean"] for row in small["evidence"]["lengths"]]
    assert lengths == sorted(lengths, reverse=True)


def test_what_is_said_of_two_more_runs() -> None:
    """Their table; how they compare with the runs before, in learning too; and their false alarms."""
    said = " ".join(PAGE.split())
    seed_0, seed_2, before, seed_1 = (
        loaded(f"merged-late-{name}") for name in ("full-seed-0", "full-seed-2", "seed-0", "seed-1")
    )
    assert all(row in PAGE for row in merged_rows([seed_0, seed_2], 4480))
    assert [(run["seed"], run["commit"]) for run in (seed_0, seed_2)] == [(0, "dce1a18208a8"), (2, "dce1a18208a8")]
    weak = [f"{full_size_numbers(run)['AUROC at .04, random vectors']:.2f}"[1:] for run in (seed_0, seed_2, seed_1, before)]
    assert weak == [".87", ".87", ".93", ".93"]
    assert f"Both have {weak[0]} (random) at .04, seed 1 had {weak[2]}. So had seed 0" in said
    training = [run["evidence"]["training"] for run in (seed_0, before, seed_1)]
    early = [
        [loss for step, loss in zip(run["loss_steps"], run["loss"], strict=True) if 500 <= step < 1000] for run in training
    ]
    losses = [f"{sum(each) / len(each):.2f}"[1:] for each in early]
    assert f"over steps 501 to 1,000 is {losses[0]} in this run of seed 0, and {losses[1]} in that of 4,000 steps" in said
    first = [f"{run['auroc'][0]:.2f}"[1:] for run in training]
    assert f"the validation AUROC after 1,000 steps is {first[0]} and {first[1]}. Seed 1 had {first[2]} by then." in said
    assert {run["steps"][0] for run in training} == {999}
    assert [sum(alarms(run).values()) for run in (seed_0, seed_2)] == [1, 14]
    headers = unseen_kinds(seed_2)["headers"]
    assert (headers["alarms"], headers["n_clean"], f"{100 * headers['fpr']:.1f} %") == (13, 320, "4.1 %")
    assert [f"{number:.2f}" for number in thresholds(seed_0)] == ["7.16", "-1.75"]


def test_what_is_said_of_clipping_less() -> None:
    """The table; strengths, thresholds and learning beside those of the runs before; and what is not detected."""
    said = " ".join(PAGE[PAGE.index("### Clipping less") :].split())
    runs, before = ([loaded(f"{name}-{seed}") for seed in (0, 2)] for name in ("clip-10-seed", "merged-late-full-seed"))
    assert all(row in PAGE for row in merged_rows(runs))
    assert [(run["seed"], run["commit"], run["lora"]["alpha"]) for run in runs] == [
        (0, "3475ddb8f46a", 256),
        (2, "3475ddb8f46a", 256),
    ]

    def pair(numbers: Iterable[float], places: int = 3) -> str:
        return " and ".join(f"{number:.{places}f}".removeprefix("0") for number in numbers)

    def strengths(of: list[dict[str, Any]], band: str = "") -> list[str]:
        fits = [[run["evidence"]["detection_strength"][vectors] for run in of] for vectors in NAMES]
        return [pair((fit["bands"][band] if band else fit)["strength"] for fit in row) for row in fits]

    now, late, earlier = strengths(runs), strengths(runs, "19..28"), strengths(before)
    assert f"from {now[0]} (random), {now[1]} (concepts) on, in the late band from {', '.join(late)}." in said
    assert f"The same seeds in the section before: {', '.join(earlier)}, after 1,000 steps more, in the whole test;" in said
    for numbers in map(full_size_numbers, runs):
        assert all(numbers[f"75 % detected from, {name}"] <= 0.045 for name in NAMES.values())
        assert all(numbers[f"TPR at .16, lowest band, {name}"] >= 0.99 for name in NAMES.values())
    overlaps = [
        new["evidence"]["detection_strength"][vectors]["interval"][1]
        > old["evidence"]["detection_strength"][vectors]["interval"][0]
        for new, old in zip(runs, before, strict=True)
        for vectors in NAMES
    ]
    assert all(overlaps)
    assert [sum(alarms(run).values()) for run in runs] == [1, 1]
    stored, at_one = (
        " and ".join(f"{number:.2f}" for number in numbers) for numbers in zip(*map(thresholds, runs), strict=True)
    )
    assert f"stored thresholds are {stored}; 1 % of the clean texts exceed {at_one}." in said
    points = {vectors: [weak_dose(run, vectors) for run in runs] for vectors in NAMES}
    missed = [" and ".join(f"{100 * (1 - point['tpr']):.0f}" for point in row) for row in points.values()]
    assert f"At .04, {missed[0]} % of the random vectors and {missed[1]} % of the concepts are not." in said
    coin = [pair(point["tpr"] + (1 - point["tpr"]) / 2 for point in row) for row in points.values()]
    areas = [pair(point["auroc"] for point in row) for row in points.values()]
    assert f"the AUROCs would be {', '.join(coin)}: they are {', '.join(areas)}." in said
    intervals = [
        [" to ".join(pair([end], 2) for end in point["auroc_interval"]) for point in row] for row in points.values()
    ]
    assert f"are {' and '.join(intervals[0])} (random), {' and '.join(intervals[1])} (concepts)." in said
    curves = [[run["evidence"]["training"] for run in each] for each in (runs, before)]
    early = [pair(run["auroc"][run["steps"].index(1999)] for run in each) for each in curves]
    ends = [pair(run["auroc"][-1] for run in each) for each in curves]
    assert f"after 2,000 steps has AUROCs of {early[0]}, in the section before {early[1]}." in said
    assert f"after 4,000 steps, they are {ends[0]}; before, after 5,000, {ends[1]}." in said
    assert [run["steps"][-1] for each in curves for run in each] == [3999, 3999, 4999, 4999]
