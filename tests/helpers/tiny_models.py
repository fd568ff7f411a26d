"""Tiny models of five families, with a tokenizer of their own: small enough to build in a second, no download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GemmaConfig, LlamaConfig, MistralConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen3Config

from introspection_lit.contexts.context import BUILTIN
from introspection_lit.contexts.conversations import YES_NO
from introspection_lit.contexts.loading import load_contexts
from introspection_lit.tasks.questions import HELDOUT_QUESTIONS, QUESTION, builtin_questions

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,  # large enough for the layers to do something
}
FAMILIES: dict[str, Any] = {
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "gemma": GemmaConfig,
}
# bitsandbytes on the CPU needs rows of a multiple of 64 weights.
WIDE = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 128}

# As Qwen's: a default system prompt unless one is given.
CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Gemma's: no system role at all, and replies trimmed.
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}<start_of_turn>{{ message['role'] }}\n{{ message['content'] | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def train_tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on the built-in contexts and the questions."""
    texts = [" ".join(turn.content for turn in context.turns) for context in load_contexts(BUILTIN)]
    texts += builtin_questions([QUESTION, *HELDOUT_QUESTIONS], YES_NO) * 20 + ["The answer is yes", "The answer is no"] * 50
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<|im_end|>")
    fast.chat_template = template
    return fast


def contexts_file(path: Path, **sizes: int) -> str:
    """Write a file with some built-in contexts of each kind, without system prompts."""
    lines = []
    for context in load_contexts(BUILTIN):
        if sizes.get(context.kind, 0):
            sizes[context.kind] -= 1
            user, assistant = (turn.content for turn in context.turns if turn.role != "system")
            lines.append(json.dumps({"kind": context.kind, "user": user, "assistant": assistant}))
    path.write_text("\n".join(lines) + "\n")
    return str(path)
