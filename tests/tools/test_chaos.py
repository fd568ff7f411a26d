"""The script that ends runs on purpose: the short version of it, and that it sees a run that came to something else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from endurance import chaos
from endurance.chaos import PLACES, Fault, Runs
from project_paths import ROOT
from run_scripts import script

# Every kind of end in turn with one process; two processes of which one, or both, are ended.
SHORT = [
    pytest.param(["--kills", "2", "--signals", "KILL", "--places", "half a checkpoint", "validation batch"], id="one"),
    pytest.param(["--kills", "1", "--signals", "KILL", "TERM", "--processes", "2", "--places", "backward pass"], id="two"),
]


@pytest.mark.slow
@pytest.mark.parametrize("options", SHORT)
def test_ended_runs_come_to_the_same_adapter(options: list[str], tmp_path: Path) -> None:
    """In processes that are really killed: exit 0, and every run is killed, resumed and identical."""
    words = [sys.executable, str(ROOT / "scripts" / "chaos.py"), *options, "--folder", str(tmp_path)]
    short = ["--trainer.max_epochs", "2", "--data.trials_per_epoch", "16"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*words, *short], check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "chaos.json").read_text())
    assert {"command", "commit", "hardware", "versions", "seed", "processes"} <= set(found)
    for outcome in found["outcomes"]:
        assert outcome["resumed"]
        assert outcome["identical"]
        assert any(outcome["statuses"])


def test_another_adapter_is_seen(tmp_path: Path) -> None:
    """One weight of the adapter, one number of the optimiser, the threshold: each changes what a run has made."""
    run = tmp_path / "default" / "version_0"
    (run / "checkpoints").mkdir(parents=True)
    (run / "adapter").mkdir()

    def write(weight: float = 0.0, average: float = 0.0, threshold: float = 0.5) -> str:
        (run / "adapter" / "adapter_model.safetensors").write_bytes(f"{weight}".encode())
        (run / "adapter" / "introspection.json").write_text(json.dumps({"threshold": threshold}))
        content = {"state_dict": {"a": torch.tensor([weight])}, "optimizer_states": [{"state": {0: torch.tensor(average)}}]}
        torch.save(content | {"lr_schedulers": [], "global_step": 3}, run / "checkpoints" / "last.ckpt")
        return chaos.result_hash(tmp_path)

    assert write() == write()
    assert len({write(), write(weight=1.0), write(average=1e-9), write(threshold=0.6)}) == 4
    assert chaos.result_hash(tmp_path / "empty") == "nothing"


def test_draws_cover_every_place_and_every_process(tmp_path: Path) -> None:
    """In turn, within what a run comes by; what the first process alone does is done to it."""
    runs = Runs(tmp_path, [], processes=2)
    runs.passed.update(dict.fromkeys(PLACES, 3))
    drawn = [runs.draw(0, number, signal.SIGKILL) for number in range(100)]
    assert {fault.place for fault in drawn} == {*PLACES, chaos.ANY}
    assert all(1 <= fault.number <= (999 if fault.place == chaos.ANY else 3) for fault in drawn)
    assert {fault.rank for fault in drawn} == {None, 0, 1}
    assert {fault.rank for fault in drawn if fault.place in ("removal", "half an adapter")} == {0}
    assert drawn == [runs.draw(0, number, signal.SIGKILL) for number in range(100)]
    assert drawn != [runs.draw(1, number, signal.SIGKILL) for number in range(100)]


def test_a_run_that_did_not_come_to_the_same_fails_the_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Exit 1, whatever the others did."""

    class Bad(Runs):
        def reference(self) -> list[int]:
            self.passed.update(batch=5)
            return [0]

        def kill_and_resume(self, number: int, fault: Fault) -> Any:
            return chaos.Outcome(fault, [-9], 3, resumed=True, identical=number != 2)

    module = script("chaos")
    monkeypatch.setattr(module, "Runs", Bad)
    with pytest.raises(SystemExit) as left:
        module.main(["--kills", "3", "--signals", "KILL", "--folder", str(tmp_path)])
    assert left.value.code == 1
    assert [row["identical"] for row in json.loads((tmp_path / "chaos.json").read_text())["outcomes"]] == [
        True,
        False,
        True,
    ]
