"""The environment of the libraries of docs/where-people-work.md, on top of the tests' own; ``make test-all`` makes it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from project_paths import ROOT

PEERS = Path(f"{sys.prefix}-peers") / "bin"
needs_peers = pytest.mark.skipif(not (PEERS / "inspect").exists(), reason="needs `make .venv-peers/.installed`")


def run_with_peers(*words: str, folder: Path) -> str:
    """Run Python in that environment; what it prints.

    Args:
        *words: Its command line.
        folder: Where it runs.
    """
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [str(PEERS / "python"), *words]
    ended = subprocess.run(command, cwd=folder, env=os.environ | own, capture_output=True, text=True)
    assert ended.returncode == 0, f"{ended.stdout[-3000:]}\n{ended.stderr[-6000:]}"
    return ended.stdout
