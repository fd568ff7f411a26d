"""The scripts for GPUs: steps with their limits and files, what is shown of them, and the tables in the docs."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from full_size import full_size_numbers, worst_and_vanishing
from project_paths import ROOT
from run_scripts import script

from introspection_lit.tools.gpu_day import copies, pages, step
from introspection_lit.tools.gpu_day.day import day_steps, outcomes_of_tests, seed_numbers
from introspection_lit.tools.gpu_day.figures import MISSING, figures
from introspection_lit.tools.gpu_day.node import node_steps
from introspection_lit.tools.gpu_day.recorded import differences, read_recorded
from introspection_lit.tools.gpu_day.step import DONE, FAILED, OUT_OF_TIME, Day, Step, read_records, run_steps
from introspection_lit.utils.errors import ConfigurationError, RunError

ORIGIN = {"command": "python scripts/gpu_day.py", "commit": "abc", "hardware": "1 x card", "gpus": []}


def day(folder: Path, minutes: float = 1.0, tiny: bool = False, **origin: Any) -> Day:
    """So many minutes in a folder."""
    return Day(ROOT, folder, tiny, time.monotonic() + 60 * minutes, ORIGIN | origin)


def writing(folder: Path, name: str, code: str, minutes: float = 0.1, **options: Any) -> Step:
    """A step that runs some Python, whose result is a file that the code has written."""
    file = folder / f"{name}.found"
    words = ["-S", "-c", f"file = {str(file)!r}\n{code}"]
    return Step(name, minutes, [words], lambda: {"found": file.read_text()}, **options)


WRITES = "open(file, 'a').write('x')"


def run(made: Day, *steps: Step) -> tuple[list[str], str]:
    """The steps that failed, and what was said."""
    said: list[str] = []
    return run_steps(made, steps, said.append), "\n".join(said)


def test_steps_are_kept_and_not_run_again(tmp_path: Path) -> None:
    """Each file says where it comes from; a second run writes nothing."""
    first, second = (writing(tmp_path, name, WRITES, seed=7) for name in ("first", "second"))
    assert run(day(tmp_path), first)[0] == []
    record = read_records(tmp_path)["first"]
    assert (record["status"], record["result"], record["seed"]) == (DONE, {"found": "x"}, 7)
    assert {name: record[name] for name in ORIGIN} == ORIGIN
    assert record["step_commands"][0].startswith("python -S -c 'file = '\"'\"'FOLDER/first.found")
    assert str(tmp_path) not in json.dumps({**record, "result": None})
    failed, said = run(day(tmp_path), first, second)
    assert failed == []
    assert "first: there already, of commit abc" in said
    assert [record["result"]["found"] for record in read_records(tmp_path).values()] == ["x", "x"]


def test_a_failed_step_does_not_stop_the_others(tmp_path: Path) -> None:
    """It says why; and is tried again, after those that were never tried."""
    fails = writing(tmp_path, "fails", "print('progress\\rbar\\n', 1/0)")
    lacks = writing(tmp_path, "lacks", "pass")  # ends well and writes nothing
    works = writing(tmp_path, "works", WRITES)
    failed, said = run(day(tmp_path), fails, lacks, works)
    assert failed == ["fails", "lacks"]
    assert "ZeroDivisionError" in said
    records = read_records(tmp_path)
    assert [records[name]["status"] for name in ("fails", "lacks", "works")] == [FAILED, FAILED, DONE]
    assert "exit status 1" in records["fails"]["error"]
    assert "FileNotFoundError" in records["lacks"]["error"]
    _, said = run(day(tmp_path), fails, writing(tmp_path, "new", WRITES))
    assert said.index("new: about") < said.index("fails: about")
    assert [left.name for left in step.remaining(tmp_path, [fails, lacks, works])] == ["fails", "lacks"]


def test_contexts_of_the_full_experiment(tmp_path: Path) -> None:
    """A file made elsewhere is what all seeds are given, and nothing else is; without one, what the configuration says."""
    file = tmp_path / "contexts.jsonl"
    with pytest.raises(ConfigurationError, match=r"--contexts: no such file: .*contexts\.jsonl"):
        day_steps(ROOT, tmp_path, tiny=False, contexts=file)
    file.write_text("{}")
    for contexts, seeds in ((file, {"seed-0", "seed-1", "seed-2"}), (None, set())):
        steps = day_steps(ROOT, tmp_path, tiny=False, contexts=contexts)
        assert {each.name for each in steps if str(file) in " ".join(each.commands[0])} == seeds


def test_exit_statuses_with_a_result(tmp_path: Path) -> None:
    """Tests that fail are a result, too."""
    failed, _ = run(day(tmp_path), writing(tmp_path, "tests", f"{WRITES}; raise SystemExit(1)", accepted=(0, 1)))
    assert failed == []


def is_alive(process: int) -> bool:
    """Whether a process still runs; one that nobody has asked about its end does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_step_that_hangs_is_ended_with_all_it_has_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its limit; a process that it started, and that would keep a GPU's memory, is ended with it."""
    monkeypatch.setattr(step, "GRACE", 0.2)
    started = tmp_path / "started"
    child = f"import subprocess, time; p = subprocess.Popen(['sleep', '60']); open({str(started)!r}, 'w').write(str(p.pid))"
    hangs = writing(tmp_path, "hangs", f"{child}; time.sleep(60)", minutes=0.01)
    failed, said = run(day(tmp_path), hangs, writing(tmp_path, "works", WRITES))
    assert failed == ["hangs"]
    assert f"hangs: {OUT_OF_TIME}" in said
    assert read_records(tmp_path)["works"]["status"] == DONE
    assert not is_alive(int(started.read_text()))


