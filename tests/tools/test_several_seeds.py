"""Several seeds: the numbers against numpy, and the script with real trainings, failures, Ctrl-C and folders in use."""

from __future__ import annotations

import io
import json
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from project_paths import CONFIG
from rich.console import Console
from run_scripts import script
from seeds_in_process import in_process

from introspection_lit.tools import fit_runs, several_seeds
from introspection_lit.tools.several_seeds import METRICS, seed_statistics, summarise_seeds


def test_spread_by_hand() -> None:
    """1, 2 and 3: mean 2, sd 1 over n - 1; which is worst depends on what is better."""
    assert seed_statistics({4: 1.0, 5: 3.0, 6: 2.0}, highest_is_worst=False) == {
        "mean": 2.0,
        "sd": 1.0,
        "worst": 1.0,
        "worst_seed": 4,
        "values": [1.0, 3.0, 2.0],
    }
    assert seed_statistics({4: 1.0, 5: 3.0, 6: 3.0}, highest_is_worst=True)["worst_seed"] == 5  # the first of equal ones
    assert seed_statistics({7: 0.5}, highest_is_worst=True) == {
        "mean": 0.5,
        "sd": None,
        "worst": 0.5,
        "worst_seed": 7,
        "values": [0.5],
    }


def test_what_was_never_reached_is_worst() -> None:
    """A mean of the seeds that reached it would flatter."""
    found = seed_statistics({0: 0.04, 1: None, 2: 0.08}, highest_is_worst=True)
    assert found == {"mean": None, "sd": None, "worst": None, "worst_seed": 1, "values": [0.04, None, 0.08]}


def results(fpr: float, tpr: float, strength: float | None, change: float, bank: str = "a") -> dict[str, Any]:
    """A results file with an FPR and a TPR, and evidence."""
    row = {"auroc": 0.9, "accuracy": 0.8, "tpr": tpr, "fpr": fpr, "mass": 0.99, "n_clean_distinct": 40}
    kinds = [
        {"kind": "chat", "seen": True, "fpr": 1.0, "fpr_interval": [0.9, 1.0]},
        {"kind": "rust", "seen": False, "fpr": fpr / 2, "fpr_interval": [0.0, 0.5]},
        {"kind": "logs", "seen": False, "fpr": fpr, "fpr_interval": [0.0, 0.5]},
    ]
    facts = {"off": {"accuracy": 0.75}, "on": {"accuracy": 0.75 - change}}
    evidence = {
        "kinds": kinds,
        "detection_strength": {"random": {"strength": strength}},
        "side_effects": {"perplexity": {"change": change}, "factual": facts},
    }
    return {"sets": {"heldout": row, "newkinds": row}, "evidence": evidence, "commit": "abc", "bank": bank}


def test_worst_is_what_one_would_not_like_to_have() -> None:
    """The highest FPR, strength and side effect, the lowest of everything else; seen kinds do not count as unseen ones."""
    runs = {0: ("a", results(0.1, 0.9, 0.04, 0.0)), 3: ("b", results(0.2, 1.0, 0.06, -0.125, "b"))}
    found = summarise_seeds("x.yaml", runs)
    assert (found["experiment"], found["seeds"], found["runs"]) == ("x.yaml", [0, 3], ["a", "b"])
    heldout = found["sets"]["heldout"]
    assert (heldout["fpr"]["worst"], heldout["fpr"]["worst_seed"]) == (0.2, 3)
    assert (heldout["tpr"]["worst"], heldout["tpr"]["worst_seed"]) == (0.9, 0)
    assert found["detection_strength"]["random"]["worst_seed"] == 3
    assert found["detection_strength"]["random"]["mean"] == pytest.approx(0.05)
    unseen = found["worst_unseen_kind"]["fpr"]
    assert (unseen["values"], unseen["kinds"], unseen["worst_seed"]) == ([0.1, 0.2], ["logs", "logs"], 3)
    assert found["side_effects"]["perplexity_change"]["worst_seed"] == 0
    assert found["side_effects"]["accuracy_lost"]["values"] == [0.0, -0.125]
    json.dumps(found, allow_nan=False)


def test_results_without_evidence_have_fewer_numbers() -> None:
    """Older runs and those that gather none; a test set that a run lacks is left out."""
    first, second = results(0.1, 0.9, None, 0.0) | {"evidence": None}, results(0.1, 0.9, None, 0.0) | {"evidence": {}}
    del second["sets"]["newkinds"]
    found = summarise_seeds("x.yaml", {0: ("a", first), 1: ("b", second)})
    assert list(found["sets"]) == ["heldout"]
    assert (found["detection_strength"], found["worst_unseen_kind"], found["side_effects"]) == ({}, None, None)


