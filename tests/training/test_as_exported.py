"""The exported adapter as people use it: plain PEFT, conversation and question in one pass, does what the protocol does."""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch

from introspection_lit import Detector, Steering
from introspection_lit.cli import main
from introspection_lit.contexts.loading import load_contexts
from introspection_lit.models.base_model import BaseModel
from introspection_lit.training.callbacks import adapter_export
from introspection_lit.training.model_card import _loading_code

CONFIG = str(Path(__file__).parents[1] / "conf/tiny.yaml")
SETS = ["--data.test_trials", "{heldout: 8, as_exported: 40}", "--evidence.enabled", "true"]
CHEAP = [*SETS, "--evidence.probe_trials", "0", "--evidence.lens_trials", "0", "--evidence.texts", "0"]


def test_a_failing_check_loses_no_training(
    tiny: Path, some_contexts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT fails on some layers: the export is then always on, complete, and says why."""

    def fail(*_: Any) -> None:
        raise IndexError("the shape of the mask")

    monkeypatch.setattr(adapter_export, "check_export", fail)
    common = ["--config", CONFIG, "--model.base.name_or_path", str(tiny), *some_contexts, "--trainer.max_epochs", "1"]
    with pytest.warns(UserWarning, match="acts on everything it reads"):
        main(["fit", *common, f"--trainer.logger.init_args.save_dir={tmp_path}"])
    folder = tmp_path / "default" / "version_0" / "adapter"
    assert json.loads((folder / "adapter_config.json").read_text())["alora_invocation_tokens"] is None
    assert "IndexError: the shape of the mask" in (folder / "README.md").read_text()
    Detector.from_pretrained(folder)


@pytest.fixture(scope="module")
def run(tiny: Path, some_contexts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a fit with the test after it."""
    root = tmp_path_factory.mktemp("exported")
    common = ["--config", CONFIG, "--model.base.name_or_path", str(tiny), *some_contexts]
    main(["fit", *common, "--test_after_fit", "true", f"--trainer.logger.init_args.save_dir={root}", *CHEAP])
    return root / "default" / "version_0"


def result(folder: Path) -> dict[str, Any]:
    """What a test says about the exported adapter."""
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())["evidence"]["as_exported"]
    return found


def test_the_test_set_compares_both_roads(run: Path) -> None:
    """The same trials, rates and score; and every row of the file has both."""
    found = result(run)
    assert found["largest_difference"] < 1e-4
    assert (found["n"], found["decided_differently"]) == (40, 0)
    assert found["protocol"] == found["exported"]
    rows = [json.loads(line) for line in (run / "trials.jsonl").read_text().splitlines()]
    both = [row["scores"] for row in rows if row["split"] == "as_exported"]
    assert len(both) == 40
    assert all(row["as exported"] == pytest.approx(row["adapter"], abs=1e-4) for row in both)
    assert not any("as exported" in row["scores"] for row in rows if row["split"] != "as_exported")
    page = (run / "report.html").read_text()
    assert "The exported adapter does what the table says" in page
    assert "as exported: plain PEFT, one pass" in page


