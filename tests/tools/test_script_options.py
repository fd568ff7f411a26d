"""Options of the scripts: help, what is refused, what wins, and what Ctrl-C leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from memory_failures import cuda, host
from project_paths import CONFIG, ROOT
from run_scripts import GRID, SCRIPTS, options, script

from introspection_lit.models.adapters import DESCRIPTION
from introspection_lit.tools import pipeline
from introspection_lit.training.callbacks.writers import PredictionWriter
from introspection_lit.training.module import IntrospectionModule
from introspection_lit.trials.split import Split
from introspection_lit.utils import files
from introspection_lit.utils.errors import ConfigurationError


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_has_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every script says how it is used, and takes --model and --config."""
    with pytest.raises(SystemExit) as stop:
        script(name).main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for expected in (f"python {name}.py --", "--model", "--config", "Qwen/Qwen2.5-Coder-32B-Instruct"):
        assert expected in text


@pytest.mark.parametrize("name", SCRIPTS[1:])
def test_files_of_another_model_are_refused(
    name: str, steps: SimpleNamespace, tiny_folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Bank, manifest and adapter belong to a model; a script says whose they are before it loads anything."""
    shared = options(tiny_folder("llama"), steps.folder)
    more = {"evaluate": steps.adapter, "baseline_benchmark": GRID}.get(name, [])
    with pytest.raises(SystemExit) as stop:
        script(name).main([*shared, *more])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "made for the model" in error
    assert str(steps.model) in error
    if name == "evaluate":
        assert "model.adapter: " in error


def test_manifest_of_another_model_is_refused(
    steps: SimpleNamespace, tiny_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a bank that fits, the manifest does not."""
    shared = options(tiny_folder("llama"), tmp_path)
    script("generate_vectors").main([*shared, "--n-random", "8"])
    with pytest.raises(SystemExit):
        script("finetune").main([*shared, "--manifest", str(steps.folder / "train.jsonl")])
    assert "data.manifest: it was made for the model" in capsys.readouterr().err


# Where each script is interrupted: in the middle of what takes long.
INTERRUPTED: dict[str, tuple[Any, str, list[str], str]] = {
    "generate_vectors": (files, "sync", ["--n-random", "8"], "vectors.safetensors"),
    "baseline_benchmark": (PredictionWriter, "on_predict_batch_end", GRID, "baseline.json"),
    "generate_training_data": (Split, "question_text", ["--n-examples", "24"], "train.jsonl"),
    "finetune": (IntrospectionModule, "training_step", [], f"checkpoints/best/{DESCRIPTION}"),
    "evaluate": (IntrospectionModule, "test_step", [], "ladder.json"),
}


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("older", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_interrupted_scripts_leave_nothing_half_written(
    name: str, older: bool, steps: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the middle: the file is not there, and no part of it either; an older one stays as it was."""
    owner, method, more, made = INTERRUPTED[name]
    original, seen = getattr(owner, method), []

    def interrupting(*args: Any, **kwargs: Any) -> Any:
        seen.append(1)
        if name == "generate_vectors":
            original(*args, **kwargs)  # written, but not yet under its name
        if len(seen) > 2 or name == "generate_vectors":
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    if older:
        (tmp_path / made).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / made).write_text("older")
    monkeypatch.setattr(owner, method, interrupting)
    shared = options(steps.model, tmp_path)
    bank = ["--vectors", str(steps.folder / "vectors.safetensors")] if name != "generate_vectors" else []
    output = ["--output", str(tmp_path / "checkpoints")] if name == "finetune" else []
    with pytest.raises(SystemExit) as stop:
        script(name).main([*shared, *bank, *more, *output])
    assert stop.value.code != 0
    assert seen
    assert (tmp_path / made).exists() is older
    assert not older or (tmp_path / made).read_text() == "older"
    assert not list(tmp_path.rglob("*unfinished*"))


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("generate_vectors", ["--n-random", "200"]),
        ("baseline_benchmark", ["--n-vectors", "50"]),
        ("baseline_benchmark", ["--n-vectors", "50", "--with-info"]),
        ("generate_training_data", ["--n-examples", "10000", "--n-train-vectors", "100"]),
        ("finetune", ["--epochs", "3", "--grad-accum", "8", "--lr", "2e-4"]),
        ("evaluate", ["--n-train-vectors", "100"]),
    ],
)
def test_default_model_is_the_32b(
    name: str, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its experiment, on a machine without a hub and a GPU: what is missing is said, and nothing is left behind."""
    more = ["--folder", str(tmp_path), "--trainer.accelerator", "cpu"]
    with pytest.raises(SystemExit) as stop:
        script(name).main([*command, *more])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "'Qwen/Qwen2.5-Coder-32B-Instruct' could not be loaded" in error
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".json", ".jsonl", ".safetensors", ".png")]


def test_configuration_of_the_user_beats_defaults_and_is_beaten_by_options(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The order that people expect: the script's defaults, then --config, then what is typed."""
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"model: {{base: {{name_or_path: {tiny}}}, learning_rate: 0.5}}\ntrainer: {{max_epochs: 7}}\n")
    shared = ["--config", CONFIG, "--config", str(mine), "--folder", str(tmp_path), "--epochs", "5", "--print_config"]
    with pytest.raises(SystemExit) as stop:
        script("finetune").main(shared)
    assert stop.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out.split("\n", 2)[2])
    assert (printed["model"]["learning_rate"], printed["trainer"]["max_epochs"]) == (0.5, 5)
    assert printed["trainer"]["accumulate_grad_batches"] == 8
    assert printed["data"]["batch_size"] == 4
    assert printed["model"]["base"]["name_or_path"] == str(tiny)


