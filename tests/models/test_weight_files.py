"""Weights are those of the file: tensors that are missing, unexpected or of another shape are an error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from project_paths import listed_models
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config

from introspection_lit.models.base_model import BaseModel
from introspection_lit.models.loading import load_model
from introspection_lit.models.weight_files import header_mismatches, load_exactly
from introspection_lit.tools.architectures.recipes import tiny_config
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
@pytest.mark.parametrize("found", ["by the headers", "after loading"])
def test_tensors_that_are_not_the_models(
    edit: Callable[[Tensors], Tensors], said: str, found: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names some of them, and says how many: before weights are read, and where that cannot be done, after it."""
    change(model, edit)
    if found == "after loading":
        monkeypatch.setattr("introspection_lit.models.loading.header_mismatches", lambda *_: [])
    else:
        monkeypatch.setattr(
            "introspection_lit.models.loading.load_exactly", lambda *_, **__: pytest.fail("weights are read")
        )
    with pytest.raises(ConfigurationError, match=said):
        load_model(BaseModel(str(model)))


def test_all_parts_of_a_model_are_looked_at(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In several files: intact ones are the same model, and what a part lacks is named before weights are read."""
    whole = load_model(BaseModel(str(model)))
    (model / "model.safetensors").unlink()
    whole.save_pretrained(model, max_shard_size="20KB")
    assert len(list(model.glob("model-*.safetensors"))) > 2
    again = load_model(BaseModel(str(model)))
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), again.parameters(), strict=True))
    index = json.loads((model / "model.safetensors.index.json").read_text())["weight_map"]
    part = model / index["model.layers.4.mlp.up_proj.weight"]
    tensors = load_file(part)
    tensors.pop("model.layers.4.mlp.up_proj.weight")
    save_file(tensors, part, {"format": "pt"})
    monkeypatch.setattr("introspection_lit.models.loading.load_exactly", lambda *_, **__: pytest.fail("weights are read"))
    with pytest.raises(ConfigurationError, match=r"1 missing \(model\.layers\.4\.mlp\.up_proj\.weight\)"):
        load_model(BaseModel(str(model)))


USUAL = ("llama", "mixtral", "gemma2")  # one whose experts are fused while they are loaded, one with a tied head


@pytest.mark.parametrize(
    "kind", [kind if kind in USUAL else pytest.param(kind, marks=pytest.mark.thorough) for kind in listed_models()]
)
def test_headers_say_what_loading_says(kind: str, tmp_path: Path) -> None:
    """For every architecture that works: intact, without a tensor, with one more, and with names that belong to nothing."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(tiny_config(kind)).save_pretrained(tmp_path)
    config, file = AutoConfig.from_pretrained(tmp_path), tmp_path / "model.safetensors"
    assert header_mismatches(AutoModelForCausalLM, config, [file], "it") == []
    tensors = load_file(file)
    middle = sorted(tensors)[len(tensors) // 2]
    for made in (
        {name: each for name, each in tensors.items() if name != middle},
        tensors | {"model.layers.99.no_such.weight": torch.ones(2)},
        {f"_orig_mod.{name}": each for name, each in tensors.items()},
    ):
        save_file(made, file, {"format": "pt"})
        with pytest.raises(ConfigurationError) as refusal:
            load_exactly(AutoModelForCausalLM, "it", pretrained_model_name_or_path=str(tmp_path), dtype=torch.float32)
        assert header_mismatches(AutoModelForCausalLM, config, [file], "it") == refusal.value.problems


def test_tied_weights_and_computed_buffers_may_be_absent(model: Path, tmp_path: Path) -> None:
    """The head of a model whose head is its embedding; rotary frequencies that older versions have saved."""
    config = Qwen2Config(**json.loads((model / "config.json").read_text()) | {"tie_word_embeddings": True})
    AutoModelForCausalLM.from_config(config).save_pretrained(tied := tmp_path / "tied")
    assert "lm_head.weight" not in load_file(tied / "model.safetensors")
    change(tied, lambda tensors: tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    loaded = load_model(BaseModel(str(tied)))
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
