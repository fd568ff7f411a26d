"""Errors that mean "no memory left", whoever raises them, and giving back what they hold on to."""

from __future__ import annotations

import errno
import gc
import traceback
from collections.abc import Iterator

import torch

from introspection_lit.utils.errors import RunError

# What torch's allocators, CUDA's libraries and bitsandbytes say in errors of a more general kind.
SAYINGS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "Cannot allocate memory",  # torch, of a file in memory
    "CUDA out of memory",
    "CUDA error: out of memory",
    "cudaErrorMemoryAllocation",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "NCCL Error 1: unhandled cuda error (run with NCCL_DEBUG=INFO for details): out of memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was not enough: of a GPU, of the host, or Python's own."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or _no_process(error):
        return True
    other = not isinstance(error, RuntimeError) or isinstance(error, RunError)  # one of ours tells what another has said
    return not other and any(saying in str(error) for saying in SAYINGS)


def on_host(error: BaseException) -> bool:
    """Whether it was the host's memory that was not enough."""
    said = any(saying in str(error) for saying in ("DefaultCPUAllocator", "Cannot allocate memory"))
    return isinstance(error, MemoryError) or said or _no_process(error)


def _no_process(error: BaseException) -> bool:
    """Whether the system had no room for another process, such as a worker of a data loader."""
    return isinstance(error, OSError) and error.errno == errno.ENOMEM


def give_back(error: BaseException) -> None:
    """Let go of what an error holds on to, whoever keeps the error: a traceback keeps the tensors of every function in it.

    The functions that are still running keep theirs.
    """
    for each in chain(error):
        if each.__traceback__ is not None:
            traceback.clear_frames(each.__traceback__)
            each.__traceback__ = None


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error, what caused it, and what was being handled when it came; each once."""
    seen, left = set[int](), [error]
    while left:
        each = left.pop()
        if id(each) not in seen:
            seen.add(id(each))
            yield each
            left += [other for other in (each.__cause__, each.__context__) if other is not None]


def free_unused() -> None:
    """Collect garbage, and give a GPU's memory that nothing uses back to it."""
    # On the CPU, what a backward that failed had left to do stays in torch's queue until the next one (torch 2.13).
    with torch.inference_mode(False), torch.enable_grad():
        torch.autograd.backward(torch.zeros((), requires_grad=True))
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
