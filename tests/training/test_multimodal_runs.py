"""Runs on models that read pictures, too: trained and tested, in one process and in two."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from multimodal_models import save_multimodal
from project_paths import CONFIG
from transformers import PreTrainedTokenizerFast
from two_processes import run_together

from introspection_lit.cli import main

Options = Callable[[str], list[str]]


@pytest.fixture
def options(tokenizer: PreTrainedTokenizerFast, some_contexts: list[str], tmp_path: Path) -> Options:
    """Makes the arguments of a short run on a kind of model."""

    def make(kind: str) -> list[str]:
        folder = save_multimodal(kind, tokenizer, tmp_path / kind)
        base = ["--config", CONFIG, "--model.base.name_or_path", str(folder), *some_contexts, "--trainer.max_epochs", "1"]
        return [*base, f"--trainer.logger.init_args.save_dir={tmp_path}"]

    return make


@pytest.mark.parametrize(
    "kind", ["mistral3", *(pytest.param(kind, marks=pytest.mark.thorough) for kind in ("gemma3", "gemma4", "qwen3_vl"))]
)
def test_trained_and_tested(kind: str, options: Options, tmp_path: Path) -> None:
    """The exported adapter scores as the checkpoint does."""
    arguments = options(kind)
    main(["fit", *arguments, "--test_after_fit", "true"])
    adapter = tmp_path / "default" / "version_0" / "adapter"
    main(["test", *arguments, "--model.adapter", str(adapter)])
    first, second = (json.loads((tmp_path / f"default/version_{n}/results.json").read_text()) for n in (0, 1))
    for name, row in first["sets"].items():
        assert second["sets"][name]["auroc"] == pytest.approx(row["auroc"], abs=1e-4)


@pytest.mark.slow
def test_two_processes_train_the_text_model(options: Options, tmp_path: Path) -> None:
    """DDP waits for the gradient of every tensor of the adapter: none is in the tower of pictures, which never runs."""
    both = ["--trainer.strategy", "ddp", "--trainer.devices", "2"]
    run_together(tmp_path, [["fit", *options("gemma3"), *both]])
    assert (tmp_path / "default/version_0/checkpoints/last.ckpt").is_file()
