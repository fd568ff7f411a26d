"""What a model's files say of their own quantisation, against the options: what is loaded is what is recorded.

``transformers`` loads weights that are quantised already as their ``config.json`` says, whatever it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers import BitsAndBytesConfig

from introspection_lit.models.file_checks import model_config

if TYPE_CHECKING:
    from torch import nn

    from introspection_lit.models.base_model import BaseModel


def stored_quantization(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The ``quantization_config`` of a model's ``config.json``: its own, or its text model's; None: not quantised."""
    parts = (config, *(part for part in config.values() if isinstance(part, dict)))
    packed = next((part["quantization_config"] for part in parts if part.get("quantization_config")), None)
    return packed if isinstance(packed, dict) else None


def quantization_problems(base: BaseModel, source: Mapping[str, Any]) -> list[str]:
    """Check that the options are those of weights that bitsandbytes has quantised already.

    The trainer's precision is checked against the options (``precision_problems``), which then are those of the file.

    Args:
        base: Options of the model.
        source: Where the model is, from :func:`~introspection_lit.models.sources.resolve`.
    """
    packed = stored_quantization(model_config(source) or {})
    if packed is None:
        return []
    place = f"base.quantization: the weights of {base.name_or_path!r} are stored"
    if not packed.get("load_in_4bit"):
        if base.quantization == "int8":
            return []
        return [f"{place} in int8; got {base.quantization!r}. Set model.base.quantization to int8."]
    kind, storage = str(packed.get("bnb_4bit_quant_type", "fp4")), stored_storage(packed)
    if kind != "nf4":
        return [
            f"{place} in 4 bits as {kind[:20]!r}. Expected nf4, or weights that are not quantised: base.quantization "
            "quantises them."
        ]
    if (base.quantization, base.quant_storage) == ("nf4", storage):
        return []
    given = f"{base.quantization!r}" + (f" with quant_storage {base.quant_storage!r}" if base.quantization == "nf4" else "")
    return [
        f"{place} in NF4, packed in {storage}; got {given}. Set model.base.quantization to nf4 and "
        f"model.base.quant_storage to {storage}."
    ]


def stored_storage(packed: Mapping[str, Any]) -> str:
    """The dtype in which 4-bit weights are packed in a file, such as ``uint8``, from its quantisation."""
    return _dtype_name(packed.get("bnb_4bit_quant_storage"))


def _dtype_name(dtype: object) -> str:
    return str(dtype or "uint8").removeprefix("torch.")[:20]


def quantization_config(base: BaseModel, stored: Mapping[str, Any] | None = None) -> BitsAndBytesConfig | None:
    """The settings of bitsandbytes.

    Args:
        base: Options of the model.
        stored: Those of weights that are quantised already, from :func:`stored_quantization`; they are kept, but for the
            dtype of the arithmetic, which is ``base.dtype``.
    """
    dtype = getattr(torch, base.dtype)
    if stored is not None:
        kept: BitsAndBytesConfig = BitsAndBytesConfig.from_dict({**stored, "bnb_4bit_compute_dtype": dtype})
        return kept
    if base.quantization == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_storage=getattr(torch, base.quant_storage),
        )
    if base.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return None


def loaded_problems(model: nn.Module, base: BaseModel) -> list[str]:
    """Check that the weights were loaded as the options say, whatever the files have said; at most one problem."""
    if base.quantization == "none" and getattr(model, "hf_quantizer", None) is None:
        return []
    import bitsandbytes

    packing: Any = bitsandbytes.nn
    found = set()
    for module in model.modules():
        if isinstance(module, packing.Linear8bitLt):
            found.add("int8")
        elif isinstance(module, packing.Linear4bit):
            kind = getattr(module.quant_state, "quant_type", "unknown")
            found.add(f"{kind} packed in {_dtype_name(module.weight.dtype)}")
    expected = {"none": set(), "int8": {"int8"}, "nf4": {f"nf4 packed in {base.quant_storage}"}}[base.quantization]
    if found == expected:
        return []
    have, wanted = (", ".join(sorted(kinds)) or "not quantised" for kinds in (found, expected))
    return [
        f"base.quantization: the weights of {base.name_or_path!r} were loaded as {have}. Expected {wanted}. Get the model "
        "again, or one that is not quantised."
    ]
