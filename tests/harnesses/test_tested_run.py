"""The trials of a tested run as plain values."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from project_paths import ROOT

from introspection_lit.harnesses.tested_run import identity_of, read_tested_run, steering_of
from introspection_lit.steering.vector_bank import VectorBank
from introspection_lit.utils.errors import ConfigurationError

CONTRACT = ROOT / "tests" / "contract"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run of the contract with its two trials, and the folder of its contexts as the working folder."""
    shutil.copytree(CONTRACT / "run", tmp_path / "run")
    shutil.copyfile(CONTRACT / "trials.jsonl", tmp_path / "run" / "trials.jsonl")
    monkeypatch.chdir(CONTRACT)
    return tmp_path / "run"


def test_trials_are_those_of_the_test(run: Path) -> None:
    """Texts, label, steering and log-odds, and which adapter it was."""
    tested, bank = read_tested_run(run), VectorBank.load(run / "vectors.safetensors")
    rows = [json.loads(line) for line in (run / "trials.jsonl").read_text().splitlines()]
    assert [item["name"] for item in tested.items] == [f"{row['split']}:{row['number']}" for row in rows]
    clean, steered = tested.items
    assert [clean["log_odds"], steered["log_odds"]] == [row["scores"]["adapter"] for row in rows]
    assert clean["messages"] == steered["messages"]
    assert [turn["role"] for turn in clean["messages"]] == ["user", "assistant"]
    assert any(steered["messages"][0]["content"] in line for line in (CONTRACT / "contexts.jsonl").read_text().splitlines())
    steering = steering_of(json.loads(json.dumps(steered)), bank)
    assert torch.equal(steering.direction, bank.directions["concept"][bank.names["concept"].index("cats")])
    assert (steering.strength, steering.band, steering.unit) == (rows[1]["strength"], (0, 1), "relative")
    assert identity_of(tested.adapter)["files"].keys() == {"adapter_model.safetensors", "adapter_config.json"}


def test_runs_that_cannot_be_read(run: Path, tmp_path: Path) -> None:
    """Not tested; without a record of its question; no trial of the wanted sets; trials that no detector can repeat."""
    with pytest.raises(ConfigurationError, match=r"has no trials.jsonl, vectors.safetensors, config.yaml. Expected"):
        read_tested_run(tmp_path)
    with pytest.raises(ConfigurationError, match=r"has no trial that can be asked again\. Expected trials of seen"):
        read_tested_run(run, sets=("seen",))
    rows = [json.loads(line) for line in (run / "trials.jsonl").read_text().splitlines()]
    other = [rows[0] | {"question_text": "Is it so?"}, rows[1] | {"parts": [1, 0]}, rows[1] | {"context_key": "0" * 16}]
    (run / "trials.jsonl").write_text("\n".join(map(json.dumps, [*other, rows[1]])))
    assert [item["steered"] for item in read_tested_run(run).items] == [True]
    (run / "adapter" / "introspection.json").unlink()
    with pytest.raises(ConfigurationError, match=r"has no introspection\.json, which says what to ask"):
        read_tested_run(run)
