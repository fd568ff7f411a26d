"""The errors of torch, of its allocator and of Python where memory is not enough."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def cuda(*_: Any) -> Any:
    """As a GPU says it."""
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 39.39 GiB")


def host(*_: Any, **__: Any) -> Any:
    """The CPU's allocator itself: a million GiB."""
    return torch.empty(1 << 50, dtype=torch.uint8)


def python(*_: Any) -> Any:
    """Python's own."""
    return bytearray(1 << 60)


def caught(action: Callable[[], Any]) -> BaseException:
    """What an action raises."""
    try:
        action()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")
