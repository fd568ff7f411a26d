"""Whole runs on tiny models of the hybrid and latent-attention families that people use most: fit two steps, and test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from project_paths import CONFIG

from introspection_lit.cli import main
from introspection_lit.tools.architectures.recipes import tiny_model

FAMILIES = {
    "qwen3_5_text": {},
    "qwen3_next": {},
    "lfm2": {},
    "granitemoehybrid": {},
    "deepseek_v3": {},
    "gemma3n_text": {"vocab_size_per_layer_input": 900},
    "gemma4_text": {"vocab_size_per_layer_input": 900},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAMILIES)
def test_fit_and_test(
    kind: str, tokenizer: Any, some_contexts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With default options but for sizes; evidence included. What training has learned is what the test scores."""
    monkeypatch.chdir(tmp_path)
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 1024}
    sizes |= {name: len(tokenizer) for name in FAMILIES[kind]}
    tiny_model(kind, **sizes).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    options = ["--config", CONFIG, "--model.base.name_or_path", str(tmp_path / "model"), *some_contexts]
    options += ["--trainer.max_epochs", "1", "--data.trials_per_epoch", "8", "--trainer.enable_progress_bar", "false"]
    options += ["--data.test_trials", "{heldout: 8}", "--data.reuse.group", "4"]
    run = main(["fit", *options])
    assert run.trainer.global_step == 2
    assert 0.0 < run.trainer.callback_metrics["train/loss"] < 50.0
    checkpoint = run.trainer.checkpoint_callback.last_model_path
    options += ["--evidence.enabled", "true", "--evidence.probe_trials", "32"]
    options += ["--evidence.texts", "2", "--evidence.facts", "4"]
    tested = main(["test", *options, "--ckpt_path", checkpoint])
    results = json.loads(next(Path(tested.trainer.log_dir).glob("results.json")).read_text())
    assert results["sets"]["heldout"]["n_steered"] == 4
