"""Estimates the memory of a training run by part, from the dimensions of the model.

Pure functions: no model is loaded and no device is queried. Weights and caches are those of the architecture. The formulas
of activations are for decoders like Llama's and Qwen2's (RMS norms, gated MLP, rotary positions, scaled dot-product
attention) with LoRA; for other families they are approximate.
Not counted: memory of the driver and of the device's libraries, and fragmentation of the allocator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from introspection_lit.models.lora_targets import USUAL

if TYPE_CHECKING:
    from introspection_lit.models.base_model import BaseModel, Lora
    from introspection_lit.models.decoder_shape import Matrix, Shape


Strategy = Literal["one", "ddp", "fsdp"]
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Blocks of bitsandbytes: an 8-bit scale for 64 weights, and a 32-bit scale for 256 of those scales.
NF4_BLOCK, NF4_SCALES = 64, 256
# FSDP gathers the next unit while it computes the current one.
GATHERED_UNITS = 2
# Share of the device's memory that a plan may use; the rest is left to the driver and to fragmentation.
USABLE = 0.9


@dataclass(frozen=True)
class Load:
    """The size of a training step."""

    batch: int  # trials (questions) in a micro-batch of one process
    context: int  # tokens of the longest context, padding included
    question: int  # tokens of the longest question, padding included
    precision: str = "bf16-mixed"  # the trainer's precision
    strategy: Strategy = "one"  # one process, ddp (the whole base model in each) or fsdp (a share of it in each)
    world_size: int = 1  # number of processes
    recompute: bool = False  # activation checkpointing: decoder layers run again in the backward pass
    kept_contexts: int = 0  # clean contexts whose caches are kept in host memory
    kept_layers: int = 0  # layers at which steering may begin; the residual stream after each is kept with a cache
    rows_of_cache: int = 1  # questions that each cache is asked
    references: int = 0  # questions that the untrained model answers, too
    texts: int = 0  # plain texts, read with every token's logits
    device: Literal["cuda", "cpu"] = "cuda"  # dropout stores a byte an element on a GPU, the element's size on a CPU


@dataclass(frozen=True)
class Memory:
    """Bytes by part, of one process."""

    weights: int  # the base model, or its shard
    gathered: int  # FSDP units that are gathered at one time
    adapter: int  # LoRA's matrices
    gradients: int  # of the adapter; under DDP twice, for the communication buckets
    optimizer: int  # the two moments of AdamW
    cache: int  # keys, values and states of the contexts
    activations: int  # tensors that the question pass saves for its backward pass
    appended: int  # caches extended by the keys and values of the question, until the end of the question pass
    logits: int  # at the answer positions, with the temporary tensors of the loss
    backward: int  # temporary tensors of a layer's backward pass, a dequantised matrix included
    prefill: int  # temporary tensors of the prefill, kept caches that are copied into the batch included
    host: int  # clean caches kept in host memory, not on the device

    @property
    def persistent(self) -> int:
        """Bytes that are allocated during the whole run."""
        return self.weights + self.gathered + self.adapter + self.gradients + self.optimizer

    @property
    def device(self) -> int:
        """The peak on the device: of parts that do not exist at the same time, the largest counts."""
        question_pass = self.activations + max(self.appended, self.logits, self.backward)
        return self.persistent + self.cache + max(question_pass, self.prefill)


def weight_bytes(shape: Shape, base: BaseModel) -> int:
    """Bytes of the base model: its matrices as they are quantised, all other weights in its dtype.

    NF4: half a byte a weight, 1 byte for each 64 and 4 bytes for each 16,384 weights (the quantised scales), together 0.516
    bytes a weight. Int8: 1 byte a weight and 4 bytes a row.
    """
    packed, scales = _matrix_bytes(shape.matrices, base)
    return packed + scales + shape.others * DTYPE_BYTES[base.dtype]


def _matrix_bytes(matrices: Sequence[Matrix], base: BaseModel) -> tuple[int, int]:
    """Bytes of the weights, and of their scales, which FSDP cannot shard because they are not parameters."""
    weights = sum(matrix.weights for matrix in matrices)
    if base.quantization == "nf4":
        return weights // 2, weights // NF4_BLOCK + 4 * weights // (NF4_BLOCK * NF4_SCALES)
    if base.quantization == "int8":
        return weights, 4 * sum(matrix.rows for matrix in matrices)
    return weights * DTYPE_BYTES[base.dtype], 0


def adapted_matrices(shape: Shape, lora: Lora) -> list[Matrix]:
    """The matrices that have an adapter."""
    layers = set(lora.layers or range(shape.layers))
    targets = lora.target_modules or USUAL
    return [matrix for matrix in shape.matrices if matrix.name in targets and matrix.layer in layers]


def adapter_weights(shape: Shape, lora: Lora) -> int:
    """Number of the adapter's weights: A is (r, input features), B is (output features, r)."""
    return sum(lora.r * (matrix.rows + matrix.columns) for matrix in adapted_matrices(shape, lora))


