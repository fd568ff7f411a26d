"""The command ``gguf``: writes an exported adapter as a GGUF file for llama.cpp, with the tokens that activate it.

Names, order and metadata are those of llama.cpp's ``convert_lora_to_gguf.py`` (ggml-org/llama.cpp, commit 0b03adaa): each
matrix has the name of the base model's with ``.lora_a`` or ``.lora_b`` behind it, of which ``llama-server`` adds
``alpha / rank * B A``; models of the Llama architecture have the rows of q_proj and k_proj in another order, since
llama.cpp's rotary embedding pairs neighbouring dimensions where transformers pairs halves.

Differs from it: what else scales an adapter in PEFT (rsLoRA, an alpha for each module) is multiplied into B, where that
script leaves it out; architectures that have not been compared here are refused.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file

from introspection_lit.models.adapter_config import Adapter
from introspection_lit.models.adapter_weights import WEIGHTS
from introspection_lit.models.adapters import adapter_file_problems, base_mismatches, read_adapter
from introspection_lit.models.base_identity import BaseIdentity
from introspection_lit.models.base_model import BaseModel
from introspection_lit.models.loading import load_config
from introspection_lit.utils.errors import ConfigurationError, IntrospectionError
from introspection_lit.utils.files import atomic_file, folder_problems
from introspection_lit.utils.paths import parse_path

if TYPE_CHECKING:
    from peft import LoraConfig

PREFIX, ENDS = "base_model.model.", {".lora_A.weight": ".lora_a", ".lora_B.weight": ".lora_b"}
ALPHA, TOKENS = "adapter.lora.alpha", "adapter.alora.invocation_tokens"
THEIRS = "Try llama.cpp's own convert_lora_to_gguf.py"


class Architecture(NamedTuple):
    """How llama.cpp calls a model type of transformers, and whether q_proj and k_proj are in another order there."""

    name: str
    reordered: bool


ARCHITECTURES = {
    "llama": Architecture("llama", True),
    "mistral": Architecture("llama", True),
    "qwen2": Architecture("qwen2", False),
    "qwen3": Architecture("qwen3", False),
    "gemma": Architecture("gemma", False),
    "gemma2": Architecture("gemma2", False),
}


def main(args: Sequence[str]) -> None:
    """Run ``python -m introspection_lit gguf``.

    Args:
        args: Options, without the subcommand.

    Raises:
        SystemExit: 2, with the problems on stderr, if the adapter cannot be converted.
    """
    about = "Write an exported adapter as a GGUF file for llama.cpp, with the tokens that activate it."
    parser = argparse.ArgumentParser("python -m introspection_lit gguf", description=about, allow_abbrev=False)
    parser.add_argument("adapter", metavar="ADAPTER", help="an exported adapter's folder, or its hub id")
    parser.add_argument("file", metavar="FILE", help="such as adapter.gguf")
    parser.add_argument("--base", help="another place of the base model; its config.json is read, its weights are not")
    options = parser.parse_args(args)
    try:
        print(convert(options.adapter, parse_path("FILE", options.file), options.base))
    except (IntrospectionError, OSError) as error:
        sys.stderr.write(f"error: no GGUF file was written. {error}\n")
        raise SystemExit(2) from error


def convert(name: str, file: Path, base: str | None = None) -> str:
    """Write an adapter as a GGUF file in float32.

    Args:
        name: The adapter's folder or hub id.
        file: The file to write.
        base: Another place of its base model.

    Returns:
        What was written, in words.

    Raises:
        ConfigurationError: The adapter is no plain LoRA, or its model is of an architecture that is not known here.
    """
    adapter = read_adapter(name)
    problems = adapter_file_problems(adapter) + folder_problems(file.parent, "FILE")
    problems += [problem for problem in _kind_problems(adapter.config) if problem]
    spec = _base_of(adapter, base)
    if base is None or adapter.description is not None:  # of others' adapters nothing but the name is known
        problems += base_mismatches(adapter, BaseIdentity(spec), "Give its place with --base")
    if problems:
        raise ConfigurationError(problems)
    config = load_config(spec).get_text_config(decoder=True)
    if config.model_type not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ConfigurationError([f"{spec.name} is of type {config.model_type!r}. Expected one of {known}. {THEIRS}."])
    architecture = ARCHITECTURES[config.model_type]
    tensors = gguf_tensors(load_file(adapter.folder / WEIGHTS), adapter.config, config, architecture)
    tokens = getattr(adapter.config, "alora_invocation_tokens", None)
    with atomic_file(file) as unfinished:
        _write(unfinished, tensors, architecture.name, adapter, tokens)
    acts = f"acts from {len(tokens)} invocation tokens on" if tokens else "acts on everything (no invocation tokens)"
    return f"{file}: {len(tensors)} tensors, architecture {architecture.name}, alpha {adapter.config.lora_alpha:g}, {acts}"


def _base_of(adapter: Adapter, base: str | None) -> BaseModel:
    recorded, config = adapter.description or {}, adapter.config
    name = base or recorded.get("base_model") or config.base_model_name_or_path
    if not name:
        raise ConfigurationError([f"{adapter.name} does not say for which model it was made. Give it with --base."])
    return BaseModel(name, None if base else config.revision)


def _kind_problems(config: Any) -> list[str | None]:
    """What llama.cpp has no place for."""
    if str(getattr(config.peft_type, "value", config.peft_type)) != "LORA":
        return [f"the adapter is of type {config.peft_type}. Expected LoRA, the only one that llama.cpp reads."]
    extras = ("use_dora", "lora_bias", "modules_to_save", "trainable_token_indices", "target_parameters", "fan_in_fan_out")
    return [
        f"the adapter has {name}, which llama.cpp has no place for." if getattr(config, name) else None for name in extras
    ]


def gguf_tensors(
    weights: dict[str, np.ndarray], lora: LoraConfig, config: Any, architecture: Architecture
) -> dict[str, np.ndarray]:
    """The matrices of an adapter by their names in llama.cpp, float32: A ``(rank, in)`` and B ``(out, rank)``.

    Args:
        weights: By the names of PEFT's file.
        lora: PEFT's configuration.
        config: Of the base model.
        architecture: Of the base model.

    Raises:
        ConfigurationError: A matrix belongs to nothing that llama.cpp's model has.
    """
    import gguf

    key = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name)
    names, tensors = gguf.get_tensor_name_map(key, config.num_hidden_layers), dict[str, np.ndarray]()
    for name, tensor in weights.items():
        module, end = next(((name.removesuffix(end), end) for end in ENDS if name.endswith(end)), (name, ""))
        module = module.removeprefix(PREFIX)
        theirs = names.get_name(f"{module}.weight", try_suffixes=(".weight",)) if end else None
        if theirs is None:
            raise ConfigurationError([f"{name} belongs to no matrix of a {architecture.name} in llama.cpp. {THEIRS}."])
        values = np.asarray(tensor, dtype=np.float32)
        if end == ".lora_B.weight":
            values = values * np.float32(_factor(module, values.shape[1], lora))
            heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
            if architecture.reordered and (last := module.rpartition(".")[2]) in heads:
                values = in_pairs(values, heads[last])
        tensors[theirs + ENDS[end]] = np.ascontiguousarray(values)
    return tensors


def _factor(module: str, rank: int, lora: LoraConfig) -> float:
    """PEFT's scale of a module over the one that llama.cpp computes, alpha / rank; 1 but for rsLoRA and alpha_pattern."""
    from peft.utils.other import get_pattern_key

    alpha = lora.alpha_pattern.get(get_pattern_key(lora.alpha_pattern.keys(), module), lora.lora_alpha)
    scale = alpha / (rank**0.5 if lora.use_rslora else rank)
    return float(scale / (lora.lora_alpha / rank))


def in_pairs(rows: np.ndarray, heads: int) -> np.ndarray:
    """The rows of each head with its halves interleaved, as llama.cpp's rotary embedding pairs them.

    Args:
        rows: ``(heads * width, columns)``.
        heads: Of queries or of keys.
    """
    halves = rows.reshape(heads, 2, -1, rows.shape[1])
    return np.swapaxes(halves, 1, 2).reshape(rows.shape)


def _write(
    file: Path, tensors: dict[str, np.ndarray], architecture: str, adapter: Adapter, tokens: Sequence[int] | None
) -> None:
    import gguf

    writer, question = gguf.GGUFWriter(file, architecture), (adapter.description or {}).get("question") or [""]
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32(ALPHA, float(adapter.config.lora_alpha))
    writer.add_description(question[0])
    if tokens:
        writer.add_key_value(TOKENS, list(tokens), gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT32)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
