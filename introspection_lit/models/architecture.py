"""Where a model of any family has its decoder layers and its head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from introspection_lit.utils.lazy_types import PeftModel, PreTrainedModel


def find_decoder_layers(model: PreTrainedModel | PeftModel, path: str | None = None) -> list[nn.Module]:
    """Find the decoder layers: what steering is added to the output of.

    Args:
        model: A causal language model, with or without an adapter.
        path: A dotted path from the causal language model to the layers, if they cannot be found.

    Returns:
        The layers in the order in which they run.

    Raises:
        ValueError: They cannot be found; the message names the override.
    """
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    expected = base.config.get_text_config(decoder=True).num_hidden_layers
    if path is not None:
        try:
            layers = base.get_submodule(path)
        except AttributeError as error:
            raise ValueError(f"base.decoder_layers: {type(base).__name__} has nothing at {path!r}: {error}.") from error
    else:
        layers = getattr(base.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList) or len(layers) != expected:
        found = f"{type(layers).__name__} of {len(layers)}" if isinstance(layers, nn.ModuleList) else repr(type(layers))
        raise ValueError(
            f"The decoder layers of {type(base).__name__} were not found: expected a ModuleList of {expected}, found "
            f"{found}. Set base.decoder_layers to their dotted path, for example 'transformer.h'."
        )
    return list(layers)


def find_head(model: PreTrainedModel | PeftModel) -> tuple[nn.Module, nn.Module]:
    """Find what turns the residual stream into logits.

    Args:
        model: A causal language model, with or without an adapter.

    Returns:
        The final norm and the head.

    Raises:
        ValueError: They cannot be found.
    """
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder = base.get_decoder()
    norms = [module for name, module in decoder.named_children() if name in ("norm", "final_layernorm", "ln_f")]
    head = base.get_output_embeddings()
    if len(norms) != 1 or head is None:
        raise ValueError(f"The final norm and the head of {type(base).__name__} were not found.")
    return norms[0], head
