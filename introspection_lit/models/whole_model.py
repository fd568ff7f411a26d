"""The configuration of the whole model, of which the text model may be a part, and the class that loads it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import transformers
from transformers import AutoConfig

from introspection_lit.models.file_checks import file_problems, model_config
from introspection_lit.models.random_models import is_random, random_config
from introspection_lit.models.sources import resolve
from introspection_lit.models.stored_quantization import quantization_problems, stored_quantization, stored_storage
from introspection_lit.utils.errors import ConfigurationError

if TYPE_CHECKING:
    from introspection_lit.models.base_model import BaseModel
    from introspection_lit.utils.lazy_types import PretrainedConfig


# In this order: a model that reads pictures or sound, too, is loaded whole where there is no class for its text alone.
CLASSES = ("AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")


def whole_config(base: BaseModel, any_quantization: bool = False) -> PretrainedConfig:
    """Load the configuration of the whole model, and check that the model can be loaded and is what the options say.

    Args:
        base: Options of the model.
        any_quantization: Weights may be quantised otherwise than the options say.

    Raises:
        ConfigurationError: The model's files are refused, its weights are quantised otherwise than the options say, or no
            class loads it.
        ValueError: The model does not exist or its configuration cannot be loaded.
    """
    if is_random(base.name):
        return random_config(base.name)
    source = resolve(base)
    problems = file_problems(source)
    if not problems and not any_quantization:
        problems = quantization_problems(base, source)
    if problems:
        raise ConfigurationError(problems)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(**source)
        config.get_text_config(decoder=True)
    except Exception as error:  # transformers raises many types for bad files
        raise ValueError(load_error(base, "could not be loaded as a model", error)) from error
    auto_class(config)
    return config


def as_stored(base: BaseModel) -> BaseModel:
    """The options, with the dtype that the model's own NF4 weights are packed in; for loading without a trainer.

    Args:
        base: Options of the model; returned unchanged if they are not NF4, or the model is not, or cannot be read.
    """
    if base.quantization != "nf4" or is_random(base.name):
        return base
    try:
        stored = stored_quantization(model_config(resolve(base)) or {})
    except ValueError:  # loading it says why
        return base
    storage = stored_storage(stored) if stored is not None and stored.get("load_in_4bit") else base.quant_storage
    return replace(base, quant_storage=storage)  # type: ignore[arg-type]


def auto_class(config: PretrainedConfig) -> Any:
    """The class of ``transformers`` that makes the model of a configuration.

    Args:
        config: Of the whole model.

    Raises:
        ConfigurationError: There is none that continues a text, or its own code is not run.
    """
    own_code = getattr(config, "auto_map", None) or {}
    for name in CLASSES:
        kind = getattr(transformers, name, None)  # transformers 5.0 has not all of them
        known = kind is not None and type(config) in kind._model_mapping
        if (known and not getattr(config, "is_encoder_decoder", False)) or name in own_code:
            return kind
    kinds = f"{type(config).__name__} (model_type {str(getattr(config, 'model_type', ''))[:60]!r})"
    raise ConfigurationError(
        [
            f"base.name_or_path: {config.name_or_path!r} has a {kinds}, for which transformers {transformers.__version__} "
            "has no decoder that continues a text. Expected a causal language model, such as Qwen/Qwen2.5-7B-Instruct."
        ]
    )


def load_error(base: BaseModel, problem: str, error: Exception) -> str:
    """The message for a model that cannot be loaded; for one that needs its own code, how to allow it."""
    if not base.trust_remote_code and "trust_remote_code" in str(error):
        return (
            f"base.trust_remote_code: {base.name_or_path!r} needs code that comes with it, which is not run: the option is "
            "off. Read that code; if you trust it, set base.trust_remote_code to true and base.revision to what you read."
        )
    kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
    return f"base.name_or_path: {base.name_or_path!r} {problem}: {kind}{error}"
