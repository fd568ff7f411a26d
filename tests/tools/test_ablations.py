"""The ablations of tasks: the same pairs of caches in every step, one task fewer; and the table of their results."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import yaml
from project_paths import CONFIG, ROOT
from rich.console import Console
from run_scripts import script
from seeds_in_process import in_process
from tiny_models import contexts_file

from introspection_lit.tools.compared_runs import compared_tables
from introspection_lit.tools.task_numbers import NUMBERS, task_numbers

DATA = {
    "tasks": {"detection": {"questions": 2}, "factual": None, "reading": {"questions": 1}, "localisation": {"pairs": 2}},
    "batch_size": 64,
    "eval_batch_size": 32,
    "trials_per_epoch": 3200,
}


def test_pairs_of_caches_stay_the_same() -> None:
    """A step of 64 questions, four to a cache, is one of 48 with three; tasks with caches of their own change nothing."""
    ablations = script("ablations")
    words = [word for option in ablations.options_without(DATA, ["factual"]) for word in option.split("=", 1)]
    settings = dict(zip(words[::2], words[1::2], strict=True))
    assert set(json.loads(settings["--data.tasks"])) == {"detection", "reading", "localisation"}
    sizes = {name: settings[f"--data.{name}"] for name in ("batch_size", "eval_batch_size", "trials_per_epoch")}
    assert sizes == {"batch_size": "48", "eval_batch_size": "24", "trials_per_epoch": "2400"}
    same = " ".join(ablations.options_without(DATA, ["localisation"]))
    assert all(str(DATA[name]) in same for name in ("batch_size", "eval_batch_size", "trials_per_epoch"))


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--leave-out", "guessing"], "'guessing' is not in data.tasks"),
        (["--leave-out", "detection"], "detection cannot be left out"),
        (["--data.seed", "4"], "--data.seed: is decided by the script"),
    ],
)
def test_what_cannot_work_is_refused(words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is trained."""
    with pytest.raises(SystemExit) as stop:
        script("ablations").main(["--config", str(ROOT / "configs" / "tasks.yaml"), *words])
    assert stop.value.code == 2
    assert part in capsys.readouterr().err


def test_a_configuration_without_tasks_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """It says which one to take."""
    with pytest.raises(SystemExit):
        script("ablations").main(["--config", CONFIG])
    assert "has no data.tasks" in capsys.readouterr().err


@pytest.mark.slow
def test_each_task_left_out_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table holds what the runs' results say; a second call runs nothing."""
    config = yaml.safe_load(Path(CONFIG).read_text())
    config["data"] |= {
        "tasks": {"detection": {"questions": 2}, "factual": {"questions": 1}, "plain_text": {"questions": 0.5}},
        **dict.fromkeys(("batch_size", "eval_batch_size", "validation_trials"), 12),
        "trials_per_epoch": 12,
        "test_trials": {"heldout": 4, "codes": 8, "facts": 8},
        "contexts": contexts_file(tmp_path / "contexts.jsonl", chat=12, python=12, csv=4),
        "validation_kinds": ["csv"],
        "test_kinds": [],
    }
    config["model"]["base"] = {"name_or_path": "random:tiny"}
    config["trainer"]["max_epochs"] = 1
    config["evidence"] = {"sets": ["codes"], "probe_trials": 0, "lens_trials": 0, "texts": 2, "facts": 4, "report": False}
    file, folder = tmp_path / "tasks.yaml", tmp_path / "runs"
    file.write_text(yaml.safe_dump(config))
    in_process(monkeypatch)
    command = ["--config", str(file), "--seeds", "1", "--folder", str(folder)]
    script("ablations").main(command)
    assert "without-plain_text" in capsys.readouterr().out
    found = json.loads((folder / "ablations.json").read_text())["rows"]
    assert set(found) == {"all", "without-factual", "without-plain_text"}
    for name, row in found.items():
        results = json.loads((folder / name / "seed-0" / "results.json").read_text())
        numbers = task_numbers(results, "adapter")
        assert set(numbers) == set(NUMBERS)
        assert {number: statistics["values"] for number, statistics in row.items()} == {
            number: [value] for number, value in numbers.items() if value is not None
        }
        assert {"codes", "facts", "perplexity"} <= set(row)
    script("ablations").main(command)
    assert capsys.readouterr().out.count("there already") == 3


def test_tables_fit_the_console() -> None:
    """Eighty columns, with every name and number whole; the file of the documents has seven trainings."""
    rows = json.loads((ROOT / "docs" / "results" / "tasks" / "ablations.json").read_text(encoding="utf-8"))["rows"]
    console = Console(width=80, file=io.StringIO())
    for table in compared_tables(rows, "all", NUMBERS, "What each task buys"):
        console.print(table)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in shown
    assert all(name.removeprefix("without-") in shown for name in rows)
    assert f"{rows['without-plain_text']['perplexity']['mean']:.3f}" in shown
