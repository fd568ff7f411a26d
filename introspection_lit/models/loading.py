"""Loads the configuration, tokenizer and weights of the base model, quantises it and adds a LoRA adapter.

The rest of the package works with the causal language model from ``transformers``, its tokenizer, and the list of its
decoder layers (:mod:`~introspection_lit.models.architecture`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jinja2 import TemplateSyntaxError
from safetensors import SafetensorError
from transformers import AutoTokenizer

from introspection_lit.models.architecture import find_decoder_layers
from introspection_lit.models.base_model import BaseModel, Lora
from introspection_lit.models.file_checks import model_config, present_file, weight_files
from introspection_lit.models.lora_targets import default_targets
from introspection_lit.models.random_models import is_random, random_config, random_model
from introspection_lit.models.sources import resolve
from introspection_lit.models.stored_quantization import loaded_problems, quantization_config, stored_quantization
from introspection_lit.models.text_part import outside_text
from introspection_lit.models.weight_files import header_mismatches, load_exactly
from introspection_lit.models.whole_model import auto_class, load_error, whole_config
from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.resource_limits import BYTES, BeyondLimitError, limited

if TYPE_CHECKING:
    from introspection_lit.utils.lazy_types import PeftModel, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


# Without this transformers asks the hub to convert pickles to safetensors, and loads the result.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")


# Characters that a chat template may produce for a conversation of three words.
MAX_TEMPLATE_CHARACTERS = 100_000


def load_config(base: BaseModel) -> PretrainedConfig:
    """Load the configuration of the model's decoder, without its weights.

    Raises:
        ConfigurationError: The model is refused (see :func:`~introspection_lit.models.whole_model.whole_config`).
        ValueError: The model does not exist or its configuration cannot be loaded.
    """
    return whole_config(base).get_text_config(decoder=True)


def read_template(path: Path) -> str:
    """Read a chat template of the user's own.

    Args:
        path: A file of Jinja, as ``chat_template.jinja`` in model folders.

    Raises:
        ConfigurationError: It does not exist, is empty or is no text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigurationError(
            [f"data.chat_template: {path} cannot be read ({reason}). Expected a Jinja file."]
        ) from error
    if not text.strip():
        raise ConfigurationError([f"data.chat_template: {path} is empty. Expected a chat template in Jinja."])
    return text