def cache_bytes(shape: Shape, base: BaseModel, tokens: int) -> int:
    """What the cache of one trial keeps of each token, and its states, in the base model's dtype or float32."""
    numbers = sum(layer.each * tokens + layer.state for layer in shape.kept)
    return numbers * DTYPE_BYTES[base.dtype] + 4 * sum(layer.wide for layer in shape.kept)


def activation_bytes(shape: Shape, base: BaseModel, lora: Lora, load: Load) -> int:
    """Bytes that the question pass saves for its backward pass.

    With T = batch · question tokens, S = batch · (context + question) tokens and d bytes an element in matrix products, a
    decoder layer of a frozen model saves:

    - both norms: their input in float32 and the reciprocal length, 2 · 4 · T · (hidden + 1);
    - attention: its queries, d · T · queries; keys and values of the whole conversation, repeated for every head,
      2 · d · S · queries. With ``sdpa`` its output, d · T · queries, the log-sum-exp, 4 · T · heads, and the mask,
      d · T · (context + question); with ``eager`` the softmax in float32 and cast, (4 + d) · heads for each of the latter;
    - the MLP: gate, its activation and up, 3 · d · T · intermediate. A frozen matrix does not save its input;
    - each adapted matrix: its input after dropout, d · T · columns, dropout's mask (1 byte an element on a GPU), and the
      output of A, d · T · r.

    Layers below the first adapted one have no backward pass and save nothing. With ``recompute`` only the layers' inputs
    are saved, d · T · hidden each, plus one layer's tensors while it runs again. Unquantised float32 weights under a mixed
    precision are saved a second time, cast. The final norm is added.
    """
    tokens = load.batch * load.question
    width = _product_bytes(base, load.precision)
    matrices = adapted_matrices(shape, lora)
    if not matrices:
        return 0
    first = min(matrix.layer for matrix in matrices)
    layer = _layer_bytes(shape, base, load, width)
    if load.precision.endswith("mixed") and base.quantization == "none" and DTYPE_BYTES[base.dtype] > width:
        layer += width * sum(matrix.weights for matrix in shape.matrices) // shape.layers
    adapters = [_adapter_bytes(shape, base, lora, load, width, number) for number in range(first, shape.layers)]
    final = 4 * tokens * (shape.hidden + 1)
    if load.recompute:
        return len(adapters) * DTYPE_BYTES[base.dtype] * tokens * shape.hidden + layer + max(adapters) + final
    return len(adapters) * layer + sum(adapters) + final


def text_bytes(shape: Shape, base: BaseModel, lora: Lora, load: Load) -> int:
    """Bytes that the pass over plain texts saves for its backward pass: that of a question pass without caches."""
    return activation_bytes(shape, base, lora, replace(load, batch=load.texts, question=load.context, context=0))


def _product_bytes(base: BaseModel, precision: str) -> int:
    """Bytes of an element in matrix products: of the precision, or of the base model if smaller."""
    return 4 if precision.startswith("32") and base.dtype == "float32" else min(DTYPE_BYTES[base.dtype], _half(precision))


def _half(precision: str) -> int:
    return 4 if precision.startswith("32") else 2


def _adapter_dtype_bytes(precision: str) -> int:
    """PEFT creates adapters in float32; precisions that end in "true" cast them."""
    return 2 if precision in ("bf16-true", "16-true") else 4


def _layer_bytes(shape: Shape, base: BaseModel, load: Load, width: int) -> int:
    """Bytes that one decoder layer saves, without its adapter."""
    tokens, all_tokens = load.batch * load.question, load.batch * (load.context + load.question)
    norms = 2 * 4 * tokens * (shape.hidden + 1)
    attention = width * shape.queries * (tokens + 2 * all_tokens)
    scores = tokens * (load.context + load.question)
    bfloat16 = load.precision.startswith("bf16") or (load.precision.startswith("32") and base.dtype == "bfloat16")
    if (
        base.eager_for_questions(load.device, bfloat16) or base.implementation == "eager"
    ):  # the softmax in float32, and its cast
        attention += (4 + width) * shape.heads * scores
    else:  # the output, the log-sum-exp and the mask
        attention += width * shape.queries * tokens + 4 * tokens * shape.heads + width * scores
    return norms + attention + 3 * width * tokens * shape.intermediate


