"""Limits of time and memory for what a stranger's file makes us compute: its chat template, its patterns of names."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

SECONDS = 20.0
# What a block may take beyond what the process has.
BYTES = 2 << 30


class BeyondLimitError(Exception):
    """It took too long. Not enough memory is Python's own ``MemoryError``."""


@contextmanager
def limited(seconds: float | None = None, memory: int | None = None) -> Iterator[None]:
    """Stop a block that takes too long, or more memory than it may.

    Where that cannot be done there is no limit: on Windows, in another thread than the main one, and inside a single call
    of a library that is not Python (the tokenizer's own patterns are such a case). Memory is only limited on Linux.

    Args:
        seconds: How long; default: ``SECONDS``.
        memory: How many bytes; None: not limited.

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
        with _room(memory):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _room(memory: int | None) -> Iterator[None]:
    pages = Path("/proc/self/statm")
    if memory is None or not pages.is_file():
        yield
        return
    import resource

    taken = int(pages.read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    ends = [end for end in (soft, hard) if end != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([taken + memory, *ends]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
