"""What a training run takes of memory, part by part, computed from the shape of the model.

Pure functions: nothing is loaded and no device is asked. The terms are those of decoders like Llama's and Qwen2's (RMS
norms, gated MLP, rotary positions, scaled dot-product attention) with LoRA; of other families they are an approximation.
Not counted: what the driver, the libraries of the device and a fragmented allocator take.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from introspection_lit.models.base_model import BaseModel, Lora
    from introspection_lit.models.decoder_shape import Matrix, Shape


Strategy = Literal["one", "ddp", "fsdp"]
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# bitsandbytes' blocks: a scale of 8 bits for 64 weights, and one of 32 bits for 256 of those scales.
NF4_BLOCK, NF4_SCALES = 64, 256
# FSDP gathers the next unit while it computes with this one.
GATHERED_UNITS = 2
# CUDA's memory that is neither ours nor free: what a plan should leave alone.
USABLE = 0.9


@dataclass(frozen=True)
class Load:
    """What a step works on.

    Attributes:
        batch: Trials of a micro-batch of one process.
        context: Tokens of the longest context, padding included.
        question: Tokens of the longest question, padding included.
        precision: The trainer's.
        strategy: ``one`` process, ``ddp`` (the whole base in each) or ``fsdp`` (a share of it in each).
        world_size: Processes.
        recompute: Activation checkpointing: decoder layers run again in the backward pass.
        answer_positions: Different lengths of questions in a batch: logits are made at each of these positions.
        kept_contexts: Clean contexts whose caches are kept in host memory.
        kept_layers: Layers at which steering may begin: the residual stream after each is kept with a context's cache.
        device: ``cuda`` or ``cpu``: dropout keeps a byte for each number on a GPU, and the number itself on the CPU.
    """

    batch: int
    context: int
    question: int
    precision: str = "bf16-mixed"
    strategy: Strategy = "one"
    world_size: int = 1
    recompute: bool = False
    answer_positions: int = 1
    kept_contexts: int = 0
    kept_layers: int = 0
    device: Literal["cuda", "cpu"] = "cuda"


@dataclass(frozen=True)
class Memory:
    """Bytes by part, of one process.

    Attributes:
        weights: The base model, or its share.
        gathered: Under FSDP: units that are whole while they are computed with.
        adapter: LoRA's matrices.
        gradients: Of the adapter; under DDP a second time, in the buckets that are sent.
        optimizer: AdamW's two averages.
        cache: Keys and values of the contexts.
        activations: What the detection pass keeps for its backward.
        appended: Caches with the keys and values of the question, until the detection pass has ended.
        logits: At the answer positions, with what the loss makes of them.
        backward: What lives for a moment in the backward of a layer, a dequantised matrix included.
        prefill: What lives for a moment while contexts are read, kept caches on their way into the batch included.
        host: Clean caches that are kept; not on the device.
    """

    weights: int
    gathered: int
    adapter: int
    gradients: int
    optimizer: int
    cache: int
    activations: int
    appended: int
    logits: int
    backward: int
    prefill: int
    host: int

    @property
    def standing(self) -> int:
        """What is there all the time."""
        return self.weights + self.gathered + self.adapter + self.gradients + self.optimizer

    @property
    def device(self) -> int:
        """The peak: of what does not overlap, the larger counts."""
        detection = self.activations + max(self.appended, self.logits, self.backward)
        return self.standing + self.cache + max(detection, self.prefill)


def weight_bytes(shape: Shape, base: BaseModel) -> int:
    """The base model: its matrices as they are quantised, all else at its dtype.

    NF4: half a byte a weight, 1 byte for each 64 and 4 for each 16,384 of them (the quantised scales): 0.516. Int8: a byte
    a weight and 4 for each row.
    """
    packed, scales = _matrix_bytes(shape.matrices, base)
    return packed + scales + shape.others * DTYPE_BYTES[base.dtype]


def _matrix_bytes(matrices: Sequence[Matrix], base: BaseModel) -> tuple[int, int]:
    """Bytes of the weights, which FSDP can shard, and of their scales, which it cannot: they are no parameters."""
    weights = sum(matrix.weights for matrix in matrices)
    if base.quantization == "nf4":
        return weights // 2, weights // NF4_BLOCK + 4 * weights // (NF4_BLOCK * NF4_SCALES)
    if base.quantization == "int8":
        return weights, 4 * sum(matrix.rows for matrix in matrices)
    return weights * DTYPE_BYTES[base.dtype], 0


def adapted(shape: Shape, lora: Lora) -> list[Matrix]:
    """The matrices that have an adapter."""
    layers = set(lora.layers or range(shape.layers))
    return [matrix for matrix in shape.matrices if matrix.name in lora.target_modules and matrix.layer in layers]


def adapter_weights(shape: Shape, lora: Lora) -> int:
    """Weights of the adapter: r rows of A as long as the input, r columns of B as long as the output."""
    return sum(lora.r * (matrix.rows + matrix.columns) for matrix in adapted(shape, lora))


def cache_bytes(shape: Shape, base: BaseModel, tokens: int) -> int:
    """Keys and values of one trial, ``(2, layers, keys, tokens)`` at the base model's dtype."""
    return 2 * shape.layers * shape.keys * tokens * DTYPE_BYTES[base.dtype]


