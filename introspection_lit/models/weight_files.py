"""Reads weights and refuses those that are not the model's: ``transformers`` fills what is missing with random numbers."""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from transformers.models.auto.auto_factory import _get_model_class

from introspection_lit.utils.errors import ConfigurationError

if TYPE_CHECKING:
    from introspection_lit.utils.lazy_types import PretrainedConfig, PreTrainedModel


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
    with _without_report(), _named_after_fusing(name):
        model, found = model_class.from_pretrained(**arguments, ignore_mismatched_sizes=True, output_loading_info=True)
    if problems := tensor_mismatches(found, type(model).__name__, name):
        raise ConfigurationError(problems)
    loaded: PreTrainedModel = model
    return loaded


def header_mismatches(auto: Any, config: PretrainedConfig, files: Collection[Path], name: str) -> list[str]:
    """Check a model's safetensors files against its class by their headers, before weights are read; at most one problem.

    ``transformers`` loads tensors without values, of the names and shapes in the headers, into a model without weights: so
    names are mapped and fused as they will be, and tied or ignored ones may be absent.

    Args:
        auto: The class that maps configurations to classes of models.
        config: Of the whole model; its weights are not quantised.
        files: All files of weights.
        name: The model, for messages.

    Returns:
        A problem; none also where this cannot be done, which loading then says.
    """
    try:
        kind: Any = _get_model_class(config, auto._model_mapping)
        tensors = {each: tensor for file in files for each, tensor in _without_values(file)}
        with _without_report(), _named_after_fusing(name), torch.random.fork_rng(devices=[]):
            _, found = kind.from_pretrained(
                None,
                config=copy.deepcopy(config),
                state_dict=tensors,
                dtype=torch.float32,
                device_map={"": torch.device("meta")},
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except ConfigurationError as error:
        return error.problems
    except Exception:  # a damaged file, or what this release of transformers does not do with a model without weights
        return []
    return tensor_mismatches(found, kind.__name__, name)


@contextmanager
def _named_after_fusing(name: str) -> Iterator[None]:
    """An error of ours in place of that of ``transformers`` where tensors that it fuses, such as experts, do not fit."""
    try:
        yield
    except RuntimeError as error:
        if "conversion of the weights" not in str(error):
            raise
        raise ConfigurationError(
            [
                f"base.name_or_path: {name}: tensors that are put together while they are loaded, such as the experts of a "
                "mixture, do not go together: some are missing, or have another shape. Get the model again."
            ]
        ) from error


def _without_values(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    with safe_open(file, "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - no dictionary
            yield name, torch.empty(tensors.get_slice(name).get_shape(), device="meta")


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