def _adapter_bytes(shape: Shape, base: BaseModel, lora: Lora, load: Load, width: int, layer: int) -> int:
    """Bytes that the adapter of one decoder layer saves."""
    tokens, total = load.batch * load.question, 0
    matrices = [matrix for matrix in adapted_matrices(shape, lora) if matrix.layer == layer]
    inner = width if load.precision.endswith("mixed") else _adapter_dtype_bytes(load.precision)
    mask = 1 if load.device == "cuda" else _adapter_dtype_bytes(load.precision)
    for matrix in matrices:
        total += inner * tokens * lora.r
        if lora.dropout:
            total += (inner + mask) * tokens * matrix.columns
    if not lora.dropout:
        # Matrices with the same input share the saved tensor, unless each casts a copy of its own.
        mixed = load.precision.endswith("mixed")
        shared = not mixed or (base.quantization == "nf4" and load.device == "cuda")
        columns = [matrix.columns for matrix in matrices]
        total += inner * tokens * sum(set(columns) if shared else columns)
    return total


def logit_bytes(shape: Shape, base: BaseModel, load: Load) -> int:
    """Bytes of the logits: at each row's answer position, computed and picked, and in float32 one cast and two softmaxes.

    And of references and of every token of plain texts, the untrained model's log-probabilities in float32.
    """
    width = _product_bytes(base, load.precision)
    rows = load.batch * shape.vocabulary * (2 * width + 3 * 4)
    texts = load.texts * load.context * shape.vocabulary * (width + 3 * 4 + 4)
    return rows + texts + load.references * shape.vocabulary * 4


def temporary_bytes(shape: Shape, base: BaseModel, load: Load, tokens: int) -> int:
    """Bytes of a layer's temporary tensors: its MLP, its norms in float32, and a dequantised or cast matrix.

    Args:
        shape: Dimensions of the model.
        base: Options of the model.
        load: Size of the step.
        tokens: Padded tokens of a trial that go through the layer.
    """
    width, rows = _product_bytes(base, load.precision), load.batch * tokens
    layer = rows * (3 * width * shape.intermediate + (2 * 4 + 2 * width) * shape.hidden)
    usable_as_stored = base.quantization == "none" and DTYPE_BYTES[base.dtype] == width
    return layer + (0 if usable_as_stored else width * shape.largest)


def estimate(shape: Shape, base: BaseModel, lora: Lora, load: Load) -> Memory:
    """Estimate the memory of one process.

    Under FSDP each process holds 1/world_size of the packed weights, of the adapter, its gradients and its optimizer state.
    Not sharded are the scales of quantised weights, which are not parameters, and during a step the weights outside the
    decoder layers and two decoder layers (the current one and the one that is being gathered).

    Args:
        shape: Dimensions of the model.
        base: Options of the model.
        lora: Options of the adapter.
        load: Size of the step.

    Returns:
        Bytes by part.
    """
    shards = load.world_size if load.strategy == "fsdp" else 1
    packed, scales = _matrix_bytes(shape.matrices, base)
    width = DTYPE_BYTES[base.dtype]
    others, root = shape.others * width, shape.root * width
    gathered = 0
    if shards > 1:
        gathered = root + GATHERED_UNITS * (packed + others - root) // shape.layers
    adapter = adapter_weights(shape, lora) * _adapter_dtype_bytes(load.precision) // shards
    appended = load.batch * cache_bytes(shape, base, load.context + load.question)
    caches = -(-load.batch // load.rows_of_cache)
    context = caches * cache_bytes(shape, base, load.context)
    if load.recompute and load.rows_of_cache > 1:  # each row's copy, which is freed layer by layer otherwise
        context += load.batch * cache_bytes(shape, base, load.context)
    stream = load.kept_layers * shape.hidden * load.context * width
    clean_cache = cache_bytes(shape, base, load.context) + stream
    return Memory(
        weights=-(-(packed + others) // shards) + scales,
        gathered=gathered,
        adapter=adapter,
        gradients=adapter * (2 if load.strategy == "ddp" else 1),
        optimizer=2 * adapter,
        cache=context,
        activations=activation_bytes(shape, base, lora, load) + text_bytes(shape, base, lora, load),
        logits=logit_bytes(shape, base, load),
        appended=appended // shape.layers if load.recompute else appended,
        backward=temporary_bytes(shape, base, load, load.question),
        prefill=temporary_bytes(shape, base, replace(load, batch=caches), load.context)
        + (caches * clean_cache if load.kept_contexts else 0),
        host=load.kept_contexts * clean_cache,
    )


def largest_batch(shape: Shape, base: BaseModel, lora: Lora, load: Load, free: float, most: int = 4096) -> int:
    """Find the largest even micro-batch whose peak fits.

    Args:
        shape: Dimensions of the model.
        base: Options of the model.
        lora: Options of the adapter.
        load: Size of the step; its batch is ignored.
        free: Bytes that may be used.
        most: Largest batch considered.

    Returns:
        The batch; 0 if not even two trials fit.
    """
    low, high = 0, most // 2
    while low < high:
        middle = (low + high + 1) // 2
        fits = estimate(shape, base, lora, replace(load, batch=2 * middle)).device <= free
        low, high = (middle, high) if fits else (low, middle - 1)
    return 2 * low


# Titles of the parts in tables and messages, in their order.
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
