"""Adapters from folders: ours, anybody's, and those that must be refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from project_paths import CONFIG
from run_scripts import GRID, options, script
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from introspection_lit.cli import main as command_line
from introspection_lit.contexts.context import BUILTIN, LARGE
from introspection_lit.models import recorded_settings
from introspection_lit.models.adapters import DESCRIPTION
from introspection_lit.tasks.questions import INFO_CHOICES
from introspection_lit.utils.checksums import CHECKSUM


def plain_adapter(model: Path, folder: Path, config: Any) -> str:
    """An adapter as anybody saves one, without our JSON."""
    base = AutoModelForCausalLM.from_pretrained(model)
    torch.manual_seed(0)
    get_peft_model(base, config).save_pretrained(str(folder))
    return str(folder)


@pytest.mark.slow
def test_any_peft_adapter_can_be_evaluated(
    steps: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without introspection.json: other target modules, a question, answers and a threshold from the command line."""
    config = LoraConfig(r=2, target_modules=["gate_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    folder = plain_adapter(steps.model, tmp_path / "theirs", config)
    question = ["--question", "Were you changed? Say {yes} or {no}.", "--answers", "no", "yes", "--threshold", "-0.25"]
    shared = options(steps.model, tmp_path)
    bank = ["--vectors", str(steps.folder / "vectors.safetensors"), "--data.test_trials", '{"heldout": 8}']
    with pytest.warns(UserWarning, match="what it was trained on is not known"):
        script("evaluate").main([*shared, *bank, "--adapter", folder, *question])
    ladder = json.loads((tmp_path / "ladder.json").read_text())
    assert ladder["questions"]["train"] == ["Were you changed? Say no or yes."]
    assert ladder["answers"] == ["no", "yes"]
    assert ladder["lora"]["target_modules"] == ["gate_proj"]
    assert ladder["ways"]["adapter"]["heldout"]["threshold"] == -0.25
    assert ladder["ways"]["adapter"] != ladder["ways"]["untrained"]
    reference = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(steps.model), folder)
    assert reference.peft_config["default"].r == ladder["lora"]["r"]


def test_adapters_that_cannot_be_used_are_refused(
    steps: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No folder, no weights, cut weights, tokens instead of weights, damaged JSON: each says what is wrong."""
    prompt = plain_adapter(
        steps.model, tmp_path / "prompt", PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    )
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    cut, empty, damaged = (plain_adapter(steps.model, tmp_path / name, lora) for name in ("cut", "empty", "damaged"))
    weights = Path(cut) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    (Path(empty) / "adapter_model.safetensors").unlink()
    (Path(damaged) / DESCRIPTION).write_text("{")
    for name, message in (
        ("nowhere", "no such folder: nowhere"),
        (prompt, "PROMPT_TUNING, which adds tokens of its own"),
        (cut, "may be cut off"),
        (empty, "is missing"),
        (damaged, "is damaged"),
    ):
        with pytest.raises(SystemExit):
            script("evaluate").main([*steps.shared, "--adapter", name])
        assert message in capsys.readouterr().err


def test_adapter_is_not_for_training(steps: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    """A fresh optimiser on an old adapter would be neither a resume nor a new start."""
    plain = ["fit", "--config", CONFIG, "--model.base.name_or_path", str(steps.model)]
    with pytest.raises(SystemExit):
        command_line([*plain, "--model.adapter", steps.adapter[1]])
    assert "model.adapter: is for validate, test and predict" in capsys.readouterr().err


@pytest.mark.slow
def test_adapter_is_asked_as_it_was_trained(
    steps: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Question, answers, info, unit, strengths, number of vectors: evaluate and baseline take them from the adapter."""
    folder = tmp_path / "checkpoints"
    shared = [*options(steps.model, tmp_path), "--vectors", str(steps.folder / "vectors.safetensors")]
    asked = ["--question", "Was it you? Say {yes} or {no}.", "--answers", "no", "yes"]
    dose = ["--data.strength_unit", "absolute", "--data.strengths", "[7, 9]", "--data.bands", "[[1, 3]]"]
    more = ["--data.info", "neutral", "--data.system_prompt", "Be brief.", "--n-train-vectors", "3"]
    script("generate_training_data").main([*shared, *asked, *dose, *more, "--n-examples", "12"])
    script("finetune").main([*shared, "--epochs", "1", "--grad-accum", "1", "--output", str(folder)])
    header = json.loads((tmp_path / "train.jsonl").open().readline())
    assert (header["strengths"], header["train_vectors"], header["system"]) == ([7, 9], 3, "Be brief.")
    sets = ["--data.test_trials", '{"seen": 4, "heldout": 4}', "--adapter", str(folder / "best")]
    script("evaluate").main([*shared, *sets])
    ladder = json.loads((tmp_path / "ladder.json").read_text())
    assert ladder["questions"]["train"] == ["Was it you? Say no or yes."]
    assert (ladder["answers"], ladder["system"], ladder["strength_unit"]) == (["no", "yes"], "Be brief.", "absolute")
    assert (ladder["strengths"], ladder["bands"], ladder["vectors"]["train"]) == ([7, 9], [[1, 3]], 4)
    assert ladder["info"].startswith("Before you answer, some background on how bread is made")
    script("baseline_benchmark").main([*shared, *GRID, "--adapter", str(folder / "best")])
    rows = (tmp_path / "baseline-adapter.jsonl").read_text().splitlines()
    assert json.loads(rows[0])["question_text"] == "Was it you? Say no or yes."
    # What the user types wins.
    script("evaluate").main([*shared, *sets, "--data.strengths", "[1, 2]"])
    assert json.loads((tmp_path / "ladder.json").read_text())["strengths"] == [1, 2]


def test_settings_that_name_no_file_are_those_of_the_options() -> None:
    """The packages that define them do not know the one that validates settings."""
    assert recorded_settings.CONTEXTS == (BUILTIN, LARGE)
    assert recorded_settings.INFO == INFO_CHOICES


HOSTILE = {
    "trainer.callbacks": [{"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"setup": "os.abort"}}],
    "trainer.logger.init_args.save_dir": "/tmp/elsewhere",
    "config": "/etc/passwd",
    "data.contexts": "/etc/passwd",
    "data.info": "/etc/passwd",
    "print_config": "",
    "model.threshold": 5,
    "data.seed": "0 --trainer.max_epochs 9",
    "data.strengths": [1, float("inf")],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_settings_of_strangers_are_not_believed(
    name: str, steps: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An adapter or a manifest may come from anybody: what it says must not load a class or write a file."""
    theirs = tmp_path / "theirs"
    shutil.copytree(steps.adapter[1], theirs)
    said = json.loads((theirs / DESCRIPTION).read_text())
    (theirs / DESCRIPTION).write_text(json.dumps(said | {"options": {name: HOSTILE[name]}}))
    with pytest.raises(SystemExit) as stop:
        script("evaluate").main([*steps.shared, "--adapter", str(theirs)])
    assert stop.value.code == 2
    assert "options are damaged, or not ours" in capsys.readouterr().err
    lines = (steps.folder / "train.jsonl").read_text().splitlines(keepends=True)
    header = json.loads(lines[0])
    header["options"] = {name: HOSTILE[name]}
    (tmp_path / "theirs.jsonl").write_text(json.dumps(header) + "\n" + "".join(lines[1:]))
    with pytest.raises(SystemExit) as stop:
        script("finetune").main([*steps.shared, "--manifest", str(tmp_path / "theirs.jsonl")])
    assert stop.value.code == 2
    assert "options are damaged, or not ours" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": []}, "options is a list of 0, expected an object"),
        ({"trained_on": {}}, "trained_on.messages is missing"),
        ({"threshold": 10**400}, "is damaged"),
        ({"threshold": True}, "threshold is True, expected a number"),
    ],
)
def test_damaged_descriptions_are_refused(
    changes: dict, message: str, steps: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever is in the JSON, there is a message and no traceback."""
    theirs = tmp_path / "theirs"
    shutil.copytree(steps.adapter[1], theirs)
    said = json.loads((theirs / DESCRIPTION).read_text())
    (theirs / DESCRIPTION).write_text(json.dumps(said | changes))
    with pytest.raises(SystemExit) as stop:
        script("evaluate").main([*steps.shared, "--adapter", str(theirs)])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_weights_of_another_adapter_are_refused(
    steps: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """PEFT leaves out what it does not know, and a fresh adapter changes nothing: that would be the untrained model."""
    weights = load_file(Path(steps.adapter[1]) / "adapter_model.safetensors")
    half = dict(list(weights.items())[::2])
    for number, tensors in enumerate(({"foo": torch.ones(3)}, half, {name: rows[:1] for name, rows in weights.items()})):
        theirs = tmp_path / f"theirs-{number}"
        shutil.copytree(steps.adapter[1], theirs)
        said = json.loads((theirs / DESCRIPTION).read_text())
        unsealed = {
            name: value for name, value in said.items() if name not in (CHECKSUM, "files")
        }  # a change that is meant
        (theirs / DESCRIPTION).write_text(json.dumps(unsealed))
        save_file({name: rows.contiguous() for name, rows in tensors.items()}, theirs / "adapter_model.safetensors")
        with pytest.raises(SystemExit) as stop:
            script("evaluate").main([*steps.shared, "--adapter", str(theirs)])
        assert stop.value.code == 2
        assert "does not fit" in capsys.readouterr().err
