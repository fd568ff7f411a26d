"""Another adapter: random low-rank matrices of a stated norm, under which a model writes some caches."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from introspection_lit.utils.seeds import generator

RANK = 16
# Frobenius norm of what is added to a matrix, as a share of the matrix's own.
SHARE = 0.05
# Random inputs from which the norm of a matrix is estimated, packed weights too.
PROBES = 256


def estimated_norm(linear: nn.Module, inputs: Tensor) -> Tensor:
    """Frobenius norm of a linear module's matrix, ``()``, from normal inputs ``(n, in)``: E|Wx|^2 is its square."""
    with torch.no_grad():
        outputs = (linear(inputs) - linear(torch.zeros_like(inputs[:1]))).float()
    return outputs.square().sum(dim=-1).mean().sqrt()


def random_pair(linear: nn.Module, rows: int, columns: int, random: torch.Generator, like: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices ``(RANK, columns)`` and ``(rows, RANK)`` whose product has :data:`SHARE` of the norm of the module's."""
    down, up = torch.randn(RANK, columns, generator=random), torch.randn(rows, RANK, generator=random)
    probes = torch.randn(PROBES, columns, generator=random).to(like)
    norm = estimated_norm(linear, probes).cpu()
    own = torch.trace((down @ down.T) @ (up.T @ up)).sqrt()
    return down.to(like), (up * (SHARE * norm / own)).to(like)


def linear_shape(module: Any) -> tuple[int, int]:
    """Rows and columns, outputs and inputs, of the matrix of a linear module, a Conv1D of ``transformers``, or PEFT's."""
    if hasattr(module, "out_features"):
        return module.out_features, module.in_features
    columns, rows = module.weight.shape  # of Conv1D, whose matrix is transposed
    return rows, columns


@contextmanager
def other_adapter(layers: Sequence[nn.Module], targets: Collection[str], seed: int, like: Tensor) -> Iterator[None]:
    """Let random matrices act beside linear modules of every layer inside the block; the hooks are always removed.

    Args:
        layers: The model's decoder layers; its own adapter must be off.
        targets: Names of these modules: where the architecture's adapters are put by default.
        seed: Decides the matrices, the same at every call.
        like: Has the dtype and the device of the activations.
    """
    handles = []

    def hook_for(down: Tensor, up: Tensor) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            return output + ((args[0].to(down) @ down.T) @ up.T).to(output)

        return hook

    try:
        for number, layer in enumerate(layers):
            for name, module in layer.named_modules():
                # Some names are those of blocks, too, such as "dense".
                if name.rpartition(".")[2] in targets and isinstance(getattr(module, "weight", None), Tensor):
                    drawn = torch.Generator().manual_seed(
                        int(generator(seed, "other adapter", number, name).integers(2**63))
                    )
                    pair = random_pair(module, *linear_shape(module), drawn, like)
                    handles.append(module.register_forward_hook(hook_for(*pair)))
        assert handles, "the set-up has found modules of these names"
        yield
    finally:
        for handle in handles:
            handle.remove()
