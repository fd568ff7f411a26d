"""Whether bytes of packed weights survive the copies that FSDP and FSDP2 make: every bfloat16 pattern, and NF4 weights.

FSDP2 copies packed bytes as bfloat16 numbers, and on CUDA ``_foreach_copy_`` changes patterns that are a NaN (pytorch issue
159333). With one process FSDP2 gathers nothing (torch 2.13): that takes two, which can share a GPU with gloo.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

ALL_PATTERNS = torch.arange(-(2**15), 2**15, dtype=torch.int16)
Way = Literal["fsdp", "fsdp2"]
# Packed matrices that are sharded; of 2 bytes an element, a random one has NaN patterns in some thousandths.
LAYERS, WIDTH = 3, 512


def _foreach(target: Tensor, source: Tensor) -> None:
    torch._foreach_copy_([target], [source])


def _split(target: Tensor, source: Tensor) -> None:
    half = len(source) // 2
    torch.split_with_sizes_copy(source, [half, len(source) - half], out=[target[:half], target[half:]])


COPIES: dict[str, Callable[[Tensor, Tensor], object]] = {
    "copy_": lambda target, source: target.copy_(source),
    "cat": lambda target, source: torch.cat(list(source.chunk(2)), out=target),
    "split_with_sizes_copy": _split,
    "_foreach_copy_": _foreach,
}


def changed_patterns(name: str, device: str) -> int:
    """How many of the 65,536 bfloat16 patterns a copy of :data:`COPIES` changes on a device."""
    numbers = ALL_PATTERNS.to(device).view(torch.bfloat16)
    copied = torch.zeros_like(numbers)
    COPIES[name](copied, numbers)
    return int((copied.view(torch.int16).cpu() != ALL_PATTERNS).sum())


def packed_model(device: str) -> nn.Sequential:
    """Matrices in NF4, packed as bfloat16, the same in every process: quantised on the CPU."""
    import bitsandbytes

    torch.manual_seed(0)
    packing: Any = bitsandbytes.nn
    layers = [
        packing.LinearNF4(WIDTH, WIDTH, bias=False, compute_dtype=torch.bfloat16, quant_storage=torch.bfloat16)
        for _ in range(LAYERS)
    ]
    model = nn.Sequential(*layers).requires_grad_(False).to("cpu")  # bitsandbytes quantises as it moves
    return model.to(device)


def bits(model: nn.Module) -> Tensor:
    """The patterns of all weights, on the CPU."""
    weights = [parameter.detach().flatten().view(torch.int16).cpu() for parameter in model.parameters()]
    return torch.cat(weights)


def gathered_bits(model: nn.Module, way: Way, device: str) -> Tensor:
    """The patterns of all weights after they were sharded and gathered again; all processes of the group take part."""
    if way == "fsdp":
        from torch.distributed.fsdp import FullyShardedDataParallel

        place = torch.device(device) if device == "cpu" else torch.device(device, torch.cuda.current_device())
        sharded = FullyShardedDataParallel(model, device_id=place, use_orig_params=True)
        with FullyShardedDataParallel.summon_full_params(sharded):
            return bits(sharded)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device, (dist.get_world_size(),))
    whole = cast("Any", fully_shard(model, mesh=mesh))
    whole.unshard()
    return bits(model)


def _process(rank: int, device: str, processes: int, backend: str, folder: str) -> None:
    """One process of FSDP: shards and gathers in both ways, and the first one writes what has changed."""
    if device == "cuda":
        torch.cuda.set_device(rank % torch.cuda.device_count())
    dist.init_process_group(backend, rank=rank, world_size=processes, init_method=f"file://{folder}/store")
    found: dict[str, Any] = {}
    ways: tuple[Way, ...] = ("fsdp", "fsdp2")
    for way in ways:
        model = packed_model(device)
        before = bits(model)
        try:
            after = gathered_bits(model, way, device)
        except Exception as error:  # of torch, in all processes alike: the other way is measured
            found[way] = {"error": f"{type(error).__name__}: {error}"[-1000:]}
            continue
        nans = int(before.view(torch.bfloat16).isnan().sum())
        same = len(after) == len(before)  # else it was padded, or not gathered
        changed = int((before != after).sum()) if same else None
        found[way] = {"elements": len(before), "gathered": len(after), "nan_patterns": nans, "changed": changed}
    if rank == 0:
        Path(folder, "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def changed_weights(device: str, processes: int, backend: str) -> dict[str, Any]:
    """Shard and gather packed weights in several processes.

    Returns:
        For ``fsdp`` and ``fsdp2``: ``elements`` of the storage dtype, how many of them are ``nan_patterns``, and how many
        have ``changed``; or the ``error``.
    """
    with tempfile.TemporaryDirectory() as folder:
        spawn: Any = torch.multiprocessing.spawn  # type: ignore[attr-defined]
        spawn(_process, (device, processes, backend, folder), nprocs=processes)
        found: dict[str, Any] = json.loads(Path(folder, "found.json").read_text())
    return found


def measure_copies(device: str, processes: int, backend: str) -> dict[str, Any]:
    """Changed patterns of every copy, and changed weights of both ways of sharding."""
    patterns = {name: changed_patterns(name, device) for name in COPIES}
    named = {"device": device, "processes": processes, "backend": backend, "patterns": patterns}
    return named | changed_weights(device, processes, backend)