@pytest.fixture
def again(tiny: Path, some_contexts: list[str], run: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Tests the run, or an adapter, in a folder of its own."""

    def test(*options: str) -> dict[str, Any]:
        bank = ["--data.bank", str(run / "vectors.safetensors")]
        common = ["--config", CONFIG, "--model.base.name_or_path", str(tiny), *some_contexts, *bank, *CHEAP]
        cli = main(["test", *common, f"--trainer.logger.init_args.save_dir={tmp_path}", *options])
        return result(Path(cli.trainer.log_dir or ""))

    return test


def test_a_checkpoint_and_a_folder_give_the_same(run: Path, again: Callable[..., dict[str, Any]]) -> None:
    """The exported adapter is the best checkpoint; an activated folder is read by the protocol as any other."""
    best = next((run / "checkpoints").glob("best*.ckpt"))
    for options in (["--ckpt_path", str(best)], ["--model.adapter", str(run / "adapter")]):
        found, expected = again(*options), result(run)
        assert found["largest_difference"] < 1e-4
        assert found["exported"]["tpr"] == pytest.approx(expected["exported"]["tpr"])
        assert found["exported"]["auroc"] == pytest.approx(expected["exported"]["auroc"])


def test_a_folder_that_is_always_on_is_told(run: Path, again: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """An older export, without invocation tokens: it also reads the conversation, and that shows."""
    older = tmp_path / "older"
    older.mkdir()
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        (older / file).write_bytes((run / "adapter" / file).read_bytes())
    config = json.loads((older / "adapter_config.json").read_text())
    (older / "adapter_config.json").write_text(json.dumps(config | {"alora_invocation_tokens": None}))
    assert again("--model.adapter", str(older))["largest_difference"] > 0.01


def test_what_cannot_be_compared_is_said(run: Path, tiny: Path, some_contexts: list[str], tmp_path: Path) -> None:
    """Another checkpoint than the exported one, changed or refused files, none at all: the protocol alone, and why."""
    bank = ["--data.bank", str(run / "vectors.safetensors")]
    common = ["--config", CONFIG, "--model.base.name_or_path", str(tiny), *some_contexts, *bank, *CHEAP]
    best = next((run / "checkpoints").glob("best*.ckpt"))
    for name, change, why in (
        ("none", None, "is no exported adapter"),
        ("other", {}, "was exported at step"),
        ("refused", {"init_lora_weights": "pissa"}, "initialisation that leaves the base model"),
    ):
        folder = tmp_path / name
        (folder / "checkpoints").mkdir(parents=True)
        checkpoint = shutil.copy(best if name != "other" else other_checkpoint(run, best), folder / "checkpoints")
        if change is not None:
            shutil.copytree(run / "adapter", folder / "adapter")
        if change:
            (folder / "adapter" / "introspection.json").unlink()
            settings = folder / "adapter" / "adapter_config.json"
            settings.write_text(json.dumps(json.loads(settings.read_text()) | change))
        logger = f"--trainer.logger.init_args.save_dir={folder}"
        with pytest.warns(UserWarning, match=f"scored by the protocol alone.*{why}"):
            cli = main(["test", *common, logger, "--ckpt_path", str(checkpoint)])
        results = json.loads((Path(cli.trainer.log_dir or "") / "results.json").read_text())
        assert results["evidence"]["as_exported"] is None
        assert results["sets"]["as_exported"]["n_steered"] == 20


def other_checkpoint(run: Path, best: Path) -> Path:
    """The best checkpoint as if it were of another step."""
    content = torch.load(best, weights_only=True) | {"global_step": 1}
    content.pop("sha256")
    made = run / "checkpoints" / "other.ckpt"
    torch.save(content, made)
    return made


def code_of(card: str) -> str:
    """The Python of a model card."""
    block = re.search(r"```python\n(.*?)```", card, re.S)
    assert block is not None
    return block[1]


def test_the_cards_lines_print_what_the_card_says(run: Path) -> None:
    """Run as they stand, but for the folder's name."""
    card = (run / "adapter" / "README.md").read_text()
    with redirect_stdout(StringIO()) as printed:
        exec(code_of(card).replace("this/folder", str(run / "adapter")), {})
    number = re.search(r"lines above print about (-?\d+\.\d\d)", card)
    assert number is not None
    assert "conversations of one exchange and 250 tokens" in card
    assert float(printed.getvalue()) == pytest.approx(float(number[1]), abs=0.01)
    checked = json.loads((run / "adapter" / "introspection.json").read_text())["check"]
    assert checked["largest_difference"] < 1e-4
    assert abs(checked["example"] - checked["example_without"]) > 0.01


def test_detector_and_test_agree(run: Path) -> None:
    """On every trial of the set, clean or steered: the front door, the test's two passes and plain PEFT's one."""
    detector = Detector.from_pretrained(run / "adapter")
    assert detector.bank is not None
    lines = (run / "trials.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["split"] == "as_exported"]
    contexts = {context.key: context for context in load_contexts(str(used_contexts(run)))}
    vectors = detector.bank.directions["heldout"]
    steering = [
        Steering(vectors[row["vector"]], row["strength"], tuple(row["band"])) if row["steered"] else None for row in rows
    ]
    answers = detector.ask_many([contexts[row["context_key"]] for row in rows], steering)
    assert len(rows) == 40
    for row, answer in zip(rows, answers, strict=True):
        assert answer.log_odds == pytest.approx(row["scores"]["as exported"], abs=1e-4)


def used_contexts(run: Path) -> Path:
    """The file of contexts in the run's configuration."""
    found = re.search(r"^  contexts: (.+)$", (run / "config.yaml").read_text(), re.M)
    assert found is not None
    return Path(found[1])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--data.prefill_adapter", "true"], "data.prefill_adapter"),
        (["--data.questions", '["Was it so? {yes} or {no}.", "Now, {yes} or {no}?"]'], "data.lead_in"),
    ],
)
def test_what_cannot_be_activated_says_so(
    tiny: Path, some_contexts: list[str], tmp_path: Path, options: list[str], why: str
) -> None:
    """The folder is a plain LoRA, and its card says why and what that means."""
    common = ["--config", CONFIG, "--model.base.name_or_path", str(tiny), *some_contexts, "--trainer.max_epochs", "1"]
    with pytest.warns(UserWarning, match="acts on everything it reads"):
        main(["fit", *common, f"--trainer.logger.init_args.save_dir={tmp_path}", *options])
    folder = tmp_path / "default" / "version_0" / "adapter"
    assert json.loads((folder / "adapter_config.json").read_text())["alora_invocation_tokens"] is None
    description = json.loads((folder / "introspection.json").read_text())
    assert (description["invocation"], description["check"]) == (None, None)
    card = (folder / "README.md").read_text()
    assert why in card
    assert "acts on everything it reads" in card


