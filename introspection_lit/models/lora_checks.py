"""Puts an adapter on a model without weights, so that what PEFT refuses or ignores is known before any are loaded."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from introspection_lit.models.base_model import BaseModel, Lora
from introspection_lit.models.loading import add_lora, meta_model
from introspection_lit.models.text_part import layers_name

if TYPE_CHECKING:
    from introspection_lit.utils.lazy_types import PreTrainedModel

EXPERTS = "PEFT adapts the experts of a mixture as whole tensors"


def adapter_shapes_of(base: BaseModel, lora: Lora) -> dict[str, torch.Size]:
    """Shapes of an adapter's tensors by their names in a checkpoint, from a model without weights.

    Args:
        base: Options of the model.
        lora: Options of the adapter, with its target modules.
    """
    adapted = add_lora(meta_model(base), lora)
    return {f"model.{name}": tensor.shape for name, tensor in adapted.named_parameters() if "lora_" in name}


def placement_problems(model: PreTrainedModel, lora: Lora, path: str | None, usual: Sequence[str]) -> list[str]:
    """Check that PEFT can put an adapter on a model, and puts it on the chosen layers alone; at most one problem.

    Args:
        model: On the meta device; the adapter stays on it.
        lora: Options of the adapter.
        path: Dotted path of the decoder layers; None: they are found by themselves.
        usual: Modules that would get an adapter by default, for the message.
    """
    name = path or layers_name(model) or "layers"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they appear when the adapter is made
            adapted = add_lora(model, lora)
    except Exception as error:  # PEFT: unknown modules; options that a kind of module does not have
        reason = (str(error).strip().splitlines() or [""])[0][:300]
        if "dropout" in reason:
            return [f"model.lora.dropout: got {lora.dropout}. {EXPERTS}, without dropout: set it to 0."]
        given = f"got {lora.target_modules}, where PEFT cannot put adapters on {type(model).__name__}"
        expected = f"names of its linear modules, such as {', '.join(usual)}" if usual else "names of its linear modules"
        return [f"model.lora.target_modules: {given} ({type(error).__name__}: {reason}). Expected {expected}."]
    layers = re.compile(rf".*\b{re.escape(name)}\.(\d+)\.")
    found = {int(match[1]) for each, _ in adapted.named_parameters() if "lora_" in each and (match := layers.match(each))}
    if lora.layers and found - set(lora.layers):
        return [
            f"model.lora.layers: got {lora.layers}. {EXPERTS}, in every layer: leave it empty, or leave the experts "
            f"({', '.join(sorted(lora.target_modules or ()))}) out of model.lora.target_modules."
        ]
    return []
