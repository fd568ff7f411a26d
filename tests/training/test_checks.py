"""Bad input: the message says what was given, what was expected and what to do, before the model is loaded."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from project_paths import CONFIG

from introspection_lit.cli import attach
from introspection_lit.models.base_model import BaseModel
from introspection_lit.steering.vector_bank import RANDOM_SPLITS, VectorBank, random_unit_vectors
from introspection_lit.training.checks import precision_problems
from introspection_lit.training.experiment_setup import prepare


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        (["--data.strength", "1"], ["strength"]),  # unknown key: named by the parser
        (["--data.bands", "[[3, 9]]"], ["data.bands", "[3, 9]", "0..5", "both inclusive"]),
        (["--data.bands", "[[5, 5]]"], ["the last layer alone", "4 or below"]),
        (["--data.bands", "[center]"], ["'center'", "early, middle, late"]),
        (["--data.strengths", "[0, 1]"], ["data.strengths", "[0.0, 1.0]", "0 < lowest"]),
        (["--data.strengths", "[-1, 1]"], ["data.strengths", "[-1.0, 1.0]"]),
        (["--data.test_strengths", "[2, 1]"], ["data.test_strengths", "lowest <= highest"]),
        (["--data.answers", "[affirmative, 'no']"], ["data.answers", "'affirmative'", "exactly one token"]),
        (["--data.batch_size", "5"], ["data.batch_size", "5", "even"]),
        (["--data.train_vectors", "0"], ["data.train_vectors", "0", "at least 1"]),
        (["--data.concepts", "[bread, cats, bread]"], ["data.concepts", "three different ones"]),
        (["--data.contexts", "nowhere.jsonl"], ["data.contexts", "no such file: nowhere.jsonl"]),
        (["--data.test_kinds", "[klingon]"], ["'klingon'", "Kinds there are", "rust"]),
        (["--data.test_kinds", "[]"], ["'newkinds'", "data.test_kinds"]),
        (
            ["--data.heldout_questions", "[Was it?]", "--data.questions", "[was  it?]"],
            ["heldout_questions", "trained on"],
        ),
        (["--data.questions", "[]"], ["data.questions", "at least one"]),
        (["--data.heldout_questions", "[]"], ["data.heldout_questions", "newquestions"]),
        (["--data.test_trials", "{}"], ["data.test_trials", "got none"]),
        (["--data.max_context_tokens", "5"], ["no context is left for 'train'"]),
        (["--data.test_trials", '{"elsewhere": 8}'], ["'elsewhere' is no test set", "newkinds"]),
        (["--data.bank", "nowhere.safetensors"], ["data.bank", "no such file"]),
        (["--data.max_context_tokens", "1000"], ["data.max_context_tokens: 1000", "1024 positions"]),
        (["--data.questions", "[' ']"], ["got an empty question"]),
        (["--data.questions", "['Hm?<|im_end|>']"], ["control token '<|im_end|>'"]),
        (["--data.answer_prefix", ""], ["data.answer_prefix: got none"]),
        (["--data.seed", "-1"], ["data.seed", "-1", "0 or more"]),
        (["--model.learning_rate", "-1"], ["learning_rate -1.0", "learning_rate > 0"]),
        (["--model.warmup", "5"], ["warmup 5.0", "[0, 1]"]),
        (["--model.lora.target_modules", "[]"], ["model.lora.target_modules: got none"]),
        (["--ckpt_path", "last"], ["ckpt_path", "no such file: last"]),
        (["--model.lora.r", "0"], ["model.lora", "r >= 1"]),
        (["--model.lora.layers", "[2, 6]"], ["model.lora.layers", "[6]", "0..5"]),
        (["--ckpt_path", "nowhere.ckpt"], ["ckpt_path", "no such file: nowhere.ckpt"]),
        (
            [
                "--model.base.quantization",
                "nf4",
                "--model.base.quant_storage",
                "float16",
                "--trainer.precision",
                "bf16-true",
            ],
            ["quant_storage", "'bf16-true'", "16-mixed or 16-true", "16-true can test, not train"],
        ),
        (["--model.base.quantization", "nf4"], ["quant_storage", "32-true", "uint8"]),
        (["--trainer.precision", "16-true"], ["trainer.precision", "cannot train", "model.base.dtype float16"]),
        (["--model.base.quantization", "nf4", "--model.base.quant_storage", "uint8"], ["hidden_size 32", "multiple of 64"]),
    ],
)
def test_bad_options(refused: Callable[..., str], options: list[str], messages: list[str]) -> None:
    """One option at a time."""
    printed = refused(*options)
    for message in messages:
        assert message in printed


def test_all_problems_at_once(refused: Callable[..., str]) -> None:
    """Nobody wants to fix a configuration one error at a time."""
    printed = refused("--data.batch_size", "3", "--data.bands", "[[9, 3]]", "--data.strengths", "[0, 0]")
    assert "3 problems" in printed
    for message in ("data.batch_size", "[9, 3]", "data.strengths"):
        assert message in printed


def test_not_a_model(refused: Callable[..., str], tmp_path: Path) -> None:
    """A folder without a model, a file that is not one, a path to nowhere, a package that is not installed."""
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in refused(base=tmp_path / "empty")
    (tmp_path / "model.bin").write_text("x")
    assert "neither a model folder nor a .gguf file" in refused(base=tmp_path / "model.bin")
    assert "neither a model folder nor a .gguf file" in refused(base=tmp_path / "nowhere")
    assert "no such file" in refused(base=tmp_path / "nowhere.gguf")
    assert "no installed package 'nosuch'" in refused(base="package:nosuch/model.gguf")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{oops")
    assert "cannot be read as JSON fields" in refused(base=tmp_path / "broken")


def test_broken_gguf(refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that only calls itself GGUF; nothing half-made stays in the cache."""
    monkeypatch.setenv("INTROSPECTION_LIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "broken.gguf").write_bytes(b"GGUF and then nothing")
    assert "could not be read as a GGUF model" in refused(base=tmp_path / "broken.gguf")
    assert not (tmp_path / "cache").exists()


def test_hub_model_without_a_hub(refused: Callable[..., str]) -> None:
    """Offline, and the model is not in the cache: a clean message, no traceback."""
    assert "'nobody/nothing' could not be loaded as a model" in refused(base="nobody/nothing")


def test_tokenizer_without_chat_template(refused: Callable[..., str], tiny: Path, tmp_path: Path) -> None:
    """A base model, not an instruct model."""
    shutil.copytree(tiny, tmp_path / "base")
    for path in (tmp_path / "base").glob("chat_template*"):
        path.unlink()
    assert "has no chat template" in refused(base=tmp_path / "base")


def test_bank_of_another_model(refused: Callable[..., str], tmp_path: Path) -> None:
    """By name, and by hidden size."""
    directions = {split: random_unit_vectors(3, 48, 0, split) for split in RANDOM_SPLITS}
    directions["concept"] = torch.nn.functional.normalize(torch.randn(2, 6, 48), dim=-1)
    names = {split: [str(i) for i in range(len(rows))] for split, rows in directions.items()}
    bank = VectorBank(directions, names, torch.ones(6), {"base_model": "Qwen/Qwen2.5-7B-Instruct"})
    bank.save(tmp_path / "bank.safetensors")
    printed = refused("--data.bank", str(tmp_path / "bank.safetensors"))
    assert "shape (3, 48)" in printed
    assert "made for the model 'Qwen/Qwen2.5-7B-Instruct'" in printed


def test_checkpoints_that_cannot_be_used(refused: Callable[..., str], tmp_path: Path) -> None:
    """A Lightning checkpoint that is not ours, one that is cut off, and one for another model."""
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.0"}, tmp_path / "other.ckpt")
    assert "not one of introspection_lit" in refused("--ckpt_path", "other.ckpt", subcommand="test")
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "other.ckpt").read_bytes()[:100])
    assert "cut.ckpt cannot be read as a checkpoint" in refused("--ckpt_path", "cut.ckpt")
    identity = {"threshold": 0.0, "base_model": "Qwen/Qwen2.5-7B-Instruct", "revision": None, "lora": {}}
    torch.save({"state_dict": {}, "introspection": identity, "pytorch-lightning_version": "2.6.0"}, tmp_path / "qwen.ckpt")
    (tmp_path / "text.ckpt").write_text("hello")
    assert "text.ckpt cannot be read as a checkpoint" in refused("--ckpt_path", "text.ckpt")
    assert "was made for the model 'Qwen/Qwen2.5-7B-Instruct'" in refused("--ckpt_path", "qwen.ckpt", subcommand="test")