@pytest.mark.parametrize(
    ("base", "parts"),
    [
        (
            BaseModel("Qwen/Qwen3-4B", "abc", "bfloat16"),
            ["AutoModelForCausalLM", "'Qwen/Qwen3-4B', revision='abc', dtype="],
        ),
        (
            BaseModel("Qwen/Qwen3-4B", quantization="nf4"),
            ["'nf4', quant_storage='bfloat16'", 'load_model(base, "cuda")'],
        ),
        (BaseModel('/a "quoted" folder'), ['/a "quoted" folder', "load_model(base)"]),
    ],
    ids=["hub", "quantised", "folder"],
)
def test_the_card_loads_the_base_model_as_it_was(base: BaseModel, parts: list[str]) -> None:
    """Python that can be read, with revision and quantisation; the tokenizer's revision too."""
    code = _loading_code(base)
    ast.parse(code)
    assert all(part in code for part in parts)
    assert code.count("revision='abc'") == (2 if base.revision else 0)


def test_nf4_models_are_activated_too(tiny_folder: Callable[[str], Path], some_contexts: list[str], tmp_path: Path) -> None:
    """Plain PEFT on 4-bit layers does what the protocol does."""
    common = ["--config", CONFIG, "--model.base.name_or_path", str(tiny_folder("qwen2-wide")), *some_contexts, *CHEAP]
    common += ["--model.base.quantization", "nf4", "--model.base.quant_storage", "uint8", "--trainer.max_epochs", "1"]
    main(["fit", *common, "--test_after_fit", "true", f"--trainer.logger.init_args.save_dir={tmp_path}"])
    run = tmp_path / "default" / "version_0"
    assert json.loads((run / "adapter" / "introspection.json").read_text())["check"]["largest_difference"] < 1e-4
    assert result(run)["largest_difference"] < 1e-4
    assert result(run)["decided_differently"] == 0
