"""A tiny random model of every architecture that ``AutoModelForCausalLM`` maps: recipes by names of config fields."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

# Sizes that every config gets which has a field of the name.
SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embed_dim"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers", "encoder_layers"), 6),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "n_inner", "dim_ff"), 96),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 32),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length"), 256),
    **dict.fromkeys(("initializer_range", "init_std", "initializer_std"), 0.1),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0),
    **{"vocab_size": 120, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 16, "n_group": 1, "topk_group": 1},
    **{"kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16},
    **{
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_head_dim": 16,
        "linear_num_heads": 4,
    },
    **{"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_expand": 2, "mamba_chunk_size": 16},
    **{"mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 16, "mamba_n_groups": 1, "mamba_d_ssm": 128},
    **{"index_n_heads": 64, "index_head_dim": 16, "index_topk": 8, "first_k_dense_replace": 1, "n_shared_experts": 1},
}
# What some need besides, by model type.
MORE: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 4]},
    "codegen": {"rotary_dim": 8},
    "gptj": {"rotary_dim": 8},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ("sliding_attention", "full_attention")
        },
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4},
    },
    "gemma3n_text": {
        "num_hidden_layers": 9,
        "num_kv_shared_layers": 3,
        "layer_types": (["sliding_attention"] * 2 + ["full_attention"]) * 3,
        "activation_sparsity_pattern": [0.5] * 3 + [0.0] * 6,
        "hidden_size_per_layer_input": 16,
        "vocab_size_per_layer_input": 120,
        "laurel_rank": 8,
    },
    "gemma4_text": {
        "num_hidden_layers": 9,
        "num_kv_shared_layers": 3,
        "layer_types": (["sliding_attention"] * 2 + ["full_attention"]) * 3,
        "hidden_size_per_layer_input": 16,
        "vocab_size_per_layer_input": 120,
        "global_head_dim": 32,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 3]], "window_size": 16},
    "granitemoehybrid": {"layer_types": ["mamba", "mamba", "attention"] * 2},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 3},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 3, "num_dense_layers": 1},
    "mamba2": {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 1, "chunk_size": 16},
    "nemotron_h": {
        "layer_types": ["linear_attention", "full_attention", "moe", "linear_attention", "full_attention", "mlp"]
    },
    "zamba": {"num_hidden_layers": 6, "layer_types": ["linear_attention", "linear_attention", "hybrid"] * 2},
    "zamba2": {"num_hidden_layers": 6, "layers_block_type": ["linear_attention", "linear_attention", "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1},
    "longcat_flash": {"num_layers": 3, "ffn_hidden_size": 96, "expert_ffn_hidden_size": 32, "zero_expert_num": 2},
    "dots3_note_text": {"num_key_value_heads": 4},
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": [16, 48], "axial_pos_shape": [16, 16]},
}


def model_types() -> list[str]:
    """Every model type that ``AutoModelForCausalLM`` maps."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def small(kind: type[PretrainedConfig], **more: Any) -> dict[str, Any]:
    """The arguments of a small config of a class."""
    fields = inspect.signature(kind.__init__).parameters
    found = {name: value for name, value in SMALL.items() if name in fields}
    if "kv_lora_rank" in fields:  # latent attention: each head has keys of its own
        found["num_key_value_heads"] = 4
    parts: dict[str, Any] = getattr(kind, "sub_configs", {})
    for name, part in parts.items():  # of multimodal models
        if inspect.isclass(part) and issubclass(part, PretrainedConfig):
            found[name] = small(part, **MORE.get(part.model_type, {}))  # type: ignore[attr-defined]
    return found | more


def tiny_config(model_type: str, **more: Any) -> PretrainedConfig:
    """A small config of a model type."""
    kind = CONFIG_MAPPING[model_type]
    return kind(**small(kind, **MORE.get(model_type, {}) | more))


def tiny_model(model_type: str, attention: str | None = None, **more: Any) -> PreTrainedModel:
    """A small random model of a type, in eval mode."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(tiny_config(model_type, **more), attn_implementation=attention).eval()