def test_tables_fit_80_columns() -> None:
    """With long names, numbers of full width and a strength that was not reached."""
    runs = {seed: (str(seed), results(0.1 + seed / 1000, 0.9, None, 0.5)) for seed in range(990, 993)}
    for _, run in runs.values():
        run["sets"] = dict.fromkeys(("newquestions", "doses_concept"), run["sets"]["heldout"])
        run["evidence"]["detection_strength"] = {"concept": {"strength": None}}
    console = Console(width=80, record=True, file=io.StringIO())
    for table in several_seeds.seed_tables(summarise_seeds("x.yaml", runs)):
        console.print(table)
    shown = console.export_text()
    assert "…" not in shown
    for text in ("doses_concept", "0.900±0.000", "1.091±0.001", "1.092 (992)", "none (990)", "accuracy lost"):
        assert text in shown


def test_shared_vectors_are_noticed() -> None:
    """A bank that was given is the same for every seed."""
    runs = {0: results(0, 0, 0, 0, "a"), 1: results(0, 0, 0, 0, "b"), 2: results(0, 0, 0, 0, "a")}
    assert several_seeds.seeds_with_repeated_bank(runs) == [2]


# ---- real trainings ----


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """Two seeds on the tiny model, the command that makes them, and the interpreters that it has started."""
    folder = tmp_path_factory.mktemp("seeds")
    more = [
        "--evidence.enabled",
        "true",
        "--evidence.report",
        "false",
        "--evidence.probe_trials",
        "0",
        "--evidence.texts",
        "4",
        "--evidence.facts",
        "8",
    ]
    sets = '{"heldout": 8, "concept": 8, "newkinds": 16, "doses": 36}'
    arguments = ["--config", CONFIG, "--seeds", "2", "--folder", str(folder), "--model.base.name_or_path", str(tiny), *more]
    with pytest.MonkeyPatch.context() as patch:
        started = in_process(patch)
        command = [*arguments, "--data.test_trials", sets]
        script("several_seeds").main(command)
        yield SimpleNamespace(folder=folder, command=command, started=started)


@pytest.mark.slow
def test_seeds_differ_in_vectors_contexts_and_weights(trained: SimpleNamespace) -> None:
    """And lie where they were wanted, with their tests done."""
    runs = [trained.folder / f"seed-{seed}" for seed in (0, 1)]
    found = [json.loads((run / "results.json").read_text()) for run in runs]
    assert [run["seed"] for run in found] == [0, 1]
    assert found[0]["bank"] != found[1]["bank"]
    checkpoints = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in runs]
    first, second = (set(checkpoint["IntrospectionDataModule"]["messages"]) for checkpoint in checkpoints)
    assert first - second
    assert second - first
    assert not set(checkpoints[0]["IntrospectionDataModule"]["vectors"]) & set(
        checkpoints[1]["IntrospectionDataModule"]["vectors"]
    )
    name = next(name for name in checkpoints[0]["state_dict"] if "lora_A" in name)
    assert not torch.equal(checkpoints[0]["state_dict"][name], checkpoints[1]["state_dict"][name])


@pytest.mark.slow
def test_numbers_are_those_of_the_runs(trained: SimpleNamespace) -> None:
    """Mean, sd and worst of every metric of every set, by numpy; the report compares the two."""
    found = json.loads((trained.folder / "seeds.json").read_text())
    runs = [json.loads((Path(run) / "results.json").read_text()) for run in found["runs"]]
    assert list(found["sets"]) == ["heldout", "concept", "newkinds", "doses"]
    for name, metrics in found["sets"].items():
        assert tuple(metrics) == METRICS
        for metric, row in metrics.items():
            values = [run["sets"][name][metric] for run in runs]
            assert row["values"] == values
            assert row["mean"] == pytest.approx(np.mean(values))
            assert row["sd"] == pytest.approx(np.std(values, ddof=1))
            assert row["worst"] == (max(values) if metric == "fpr" else min(values))
            assert row["worst"] == values[row["worst_seed"]]
    strengths = [run["evidence"]["detection_strength"]["random"]["strength"] for run in runs]
    assert found["detection_strength"]["random"]["values"] == strengths
    changes = [run["evidence"]["side_effects"]["perplexity"]["change"] for run in runs]
    assert found["side_effects"]["perplexity_change"]["worst"] == max(changes)
    unseen = [max(k["fpr"] for k in run["evidence"]["kinds"] if not k["seen"] and k["n_clean"]) for run in runs]
    assert found["worst_unseen_kind"]["fpr"]["values"] == unseen
    page = (trained.folder / "report.html").read_text()
    assert "seed-0" in page
    assert "seed-1" in page