def test_an_interrupted_step_leaves_no_file_and_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Ctrl-C in the middle: what was done before stays, and the step is run again the next time."""
    monkeypatch.setattr(step, "GRACE", 0.2)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # where tests run in the background it is ignored
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    started = tmp_path / "started"
    code = f"import os, signal, time; open({str(started)!r}, 'w').write(str(os.getpid()))\n"
    code += "os.kill(os.getppid(), signal.SIGINT); time.sleep(60)"
    with pytest.raises(KeyboardInterrupt):
        run(day(tmp_path), writing(tmp_path, "first", WRITES), writing(tmp_path, "second", code))
    assert not is_alive(int(started.read_text()))
    assert set(read_records(tmp_path)) == {"first"}
    _, said = run(day(tmp_path), writing(tmp_path, "first", WRITES), writing(tmp_path, "second", WRITES))
    assert "first: there already" in said
    assert read_records(tmp_path)["second"]["status"] == DONE


def test_steps_start_their_own_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a job or under a launcher, too: Lightning does not wait for processes that nobody starts; nor for a network."""
    for name in ("WORLD_SIZE", "LOCAL_RANK", "SLURM_NTASKS", "KEPT"):
        monkeypatch.setenv(name, "2")
    code = "import os; open(file, 'w').write(' '.join(sorted(n for n in os.environ if os.environ[n] in ('2', '1'))))"
    run(day(tmp_path), writing(tmp_path, "first", code))
    names = read_records(tmp_path)["first"]["result"]["found"].split()
    assert {"KEPT", "HF_HUB_OFFLINE"} <= set(names)
    assert not {"WORLD_SIZE", "LOCAL_RANK", "SLURM_NTASKS"} & set(names)


def test_a_step_is_not_begun_without_the_time_that_it_takes(tmp_path: Path) -> None:
    """A shorter one after it is."""
    long, short = writing(tmp_path, "long", WRITES, minutes=2), writing(tmp_path, "short", WRITES)
    failed, said = run(day(tmp_path, minutes=1), long, short)
    assert failed == []
    assert "long: not begun, it takes 2 minutes" in said
    assert set(read_records(tmp_path)) == {"short"}


