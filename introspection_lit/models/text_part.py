"""The text model inside a model that also reads pictures or sound."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING

from introspection_lit.models.architecture import find_decoder_layers

if TYPE_CHECKING:
    from introspection_lit.utils.lazy_types import PreTrainedModel


def outside_text(model: PreTrainedModel, targets: Collection[str]) -> str | None:
    """A pattern of the names of modules that get no adapter: they are not in the text model, and never run.

    Args:
        model: A causal language model, without an adapter.
        targets: Names of modules, or ends of them, that get an adapter.

    Returns:
        A regular expression for whole names; None if the targets are in the text model or the head alone.
    """
    head, names = model.get_output_embeddings(), {name: module for name, module in model.named_modules() if name}
    text = (layers_name(model) or "").rpartition(".")[0]
    if not text:
        return None
    kept = [re.escape(f"{text}.") + ".*", *(re.escape(name) for name, module in names.items() if module is head)]
    pattern = f"(?!(?:{'|'.join(kept)})$).*"
    ends = tuple(f".{target}" for target in targets)
    return pattern if any(f".{name}".endswith(ends) and re.fullmatch(pattern, name) for name in names) else None


def layers_name(model: PreTrainedModel) -> str | None:
    """Dotted name of the list of decoder layers; None if it is not found without ``base.decoder_layers``."""
    try:
        first = find_decoder_layers(model)[0]
    except ValueError:
        return None
    return next(name for name, module in model.named_modules() if module is first).rpartition(".")[0]
