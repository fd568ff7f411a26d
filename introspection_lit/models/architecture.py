"""Finds the decoder layers, the final norm and the head of a model of any family."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from introspection_lit.utils.lazy_types import PeftModel, PretrainedConfig, PreTrainedModel

# Kinds of rotary positions that depend on the length of the longest row.
LENGTH_DEPENDENT = ("longrope", "dynamic")
# Parts of a multimodal model that read no text.
OF_OTHER_INPUTS = re.compile(r"vision|visual|image|audio|encoder")


def find_decoder_layers(model: PreTrainedModel | PeftModel, path: str | None = None) -> list[nn.Module]:
    """Find the decoder layers, to whose outputs steering is added.

    Args:
        model: A causal language model, with or without an adapter.
        path: A dotted path from the causal language model to the layers; None: search for them.

    Returns:
        The layers in the order in which they run.

    Raises:
        ValueError: They were not found; the message names the option that overrides the search.
    """
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    expected = base.config.get_text_config(decoder=True).num_hidden_layers
    if path is not None:
        try:
            layers = base.get_submodule(path)
        except AttributeError as error:
            raise ValueError(f"base.decoder_layers: {type(base).__name__} has nothing at {path!r}: {error}.") from error
    else:
        layers = _search(base, expected)
    if not isinstance(layers, nn.ModuleList) or len(layers) != expected:
        actual = f"{type(layers).__name__} of {len(layers)}" if isinstance(layers, nn.ModuleList) else repr(type(layers))
        raise ValueError(
            f"The decoder layers of {type(base).__name__} were not found: expected a ModuleList of {expected}, found "
            f"{actual}. Set base.decoder_layers to their dotted path, for example 'transformer.h'."
        )
    return list(layers)


def _search(base: Any, expected: int) -> Any:
    """The ``layers`` of the decoder; or the one list of as many modules that is not in another, nor of images or sounds."""
    decoder = base.get_decoder()
    layers = getattr(decoder, "layers", None)
    if isinstance(layers, nn.ModuleList) and len(layers) == expected:
        return layers
    lists = [(name, module) for name, module in base.named_modules() if isinstance(module, nn.ModuleList)]
    lists = [(name, module) for name, module in lists if len(module) == expected and not OF_OTHER_INPUTS.search(name)]
    outer = [module for name, module in lists if not any(name.startswith(f"{other}.") for other, _ in lists)]
    return outer[0] if len(outer) == 1 else layers


def rotary_frequencies(model: PreTrainedModel | PeftModel) -> Tensor | None:
    """The frequencies of a model's rotary positions, ``(rotated channels / 2,)``; None if it has not one set of them."""
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    frequencies = getattr(getattr(base.get_decoder(), "rotary_emb", None), "inv_freq", None)
    return frequencies if frequencies is not None and frequencies.dim() == 1 else None


def usable_positions(config: PretrainedConfig) -> int | None:
    """The most tokens of a conversation with its question; None: there is no limit.

    Rotary positions of the kinds LongRoPE and dynamic NTK change for the whole batch with its longest row, once that is
    longer than in the original training: a score would depend on its neighbours, and a cache not fit its question.

    Args:
        config: The decoder's configuration.
    """
    limits = [getattr(config, "max_position_embeddings", None)]
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    for one in [value for value in parameters.values() if isinstance(value, Mapping)] or [parameters]:
        if (one.get("rope_type") or one.get("type")) in LENGTH_DEPENDENT:
            limits.append(one.get("original_max_position_embeddings"))
            limits.append(getattr(config, "original_max_position_embeddings", None))
    return min((int(limit) for limit in limits if limit), default=None)


def find_head(model: PreTrainedModel | PeftModel) -> tuple[nn.Module, nn.Module]:
    """Find the final norm and the head, which map the residual stream to logits.

    Args:
        model: A causal language model, with or without an adapter.

    Returns:
        The final norm and the head.

    Raises:
        ValueError: They were not found.
    """
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder = base.get_decoder()
    norms = [module for name, module in decoder.named_children() if name in ("norm", "final_layernorm", "ln_f")]
    head = base.get_output_embeddings()
    if len(norms) != 1 or head is None:
        raise ValueError(f"The final norm and the head of {type(base).__name__} were not found.")
    return norms[0], head
