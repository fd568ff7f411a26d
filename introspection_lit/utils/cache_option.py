"""What a model's forward calls its KV cache, whose name has changed in transformers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from torch import nn

# Since transformers 5.24, which takes the other one, too, until 5.40; and before, or in code that comes with a model.
NEW, OLD = "cache", "past_key_values"


def cache_option(forward: Any) -> str:
    """The name of the option, and of the output, that holds a KV cache.

    Args:
        forward: A causal language model, possibly in wrappers such as PEFT's, DDP or FSDP. Of a plain function nothing is
            known: the name is that of the installed transformers.
    """
    from transformers import PreTrainedModel  # torch, accelerate and more: not for --help

    modules = forward.modules() if isinstance(forward, nn.Module) else ()
    model = next((module for module in modules if isinstance(module, PreTrainedModel)), None)
    return _usual() if model is None else NEW if takes(type(model).forward, NEW) else OLD


@lru_cache(maxsize=64)
def takes(forward: Callable[..., Any], option: str) -> bool:
    """Whether the forward of a class of models has an option."""
    return option in inspect.signature(forward).parameters


@lru_cache(maxsize=1)
def _usual() -> str:
    """The name in the installed transformers."""
    major, minor = version("transformers").split(".")[:2]
    return NEW if (int(major), int(minor)) >= (5, 24) else OLD
