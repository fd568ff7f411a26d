"""What this process holds at a moment: memory, objects, tensors, hooks, files, threads, figures, entries of caches.

Read from Linux's ``/proc``, from Python's garbage collector and from the model itself. Nothing is changed but that garbage
is collected first: what is counted is what somebody still holds. Objects that were frozen (``gc.freeze``) are not counted.
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
    """Counts of one moment.

    Attributes:
        resident: Memory of the process that is in RAM, bytes; also what the allocator has not given back to the system.
        allocated: Of it, what has been asked for and not returned, bytes; without small Python objects, which have pools of
            their own. 0 where the C library does not say (it is not glibc 2.33 or newer).
        device: Memory that torch holds on a GPU, bytes.
        objects: Python objects that the garbage collector knows.
        collected: Objects that it has just found to be garbage.
        tensors: Tensors, without those of kept caches.
        tensor_bytes: Their memory, each storage once, without kept caches.
        kept_bytes: Clean caches that are kept (``data.reuse``), host memory, bytes.
        hooks: Forward, backward and state-dict hooks on all modules and parameters, and torch's global ones.
        files: Open file descriptors, sockets and pipes among them.
        threads: Threads, those of libraries among them.
        figures: Matplotlib's figures.
        remembered: Entries in the package's function caches.
        encoded: Conversations whose tokens the splits remember.
    """

    resident: int
    allocated: int
    device: int
    objects: int
    collected: int
    tensors: int
    tensor_bytes: int
    kept_bytes: int
    hooks: int
    files: int
    threads: int
    figures: int
    remembered: int
    encoded: int


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
    files = len(os.listdir(PROC / "fd")) - 1  # the folder itself is open while it is read
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
        files=files,
        threads=int(status["Threads"]),
        figures=figures,
        remembered=sum(cache.cache_info().currsize for cache in function_caches()),
        encoded=sum(len(split._encoded) for split in data.splits.values()) if data is not None else 0,
    )


class _Allocator(ctypes.Structure):
    """What glibc's ``mallinfo2`` returns; see its manual page."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


def allocated() -> int:
    """Bytes that ``malloc`` has handed out and not got back, large blocks included; 0 if the C library does not say."""
    ask = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if ask is None:
        return 0
    ask.restype = _Allocator
    found = ask()
    return int(found.uordblks + found.hblkhd)


def _objects() -> tuple[int, int, int, int]:
    """Objects; tensors among them, and their bytes; figures among them."""
    everything = gc.get_objects()
    kinds = Counter(map(type, everything))  # asking the things themselves would wake lazy modules
    of_tensors = {kind for kind in kinds if issubclass(kind, Tensor)}
    tensors = [thing for thing in everything if type(thing) in of_tensors]
    storages = {}
    for tensor in tensors:
        if tensor.layout == torch.strided and tensor.device.type != "meta":
            storage = tensor.untyped_storage()
            storages[tensor.device, storage.data_ptr()] = storage.nbytes()
    figures = sum(count for kind, count in kinds.items() if issubclass(kind, Figure))
    return len(everything), len(tensors), sum(storages.values()), figures


def hooks(module: nn.Module | None) -> Iterator[Any]:
    """Every collection of hooks: torch's global ones, those of each module, those of each parameter."""
    for name, value in vars(nn.modules.module).items():
        if name.startswith("_global") and name.endswith("_hooks"):
            yield value
    for each in module.modules() if module is not None else ():
        yield from (value for name, value in vars(each).items() if name.endswith("_hooks"))
    for parameter in module.parameters() if module is not None else ():
        yield parameter._backward_hooks or ()
        yield getattr(parameter, "_post_accumulate_grad_hooks", None) or ()


def function_caches() -> list[Any]:
    """Functions of the package, imported so far, that remember results (``functools.lru_cache``)."""
    package = __name__.partition(".")[0]
    modules = [module for name, module in list(sys.modules.items()) if name.partition(".")[0] == package]
    found = {id(value): value for module in modules for value in vars(module).values() if hasattr(value, "cache_info")}
    return list(found.values())


def most_remembered() -> int | None:
    """Most entries that the function caches can ever have; None: there is one without a limit."""
    sizes = [cache.cache_parameters()["maxsize"] for cache in function_caches()]
    return None if None in sizes else sum(sizes)


def most_encoded(data: IntrospectionDataModule) -> int:
    """Most conversations that the splits can ever remember: each of their contexts with each of their questions."""
    return sum(len(split.contexts) * len(split.questions) for split in data.splits.values())
