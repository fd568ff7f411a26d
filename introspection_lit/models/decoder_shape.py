"""The dimensions of a decoder, from which memory and operations are computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from introspection_lit.models.architecture import find_decoder_layers
from introspection_lit.models.whole_model import auto_class
from introspection_lit.utils.cache_option import cache_option

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# Tokens of the prefills that show what a cache keeps of each: fewer than any sliding window has.
SHORT = 4


@dataclass(frozen=True)
class Matrix:
    """A linear module's weights.

    Attributes:
        name: The module's own name, such as ``q_proj``.
        layer: Its decoder layer.
        rows: Output features.
        columns: Input features.
    """

    name: str
    layer: int
    rows: int
    columns: int

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.rows * self.columns


class CacheLayer(NamedTuple):
    """What a layer of a cache keeps of a row.

    Attributes:
        each: Numbers of each token: keys and values, latents, keys of an index. A sliding window keeps its whole prefill.
        state: Numbers whatever the length: states of recurrent layers and convolutions.
        wide: The same, always in float32.
    """

    each: int
    state: int
    wide: int


@dataclass(frozen=True)
class Shape:
    """The dimensions of a decoder.

    Attributes:
        matrices: The linear modules of all decoder layers; these can be quantised or adapted.
        others: Number of all other weights (embeddings, head, norms, biases).
        root: Number of those outside the decoder layers.
        layers: Number of decoder layers.
        hidden: Width of the residual stream.
        heads: Attention heads.
        queries: Width of all queries together: heads times head width.
        keys: Width of all keys together, and of all values.
        intermediate: Width of the MLP.
        vocabulary: Number of tokens.
        kept: What a cache keeps, by layer.
    """

    matrices: tuple[Matrix, ...]
    others: int
    root: int
    layers: int
    hidden: int
    heads: int
    queries: int
    keys: int
    intermediate: int
    vocabulary: int
    kept: tuple[CacheLayer, ...]

    @property
    def weights(self) -> int:
        """Number of all weights of the base model."""
        return self.others + sum(matrix.weights for matrix in self.matrices)

    @property
    def largest(self) -> int:
        """Number of weights of the largest matrix."""
        return max(matrix.weights for matrix in self.matrices)


def decoder_shape(config: PretrainedConfig) -> Shape:
    """Read the dimensions from a model built on the ``meta`` device, without formulas for each family.

    Args:
        config: Of the whole model, or of its decoder. A 32B model takes two seconds.
    """
    from transformers.pytorch_utils import Conv1D

    text = config.get_text_config(decoder=True)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        # In bfloat16, so that what a cache keeps in float32 shows; eager attention looks at no values: there are none.
        model = auto_class(config).from_config(config, dtype=torch.bfloat16, attn_implementation="eager").eval()
    model.tie_weights()  # transformers 5.0 leaves them untied on this device
    layers, matrices = find_decoder_layers(model), []
    for number, layer in enumerate(layers):
        for name, module in layer.named_modules():
            if isinstance(module, nn.Linear | Conv1D):
                rows, columns = module.weight.shape if isinstance(module, nn.Linear) else module.weight.shape[::-1]
                matrices.append(Matrix(name.rpartition(".")[2], number, rows, columns))
    total, inside = (sum(p.numel() for p in part.parameters()) for part in (model, nn.ModuleList(layers)))
    others = total - sum(matrix.weights for matrix in matrices)
    heads = _widest(text, "num_attention_heads")
    width = _widest(text, "head_dim") or text.hidden_size // heads
    if latent := _widest(text, "qk_nope_head_dim"):  # latent attention: head_dim, if there, is the rotated part
        width = latent + _widest(text, "qk_rope_head_dim")
    shared = _widest(text, "num_key_value_heads") or heads
    sizes = (text.num_hidden_layers, text.hidden_size, heads, heads * width, shared * width)
    kept = _cache_layers(model, text) or (CacheLayer(2 * shared * width, 0, 0),) * text.num_hidden_layers
    return Shape(tuple(matrices), others, total - inside, *sizes, _intermediate(text), text.vocab_size, kept)


def _widest(text: PretrainedConfig, name: str) -> int:
    """A number of a configuration; of one that has a value for each layer, the largest; 0 if there is none."""
    try:
        values = getattr(text, name, None)
    except RuntimeError:  # of transformers: it differs between layers
        values = [getattr(layer, name, None) for layer in text.per_layer_config]
    return max((value for value in (values if isinstance(values, list | tuple) else [values]) if value), default=0)


def _intermediate(text: PretrainedConfig) -> int:
    """Width of the MLP, of the widest layer; of a mixture, of all experts of a token together."""
    dense = _widest(text, "intermediate_size") or 4 * text.hidden_size
    names = ("num_experts_per_tok", "top_k_experts", "moe_topk", "moe_k")
    experts = next((count for name in names if isinstance(count := getattr(text, name, None), int)), 1)
    return int(max(dense, experts * (_widest(text, "moe_intermediate_size") or dense)))


def _cache_layers(model: PreTrainedModel, text: PretrainedConfig) -> tuple[CacheLayer, ...]:
    """What a cache keeps, by layer, from two prefills without values; empty if the model decides something by values."""

    def sizes(tokens: int) -> list[tuple[int, int]]:
        ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
        cache, places = DynamicCache(config=text), torch.arange(tokens, device="meta")[None]
        with torch.no_grad():
            model(input_ids=ids, position_ids=places, logits_to_keep=1, **{cache_option(model): cache})
        found = []
        for layer in cache.layers:
            held = [
                value for part in vars(layer).values() for value in (part.values() if isinstance(part, dict) else [part])
            ]
            tensors = [value for value in held if isinstance(value, Tensor) and value.is_floating_point()]
            plain, wide = (sum(t.numel() for t in tensors if (t.dtype == torch.float32) == kind) for kind in (False, True))
            found.append((plain, wide))
        return found

    few, more = SHORT, 2 * SHORT
    try:
        both = list(zip(sizes(few), sizes(more), strict=True))
    except (RuntimeError, NotImplementedError):  # of routers that read how many tokens an expert has
        return ()
    layers = []
    for (first, wide), (second, _) in both:
        each = (second - first) // few
        layers.append(CacheLayer(each, first - each * few, wide))
    return tuple(layers)
