"""FSDP's units and shards: which modules are units, and how a tensor that is a unit is split and gathered."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

WRAPPED = "_fsdp_wrapped_module."


def plain_name(name: str) -> str:
    """The name of a parameter or module without FSDP's wrapper."""
    return name.replace(WRAPPED, "")


def adapter_matrices(model: nn.Module) -> list[nn.Module]:
    """The linear modules of LoRA's matrices A and B."""
    return [child for name, child in model.named_modules() if name.split(".")[-2:-1] in (["lora_A"], ["lora_B"])]


def gather_shards(shard: Tensor, shape: torch.Size) -> Tensor:
    """Collective: gather a tensor that is an FSDP unit of its own from the shards of all ranks.

    Args:
        shard: This process's part, flat: FSDP cuts a unit into as many equal pieces as there are processes, and the last
            ones may be shorter or empty.
        shape: Of the gathered tensor.

    Returns:
        The tensor, on the CPU.
    """
    processes, total = dist.get_world_size(), shape.numel()
    length = -(-total // processes)
    expected = min(length, max(0, total - dist.get_rank() * length))
    assert shard.numel() == expected, f"a shard of {shard.numel()} numbers, expected {expected} of {total}"
    padded = shard.new_zeros(length)
    padded[:expected] = shard.detach().flatten()
    parts = [torch.empty_like(padded) for _ in range(processes)]
    dist.all_gather(parts, padded)
    return torch.cat(parts)[:total].view(shape).cpu()


def own_part(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that is a unit of its own, flat; the inverse of :func:`gather_shards`."""
    parts, rank = tensor.flatten().chunk(dist.get_world_size()), dist.get_rank()
    return parts[rank] if rank < len(parts) else tensor.new_empty(0)


def dtype_problems(module: nn.Module, units: set[nn.Module]) -> list[str]:
    """Check that the weights of every unit have one dtype, since they are put into one tensor.

    Args:
        module: The outermost unit.
        units: The others.
    """
    found = []
    inside = {
        unit: {id(p) for child in unit.modules() if child in units - {unit} for p in child.parameters()} for unit in units
    }
    inside[module] = {id(p) for unit in units for p in unit.parameters()}
    for unit, others in inside.items():
        dtypes = {str(p.dtype).removeprefix("torch.") for p in unit.parameters() if id(p) not in others}
        if len(dtypes) > 1:
            found.append(f"{type(unit).__name__} has {', '.join(sorted(dtypes))}")
    return [
        f"trainer.strategy: FSDP shards weights of one dtype together; {text}. Use an adapter of plain LoRA matrices and a "
        "base model whose weights all have base.dtype."
        for text in dict.fromkeys(found)
    ]
