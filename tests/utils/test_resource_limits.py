"""Limits of time and memory around what a stranger's file makes us compute."""

from __future__ import annotations

import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from introspection_lit.utils import resource_limits
from introspection_lit.utils.resource_limits import BeyondLimitError, limited, room_for

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="memory is only limited on Linux")
LARGE = 1 << 32  # bytes that are asked for and never touched


def test_a_block_that_takes_too_long_is_stopped() -> None:
    """Also if it catches errors; the signal's handler is as before."""
    before, end = signal.getsignal(signal.SIGALRM), time.monotonic() + 20
    with pytest.raises(BeyondLimitError, match=r"it takes longer than 0\.2 seconds"), limited(0.2):
        while time.monotonic() < end:
            time.sleep(0.01)
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@LINUX
def test_a_block_that_wants_too_much_memory_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond what the process has; afterwards there is no limit. A file may take some times its size."""
    with pytest.raises(MemoryError), limited(memory=1 << 20):
        np.empty(LARGE, np.uint8)
    np.empty(LARGE, np.uint8)
    (tmp_path / "file").write_bytes(bytes(100))
    monkeypatch.setattr(resource_limits, "BESIDE", 1 << 20)
    with pytest.raises(MemoryError), room_for(tmp_path / "file"):
        np.empty(LARGE, np.uint8)
    monkeypatch.setattr(resource_limits, "TIMES", LARGE)
    with room_for(tmp_path / "file"):
        np.empty(LARGE, np.uint8)


def test_threads_have_no_limit() -> None:
    """A signal goes to the main thread."""
    errors: list[Exception] = []

    def work() -> None:
        try:
            with limited(0.01):
                time.sleep(0.1)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert errors == []
