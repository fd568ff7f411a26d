"""Weights that are quantised already: options that are not those of the file are refused before a weight is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from hostile import change_json
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedTokenizerFast

from introspection_lit.models import loading
from introspection_lit.models.base_model import BaseModel, Lora
from introspection_lit.models.loading import add_lora, load_config, load_model, meta_model
from introspection_lit.models.whole_model import as_stored
from introspection_lit.utils.errors import ConfigurationError

Quantised = Callable[..., Path]


@pytest.fixture
def quantised(tiny_folder: Callable[[str], Path], tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Quantised:
    """Makes a folder of the tiny model as somebody else has quantised and saved it."""

    def make(**settings: Any) -> Path:
        packed = BitsAndBytesConfig(**settings)
        model = AutoModelForCausalLM.from_pretrained(tiny_folder("qwen2-wide"), quantization_config=packed)
        model.save_pretrained(tmp_path / "theirs")
        tokenizer.save_pretrained(tmp_path / "theirs")
        return tmp_path / "theirs"

    return make


def nf4(storage: str) -> dict[str, Any]:
    """Settings of NF4."""
    return {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_quant_storage": storage}


INT8 = {"load_in_8bit": True}


@pytest.mark.parametrize(
    ("settings", "options", "said"),
    [
        (nf4("uint8"), {}, r"stored in NF4, packed in uint8; got 'none'\. Set model\.base\.quantization to nf4 and"),
        (nf4("uint8"), {"quantization": "int8"}, r"stored in NF4, packed in uint8; got 'int8'\."),
        (
            nf4("bfloat16"),
            {"quantization": "nf4", "quant_storage": "uint8"},
            r"packed in bfloat16; got 'nf4' with quant_storage 'uint8'\. .*quant_storage to bfloat16",
        ),
        ({"load_in_4bit": True}, {"quantization": "nf4", "quant_storage": "uint8"}, r"in 4 bits as 'fp4'\. Expected nf4"),
        (INT8, {"quantization": "nf4"}, r"stored in int8; got 'nf4'\. Set model\.base\.quantization to int8"),
        (INT8, {}, r"stored in int8; got 'none'"),
    ],
)
def test_other_options_than_those_of_the_file(
    settings: dict[str, Any], options: dict[str, Any], said: str, quantised: Quantised, refused: Callable[..., str]
) -> None:
    """Fit says what is stored, and which options are its own; no weight is read."""
    folder = quantised(**settings)
    base = BaseModel(str(folder), **options)
    for load in (load_config, load_model):
        with pytest.raises(ConfigurationError, match=said):
            load(base)
    given = [text for name, value in options.items() for text in (f"--model.base.{name}", value)]
    assert "base.quantization: the weights of" in refused(*given, base=folder)


def test_a_file_in_a_precision_that_would_cast_its_bytes(quantised: Quantised, refused: Callable[..., str]) -> None:
    """The options are those of the file by now, so that the check of the precision is one of the file's bytes."""
    options = ("--model.base.quantization", "nf4", "--model.base.quant_storage", "bfloat16")
    assert "'bfloat16' with trainer.precision '16-true'" in refused(
        *options, "--trainer.precision", "16-true", base=quantised(**nf4("bfloat16"))
    )


@pytest.mark.parametrize("storage", ["uint8", "bfloat16"])
def test_nf4_of_a_file(storage: str, quantised: Quantised, tiny_folder: Callable[[str], Path]) -> None:
    """Loaded as stored, computing in the dtype of the options; an adapter goes on it."""
    base = BaseModel(str(quantised(**nf4(storage))), quantization="nf4", quant_storage=storage, dtype="bfloat16")  # type: ignore[arg-type]
    model = load_model(base)
    layer = model.model.layers[0].self_attn.q_proj
    assert isinstance(layer, Linear4bit)
    assert layer.compute_dtype == torch.bfloat16
    assert layer.weight.dtype == getattr(torch, storage)
    full = AutoModelForCausalLM.from_pretrained(tiny_folder("qwen2-wide")).model.layers[0].self_attn.q_proj.weight
    restored = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    assert 0.05 < (restored - full).norm() / full.norm() < 0.12
    names = {name for name, _ in add_lora(model, Lora()).named_parameters() if "lora_" in name}
    assert names == {name for name, _ in add_lora(meta_model(base), Lora()).named_parameters() if "lora_" in name}


def test_storage_of_a_file_without_a_trainer(quantised: Quantised) -> None:
    """The detector knows from an adapter that it was trained on NF4, not how the model's file packs it."""
    base = BaseModel(str(quantised(**nf4("uint8"))), quantization="nf4")
    assert as_stored(base).quant_storage == "uint8"
    load_config(as_stored(base))
    assert as_stored(BaseModel("/nowhere", quantization="nf4")).quant_storage == "bfloat16"


def test_int8_of_a_file(quantised: Quantised) -> None:
    """Loaded as stored."""
    model = load_model(BaseModel(str(quantised(**INT8)), quantization="int8"))
    assert isinstance(model.model.layers[0].self_attn.q_proj, Linear8bitLt)


def test_files_that_say_they_are_quantised_and_are_not(model: Path) -> None:
    """Random or unpacked weights would pass for packed ones."""
    change_json(model / "config.json", quantization_config=nf4("uint8"))  # without quant_method, as of old
    with pytest.raises(ValueError, match=r"does not hold the weights|were loaded as|could not be loaded"):
        load_model(BaseModel(str(model), quantization="nf4", quant_storage="uint8"))


def test_quantised_models_can_be_fetched(quantised: Quantised) -> None:
    """Before anybody has chosen options."""
    assert loading.fetch(BaseModel(str(quantised(**INT8)))).startswith("qwen2 ")
