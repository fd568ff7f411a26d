"""What a forward calls its KV cache: the name of the model under the wrappers, in transformers of before and after 5.24."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import introspection_lit
from introspection_lit.utils.cache_option import NEW, OLD, cache_option

SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 32}


class Newer(LlamaForCausalLM):
    """Takes it by the newer name alone."""

    def forward(self, input_ids: torch.Tensor, cache: Any = None, **options: Any) -> Any:  # type: ignore[override]
        """Pass it on by the name of the installed transformers."""
        assert OLD not in options
        return super().forward(input_ids, **{cache_option(LlamaForCausalLM(self.config)): cache}, **options)


class Older(LlamaForCausalLM):
    """Takes it by the older name alone, as code that comes with a model."""

    def forward(self, input_ids: torch.Tensor, past_key_values: Any = None, **options: Any) -> Any:  # type: ignore[override]
        """Pass it on by the name of the installed transformers."""
        assert NEW not in options
        return super().forward(input_ids, **{cache_option(LlamaForCausalLM(self.config)): past_key_values}, **options)


class Wrapper(nn.Module):
    """Holds a module, as DDP does."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


@pytest.mark.parametrize(("kind", "name"), [(Newer, NEW), (Older, OLD)])
@pytest.mark.filterwarnings("error:.past_key_values. is deprecated:FutureWarning")
def test_it_is_the_name_that_the_model_takes(kind: type[LlamaForCausalLM], name: str) -> None:
    """Bare, with an adapter, and in a wrapper; and the cache is filled."""
    model = kind(LlamaConfig(**SIZES, pad_token_id=0))
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert [cache_option(forward) for forward in (model, adapted, Wrapper(adapted))] == [name] * 3
    filled = DynamicCache(config=model.config)
    adapted(input_ids=torch.tensor([[1, 2, 3]]), **{name: filled})
    assert filled.get_seq_length() == 3


def test_of_a_function_it_is_that_of_the_installed_transformers() -> None:
    """As of its own models."""
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    assert cache_option(model.forward) == cache_option(model)


def test_no_name_is_written_into_a_call() -> None:
    """Of the package: it would warn, or fail, with other versions of transformers."""
    files = Path(introspection_lit.__file__).parent.rglob("*.py")
    assert [path.name for path in files if f"{OLD}=" in path.read_text(encoding="utf-8")] == []