def activation_bytes(shape: Shape, base: BaseModel, lora: Lora, load: Load) -> int:
    """What the detection pass keeps for its backward.

    With T = batch · question tokens, S = batch · (context + question) tokens, d bytes a number in matrix products (that of
    the precision, or of the base), a decoder layer of a frozen model keeps:

    - both norms: their input in float32 and the reciprocal length, 2 · 4 · T · (hidden + 1);
    - attention: the queries and its output, 2 · d · T · queries; keys and values of the whole conversation, repeated for
      every head, 2 · d · S · queries; the log-sum-exp, 4 · T · heads; the mask, d · T · (context + question);
    - the MLP: gate, its activation and up, 3 · d · T · intermediate. A frozen matrix does not keep its input;
    - each adapted matrix: its input after dropout, d · T · columns, dropout's mask (1 byte a number on a GPU), and what
      lies between A and B, d · T · r.

    Layers below the first adapted one have no backward and keep nothing. With ``recompute`` only the layers' inputs are
    kept, d · T · hidden each, and one layer's share while it runs again. Unquantised float32 weights under a mixed
    precision are kept once more, cast. Last the final norm.
    """
    tokens = load.batch * load.question
    width = _product_bytes(base, load.precision)
    chosen = adapted(shape, lora)
    if not chosen:
        return 0
    first = min(matrix.layer for matrix in chosen)
    plain = _layer_bytes(shape, base, load, width)
    if load.precision.endswith("mixed") and base.quantization == "none" and DTYPE_BYTES[base.dtype] > width:
        plain += width * sum(matrix.weights for matrix in shape.matrices) // shape.layers
    extra = [_adapter_bytes(shape, base, lora, load, width, layer) for layer in range(first, shape.layers)]
    final = 4 * tokens * (shape.hidden + 1)
    if load.recompute:
        return len(extra) * DTYPE_BYTES[base.dtype] * tokens * shape.hidden + plain + max(extra) + final
    return len(extra) * plain + sum(extra) + final


def _product_bytes(base: BaseModel, precision: str) -> int:
    """Bytes of a number that goes into a matrix product."""
    return 4 if precision.startswith("32") and base.dtype == "float32" else min(DTYPE_BYTES[base.dtype], _half(precision))


def _half(precision: str) -> int:
    return 4 if precision.startswith("32") else 2


def _adapter_dtype_bytes(precision: str) -> int:
    """PEFT makes adapters in float32; a precision that ends in "true" casts them."""
    return 2 if precision in ("bf16-true", "16-true") else 4


def _layer_bytes(shape: Shape, base: BaseModel, load: Load, width: int) -> int:
    """One decoder layer without adapter."""
    tokens, whole = load.batch * load.question, load.batch * (load.context + load.question)
    norms = 2 * 4 * tokens * (shape.hidden + 1)
    attention = 2 * width * shape.queries * (tokens + whole) + 4 * tokens * shape.heads
    scores = tokens * (load.context + load.question)
    attention += width * scores
    if base.attention == "eager":  # the softmax in float32, and what is multiplied with the values
        attention += (4 + width) * shape.heads * scores
    return norms + attention + 3 * width * tokens * shape.intermediate


def _adapter_bytes(shape: Shape, base: BaseModel, lora: Lora, load: Load, width: int, layer: int) -> int:
    """What the adapter of one decoder layer keeps."""
    tokens, total = load.batch * load.question, 0
    chosen = [matrix for matrix in adapted(shape, lora) if matrix.layer == layer]
    inner = width if load.precision.endswith("mixed") else _adapter_dtype_bytes(load.precision)
    mask = 1 if load.device == "cuda" else _adapter_dtype_bytes(load.precision)
    for matrix in chosen:
        total += inner * tokens * lora.r
        if lora.dropout:
            total += (inner + mask) * tokens * matrix.columns
    if not lora.dropout:
        # Matrices with one input share what is kept of it, unless each casts its own copy.
        mixed = load.precision.endswith("mixed")
        shared = not mixed or (base.quantization == "nf4" and load.device == "cuda")
        columns = [matrix.columns for matrix in chosen]
        total += inner * tokens * sum(set(columns) if shared else columns)
    return total


