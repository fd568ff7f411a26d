"""Writes tiny models as GGUF files, float32, whole or in parts, as llama.cpp's converter does."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

Arrays = dict[str, np.ndarray]


def write_gguf(
    file: Path,
    model: Path,
    edit: Callable[[Arrays], Arrays] = lambda tensors: tensors,
    part: tuple[int, int] | None = None,
    architecture: str = "qwen2",
) -> Path:
    """Write a model folder as one GGUF file.

    Args:
        file: Where to.
        model: A folder with float32 safetensors, a tokenizer of byte pairs, and a family whose tensors GGUF leaves as they
            are (not Llama's).
        edit: Changes the tensors, by their names in the file.
        part: Number of the part from 0, and the number of parts; None: the file is whole.
        architecture: As GGUF calls it.
    """
    config, words = (json.loads((model / name).read_text()) for name in ("config.json", "tokenizer.json"))
    names = gguf.get_tensor_name_map(
        next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture), config["num_hidden_layers"]
    )
    weights = _stacked(load_file(model / "model.safetensors"))
    tensors = {names.get_name(name, (".weight", ".bias")): each for name, each in weights.items()}
    writer = gguf.GGUFWriter(file, architecture)
    for add, name in (
        (writer.add_block_count, "num_hidden_layers"),
        (writer.add_context_length, "max_position_embeddings"),
        (writer.add_embedding_length, "hidden_size"),
        (writer.add_feed_forward_length, "intermediate_size"),
        (writer.add_head_count, "num_attention_heads"),
        (writer.add_head_count_kv, "num_key_value_heads"),
        (writer.add_layer_norm_rms_eps, "rms_norm_eps"),
        (writer.add_key_length, "head_dim"),
        (writer.add_value_length, "head_dim"),
        (writer.add_expert_feed_forward_length, "moe_intermediate_size"),
        (writer.add_expert_count, "num_experts"),
        (writer.add_expert_used_count, "num_experts_per_tok"),
    ):
        if name in config:
            add(config[name])
    vocabulary = words["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    special = {each["content"] for each in words["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in words["model"]["merges"]])
    writer.add_eos_token_id(vocabulary["<|im_end|>"])
    writer.add_pad_token_id(vocabulary["<pad>"])
    writer.add_chat_template((model / "chat_template.jinja").read_text())
    if part is not None:
        writer.add_uint16("split.no", part[0])
        writer.add_uint16("split.count", part[1])
    for name, tensor in edit(tensors).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _stacked(weights: Arrays) -> Arrays:
    """The matrices of a layer's experts as one array, under the name without their numbers."""
    experts = defaultdict(dict)
    for name in [name for name in weights if ".experts." in name]:
        number = re.search(r"\.experts\.(\d+)", name)
        experts[name.replace(number[0], ".experts")][int(number[1])] = weights.pop(name)
    return weights | {name: np.stack([parts[number] for number in sorted(parts)]) for name, parts in experts.items()}
