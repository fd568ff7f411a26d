"""Models that read pictures, too: their text model is used, and the adapter is on it alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from multimodal_models import CONFIGS, LAYERS, save_multimodal
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast, T5Config

from introspection_lit.models.adapters import adapter_problems
from introspection_lit.models.architecture import find_decoder_layers
from introspection_lit.models.base_identity import BaseIdentity
from introspection_lit.models.base_model import BaseModel, Lora
from introspection_lit.models.decoder_shape import decoder_shape
from introspection_lit.models.loading import add_lora, load_config, load_model, meta_model
from introspection_lit.models.memory_estimate import adapter_weights, cache_bytes, weight_bytes
from introspection_lit.models.whole_model import whole_config
from introspection_lit.utils.errors import ConfigurationError


@pytest.fixture(scope="module")
def multimodal(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes (once) a folder of a kind of model."""
    root = tmp_path_factory.mktemp("multimodal")

    def make(kind: str) -> Path:
        return root / kind if (root / kind).exists() else save_multimodal(kind, tokenizer, root / kind)

    return make


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_text_model_is_used(multimodal: Callable[[str], Path], kind: str, tmp_path: Path) -> None:
    """Logits are those of the class that the config names; adapters are in the text model's layers, given or all."""
    base = BaseModel(str(multimodal(kind)))
    model = load_model(base)
    reference = AutoModelForImageTextToText.from_pretrained(multimodal(kind), dtype=torch.float32)
    ids = torch.arange(10, 22)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, reference(ids).logits)
    assert load_config(base).num_hidden_layers == len(find_decoder_layers(model)) == LAYERS
    for layers, expected in (([], set(range(LAYERS))), ([1, 5], {1, 5})):
        adapted = add_lora(load_model(base), Lora(layers=layers)).train()
        adapted(ids).logits.logsumexp(-1).sum().backward()
        trained = {name: parameter for name, parameter in adapted.named_parameters() if parameter.requires_grad}
        assert len(trained) == 8 * len(expected)
        places = {name.partition("language_model.layers.")[2].partition(".")[0] for name in trained}
        assert places == set(map(str, expected))
        assert all(parameter.grad is not None for parameter in trained.values())  # DDP waits for every one
        without = {
            name for name, _ in add_lora(meta_model(base), Lora(layers=layers)).named_parameters() if "lora_" in name
        }
        assert without == set(trained)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    assert adapter_problems(str(tmp_path / "adapter"), BaseIdentity(base), None, fitting=False) == []


def test_missing_tensors_of_a_whole_model(multimodal: Callable[[str], Path], tmp_path: Path) -> None:
    """The names are those of the model's class."""
    (tmp_path / "config.json").write_bytes((multimodal("mistral3") / "config.json").read_bytes())
    tensors = load_file(multimodal("mistral3") / "model.safetensors")
    fewer = {name: tensor for name, tensor in tensors.items() if "layers.3.mlp" not in name}
    save_file(fewer, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigurationError, match=r"Mistral3ForConditionalGeneration: 3 missing .*layers\.3\.mlp"):
        load_model(BaseModel(str(tmp_path)))


@pytest.mark.parametrize(
    "config",
    [
        T5Config(num_layers=2, d_model=32).to_dict(),  # an encoder and a decoder
        {"model_type": "vit", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    ],
)
def test_models_that_continue_no_text(config: dict[str, object], model: Path, refused: Callable[..., str]) -> None:
    """One line, without the names of all classes that there are."""
    (model / "config.json").write_text(json.dumps(config))
    printed = refused(base=model)
    lines = [line for line in printed.splitlines() if "has no decoder that continues a text" in line]
    assert len(lines) == 1
    assert str(config["model_type"]) in lines[0]
    assert len(lines[0]) < 500


@pytest.mark.parametrize("kind", CONFIGS)
def test_sizes_are_those_of_the_text_model(
    multimodal: Callable[[str], Path], kind: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Of a nested configuration: layers, widths and vocabulary of the text, the weights of all that is loaded."""
    base = BaseModel(str(multimodal(kind)))
    shape = decoder_shape(whole_config(base))
    sizes = (shape.layers, shape.hidden, shape.heads, shape.queries, shape.keys, shape.intermediate)
    assert sizes == (6, 32, 4, 32, 16, 64)
    assert shape.vocabulary == len(tokenizer) + 8
    assert {matrix.layer for matrix in shape.matrices} == set(range(6))
    assert {(m.rows, m.columns) for m in shape.matrices if m.name in ("q_proj", "o_proj")} == {(32, 32)}
    model = load_model(base)
    assert weight_bytes(shape, base) == sum(weight.nbytes for weight in model.parameters())
    assert cache_bytes(shape, base, 10) == 2 * 6 * 16 * 10 * 4
    lora = Lora(r=4, target_modules=["q_proj"])
    adapted = add_lora(model, lora)
    assert adapter_weights(shape, lora) == sum(p.numel() for name, p in adapted.named_parameters() if "lora_" in name)
