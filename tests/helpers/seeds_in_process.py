"""Runs what the script for several seeds starts in the process of the test, which has imported everything already."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from introspection_lit.cli import main as command_line
from introspection_lit.tools import fit_runs


def in_process(patch: pytest.MonkeyPatch) -> list[list[str]]:
    """Let processes of the project run in this one, which has imported everything; returns what is started."""
    started: list[list[str]] = []

    class Process:
        def __init__(self, words: list[str]) -> None:
            self.words = words
            started.append(words)

        def wait(self, timeout: float | None = None) -> int:
            if timeout is not None:
                return 1  # it has failed already
            assert self.words[:3] == [sys.executable, "-m", "introspection_lit"]
            patch.setattr("sys.argv", ["introspection_lit/__main__.py", *self.words[3:]])
            command_line(self.words[3:])
            return 0

        def terminate(self) -> None:
            """There is nothing to end."""

        kill = terminate

    patch.setattr(fit_runs, "subprocess", SimpleNamespace(Popen=Process, TimeoutExpired=TimeoutError))
    return started
