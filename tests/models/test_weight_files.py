"""Weights are those of the file: tensors that are missing, unexpected or of another shape are an error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen2Config

from introspection_lit.models.base_model import BaseModel
from introspection_lit.models.loading import load_model
from introspection_lit.utils.errors import ConfigurationError

Tensors = dict[str, Tensor]


def change(model: Path, edit: Callable[[Tensors], Tensors]) -> None:
    """Rewrite the weights of a model folder."""
    save_file(edit(load_file(model / "model.safetensors")), model / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (
            lambda tensors: {name: each for name, each in tensors.items() if "layers.3.self_attn" not in name},
            r"7 missing \(model\.layers\.3\.self_attn\.k_proj\.bias, .*, \.\.\.\)",
        ),
        (
            lambda tensors: {name: tensors[name] for name in tensors if name != "lm_head.weight"},
            r"1 missing \(lm_head",
        ),
        (
            lambda tensors: {f"_orig_mod.{name}": each for name, each in tensors.items()},
            r"unexpected \(_orig_mod\.lm_head\.weight.*take '_orig_mod\.' out",
        ),
        (
            lambda tensors: tensors | {"model.layers.6.mlp.gate.weight": torch.ones(2)},
            r"1 unexpected \(model\.layers\.6",
        ),
        (
            lambda tensors: tensors | {"model.norm.weight": torch.ones(2)},
            r"1 of another shape \(model\.norm\.weight \[2\] instead of \[32\]\)",
        ),
    ],
)
def test_tensors_that_are_not_the_models(edit: Callable[[Tensors], Tensors], said: str, model: Path) -> None:
    """The error names some of them, and says how many."""
    change(model, edit)
    with pytest.raises(ConfigurationError, match=said):
        load_model(BaseModel(str(model)))


def test_tied_weights_and_computed_buffers_may_be_absent(model: Path, tmp_path: Path) -> None:
    """The head of a model whose head is its embedding; rotary frequencies that older versions have saved."""
    config = Qwen2Config(**json.loads((model / "config.json").read_text()) | {"tie_word_embeddings": True})
    AutoModelForCausalLM.from_config(config).save_pretrained(tied := tmp_path / "tied")
    assert "lm_head.weight" not in load_file(tied / "model.safetensors")
    change(tied, lambda tensors: tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    loaded = load_model(BaseModel(str(tied)))
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