def load_tokenizer(base: BaseModel, template: str | None = None) -> PreTrainedTokenizerBase:
    """Load the model's tokenizer; models with random weights use that of the embedded model.

    Args:
        base: Options of the model.
        template: A chat template instead of the tokenizer's own.

    Raises:
        ValueError: It cannot be loaded, has no chat template, or cannot report character offsets.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(**resolve(BaseModel() if is_random(base.name) else base))
    except Exception as error:  # transformers raises many types for bad files
        raise ValueError(load_error(base, "has no usable tokenizer", error)) from error
    if template is not None:
        tokenizer.chat_template = template
        try:
            tokenizer.apply_chat_template([{"role": "user", "content": ""}], tokenize=False)
        except TemplateSyntaxError as error:
            raise ValueError(
                f"data.chat_template: no Jinja: {error} (line {error.lineno}). Expected a template."
            ) from error
        except Exception:  # of the template: it may refuse this conversation, and is checked below
            pass
    if not tokenizer.chat_template:
        raise ValueError(
            f"base.name_or_path: the tokenizer of {base.name_or_path!r} has no chat template. Expected an instruct or "
            "chat model, whose tokenizer carries one, or a template in data.chat_template."
        )
    _check_template(tokenizer, base)
    if not tokenizer.is_fast:
        raise ValueError(
            f"base.name_or_path: the tokenizer of {base.name_or_path!r} has no fast version, which is needed for the "
            "character offsets that separate the context from the question."
        )
    return tokenizer


def _check_template(tokenizer: PreTrainedTokenizerBase, base: BaseModel) -> None:
    """Run the chat template, a small program, within limits of time and memory; its own errors are reported later."""
    problem = None
    turns = [{"role": role, "content": "Hello."} for role in ("user", "assistant", "user")]
    try:
        with limited(memory=BYTES):
            text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        if len(text) > MAX_TEMPLATE_CHARACTERS:
            problem = f"makes {len(text):,} characters of three words"
    except (BeyondLimitError, MemoryError) as error:
        problem = str(error) or "takes more memory than there is"
    except Exception:  # jinja2 and templates have errors of their own
        return
    if problem:
        raise ValueError(
            f"base.name_or_path: the chat template of {base.name_or_path!r} {problem}. Expected a template that writes a "
            "conversation out; get the model again, from its maker."
        )


def load_model(base: BaseModel, device: torch.device | str = "cpu") -> PreTrainedModel:
    """Load the frozen base model onto one device.

    Args:
        base: Options of the model.
        device: Device of the weights; quantisation also runs there.

    Returns:
        The causal language model in eval mode; no parameter requires a gradient.

    Raises:
        ConfigurationError: The model is refused (see :func:`~introspection_lit.models.whole_model.whole_config`), or its
            tensors are missing, unexpected, of another shape, or quantised otherwise than the options say.
        ValueError: The weights are missing or damaged, or a package that the options need is not installed.
    """
    if is_random(base.name):
        dtype, packed = getattr(torch, base.dtype), quantization_config(base)
        return freeze(random_model(random_config(base.name), device, dtype, base.implementation, packed))
    config = whole_config(base)
    stored = stored_quantization(config.to_dict())
    packed = quantization_config(base, stored)
    if stored is not None and packed is not None:
        config.quantization_config = packed.to_dict()
    source, auto = resolve(base), auto_class(config)
    # Names of weights that are quantised already are those of their format: these are checked once they are loaded.
    # Those of a hub id that are not in the cache are fetched, and checked, by loading.
    files = [present_file(source, name) for name in weight_files(source, model_config(source) or {})]
    known = [] if stored is not None or None in files else [file for file in files if file]
    if known and (problems := header_mismatches(auto, config, known, base.name_or_path)):
        raise ConfigurationError(problems)
    try:
        model = load_exactly(
            auto,
            base.name_or_path,
            **source,
            config=config,
            dtype=getattr(torch, base.dtype),
            attn_implementation=base.implementation,
            quantization_config=packed if stored is None else None,
            device_map={"": torch.device(device)},
            use_safetensors=True,
        )
    except ConfigurationError:
        raise
    except Exception as error:  # transformers raises many types for files that do not match
        if isinstance(error, RuntimeError) and "mismatch" not in str(error):  # an error of the device, not of the files
            raise
        kind = "" if isinstance(error, OSError | ImportError | SafetensorError) else f"{type(error).__name__}: "
        raise ValueError(f"base: the weights of {base.name_or_path!r} could not be loaded: {kind}{error}") from error
    if problems := loaded_problems(model, base):
        raise ConfigurationError(problems)
    return freeze(model)


def meta_model(base: BaseModel) -> PreTrainedModel:
    """Build the model on the meta device, without weights and not quantised, for names and shapes of its modules.

    Raises:
        ConfigurationError: The model is refused.
        ValueError: The model does not exist.
    """
    config = whole_config(base)
    with torch.device("meta"):
        model: PreTrainedModel = auto_class(config).from_config(config, trust_remote_code=base.trust_remote_code)
    model.tie_weights()  # transformers 5.0 leaves them untied on this device
    return model


def freeze(model: PreTrainedModel) -> PreTrainedModel:
    """Freeze a base model: no gradients for its weights, eval mode, and no repacking of 4-bit weights."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # On CPUs with AVX512-BF16, bitsandbytes 0.50 repacks 4-bit weights at the first forward in eval mode (our
            # prefill) into a layout that has no backward: the question pass would fail or get no gradient.
            module.support_avx512bf16_for_cpu = False
    model.requires_grad_(False)
    return model.eval()


def add_lora(model: PreTrainedModel, lora: Lora) -> PeftModel:
    """Add a new LoRA adapter to the base model's text model; B is zero: outputs do not change before training.

    Raises:
        ValueError: No module has one of the target names.
    """
    from peft import LoraConfig, get_peft_model

    model_type = model.config.get_text_config(decoder=True).model_type
    targets = list(lora.target_modules or default_targets(find_decoder_layers(model), model_type))
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        exclude_modules=outside_text(model, targets),
        layers_to_transform=list(lora.layers) or None,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


# Files of a hub repository to download: no pickles, no other formats of the same weights.
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]


def fetch(base: BaseModel) -> str:
    """Download a model into the hub's cache, or unpack it, for compute nodes without a network.

    Args:
        base: Options of the model.

    Returns:
        The model type, and the folder or hub id that it is loaded from.

    Raises:
        ConfigurationError: The model's files are refused.
        ValueError: The model does not exist.
    """
    config, source = whole_config(base, any_quantization=True), resolve(base)
    kind = config.get_text_config(decoder=True).model_type
    if base.on_hub:
        from huggingface_hub import snapshot_download

        snapshot_download(source["pretrained_model_name_or_path"], revision=source["revision"], allow_patterns=HUB_FILES)
    return f"{kind} {source['pretrained_model_name_or_path']}"
