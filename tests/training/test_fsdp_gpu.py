"""Packed weights through FSDP on a GPU, bit by bit; skipped where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from introspection_lit.tools.gpu_day.copies import ALL_PATTERNS, COPIES, changed_patterns, changed_weights

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
UNSAFE = "torch changes bfloat16 nans in _foreach_copy_ (pytorch issue 159333): strategy_problems refuses FSDP2 with NF4"
# Where these pass, the installed torch is safe, and the refusal may go.
REFUSED = pytest.mark.xfail(reason=UNSAFE, strict=False)


@pytest.fixture
def alone_on_gpu(tmp_path: Path) -> Iterator[None]:
    """A process group of one process, for NCCL."""
    torch.cuda.set_device(0)
    dist.init_process_group("nccl", rank=0, world_size=1, init_method=f"file://{tmp_path}/store")
    yield
    dist.destroy_process_group()


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("way", ["gather", "send"])
@pytest.mark.usefixtures("alone_on_gpu")
def test_nccl_copies_bytes(way: str) -> None:
    """FSDP1 gathers flat tensors, and sends weights in buckets: exact, nans of any pattern too."""
    numbers = ALL_PATTERNS.cuda().view(torch.bfloat16)
    if way == "gather":
        parts = [torch.empty_like(numbers)]
        dist.all_gather(parts, numbers)
        found = parts[0]
    else:
        found = numbers.clone()
        dist._broadcast_coalesced(dist.group.WORLD, [found], 2**20, 0)
    assert torch.equal(found.view(torch.int16).cpu(), ALL_PATTERNS)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", [pytest.param(name, marks=REFUSED if "foreach" in name else ()) for name in COPIES])
def test_copies_keep_every_pattern(name: str) -> None:
    """What FSDP and FSDP2 copy with."""
    assert changed_patterns(name, "cuda") == 0


@pytest.fixture(scope="module")
def gathered() -> dict[str, Any]:
    """Packed weights that were sharded and gathered again by two processes, which share the GPU."""
    return changed_weights("cuda", 2, "gloo")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("way", ["fsdp", pytest.param("fsdp2", marks=REFUSED)])
def test_packed_weights_come_back(way: str, gathered: dict[str, Any]) -> None:
    """The whole way: the packed bytes are what they were, and some of them are a nan as bfloat16."""
    found = gathered[way]
    assert found["nan_patterns"] > 100
    assert found["changed"] == 0
