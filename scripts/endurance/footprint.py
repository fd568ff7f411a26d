"""Counts what this process holds: memory, objects, tensors, hooks, files, threads, figures, entries of caches.

Read from Linux's ``/proc``, from Python's garbage collector and from the model. Garbage is collected first, so that only
what is referenced is counted; objects that are frozen (``gc.freeze``) are not.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

if TYPE_CHECKING:
    from introspection_lit.training.datamodule import IntrospectionDataModule

PROC = Path("/proc/self")


class Footprint(NamedTuple):
    """Counts of one moment; memory in bytes."""

    resident: int  # memory of the process in RAM, with what the allocator has not returned to the system
    allocated: int  # of it, what malloc has handed out; small Python objects have pools of their own. 0: unknown
    device: int  # memory that torch holds on a GPU
    objects: int  # that the garbage collector tracks
    collected: int  # that were found to be garbage just now
    tensors: int  # without those of kept caches
    tensor_bytes: int  # each storage once, without kept caches
    kept_bytes: int  # clean caches in host memory (data.reuse)
    hooks: int  # forward, backward and state-dict hooks of modules and parameters, and torch's global ones
    files: int  # open file descriptors, sockets and pipes among them
    threads: int  # those of libraries among them
    figures: int  # matplotlib's
    remembered: int  # entries in the package's function caches
    encoded: int  # tokenised conversations in the splits


def footprint(module: nn.Module | None = None, data: IntrospectionDataModule | None = None) -> Footprint:
    """Count everything.

    Args:
        module: Whose hooks are counted; None: global ones only.
        data: Whose caches are counted; None: none.

    Raises:
        OSError: There is no ``/proc``: this is not Linux.
    """
    resident = int((PROC / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    collected = gc.collect()
    status = dict(line.split(":", 1) for line in (PROC / "status").read_text().splitlines())
    kept = data.run.clean_caches if data is not None else None
    kept_bytes = kept.nbytes if kept is not None else 0
    objects, tensors, tensor_bytes, figures = _objects()
    return Footprint(
        resident=resident,
        allocated=allocated(),
        device=torch.cuda.memory_reserved() if torch.cuda.is_available() else 0,
        objects=objects,
        collected=collected,
        tensors=tensors - (2 * len(kept.entries) if kept is not None else 0),
        tensor_bytes=tensor_bytes - kept_bytes,
        kept_bytes=kept_bytes,
        hooks=sum(map(len, hooks(module))),
        files=len(os.listdir(PROC / "fd")) - 1,  # the folder itself is open while it is read
        threads=int(status["Threads"]),
        figures=figures,
        remembered=sum(cache.cache_info().currsize for cache in function_caches()),
        encoded=sum(len(split._encoded) for split in data.splits.values()) if data is not None else 0,
    )


class _Mallinfo2(ctypes.Structure):
    """What glibc's ``mallinfo2`` returns; see its manual page."""

    NAMES = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in NAMES.split()]


def allocated() -> int:
    """Bytes that ``malloc`` has handed out, large blocks included; 0 if the C library is not glibc 2.33 or newer."""
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        return 0
    mallinfo2.restype = _Mallinfo2
    info = mallinfo2()
    return int(info.uordblks + info.hblkhd)


def _objects() -> tuple[int, int, int, int]:
    """The numbers of objects, of tensors and of their bytes, and of figures."""
    everything = gc.get_objects()
    types = Counter(map(type, everything))  # isinstance on the objects would load lazy modules
    of_tensors = {kind for kind in types if issubclass(kind, Tensor)}
    tensors = [each for each in everything if type(each) in of_tensors]
    storages = {}
    for tensor in tensors:
        if tensor.layout == torch.strided and tensor.device.type != "meta":
            storage = tensor.untyped_storage()
            storages[tensor.device, storage.data_ptr()] = storage.nbytes()
    figures = sum(count for kind, count in types.items() if issubclass(kind, Figure))
    return len(everything), len(tensors), sum(storages.values()), figures


def hooks(module: nn.Module | None) -> Iterator[Any]:
    """Every collection of hooks: torch's global ones, those of each module, those of each parameter."""
    for owner in (nn.modules.module, *(module.modules() if module is not None else ())):
        yield from (value for name, value in vars(owner).items() if name.endswith("_hooks") and hasattr(value, "__len__"))
    for parameter in module.parameters() if module is not None else ():
        yield parameter._backward_hooks or ()
        yield getattr(parameter, "_post_accumulate_grad_hooks", None) or ()


def function_caches() -> list[Any]:
    """The functions of introspection_lit, imported so far, that cache results (``functools.lru_cache``)."""
    modules = [module for name, module in list(sys.modules.items()) if name.partition(".")[0] == "introspection_lit"]
    caches = {id(value): value for module in modules for value in vars(module).values() if hasattr(value, "cache_info")}
    return list(caches.values())


def most_remembered() -> int | None:
    """The limit of the entries in all function caches; None: one has no limit."""
    sizes = [cache.cache_parameters()["maxsize"] for cache in function_caches()]
    return None if None in sizes else sum(sizes)


def most_encoded(data: IntrospectionDataModule) -> int:
    """The limit of the tokenised conversations in all splits: each context with each question."""
    return sum(len(split.contexts) * len(split.questions) for split in data.splits.values())
