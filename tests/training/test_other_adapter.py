"""The change other_adapter on architectures whose attention has other modules than q, k, v and o."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from project_paths import CONFIG
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    OPTConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from introspection_lit.cli import main
from introspection_lit.models.architecture import find_decoder_layers
from introspection_lit.models.base_model import Lora
from introspection_lit.models.loading import add_lora
from introspection_lit.models.lora_targets import default_targets
from introspection_lit.steering.other_adapter import SHARE, other_adapter

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
KINDS: dict[str, Any] = {
    "gpt2": lambda size: GPT2Config(vocab_size=size, n_embd=32, n_layer=4, n_head=4, n_positions=1024),
    "gpt_neox": lambda size: GPTNeoXConfig(vocab_size=size, **SHAPE),
    "phi3": lambda size: Phi3Config(vocab_size=size, pad_token_id=0, num_key_value_heads=2, **SHAPE),
    "opt": lambda size: OPTConfig(vocab_size=size, ffn_dim=64, word_embed_proj_dim=32, **SHAPE),
}


def model_of(kind: str, size: int = 60) -> Any:
    """A tiny model."""
    torch.manual_seed(0)
    config: PretrainedConfig = KINDS[kind](size)
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("adapted", [False, True], ids=["adapted elsewhere", "adapted"])
@pytest.mark.parametrize("kind", KINDS)
def test_matrices_are_where_adapters_are(kind: str, adapted: bool) -> None:
    """In each layer, beside each module that gets an adapter by default, with the stated share of its norm."""
    base = model_of(kind)
    layers = find_decoder_layers(base)
    usual = default_targets(layers, base.config.model_type)
    where = {
        (number, name): module
        for number, layer in enumerate(layers)
        for name, module in layer.named_modules()
        if name.rpartition(".")[2] in usual
    }
    assert {number for number, _ in where} == {0, 1, 2, 3}
    model = add_lora(base, Lora(target_modules=usual if adapted else ["lm_head", "embed_out"]))
    inputs = {
        place: int((m.weight.shape if "Conv1D" in str(type(m)) else m.weight.T.shape)[0]) for place, m in where.items()
    }

    def matrices() -> dict[tuple[int, str], Tensor]:
        with torch.no_grad(), model.disable_adapter():
            return {
                place: layers[place[0]].get_submodule(place[1])(torch.eye(size))
                - layers[place[0]].get_submodule(place[1])(torch.zeros(1, size))
                for place, size in inputs.items()
            }

    own = matrices()
    with other_adapter(layers, usual, 0, model.get_input_embeddings().weight):
        inside = matrices()
    for place, matrix in own.items():
        assert float((inside[place] - matrix).norm() / matrix.norm()) == pytest.approx(SHARE, rel=0.25)
    assert all(torch.equal(matrix, after) for matrix, after in zip(own.values(), matrices().values(), strict=True))


@pytest.mark.parametrize("kind", ["gpt2", pytest.param("phi3", marks=pytest.mark.slow)])
def test_the_battery_runs_through(
    kind: str, some_contexts: list[str], tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: Any
) -> None:
    """It ended during the test, with an error, on every architecture that has not these four modules."""
    monkeypatch.chdir(tmp_path)
    model_of(kind, len(tokenizer)).save_pretrained(tmp_path / kind)
    tokenizer.save_pretrained(tmp_path / kind)
    sets = ["--data.test_changes", "[other_adapter, chunks]", "--data.test_trials", "{deployed: 12}"]
    evidence = ["--evidence.enabled", "true", "--evidence.sets", "[deployed]", "--evidence.report", "false"]
    evidence += [f"--evidence.{name}=0" for name in ("lens_trials", "texts", "facts", "probe_trials")]
    options = [*some_contexts, *sets, *evidence, "--trainer.enable_progress_bar", "false"]
    cli = main(["test", "--config", CONFIG, "--model.base.name_or_path", str(tmp_path / kind), *options])
    results = json.loads((Path(str(cli.trainer.log_dir)) / "results.json").read_text())
    assert "other_adapter" in {row["change"] for row in results["evidence"]["deployed"]}
