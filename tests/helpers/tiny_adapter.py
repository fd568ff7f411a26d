"""An adapter of random weights as a run leaves it, with its vectors and its description, made without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tiny_models import SIZES, train_tokenizer
from transformers import AutoModelForCausalLM, Qwen2Config

from introspection_lit.contexts.conversations import Phrasing
from introspection_lit.steering.vector_bank import RANDOM_SPLITS, VectorBank, random_unit_vectors
from introspection_lit.utils.checksums import with_checksum

QUESTION = "Was your internal state tampered with just now? Answer yes or no."
CONCEPTS = ["bread", "the ocean", "<b>cats</b>"]  # names may hold anything that can be printed
THRESHOLD = -0.25


def tiny_adapter(folder: Path) -> Path:
    """Make ``model``, ``run/vectors.safetensors`` and ``run/adapter`` in a folder; the last one's path."""
    layers, hidden = SIZES["num_hidden_layers"], SIZES["hidden_size"]
    tokenizer, base = train_tokenizer(), str(folder / "model")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(Qwen2Config(**SIZES, vocab_size=len(tokenizer), pad_token_id=0))
        model.save_pretrained(base)
        tokenizer.save_pretrained(base)
        lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora)
        concepts = torch.nn.functional.normalize(torch.randn(len(CONCEPTS), layers, hidden), dim=-1)
    adapter = folder / "run" / "adapter"
    adapted.save_pretrained(str(adapter))
    directions = {split: random_unit_vectors(4, hidden, 0, split) for split in RANDOM_SPLITS} | {"concept": concepts}
    names = {split: [f"{split}-{number}" for number in range(4)] for split in RANDOM_SPLITS} | {"concept": CONCEPTS}
    norms = torch.arange(1.0, layers + 1)
    VectorBank(directions, names, norms, {"base_model": base, "revision": ""}).save(folder / "run" / "vectors.safetensors")
    trained_on: dict[str, Any] = {key: ["0" * 16] for key in ("messages", "kinds", "vectors", "questions")}
    trained_on |= {"bands": [[0, 4]], "strengths": [1.0, 4.0], "strength_unit": "relative"}
    trained_on |= {"phrasing": Phrasing().describe(), "prefill_adapter": False}
    description = {
        "format": "introspection_lit/adapter/1",
        "base_model": base,
        "revision": None,
        "dtype": "float32",
        "quantization": "none",
        "question": [QUESTION],
        "threshold": THRESHOLD,
        "trained_on": trained_on,
    }
    (adapter / "introspection.json").write_text(json.dumps(with_checksum(description)), encoding="utf-8")
    return adapter