@pytest.mark.parametrize(
    ("name", "command", "message"),
    [
        ("generate_vectors", ["--n-random", "7"], "Expected an even number"),
        ("generate_vectors", ["--n-random", "0"], "Expected a whole number, at least 1"),
        ("generate_vectors", ["--seed", "-1"], "Expected a whole number from 0"),
        ("generate_vectors", ["--concepts", "cats", "", "bread"], "data.concepts: got an empty one"),
        ("baseline_benchmark", ["--bands", "[]"], "Expected a list such as"),
        ("baseline_benchmark", ["--bands", "[1, 3]"], "Did you mean '[[1, 3]]'?"),
        ("baseline_benchmark", ["--strengths", "[0]"], "Expected a list of numbers above 0"),
        ("baseline_benchmark", ["--n-vectors", "999"], "data.grid.random_vectors: 999 asked for"),
        ("baseline_benchmark", ["--n-contexts", "9999", "--n-vectors", "2"], "data.grid.contexts: 9999 asked for"),
        ("baseline_benchmark", ["--name", "../x"], "no path"),
        ("baseline_benchmark", ["--name", "train"], "--name: got 'train'"),
        ("baseline_benchmark", ["--data.strength_unit", "absolute"], "use --unit"),
        ("generate_training_data", ["--n-examples", "5"], "Expected an even number"),
        ("finetune", ["--epochs", "0"], "Expected a whole number, at least 1"),
        ("finetune", ["--grad-accum", "0"], "Expected a whole number, at least 1"),
        ("finetune", ["--lr", "nan"], "Expected a number"),
        ("finetune", ["--output", "occupied"], "is not an adapter of ours"),
        ("finetune", ["--manifest", "nowhere.jsonl"], "data.manifest: no such file"),
        ("evaluate", ["--threshold", "inf"], "Expected a number"),
        ("evaluate", ["--vectors", "nowhere.safetensors"], "scripts/generate_vectors.py"),
    ],
)
def test_bad_options_of_the_scripts(
    name: str,
    command: list[str],
    message: str,
    steps: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 2 and a message that names what was typed, before a model is loaded."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "occupied" / "best").mkdir(parents=True)
    monkeypatch.setattr("introspection_lit.training.module.load_model", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(SystemExit) as stop:
        script(name).main([*steps.shared, *command])
    assert stop.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_resume_with_another_manifest_is_refused(
    steps: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The trials of a training are part of what it was."""
    bank = ["--vectors", str(steps.folder / "vectors.safetensors")]
    other = tmp_path / "other.jsonl"
    script("generate_training_data").main([*steps.shared, *bank, "--n-examples", "16", "--output", str(other)])
    last = next(steps.folder.glob("finetune/version_0/checkpoints/last.ckpt"))
    resumed = ["--manifest", str(other), "--ckpt_path", str(last), "--folder", str(tmp_path)]
    with pytest.raises(SystemExit):
        script("finetune").main([*steps.shared, *bank, *steps.train, *resumed])
    assert "was trained on other" in capsys.readouterr().err


def test_the_users_own_file_wins(tmp_path: Path) -> None:
    """On the command line, or in a configuration of his."""
    (tmp_path / "mine.yaml").write_text("data: {contexts: mine.jsonl}")
    theirs = {"data.contexts": "/elsewhere/theirs.json", "data.info": "none"}
    for words, given in (
        (["--conversations", "mine.json"], True),
        (["--data.contexts=mine.json"], True),
        (["--config", str(tmp_path / "mine.yaml")], True),
        (["--seed", "3"], False),
    ):
        parser = pipeline.make_parser("", ROOT)
        steps = pipeline.parse(parser, ["--model", "a", "--folder", str(tmp_path), *words], "evaluate")
        if given:
            assert pipeline.recorded_options(theirs, tmp_path / "train.jsonl", steps) == ["--data.info=none"]
        else:
            with pytest.raises(ConfigurationError, match="--conversations FILE"):
                pipeline.recorded_options(theirs, tmp_path / "train.jsonl", steps)


@pytest.mark.parametrize("cause", [host, cuda])
def test_scripts_say_that_memory_was_not_enough(cause: Callable[[], Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Where no trainer was running: a sentence, and 1."""
    with pytest.raises(SystemExit) as stop:
        pipeline.guarded(cause)
    assert stop.value.code == 1
    assert "memory was not enough" in capsys.readouterr().err


def test_other_errors_of_scripts_pass() -> None:
    """With their traceback: they are faults of ours."""
    with pytest.raises(RuntimeError, match="shape"):
        pipeline.guarded(lambda: (_ for _ in ()).throw(RuntimeError("shape")))
