"""Rehearsals of the scripts for GPUs: every step with tiny models, so that nothing is tried for the first time on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from run_scripts import script

from introspection_lit.tools.gpu_day.figures import MISSING
from introspection_lit.tools.gpu_day.node import MODELS, WAYS
from introspection_lit.tools.gpu_day.pages import MEMORY, NODE, SPEED, cluster_tables, performance_tables
from introspection_lit.tools.gpu_day.step import DONE, read_records


def rehearsed(name: str, folder: Path, patch: pytest.MonkeyPatch, *words: str) -> dict[str, dict[str, Any]]:
    """The files of all steps; each says where it comes from."""
    patch.setenv("OMP_NUM_THREADS", "1")
    script(name).main(["--tiny", "--minutes", "60", "--folder", str(folder), *words])
    records = read_records(folder)
    for step, record in records.items():
        assert (record["status"], record["error"], record["tiny"]) == (DONE, None, True), step
        assert record["command"].startswith(f"python scripts/{name}.py --tiny")
        assert record["commit"]
        assert {"versions", "hardware", "gpus", "seed", "step_commands"} <= record.keys()
    return records


@pytest.mark.slow
def test_every_step_of_the_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On the CPU each compares a device with itself; the same command then has nothing left to do."""
    records = rehearsed("gpu_day", tmp_path, monkeypatch)
    assert set(records) == {*SPEED, *MEMORY}
    found = {name: record["result"] for name, record in records.items()}
    for name in ("speed-32b", "speed-7b"):
        assert found[name]["quantization"] == "nf4"
        assert {(row["path"], row["batch"]) for row in found[name]["rows"]} == {
            ("one at a time", 1),
            *(
                (path, size)
                for path in ("batched", "batched, layers shared", "batched, clean kept", "batched, reuse")
                for size in (4, 8)
            ),
        }
        assert found[name]["largest_batch"] == 8
    assert [records[f"seed-{seed}"]["seed"] for seed in (0, 1, 2)] == [0, 1, 2]
    numbers = [found[f"seed-{seed}"]["numbers"] for seed in (0, 1, 2)]
    assert numbers[0].keys() == numbers[1].keys()
    assert numbers[0]["FPR of the worst unseen kind"] is not None  # the evidence was gathered, too
    for mode in ("default", "deterministic"):
        assert found[f"repeat-{mode}"] == {
            "steps": 4,
            "trials": 14,
            "largest_loss_difference": 0.0,
            "largest_score_difference": 0.0,
        }
    assert found["fsdp2"]["processes"] == 2
    assert set(found["fsdp2"]["patterns"].values()) == {0}
    for way in ("fsdp", "fsdp2"):
        assert found["fsdp2"][way]["changed"] == 0
        assert found["fsdp2"][way]["nan_patterns"] > 100
    assert found["nf4"]["bytes_that_differ"] == found["nf4"]["scores_all_elsewhere"] == 0
    assert found["nf4"]["scores_range"] > 0
    assert found["auto"]["chosen"] == 32
    assert not [
        table for table in (performance_tables, cluster_tables) if MISSING in table(records, {}).partition("\n\n")[0]
    ]
    assert "What remains" not in capsys.readouterr().out
    rehearsed("gpu_day", tmp_path, monkeypatch)
    assert capsys.readouterr().out.count(": there already") == len(records)


@pytest.mark.slow
def test_every_step_of_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes with gloo: the same losses and scores as in one, which did the same steps in two parts."""
    records = rehearsed("gpu_node", tmp_path, monkeypatch, "--processes", "2")
    assert set(records) == set(NODE)
    for model in MODELS:
        found = {way: records[f"{way}-{model}"]["result"] for way in WAYS}
        assert [found[way]["world_size"] for way in WAYS] == [1, 2, 2]
        assert [found[way]["accumulated"] for way in WAYS] == [2, 1, 1]
        for way in ("ddp", "fsdp"):
            assert len(found[way]["losses"]) == 2
            assert found[way]["against_one"]["trials"] == 8
            assert found[way]["against_one"]["largest_loss_difference"] < 1e-2  # bfloat16
            assert found[way]["against_one"]["largest_score_difference"] < 5e-2
            assert found[way]["losses"][0] != found[way]["losses"][1]
    assert records["fsdp2"]["result"]["fsdp2"]["changed"] == 0
    assert MISSING not in cluster_tables({}, records).partition("gpu_node")[2]
