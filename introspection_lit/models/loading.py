"""Loads the configuration, tokenizer and weights of the base model, quantises it and adds a LoRA adapter.

The rest of the package works with the causal language model from ``transformers``, its tokenizer, and the list of its
decoder layers (:mod:`~introspection_lit.models.architecture`).
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from introspection_lit.models.architecture import find_decoder_layers
from introspection_lit.models.base_model import BaseModel, Lora
from introspection_lit.models.file_checks import file_problems
from introspection_lit.models.lora_targets import default_targets
from introspection_lit.models.random_models import is_random, random_config, random_model
from introspection_lit.models.sources import resolve
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
        ConfigurationError: The model's files are refused (see :mod:`~introspection_lit.models.file_checks`).
        ValueError: The model does not exist or its configuration cannot be loaded.
    """
    if is_random(base.name):
        return random_config(base.name)
    source = resolve(base)
    if problems := file_problems(source):
        raise ConfigurationError(problems)
    try:
        return AutoConfig.from_pretrained(**source).get_text_config(decoder=True)
    except Exception as error:  # transformers raises many types for bad files
        raise ValueError(_load_error(base, "could not be loaded as a model", error)) from error


def _load_error(base: BaseModel, problem: str, error: Exception) -> str:
    """The message for a model that cannot be loaded; for one that needs its own code, how to allow it."""
    if not base.trust_remote_code and "trust_remote_code" in str(error):
        return (
            f"base.trust_remote_code: {base.name_or_path!r} needs code that comes with it, which is not run: the option is "
            "off. Read that code; if you trust it, set base.trust_remote_code to true and base.revision to what you read."
        )
    kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
    return f"base.name_or_path: {base.name_or_path!r} {problem}: {kind}{error}"


def load_tokenizer(base: BaseModel) -> PreTrainedTokenizerBase:
    """Load the model's tokenizer; models with random weights use that of the embedded model.

    Raises:
        ValueError: It cannot be loaded, has no chat template, or cannot report character offsets.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(**resolve(BaseModel() if is_random(base.name) else base))
    except Exception as error:  # transformers raises many types for bad files
        raise ValueError(_load_error(base, "has no usable tokenizer", error)) from error
    if not tokenizer.chat_template:
        raise ValueError(
            f"base.name_or_path: the tokenizer of {base.name_or_path!r} has no chat template. Expected an instruct or "
            "chat model, whose tokenizer carries one."
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


def quantization_config(base: BaseModel) -> BitsAndBytesConfig | None:
    """Translate the quantisation options into those of bitsandbytes."""
    if base.quantization == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, base.dtype),
            bnb_4bit_quant_storage=getattr(torch, base.quant_storage),
        )
    if base.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return None


def load_model(base: BaseModel, device: torch.device | str = "cpu") -> PreTrainedModel:
    """Load the frozen base model onto one device.

    Args:
        base: Options of the model.
        device: Device of the weights; quantisation also runs there.

    Returns:
        The causal language model in eval mode; no parameter requires a gradient.

    Raises:
        ConfigurationError: The model's files are refused (see :mod:`~introspection_lit.models.file_checks`).
        ValueError: The weights are missing or damaged, or a package that the options need is not installed.
    """
    if is_random(base.name):
        packed = quantization_config(base)
        return freeze(random_model(random_config(base.name), device, getattr(torch, base.dtype), base.attention, packed))
    source = resolve(base)
    if problems := file_problems(source):
        raise ConfigurationError(problems)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            **source,
            dtype=getattr(torch, base.dtype),
            attn_implementation=base.attention,
            quantization_config=quantization_config(base),
            device_map={"": torch.device(device)},
            use_safetensors=True,
        )
    except Exception as error:  # transformers raises many types for files that do not match
        if isinstance(error, RuntimeError) and "mismatch" not in str(error):  # an error of the device, not of the files
            raise
        kind = "" if isinstance(error, OSError | ImportError | SafetensorError) else f"{type(error).__name__}: "
        raise ValueError(f"base: the weights of {base.name_or_path!r} could not be loaded: {kind}{error}") from error
    return freeze(model)


def meta_model(base: BaseModel) -> PreTrainedModel:
    """Build the model on the meta device, without weights and not quantised, for names and shapes of its modules.

    Raises:
        ConfigurationError: The model's files are refused.
        ValueError: The model does not exist.
    """
    load_config(base)  # checks the files
    config = random_config(base.name) if is_random(base.name) else AutoConfig.from_pretrained(**resolve(base))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=base.trust_remote_code)
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
    """Add a new LoRA adapter to the base model; B is zero, so that outputs do not change before training.

    Raises:
        ValueError: No module has one of the target names.
    """
    from peft import LoraConfig, get_peft_model

    model_type = model.config.get_text_config(decoder=True).model_type
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules or default_targets(find_decoder_layers(model), model_type),
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
    kind, source = load_config(base).model_type, resolve(base)
    if base.on_hub:
        from huggingface_hub import snapshot_download

        snapshot_download(source["pretrained_model_name_or_path"], revision=source["revision"], allow_patterns=HUB_FILES)
    return f"{kind} {source['pretrained_model_name_or_path']}"


if __name__ == "__main__":  # python -m introspection_lit.models.loading NAME: fetch or unpack a model ahead of time
    print(fetch(BaseModel(sys.argv[1])))
