"""Recognises out-of-memory errors of any library, and frees what they hold."""

from __future__ import annotations

import errno
import gc
import traceback

import torch

from introspection_lit.utils.errors import RunError

# Messages of out-of-memory errors of the host ...
HOST_MESSAGES = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "Cannot allocate memory",  # torch, of a file mapped into memory
)
# ... and of a GPU, in errors of a more general class.
GPU_MESSAGES = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "cudaErrorMemoryAllocation",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "NCCL Error 1: unhandled cuda error (run with NCCL_DEBUG=INFO for details): out of memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the memory of a GPU or of the host is used up."""
    if isinstance(error, torch.OutOfMemoryError) or on_host(error):
        return True
    return _mentions(error, GPU_MESSAGES)


def on_host(error: BaseException) -> bool:
    """Whether an error means that the host's memory is used up."""
    no_process = isinstance(error, OSError) and error.errno == errno.ENOMEM  # such as a data loader's worker
    return isinstance(error, MemoryError) or no_process or _mentions(error, HOST_MESSAGES)


def _mentions(error: BaseException, messages: tuple[str, ...]) -> bool:
    """Whether a RuntimeError that is not one of ours, which quote others, has one of these messages."""
    foreign = isinstance(error, RuntimeError) and not isinstance(error, RunError)
    return foreign and any(message in str(error) for message in messages)


def give_back(error: BaseException) -> None:
    """Clear the frames in the tracebacks of an error and of its causes, so that the tensors in them are freed.

    Frames that are still running keep theirs.
    """
    seen, waiting = set[int](), [error]
    while waiting:
        each = waiting.pop()
        if id(each) not in seen:
            seen.add(id(each))
            waiting += [other for other in (each.__cause__, each.__context__) if other is not None]
            traceback.clear_frames(each.__traceback__)
            each.__traceback__ = None


def free_unused() -> None:
    """Collect garbage, and release the GPU memory that torch holds but does not use."""
    # On the CPU, tasks of a failed backward stay in torch's queue until the next backward (torch 2.13).
    with torch.inference_mode(False), torch.enable_grad():
        torch.autograd.backward(torch.zeros((), requires_grad=True))
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
