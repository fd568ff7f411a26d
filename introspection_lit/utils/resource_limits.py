"""Limits of time and memory for work that an untrusted file asks for: its chat template, its patterns, its content."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from pathlib import Path
from types import FrameType

SECONDS = 20.0
BYTES = 2 << 30  # what a block may take beyond what the process has
# Reading a file may take this many times its size, this many bytes beside it, and this many seconds.
TIMES, BESIDE, READING = 3, 1 << 28, 3600.0


class BeyondLimitError(Exception):
    """It took too long. Not enough memory is Python's own ``MemoryError``."""


@contextmanager
def limited(seconds: float | None = None, memory: int | None = None) -> Iterator[None]:
    """Stop a block that takes too long, or more memory than it may.

    There is no limit on Windows, in other threads than the main one, and inside a single call of a library that is not
    Python (such as the tokenizer's own patterns). Memory is only limited on Linux.

    Args:
        seconds: Default: ``SECONDS``.
        memory: Bytes; None: not limited.

    Raises:
        BeyondLimitError: It took longer.
        MemoryError: It wanted more.
    """
    seconds = SECONDS if seconds is None else seconds
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise BeyondLimitError(f"it takes longer than {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    # Again and again: the first may be caught by the code that is to be stopped.
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.1)
    try:
        with _memory_limit(memory):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def room_for(path: Path) -> AbstractContextManager[None]:
    """Limit a block that reads a file to what a file of its size can need: a few bytes can ask for gigabytes.

    Raises:
        MemoryError: It wanted more, where memory can be limited; torch's own error may come first.
    """
    return limited(READING, TIMES * path.stat().st_size + BESIDE)


@lru_cache(maxsize=1)
def _start_threads() -> None:
    """Let torch start its threads, whose stacks take memory: one that cannot be started later would end the process."""
    import torch

    torch.ones(torch.get_num_threads() << 16).sum()


@contextmanager
def _memory_limit(memory: int | None) -> Iterator[None]:
    pages = Path("/proc/self/statm")
    if memory is None or not pages.is_file():
        yield
        return
    import resource

    _start_threads()
    taken = int(pages.read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limits = [limit for limit in (taken + memory, soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