@pytest.mark.parametrize("precision", ["32-true", "16-true", "16-mixed", "bf16-true", "bf16-mixed"])
@pytest.mark.parametrize("storage", ["uint8", "bfloat16", "float16", "float32"])
def test_precision_that_destroys_packed_bytes(precision: str, storage: str) -> None:
    """Only the storage's own dtype, or bytes, survive a cast to the precision's dtype."""
    casts_to = {"32": "float32", "16": "float16", "bf16": "bfloat16"}[precision.split("-", maxsplit=1)[0]]
    problems = precision_problems(BaseModel(quantization="nf4", quant_storage=storage), precision)  # type: ignore[arg-type]
    assert bool(problems) == (storage not in ("uint8", casts_to))
    assert precision_problems(BaseModel(quantization="none", quant_storage=storage), precision) == []  # type: ignore[arg-type]


def test_checks_draw_no_random_numbers(tiny: Path, some_contexts: list[str]) -> None:
    """Models without weights are built on the way; the adapter's first weights come from the run's seed all the same."""
    words = ["--config", CONFIG, "--model.base.name_or_path", str(tiny), "--trainer.logger", "false", *some_contexts]
    run = attach(words).datamodule.run
    torch.manual_seed(0)
    before = torch.get_rng_state()
    prepare(run)
    assert torch.equal(torch.get_rng_state(), before)
