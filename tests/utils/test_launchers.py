"""A program of its own starts without the variables of a group of processes."""

from __future__ import annotations

import os

import pytest
from lightning.fabric.plugins.environments import LightningEnvironment

from introspection_lit.utils.launchers import without_launcher


def test_what_a_launcher_sets_is_left_out() -> None:
    """And nothing else, of whatever looks alike."""
    group = {"LOCAL_RANK": "0", "RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1", "SLURM_JOB_ID": "7"}
    kept = {"PATH": "/bin", "MY_RANK": "1", "OMP_NUM_THREADS": "1"}
    assert without_launcher(group | kept) == kept


def test_lightning_starts_its_own_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for others where it finds the variables in its environment."""
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert LightningEnvironment().creates_processes_externally
    kept = without_launcher()
    monkeypatch.setattr("os.environ", kept)
    assert not LightningEnvironment().creates_processes_externally


@pytest.mark.parametrize("test", ["first", "second"])
def test_no_test_leaves_a_group_to_the_next(test: str) -> None:
    """As Lightning does in this process after DDP or FSDP."""
    assert "LOCAL_RANK" not in os.environ
    os.environ["LOCAL_RANK"] = "0"
