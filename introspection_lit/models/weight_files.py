"""Reads weights and refuses those that are not the model's: ``transformers`` fills what is missing with random numbers."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from introspection_lit.utils.errors import ConfigurationError

if TYPE_CHECKING:
    from introspection_lit.utils.lazy_types import PreTrainedModel


# Names of tensors of each kind in a message.
EXAMPLES = 3
COMPILED = "_orig_mod."  # before every name of a model that was saved as torch.compile returns it


def load_exactly(model_class: Any, name: str, **arguments: Any) -> PreTrainedModel:
    """Load a model whose files hold each of its tensors, and no others.

    Tied weights and buffers that can be computed may be absent; what the architecture declares as not needed (such as
    layers for predicting several tokens) may be there.

    Args:
        model_class: A class with ``from_pretrained``.
        name: The model, for messages.
        arguments: Of ``from_pretrained``.

    Raises:
        ConfigurationError: Tensors are missing, unexpected, or of another shape; with some of their names.
    """
    with _without_report():
        model, found = model_class.from_pretrained(**arguments, ignore_mismatched_sizes=True, output_loading_info=True)
    if problems := tensor_mismatches(found, type(model).__name__, name):
        raise ConfigurationError(problems)
    loaded: PreTrainedModel = model
    return loaded


def tensor_mismatches(found: Mapping[str, Collection[Any]], kind: str, name: str) -> list[str]:
    """Say which tensors of a model's files are not those of its class; at most one problem.

    Args:
        found: ``missing_keys``, ``unexpected_keys`` and ``mismatched_keys`` (name, shape in the file, shape in the model),
            as ``output_loading_info`` has them.
        kind: The model's class.
        name: The model.
    """
    missing, unexpected = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    shapes = [f"{each} {list(got)} instead of {list(want)}" for each, got, want in sorted(found["mismatched_keys"])]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    parts = [f"{len(names)} {what} ({_some(names)})" for what, names in kinds if names]
    if not parts:
        return []
    advice = "Get the model again, all of its files"
    if name.endswith(".gguf"):
        advice = "Get the file again, or use the model's safetensors: transformers would leave the unexpected out"
    if any(COMPILED in each for each in unexpected):
        advice = f"It was saved as torch.compile returns it: take {COMPILED!r} out of the names of its tensors"
    return [
        f"base.name_or_path: {name} does not hold the weights of {kind}: {', '.join(parts)}. Missing tensors would be "
        f"random numbers. {advice}."
    ]


def _some(names: list[str]) -> str:
    return ", ".join(names[:EXAMPLES]) + (", ..." if len(names) > EXAMPLES else "")


@contextmanager
def _without_report() -> Iterator[None]:
    """Hold back the table of ``transformers`` about tensors, unless it has what no error says: failed conversions."""

    def keep(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage() or "CONVERSION" in record.getMessage()

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