def logit_bytes(shape: Shape, base: BaseModel, load: Load) -> int:
    """Logits at every answer position and at a row's own, and in float32: once cast and two softmaxes."""
    width = _product_bytes(base, load.precision)
    return load.batch * shape.vocabulary * (width * (load.answer_positions + 1) + 3 * 4)


def passing_bytes(shape: Shape, base: BaseModel, load: Load, tokens: int) -> int:
    """What lives for a moment in a layer: its MLP, its norms in float32, a mask, a dequantised or cast matrix.

    Args:
        shape: The model's.
        base: How it is loaded.
        load: What a step works on.
        tokens: Padded tokens of a trial that go through the layer.
    """
    width, rows = _product_bytes(base, load.precision), load.batch * tokens
    layer = rows * (3 * width * shape.intermediate + (2 * 4 + 2 * width) * shape.hidden)
    whole = base.quantization == "none" and DTYPE_BYTES[base.dtype] == width
    return layer + (0 if whole else width * shape.largest)


def estimate(shape: Shape, base: BaseModel, lora: Lora, load: Load) -> Memory:
    """Compute what one process needs.

    Under FSDP each process holds 1/world_size of the packed weights, of the adapter, its gradients and its optimiser; the
    scales of quantised weights are no parameters and stay whole; the weights outside the decoder layers and two decoder
    layers (the one that runs and the one that is being fetched) are whole while the step lasts.

    Args:
        shape: The model's.
        base: How it is loaded.
        lora: The adapter.
        load: What a step works on.

    Returns:
        Bytes by part.
    """
    share = load.world_size if load.strategy == "fsdp" else 1
    packed, scales = _matrix_bytes(shape.matrices, base)
    width = DTYPE_BYTES[base.dtype]
    others, root = shape.others * width, shape.root * width
    gathered = 0
    if share > 1:
        gathered = root + GATHERED_UNITS * (packed + others - root) // shape.layers
    adapter = adapter_weights(shape, lora) * _adapter_dtype_bytes(load.precision) // share
    appended = load.batch * cache_bytes(shape, base, load.context + load.question)
    context = load.batch * cache_bytes(shape, base, load.context)
    stream = load.kept_layers * shape.hidden * load.context * width
    kept = cache_bytes(shape, base, load.context) + stream
    return Memory(
        weights=-(-(packed + others) // share) + scales,
        gathered=gathered,
        adapter=adapter,
        gradients=adapter * (2 if load.strategy == "ddp" else 1),
        optimizer=2 * adapter,
        cache=context,
        activations=activation_bytes(shape, base, lora, load),
        logits=logit_bytes(shape, base, load),
        appended=appended // shape.layers if load.recompute else appended,
        backward=passing_bytes(shape, base, load, load.question),
        prefill=passing_bytes(shape, base, load, load.context) + (load.batch * kept if load.kept_contexts else 0),
        host=load.kept_contexts * kept,
    )


def largest_batch(shape: Shape, base: BaseModel, lora: Lora, load: Load, free: float, most: int = 4096) -> int:
    """Find the largest even micro-batch whose peak fits.

    Args:
        shape: The model's.
        base: How it is loaded.
        lora: The adapter.
        load: All but the batch.
        free: Bytes that may be used.
        most: Look no further.

    Returns:
        The batch; 0 if not even two trials fit.
    """
    low, high = 0, most // 2
    while low < high:
        middle = (low + high + 1) // 2
        fits = estimate(shape, base, lora, replace(load, batch=2 * middle)).device <= free
        low, high = (middle, high) if fits else (low, middle - 1)
    return 2 * low


# Parts as a reader calls them, in the order of the table.
PARTS = {
    "weights": "weights",
    "gathered": "gathered units (FSDP)",
    "adapter": "adapter",
    "gradients": "gradients",
    "optimizer": "optimiser",
    "cache": "KV cache",
    "activations": "activations",
    "appended": "(a) appended cache",
    "logits": "(b) logits and loss",
    "backward": "(c) a layer's backward",
    "prefill": "(d) a layer's prefill",
    "device": "**peak**",
}


def markdown(columns: dict[str, Memory]) -> str:
    """Render estimates side by side.

    Args:
        columns: Headings and estimates.

    Returns:
        A table in Markdown, in GiB.
    """
    lines = ["| part, GiB | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for name, title in PARTS.items():
        cells = [f"{getattr(memory, name) / 2**30:.2f}" for memory in columns.values()]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
