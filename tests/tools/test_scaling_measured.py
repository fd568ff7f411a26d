"""How cost grows: what is measured at a size, the file that an interrupted run goes on with, and the page."""

from __future__ import annotations

import json
import subprocess
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from project_paths import ROOT
from rich.console import Console
from run_scripts import script

from introspection_lit.evaluation import analysis
from introspection_lit.tools.scaling import axes, page, trial_files
from introspection_lit.tools.scaling.training_steps import KEPT_TOKENS, QUESTION_TOKENS, TrainingSteps
from introspection_lit.training.module import IntrospectionModule
from introspection_lit.trials.batch import TrialBatch
from introspection_lit.utils.errors import ConfigurationError

DOCS = ROOT / "docs"
FEW_VECTORS = tuple(f"--data.{split}_vectors=4" for split in ("train", "validation", "heldout"))


def point(size: int, seconds: float, **more: Any) -> dict[str, Any]:
    """A measurement."""
    return {"size": size, "seconds": seconds, "trials": size, "memory": 2**30 + 2048 * size, "commit": "abc"} | more


def found(name: str, points: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of the file, with one axis."""
    about = {"command": "python scripts/scaling.py", "commit": "abc", "hardware": "2 CPU cores", "settings": {"threads": 1}}
    return {name: about | {"points": points}}


def test_page_has_what_the_file_says() -> None:
    """Table, lines and commands of docs/scaling.md are those of docs/results/scaling.json; so is that there are none."""
    text = (DOCS / page.PAGE).read_text(encoding="utf-8")
    inside = text.partition(page.BEGIN)[2].partition(page.END)[0].strip()
    measured = axes.read(DOCS / page.RESULTS)
    assert inside == page.markdown(measured)
    assert bool(measured) == (DOCS / page.PICTURE).exists()
    assert all("+changes" not in point["commit"] for axis in measured.values() for point in axis["points"])


def test_the_part_between_the_marks_is_written_and_nothing_else(tmp_path: Path) -> None:
    """Twice gives the same; without marks nothing is written."""
    file = tmp_path / page.PAGE
    file.write_text(f"before\n\n{page.BEGIN}\nold\n{page.END}\n\nafter\n", encoding="utf-8")
    measured = found(
        axes.MANIFEST, [point(1000, 0.5, files={"train.jsonl": 4e5}), point(10_000, 5.0, files={"train.jsonl": 4e6})]
    )
    for _ in range(2):
        page.write_page(tmp_path, measured)
        text = file.read_text(encoding="utf-8")
        assert text == f"before\n\n{page.BEGIN}\n\n{page.markdown(measured)}\n\n{page.END}\n\nafter\n"
    assert "| 1,000 | 2,000 | 0.5 | 1.00 | 1,026 | 400 |" in text
    assert (tmp_path / page.PICTURE).read_bytes()[:4] == b"\x89PNG"
    file.write_text("no marks", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="Put them where the part belongs"):
        page.write_page(tmp_path, measured)
    assert file.read_text(encoding="utf-8") == "no marks"


def test_lines_are_said_as_they_are() -> None:
    """A line exactly, a square with its distance from a line, and what does not rise."""
    straight = [point(size, 2.0 + 0.004 * size) for size in (10, 100, 1000)]
    assert page.sentence(axes.BATCH, straight) == (
        "Seconds: 2 s, and 4 ms a trial; worst size 0 % off. Memory: 1,020 MiB, and 2 KiB a trial; worst size 0 % off."
    )
    assert [row[3] for row in page.columns(axes.BATCH, straight)[1]] == ["1.00"] * 3
    square = [point(size, 1e-6 * size**2) for size in (10, 100, 1000)]
    assert axes.line(square, "seconds").worst > 0.5
    flat = [point(size, 2.0 - 1e-4 * size, memory=2**30) for size in (10, 100)]
    assert page.sentence(axes.KEPT, flat).startswith("Seconds: no rise.")
    assert page.sentence(axes.KEPT, flat[:1]) == "One size: no line."


@pytest.mark.parametrize("name", axes.AXES)
def test_tables_fit_80_columns(name: str) -> None:
    """With the largest sizes and a slow machine."""
    files = {axes.MANIFEST: ["train.jsonl"], axes.TESTED: ["report.html", "results.json", "trials.jsonl"]}.get(name, [])
    points = [point(size, 1234.5 + size / 100, files=dict.fromkeys(files, 123_456_000)) for size in axes.SIZES[name]]
    console = Console(width=80)
    with console.capture() as captured:
        console.print(page.console_table(name, points))
    assert "…" not in captured.get()
    assert f"{axes.SIZES[name][-1]:,}" in captured.get()
    assert len(page.draw(found(name, points)).axes) == 3  # a panel with its second axis, and an empty place


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The script with a stand-in for what measures; it notes what it is asked, and may fail at a size."""
    measuring = SimpleNamespace(script=script("scaling"), asked=[], fails_at=None)

    def measure(size: int) -> dict[str, Any]:
        if size == measuring.fails_at:
            raise KeyboardInterrupt
        measuring.asked.append(size)
        return point(size, 1.0 + size)

    monkeypatch.setattr(measuring.script, "_instrument", lambda *_: measure)
    return measuring


def test_an_interrupted_run_goes_on(measuring: SimpleNamespace, tmp_path: Path) -> None:
    """Every size is measured once, and the file has each as soon as it is."""
    file = tmp_path / "growth.json"
    words = ["--model", "tiny", "--axes", "batch", "--sizes", "8", "2", "4", "--json", str(file)]
    measuring.fails_at = 8
    with pytest.raises(SystemExit) as stopped:
        measuring.script.main(words)
    assert stopped.value.code == 130
    assert [each["size"] for each in json.loads(file.read_text())["batch"]["points"]] == [2, 4]
    measuring.fails_at = None
    measuring.script.main(words)
    assert list(tmp_path.iterdir()) == [file]
    measuring.script.main([*words, "--write", str(tmp_path / "docs")])
    assert (tmp_path / "docs" / page.RESULTS).read_text() == file.read_text()
    assert measuring.asked == [2, 4, 8]
    written = json.loads(file.read_text())["batch"]
    assert [each["size"] for each in written["points"]] == [2, 4, 8]
    assert {"command", "commit", "hardware", "versions"} <= set(written)
    assert written["command"].startswith("python scripts/scaling.py --model tiny --axes batch")


def test_other_settings_are_refused(measuring: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two models in one table would be compared."""
    words = ["--axes", "batch", "--sizes", "2", "--json", str(tmp_path / "growth.json")]
    measuring.script.main(["--model", "tiny", *words])
    with pytest.raises(SystemExit):
        measuring.script.main(["--model", "smollm2-135m", *words])
    assert "batch was measured with {'model': 'tiny'" in capsys.readouterr().err
    assert measuring.asked == [2]


def test_axes_are_measured_in_processes_of_their_own(
    measuring: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order, with the same options; one that fails ends the run."""
    commands: list[list[str]] = []

    def run(command: list[str], check: bool) -> SimpleNamespace:
        commands.append(command[2:])
        return SimpleNamespace(returncode=3 * (len(commands) == 2))

    monkeypatch.setattr(subprocess, "run", run)
    file = tmp_path.resolve() / "growth.json"
    words = ["--model", "tiny", "--json", str(file), "--model.lora.r", "4"]
    with pytest.raises(SystemExit) as stopped:
        measuring.script.main([*words, "--axes", "manifest", "batch", "kept"])
    assert stopped.value.code == 3
    more = ["--json", str(file), "--model.lora.r", "4"]
    assert commands == [["--model", "tiny", "--axes", name, *more] for name in ("manifest", "batch")]


@pytest.mark.parametrize(
    ("words", "content", "message"),
    [
        (["--sizes", "2"], None, "Name one with --axes"),
        (["--axes", "manifest", "--sizes", "2", "3"], None, r"got [3] of manifest. Expected even numbers"),
        (["--axes", "batch"], "[1]", "is something else. Expected the measurements of context, questions"),
        (["--axes", "batch"], '{"batch": {"points": [{"size": 2}]}}', "is something else"),
    ],
)
def test_what_cannot_work(
    words: list[str],
    content: str | None,
    message: str,
    measuring: SimpleNamespace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each is said, and nothing is measured."""
    if content is not None:
        (tmp_path / "growth.json").write_text(content)
    with pytest.raises(SystemExit) as stopped:
        measuring.script.main([*words, "--json", str(tmp_path / "growth.json")])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert measuring.asked == []


@pytest.mark.slow
def test_results_do_not_grow_with_the_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight times the trials: results of the same size, and memory that grows no faster than they do."""
    monkeypatch.setattr(analysis, "RESAMPLES", 4)
    sizes, memory = [], []
    for trials in (4000, 32_000):
        rows = trial_files.scored_rows(trials)
        assert len(rows) == trials
        assert sum(row["steered"] for row in rows) == trials // 2
        tracemalloc.start()
        results = trial_files.results_of(rows)
        memory.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        sizes.append(len(json.dumps(results)))
    assert sizes[1] < 1.1 * sizes[0]
    assert memory[1] < 10 * memory[0]


@pytest.mark.slow
def test_steps_are_those_that_the_axis_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contexts have the length asked for and differ; trials, questions of a cache and kept contexts are counted."""
    step, batches = IntrospectionModule.training_step, []

    def noted(module: IntrospectionModule, batch: TrialBatch, batch_idx: int) -> Any:
        batches.append((len(batch.trials), len(batch.contexts), set(batch.tasks)))
        return step(module, batch, batch_idx)

    monkeypatch.setattr(IntrospectionModule, "training_step", noted)
    steps = TrainingSteps("random:tiny", FEW_VECTORS)
    made = [steps.context(number, 200) for number in range(5)]
    assert len({context.key for context in made}) == 5
    for size in (64, 200):
        assert size <= steps.point(axes.CONTEXT, size)["context_tokens"] <= size + 6
    seen = [steps.point(axes.QUESTIONS, 6)]
    assert batches[-1] == (12, 2, {"detection"})
    seen += [steps.point(axes.BATCH, 8), steps.point(axes.KEPT, 6)]
    assert [each["trials"] for each in seen] == [12, 8, 8]
    assert seen[2]["kept"] == 6
    assert KEPT_TOKENS <= seen[2]["context_tokens"] <= KEPT_TOKENS + 6
    assert all(each["lowest"] <= each["seconds"] <= each["highest"] for each in seen)
    split = steps.cli.datamodule.splits["train"]
    assert min(len(split.encoded(0).question_ids), QUESTION_TOKENS) == QUESTION_TOKENS


@pytest.mark.slow
def test_manifests_are_written_and_read() -> None:
    """A line for each trial, in a file that passes its own check."""
    work = trial_files.ManifestWork("random:tiny")
    few, many = work.point(100), work.point(400)
    assert few["files"]["train.jsonl"] < many["files"]["train.jsonl"] < 5 * few["files"]["train.jsonl"]
    assert many["seconds"] == pytest.approx(many["write"] + many["check"] + many["batches"])