@pytest.mark.parametrize("other", [{"hardware": "another card"}, {"tiny": True}])
def test_files_of_another_machine_or_a_rehearsal_are_refused(tmp_path: Path, other: dict[str, Any]) -> None:
    """Numbers of two machines do not belong into one table."""
    run(day(tmp_path), writing(tmp_path, "first", WRITES))
    with pytest.raises(ConfigurationError, match="first there: measured on other hardware"):
        run(day(tmp_path, **other), writing(tmp_path, "second", WRITES))


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    """Changed by hand, or cut off."""
    run(day(tmp_path), writing(tmp_path, "first", WRITES))
    file = tmp_path / "first.json"
    whole = file.read_text()
    for damaged in (whole.replace('"found": "x"', '"found": "y"'), whole[:100]):
        file.write_text(damaged)
        with pytest.raises(ConfigurationError, match=r"first\.json: .*run again"):
            read_records(tmp_path)


@pytest.mark.parametrize(("name", "message"), [("gpu_day", "at least 1; --tiny"), ("gpu_node", "at least 2; --tiny")])
def test_without_gpus_only_a_rehearsal_runs(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says so and leaves nothing behind; unknown steps are refused, too."""
    monkeypatch.setattr(step, "machine", lambda *_: ORIGIN)
    for words, expected in (([], message), (["--tiny", "--only", "nothing"], "--only: got nothing. Expected some of ")):
        with pytest.raises(SystemExit) as stop:
            script(name).main(["--folder", str(tmp_path), *words])
        assert stop.value.code == 2
        assert expected in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# ---- what steps find ----


def test_copies_on_the_cpu_keep_every_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that computes with the numbers changes most of the 254 nans: of each sign, 127 of 127 but the usual one."""
    assert {copies.changed_patterns(name, "cpu") for name in copies.COPIES} == {0}
    monkeypatch.setitem(copies.COPIES, "computing", lambda target, source: target.copy_(source.float().mul(1.0)))
    assert 200 <= copies.changed_patterns("computing", "cpu") <= 254


def test_packed_model_has_patterns_that_are_nan() -> None:
    """Otherwise copies would not be tested; two bytes an element, two weights a byte."""
    model = copies.packed_model("cpu")
    bits = copies.bits(model)
    assert len(bits) == copies.LAYERS * copies.WIDTH**2 // 4
    assert bits.view(torch.bfloat16).isnan().sum() > 100


def outcomes_of_tests_are_those_that_pytest_writes(tmp_path: Path) -> None:
    """Of a passing, a failing and a skipped test, and of one that is expected to fail."""
    body = "import pytest\ndef test_a(): pass\ndef test_b(): assert 0\n@pytest.mark.skip\ndef test_c(): pass\n"
    body += "@pytest.mark.xfail\ndef test_d(): assert 0\n"
    (tmp_path / "test_sample.py").write_text(body)
    report = tmp_path / "tests.xml"
    words = ["-p", "no:cacheprovider", "-n0", "-q", "-m", "", "--rootdir", str(tmp_path), f"--junitxml={report}"]
    status = pytest.main([*words, "-c", os.devnull, "-o", "addopts=", str(tmp_path / "test_sample.py")])
    assert status == 1
    found = outcomes_of_tests(report)
    assert found["outcomes"] == {"passed": 1, "failed": 1, "skipped": 1, "expected to fail": 1}
    assert [name.rpartition("::")[2] for name in found["tests"]] == ["test_a", "test_b", "test_c", "test_d"]


def write_ranks(folder: Path, *ranks: dict[str, Any]) -> dict[str, Any]:
    """What processes recorded, put together."""
    folder.mkdir()
    for number, rank in enumerate(ranks):
        whole = {"world_size": 2, "batch_size": 4, "accumulated": 1, "peak_gib": 1.0} | rank
        (folder / f"recorded.rank{number}.json").write_text(json.dumps(whole))
    return read_recorded(folder)


def test_processes_are_put_together(tmp_path: Path) -> None:
    """Mean loss, sum of rates, largest peak, all scores; one that wrote nothing is noticed."""
    first = {"losses": [1.0, 2.0], "trials_per_second": 3.0, "peak_gib": 5.0, "scores": {"heldout:0": 0.5}}
    second = {"losses": [3.0, 4.0], "trials_per_second": 4.0, "scores": {"heldout:1": -0.5}}
    found = write_ranks(tmp_path / "both", first, second)
    assert found["losses"] == [2.0, 3.0]
    assert (found["trials_per_second"], found["peak_gib"]) == (7.0, 5.0)
    assert found["scores"] == {"heldout:0": 0.5, "heldout:1": -0.5}
    with pytest.raises(RunError, match="1 processes wrote"):
        write_ranks(tmp_path / "one", first)
    other = {"losses": [2.0, 3.5], "scores": {"heldout:0": 0.5, "heldout:1": -0.25}}
    compared = differences(found, other)
    assert (compared["largest_loss_difference"], compared["largest_score_difference"]) == (0.5, 0.25)
    with pytest.raises(RunError, match="cannot be compared"):
        differences(found, other | {"losses": [2.0]})


# ---- tables ----

ALL = {"gpu_day": day_steps(ROOT, Path("/folder"), False), "gpu_node": node_steps(Path("/folder"), 8, False, "gpu")}


def test_every_step_is_in_the_tables() -> None:
    """Under its own name, with rows that say that nothing was measured."""
    assert {made.name for made in ALL["gpu_day"]} == {*pages.SPEED, *pages.MEMORY}
    assert {made.name for made in ALL["gpu_node"]} == set(pages.NODE)
    for made in (made for steps in ALL.values() for made in steps):
        rows = figures(made.name, None)
        assert rows
        assert {row.measured for row in rows} == {MISSING}


def test_the_day_fits_into_its_minutes() -> None:
    """By the estimates, all but the seeds, which are last; two geometries and three seeds differ in nothing else."""
    names = [made.name for made in ALL["gpu_day"]]
    assert names[-3:] == ["seed-0", "seed-1", "seed-2"]
    assert sum(made.minutes for made in ALL["gpu_day"][:-3]) <= 25
    commands = {made.name: " ".join(map(str, made.commands[0])) for made in ALL["gpu_day"]}
    assert commands["speed-7b"] == commands["speed-32b"].replace("coder-32b", "7b").replace("speed-32b", "speed-7b")
    assert commands["seed-2"] == commands["seed-0"].replace("seed-0", "seed-2").replace("seed=0", "seed=2").replace(
        "seed_everything=0", "seed_everything=2"
    )


def test_a_seed_is_judged_by_the_goals() -> None:
    """What the tables show of a seed is what its results file says; without evidence, nothing but the sets."""
    results = json.loads((ROOT / "docs/results/smollm2-135m/seed-0.json").read_text(encoding="utf-8"))
    found, numbers = seed_numbers(results), full_size_numbers(results)
    for ours, theirs in (("random", "random vectors"), ("concept", "concepts")):
        assert found[f"AUROC at 0.04, {ours}"] == numbers[f"AUROC at .04, {theirs}"]
        assert found[f"75 % detected from, {ours}"] == numbers[f"75 % detected from, {theirs}"]
    assert found["FPR of the worst unseen kind"] in worst_and_vanishing(results).values()
    without = seed_numbers(results | {"evidence": None})
    assert without.keys() == found.keys()
    assert {name for name, number in without.items() if number is None} == {*found} - {
        f"{metric} {name}" for metric in ("AUROC", "TPR", "FPR") for name in ("heldout", "concept", "newkinds")
    }


def speed(rate: float, single: float, peak: float) -> dict[str, Any]:
    """What the benchmark writes, in short."""

    def row(path: str, batch: int, rate: float, peak: float) -> dict[str, Any]:
        of = {"lowest": rate, "highest": rate, "ratio": rate / single, "of_ceiling": 0.5, "out_of_memory": False}
        return {"path": path, "batch": batch, "trials_per_second": rate, "peak_gib": peak} | of

    rows = [row("one at a time", 1, single, 19.0), row("batched", 4, 5.0, peak), row("batched, reuse", 4, 7.0, peak - 1)]
    rows += [row("batched, reuse", 64, rate, 66.0)]
    return {"rows": rows, "largest_batch": 64, "seconds_to_start": {"total": 18.0}, "ceiling_tflops": 785.0}


@pytest.mark.parametrize(
    ("found", "reached"),
    [
        (speed(83.0, 1.3, 21.8), [True] * 3),
        (speed(59.0, 1.4, 22.1), [False] * 3),
        (speed(61.0, 1.4, 22.0), [True, False, True]),
    ],
)
def test_targets_stand_beside_what_was_measured(found: dict[str, Any], reached: list[bool]) -> None:
    """Of the 32B: 60 trials/s, 45 times one at a time, 22 GiB at a micro-batch of 4, of the row that takes most."""
    rows = figures("speed-32b", found)[:3]
    assert [row.target for row in rows] == ["at least 60", "at least 45", "at most 22"]
    assert [row.measured.endswith(": reached") for row in rows] == reached
    assert [row.measured.endswith(": missed") for row in rows] == [not each for each in reached]
    assert rows[0].measured.startswith(f"{found['rows'][-1]['trials_per_second']:.3g} (batched, reuse, batch 64)")
    assert not any(row.target for row in figures("speed-7b", found))


def record(name: str, result: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A step's file."""
    return {"step": name, "status": DONE, "tiny": False, "seed": 0, "result": result, **ORIGIN, **changes}


def place(root: Path) -> Path:
    """A copy of the pages that have tables."""
    for page in (pages.PERFORMANCE, pages.CLUSTERS):
        (root / page).parent.mkdir(exist_ok=True)
        (root / page).write_text((ROOT / page).read_text(encoding="utf-8"), encoding="utf-8")
    folder = root / pages.FOLDERS["gpu_day"]
    folder.mkdir(parents=True)
    return folder


def test_tables_are_written_from_the_files(tmp_path: Path) -> None:
    """Between the two lines, and nothing else; a second time changes nothing."""
    folder = place(tmp_path)
    before = (tmp_path / pages.PERFORMANCE).read_text(encoding="utf-8")
    (folder / "speed-32b.json").write_text(json.dumps(record("speed-32b", speed(83.0, 1.3, 21.8))))
    (folder / "repeat-deterministic.json").write_text(json.dumps(record("repeat", {}, status=FAILED)))
    numbers = {"AUROC heldout": 0.9876, "75 % detected from, random": None}
    result = {"numbers": numbers, "trials_per_second": 99.0, "peak_gib": 2.0, "test_peak_gib": 3.0}
    (folder / "seed-1.json").write_text(json.dumps(record("seed-1", result)))
    for _ in range(2):
        pages.rewrite(tmp_path, {"gpu_day": folder})
        after = (tmp_path / pages.PERFORMANCE).read_text(encoding="utf-8")
        assert "| `speed-32b` | trials/s, best batch | at least 60 | 83 (batched, reuse, batch 64): reached |" in after
        assert "| batched, reuse | 64 | 83 | 83-83 | 63.85 | 50% | 66.00 |" in after
        assert "- [speed-32b.json](results/gpu-day/speed-32b.json): done; 1 x card, commit `abc`" in after
        assert "(results/gpu-day/repeat-deterministic.json): failed; 1 x card" in after
        assert f"| AUROC heldout | {MISSING} | 0.9876 | {MISSING} | {MISSING} | {MISSING} | {MISSING} |" in after
        outside = [text.partition(pages.BEGIN)[0] + text.partition(pages.END)[2] for text in (before, after)]
        assert outside[0] == outside[1]


def test_a_rehearsal_is_no_result(tmp_path: Path) -> None:
    """Nor is a folder that does not exist."""
    folder = place(tmp_path)
    (folder / "speed-32b.json").write_text(json.dumps(record("speed-32b", speed(83.0, 1.3, 21.8), tiny=True)))
    for given, message in ((folder, "speed-32b measured with --tiny"), (tmp_path / "none", "is no folder")):
        with pytest.raises(ConfigurationError, match=message):
            pages.rewrite(tmp_path, {"gpu_day": given})


@pytest.mark.parametrize("page", pages.parts(ROOT), ids=lambda page: page.stem)
def test_tables_of_the_docs_are_those_of_the_files(page: Path) -> None:
    """What the command writes from docs/results; made without uncommitted changes."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert text.partition(pages.BEGIN)[2].partition(pages.END)[0] == f"\n{pages.parts(ROOT)[page]}"
    for folder in pages.FOLDERS.values():
        for name, made in read_records(ROOT / folder).items():
            assert "+changes" not in made["commit"], name
