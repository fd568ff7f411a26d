"""Tiny models that read pictures, too, with random weights, as their makers publish them: whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_models import SIZES
from transformers import (
    AutoModelForImageTextToText,
    Gemma3Config,
    Gemma4Config,
    Mistral3Config,
    PreTrainedTokenizerFast,
    Qwen3VLConfig,
)

LAYERS = SIZES["num_hidden_layers"]
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
WINDOWS = {"sliding_window": 512, "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2)}
CONFIGS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "gemma3": (Gemma3Config, WINDOWS, TOWER | {"image_size": 28, "patch_size": 14}),
    "gemma4": (Gemma4Config, WINDOWS | {"hidden_size_per_layer_input": 0, "global_head_dim": 8}, TOWER | {"head_dim": 8}),
    "mistral3": (Mistral3Config, {}, TOWER | {"image_size": 28, "patch_size": 14, "head_dim": 8}),
    "qwen3_vl": (
        Qwen3VLConfig,
        {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10_000.0}},
        {"hidden_size": 16, "intermediate_size": 32, "depth": 2, "num_heads": 2, "out_hidden_size": 32}
        | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
    ),
}


def save_multimodal(kind: str, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    """Make a model of pictures and text.

    Args:
        kind: gemma3, gemma4, mistral3 or qwen3_vl.
        tokenizer: Of the text.
        folder: Where to.
    """
    make, text, tower = CONFIGS[kind]
    torch.manual_seed(0)
    vocabulary = len(tokenizer) + 8  # pictures have tokens of their own
    config = make(text_config=SIZES | text | {"vocab_size": vocabulary, "pad_token_id": 0}, vision_config=tower)
    for name, token in vars(config).items():
        if name.endswith(("_token_id", "_token_index")) and isinstance(token, int) and token >= vocabulary:
            setattr(config, name, vocabulary - 1)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