@pytest.mark.slow
def test_second_call_trains_nothing(trained: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    """No process is started and no run touched, for the same command and for fewer seeds of it."""
    files = {path: path.stat().st_mtime_ns for path in trained.folder.glob("seed-*/**/*") if path.is_file()}
    before = len(trained.started)
    script("several_seeds").main(trained.command)
    script("several_seeds").main([*trained.command, "--seeds", "1", "--first", "1"])
    assert len(trained.started) == before == 2
    assert files == {path: path.stat().st_mtime_ns for path in trained.folder.glob("seed-*/**/*") if path.is_file()}
    assert "there already" in capsys.readouterr().out
    assert json.loads((trained.folder / "seeds.json").read_text())["seeds"] == [1]
    script("several_seeds").main(trained.command)


@pytest.mark.slow
def test_results_of_another_command_are_refused(trained: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    """Other options in the same folder: nothing is run, nothing is mixed up."""
    before = (trained.folder / "seeds.json").read_text()
    with pytest.raises(SystemExit) as stop:
        script("several_seeds").main([*trained.command, "--seeds", "3", "--model.learning_rate", "0.5"])
    assert stop.value.code == 2
    assert "made by another command" in capsys.readouterr().err
    assert len(trained.started) == 2
    assert (trained.folder / "seeds.json").read_text() == before


# ---- processes, with an interpreter that only pretends ----

PRETENDER = """#!{python}
import json, os, pathlib, shlex, signal, sys, time
words = sys.argv[3:]
given = dict(word.split("init_args.")[1].split("=", 1) for word in words if "init_args" in word)
folder = pathlib.Path(given["save_dir"], given["name"], given["version"])
assert not list(folder.glob("checkpoints/*")), "as `fit` refuses it"
(folder / "checkpoints").mkdir(parents=True)
(folder / "checkpoints" / "last.ckpt").touch()
seed = words[words.index("--data.seed") + 1]
does = dict(pair.split("=") for pair in os.environ.get("PRETEND", "").split()).get(seed)
if does == "fail":
    sys.exit(3)
if does in ("interrupt", "linger"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN if does == "linger" else signal.SIG_DFL)
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(60)
row = dict.fromkeys(("auroc", "accuracy", "tpr", "fpr", "mass"), int(seed) / 8) | {{"n_clean_distinct": 4}}
command = "python -m introspection_lit " + shlex.join(words)
(folder / "results.json").write_text(json.dumps({{"command": command, "sets": {{"heldout": row}}, "bank": seed}}))
"""


@pytest.fixture
def pretended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """Runs the script with an interpreter that pretends to train; returns its exit status."""
    interpreter = tmp_path / "python"
    interpreter.write_text(PRETENDER.format(python=sys.executable))
    interpreter.chmod(interpreter.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(fit_runs, "subprocess", subprocess)  # real processes, whatever a fixture has put there
    monkeypatch.setattr(sys, "executable", str(interpreter))
    monkeypatch.setattr(fit_runs, "GRACE", 0.2)
    monkeypatch.chdir(tmp_path)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # parallel test runners ignore it

    def run(*more: str, does: str = "") -> int:
        monkeypatch.setenv("PRETEND", does)
        try:
            script("several_seeds").main(["--config", CONFIG, *more])
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    yield run
    signal.signal(signal.SIGINT, before)


def test_a_seed_that_fails_does_not_stop_the_others(
    pretended: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    """It is named at the end and the exit status is 1; the next call runs it alone, its leavings moved aside."""
    assert pretended("--first", "3", does="4=fail") == 1
    folder = Path("lightning_logs/seeds/tiny")
    shown = capfd.readouterr().out
    assert "seed 4: failed with exit status 3" in shown
    assert "failed, or left nothing tested: seed 4." in shown
    found = json.loads((folder / "seeds.json").read_text())
    assert (found["seeds"], found["sets"]["heldout"]["auroc"]["mean"]) == ([3, 5], 0.5)
    assert pretended("--first", "3") == 0
    assert json.loads((folder / "seeds.json").read_text())["seeds"] == [3, 4, 5]
    names = {path.name for path in folder.iterdir() if path.name.startswith("seed-")}
    assert names == {"seed-3", "seed-4", "seed-5", "seed-4.unfinished"}
    assert (folder / "report.html").is_file()


@pytest.mark.parametrize("does", ["interrupt", "linger"])
def test_ctrl_c_can_be_gone_on_from(pretended: Callable[..., int], capfd: pytest.CaptureFixture[str], does: str) -> None:
    """The running seed is ended even if it does not want to, the next is not begun, no summary; then the same command."""
    assert pretended(does=f"1={does}") == 130
    folder = Path("lightning_logs/seeds/tiny")
    assert "interrupted" in capfd.readouterr().err
    assert {path.name for path in folder.iterdir()} == {"seed-0", "seed-1"}
    assert not (folder / "seed-1" / "results.json").exists()
    first = (folder / "seed-0" / "results.json").stat().st_mtime_ns
    assert pretended() == 0
    assert (folder / "seed-0" / "results.json").stat().st_mtime_ns == first
    assert json.loads((folder / "seeds.json").read_text())["seeds"] == [0, 1, 2]
    assert not list(folder.glob("**/seeds.json.unfinished"))


def test_nothing_works_is_said(pretended: Callable[..., int]) -> None:
    """No summary of nothing."""
    assert pretended("--seeds", "1", does="0=fail") == 1
    assert not Path("lightning_logs/seeds/tiny/seeds.json").exists()


def test_one_seed_has_no_spread_and_no_comparison(pretended: Callable[..., int]) -> None:
    """No standard deviation, and there is nothing to compare."""
    assert pretended("--seeds", "1", "--first", "6", "--folder", "here") == 0
    assert json.loads(Path("here/seeds.json").read_text())["sets"]["heldout"]["tpr"]["sd"] is None
    assert not Path("here/report.html").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--config", "nowhere.yaml"], "--config nowhere.yaml: no such file"),
        (["--data.seed", "3"], "--data.seed: is decided by the script"),
        (["--trainer.logger.init_args.name=x"], "--trainer.logger.init_args.name: is decided by the script"),
        (["--seeds", "0"], "Expected a whole number, at least 1"),
    ],
)
def test_bad_commands(
    pretended: Callable[..., int], capfd: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    """Refused before anything is run."""
    assert pretended(*more) == 2
    assert message in capfd.readouterr().err
    assert not Path("lightning_logs").exists()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("fit --config a.yaml --x.logs=logs/v", "fit --config ../a.yaml --x.logs=../logs/v", True),
        ("fit --config logs/v/a.yaml --b=logs/w --x.logs=logs/v", "fit --config a.yaml --b=../w --x.logs=.", True),
        ("fit --data '{\"n\": 4}' --rate 0.5 --x.logs=logs", "fit --data '{\"n\": 4}' --rate 0.5 --x.logs=../logs", True),
        ("fit --model a/b --x.logs=logs", "fit --model a/b --x.logs=../logs", True),
        ("fit --config a.yaml --x.logs=logs", "fit --config a.yaml --x.logs=../logs", False),
        ("fit --config a.yaml --x.logs=logs", "fit --config ../b.yaml --x.logs=../logs", False),
        ("fit --rate 0.5 --x.logs=logs", "fit --rate 0.7 --x.logs=logs", False),
        ("fit --rate=0.5 --x.logs=logs", "fit --seed=0.5 --x.logs=logs", False),
        ("fit --rate 0.5 --x.logs=logs", "fit --x.logs=logs", False),
        ("it's", "fit --x.logs=logs", False),
    ],
)
def test_a_command_is_the_same_wherever_it_is_typed(one: str, other: str, same: bool) -> None:
    """A run's controls are trained once, whether by a command in the project's folder or in scripts."""
    one, other = (text.replace("--x.logs", f"{fit_runs.LOGGER}.save_dir") for text in (one, other))
    logs = Path("logs")
    assert fit_runs.same_command(one, other, logs) is fit_runs.same_command(other, one, logs) is same


def test_a_command_is_the_same_through_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is named by a symbolic link in one command, and by its folder in the other, in either order."""
    run = tmp_path / "runs" / "quick" / "version_0"
    for folder in (run / "controls", tmp_path / "scripts", tmp_path / "configs"):
        folder.mkdir(parents=True)
    for link in (tmp_path / "RUN", tmp_path / "scripts" / "RUN"):
        link.symlink_to(run)

    def command(run: str, configs: str) -> str:
        return f"fit --config {run}/config.yaml --config {configs} {fit_runs.LOGGER}.save_dir={run}/controls"

    typed = [
        (tmp_path, command("RUN", "configs/a.yaml")),
        (tmp_path, command("runs/quick/version_0", "configs/a.yaml")),
        (tmp_path / "scripts", command("RUN", "../configs/a.yaml")),
        (tmp_path / "scripts", command("../runs/quick/version_0", "../configs/a.yaml")),
    ]
    for directory, now in typed:
        monkeypatch.chdir(directory)
        for _, recorded in typed:
            assert fit_runs.same_command(recorded, now, run / "controls"), (recorded, now, directory)
            assert not fit_runs.same_command(recorded.replace("a.yaml", "b.yaml"), now, run / "controls")


def test_a_results_file_that_is_none(tmp_path: Path) -> None:
    """Cut off, or something else: it is named."""
    made = fit_runs.Training(tmp_path / "seed-0", [])
    assert not made.done()
    made.folder.mkdir()
    for text in ('{"sets": {', "[]", '{"sets": 3}'):
        made.results.write_text(text)
        with pytest.raises(fit_runs.ConfigurationError, match=r"results\.json: "):
            made.done()
