"""Loads, quantises and adapts the base model. The only file that knows about architectures.

Everything else sees three things: a causal language model from ``transformers``, its tokenizer, and the list of its
decoder layers.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from introspection_lit.models.base_model import BaseModel, Lora
from introspection_lit.models.file_checks import file_problems
from introspection_lit.models.random_models import geometry, is_random, random_model
from introspection_lit.models.sources import resolve
from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.resource_limits import BYTES, BeyondLimitError, limited

if TYPE_CHECKING:
    from introspection_lit.utils.lazy_types import PeftModel, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


# Else transformers asks the hub to make safetensors of pickles, and takes what comes.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")


# Characters that a chat template may add to a conversation of three words.
LONGEST_TEMPLATE = 100_000


def load_config(base: BaseModel) -> PretrainedConfig:
    """Load the configuration of the model's decoder, without its weights.

    Raises:
        ValueError: There is no such model, or its files ask for what is not given (see
            :mod:`~introspection_lit.models.file_checks`).
    """
    if is_random(base.name):
        return geometry(base.name)
    source = resolve(base)
    if problems := file_problems(source):
        raise ConfigurationError(problems)
    try:
        return AutoConfig.from_pretrained(**source).get_text_config(decoder=True)
    except Exception as error:  # whatever transformers makes of what is in the file
        raise ValueError(_refusal(base, "could not be loaded as a model", error)) from error


def _refusal(base: BaseModel, problem: str, error: Exception) -> str:
    """What to say of a model that cannot be loaded; of one that brings code, whose decision that is."""
    if not base.trust_remote_code and "trust_remote_code" in str(error):
        return (
            f"base.trust_remote_code: {base.name_or_path!r} needs code that comes with it, which is not run: the option is "
            "off. Read that code; if you trust it, set base.trust_remote_code to true and base.revision to what you read."
        )
    kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
    return f"base.name_or_path: {base.name_or_path!r} {problem}: {kind}{error}"


def load_tokenizer(base: BaseModel) -> PreTrainedTokenizerBase:
    """Load the model's tokenizer; models with random weights have that of the embedded one.

    Raises:
        ValueError: There is none, it has no chat template, or it cannot report character offsets.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(**resolve(BaseModel() if is_random(base.name) else base))
    except Exception as error:  # whatever transformers makes of what is in the files
        raise ValueError(_refusal(base, "has no usable tokenizer", error)) from error
    if not tokenizer.chat_template:
        raise ValueError(
            f"base.name_or_path: the tokenizer of {base.name_or_path!r} has no chat template. Expected an instruct or "
            "chat model, whose tokenizer carries one."
        )
    _try_template(tokenizer, base)
    if not tokenizer.is_fast:
        raise ValueError(
            f"base.name_or_path: the tokenizer of {base.name_or_path!r} has no fast version, which is needed for the "
            "character offsets that separate the context from the question."
        )
    return tokenizer


def _try_template(tokenizer: PreTrainedTokenizerBase, base: BaseModel) -> None:
    """Try a model's chat template, which is a small program; one that refuses a conversation says so later."""
    problem = None
    turns = [{"role": role, "content": "Hello."} for role in ("user", "assistant", "user")]
    try:
        with limited(memory=BYTES):
            text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        if len(text) > LONGEST_TEMPLATE:
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
        base: What to load.
        device: Where its weights go. Quantised weights are made there.

    Returns:
        The causal language model in eval mode; no parameter requires a gradient.

    Raises:
        ValueError: The weights are missing or damaged, or a package that the options need is not installed.
    """
    if is_random(base.name):
        packed = quantization_config(base)
        return freeze(random_model(geometry(base.name), device, getattr(torch, base.dtype), base.attention, packed))
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
    except Exception as error:  # whatever transformers makes of files that do not fit each other
        if isinstance(error, RuntimeError) and "mismatch" not in str(error):  # of the device: it is not the files
            raise
        kind = "" if isinstance(error, OSError | ImportError | SafetensorError) else f"{type(error).__name__}: "
        raise ValueError(f"base: the weights of {base.name_or_path!r} could not be loaded: {kind}{error}") from error
    return freeze(model)


def outline(base: BaseModel) -> PreTrainedModel:
    """Build the model without its weights, on the meta device, not quantised: names and shapes of its modules.

    Raises:
        ValueError: There is no such model.
    """
    load_config(base)  # refuses what must not be read
    config = geometry(base.name) if is_random(base.name) else AutoConfig.from_pretrained(**resolve(base))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=base.trust_remote_code)
    model.tie_weights()  # transformers 5.0 leaves them untied on this device
    return model


def freeze(model: PreTrainedModel) -> PreTrainedModel:
    """Make a base model one that is only read: no gradient for its weights, eval mode, 4-bit weights left as packed."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # On CPUs with AVX512-BF16, bitsandbytes 0.50 repacks 4-bit weights at the first forward in eval mode (our
            # prefill) into a layout that has no backward: the detection pass would fail or get no gradient.
            module.support_avx512bf16_for_cpu = False
    model.requires_grad_(False)
    return model.eval()


def add_lora(model: PreTrainedModel, lora: Lora) -> PeftModel:
    """Put a LoRA adapter on the base model; a fresh adapter changes nothing.

    Raises:
        ValueError: No module has one of the target names.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules),
        layers_to_transform=list(lora.layers) or None,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


# What of a hub repository is needed: no pickles, no other formats of the same weights.
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]


def fetch(base: BaseModel) -> str:
    """Have a model on this machine before it is needed, as compute nodes without a network do.

    Args:
        base: Its weights and tokenizer are fetched from the hub into its cache, or unpacked.

    Returns:
        Its type, and the folder or hub id that it is loaded from.

    Raises:
        ValueError: There is no such model.
    """
    kind, source = load_config(base).model_type, resolve(base)
    if base.on_hub:
        from huggingface_hub import snapshot_download

        snapshot_download(source["pretrained_model_name_or_path"], revision=source["revision"], allow_patterns=HUB_FILES)
    return f"{kind} {source['pretrained_model_name_or_path']}"


if __name__ == "__main__":  # python -m introspection_lit.models.loading NAME: fetch or unpack a model ahead of time
    print(fetch(BaseModel(sys.argv[1])))
