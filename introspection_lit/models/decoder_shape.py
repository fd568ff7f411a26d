"""The shape of a decoder in numbers: what computing its memory and its work starts from."""

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
        rows: Width of its output.
        columns: Width of its input.
    """

    name: str
    layer: int
    rows: int
    columns: int

    @property
    def weights(self) -> int:
        """How many numbers it has."""
        return self.rows * self.columns


@dataclass(frozen=True)
class Shape:
    """A decoder in numbers.

    Attributes:
        matrices: The linear modules of all decoder layers: what is quantised, and what an adapter may sit on.
        others: All other weights (embeddings, head, norms, biases).
        root: Those of them that belong to no decoder layer.
        layers: Decoder layers.
        hidden: Width of the residual stream.
        heads: Attention heads.
        queries: Width of all queries together: heads times their width.
        keys: Width of all keys together; that of the values is the same.
        intermediate: Width of the MLP.
        vocabulary: Tokens.
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
        """All weights of the base model."""
        return self.others + sum(matrix.weights for matrix in self.matrices)

    @property
    def largest(self) -> int:
        """Weights of the largest matrix of a layer."""
        return max(matrix.weights for matrix in self.matrices)


def decoder_shape(config: PretrainedConfig) -> Shape:
    """Read the shape from a model without weights (on the ``meta`` device), so that no family needs a formula.

    Args:
        config: The decoder's configuration; a 32B takes two seconds.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()  # transformers 5.0 leaves them untied on this device
    head = model.get_output_embeddings()
    matrices, place = [], re.compile(r"\.(\d+)\..*?([^.]+)$")
    for name, module in model.named_modules():
        found = place.search(name)
        if isinstance(module, nn.Linear) and module is not head and found:
            matrices.append(Matrix(found[2], int(found[1]), module.out_features, module.in_features))
    others = sum(p.numel() for p in model.parameters()) - sum(matrix.weights for matrix in matrices)
    root = sum(p.numel() for name, p in model.named_parameters() if not re.search(r"\.\d+\.", name))
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads, shared = config.num_attention_heads, config.num_key_value_heads or config.num_attention_heads
    sizes = (config.num_hidden_layers, config.hidden_size, heads, heads * width, shared * width)
    return Shape(tuple(matrices), others, root, *sizes, config.intermediate_size, config.vocab_size)
