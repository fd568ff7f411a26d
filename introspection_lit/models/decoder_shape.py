"""The dimensions of a decoder, from which memory and operations are computed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PretrainedConfig


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
        config: The decoder's configuration. A 32B model takes two seconds.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()  # transformers 5.0 leaves them untied on this device
    head = model.get_output_embeddings()
    matrices, layer_and_name = [], re.compile(r"\.(\d+)\..*?([^.]+)$")
    for name, module in model.named_modules():
        match = layer_and_name.search(name)
        if isinstance(module, nn.Linear) and module is not head and match:
            matrices.append(Matrix(match[2], int(match[1]), module.out_features, module.in_features))
    others = sum(p.numel() for p in model.parameters()) - sum(matrix.weights for matrix in matrices)
    root = sum(p.numel() for name, p in model.named_parameters() if not re.search(r"\.\d+\.", name))
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = config.num_attention_heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    intermediate = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    intermediate = max(intermediate) if isinstance(intermediate, list | tuple) else intermediate  # one for each layer
    sizes = (config.num_hidden_layers, config.hidden_size, heads, heads * width, shared * width)
    return Shape(tuple(matrices), others, root, *sizes, intermediate, config.vocab_size)
