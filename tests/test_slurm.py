"""The SLURM script: its directives agree, its command line is ours, and it goes on where it stopped."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from project_paths import ROOT
from transformers import PretrainedConfig

from introspection_lit.cli import main
from introspection_lit.models import loading as model
from introspection_lit.models.base_model import BaseModel

SCRIPT = ROOT / "scripts" / "slurm" / "train.sbatch"
DIRECTIVES = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", SCRIPT.read_text(encoding="utf-8"), re.MULTILINE))
LOGS = "lightning_logs/qwen2.5-coder-32b/job-7"


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place where `srun`, `scontrol` and `scancel` write down what they are asked; srun takes as long as is in `nap`."""
    tools = tmp_path / "bin"
    tools.mkdir()
    record = 'printf "%s\\n" "$@" > "$SLURM_SUBMIT_DIR/$(basename "$0").txt"\n'
    srun = 'env > env.txt; sleep "$(cat nap)"; exit 3\n'
    for name, rest in (("srun", srun), ("scontrol", "echo 0 > nap\n"), ("scancel", "")):
        (tools / name).write_text("#!/bin/bash\n" + record + rest)
        (tools / name).chmod(0o755)
    (tmp_path / "nap").write_text("0")
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    for name, value in {"JOB_ID": "7", "NNODES": "2", "CPUS_PER_TASK": "4", "SUBMIT_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    return tmp_path


def asked_of_srun(job: Path, *options: str) -> list[str]:
    """Run the script: what it gives to the command line of the project."""
    done = subprocess.run(["bash", str(SCRIPT), *options], check=False, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr  # srun's own
    words = (job / "srun.txt").read_text().splitlines()
    start = words.index("introspection_lit")
    assert words[start - 2 : start] == ["python", "-m"]
    assert words[: start - 2] == ["--kill-on-bad-exit=1"]
    return words[start + 1 :]


def parsed(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What our command line makes of it."""
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("SLURM_JOB_ID")
    with pytest.raises(SystemExit) as stop:
        main([*words, "--print_config"])
    printed = capsys.readouterr()
    assert stop.value.code == 0, printed.err
    return yaml.safe_load(printed.out)


def test_it_is_bash() -> None:
    """It can be parsed, and every directive comes before the first command, or SLURM would not read it."""
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    commands = [line for line in SCRIPT.read_text(encoding="utf-8").splitlines() if line]
    first = next(number for number, line in enumerate(commands) if not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in commands[first:])


def test_command_and_directives_agree(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One process for each GPU, in the batch's directives and in the trainer's options; options added win."""
    words = asked_of_srun(job, "--data.seed", "5")
    config = parsed(words, monkeypatch, capsys)
    devices = int(config["trainer"]["devices"])
    assert devices == int(DIRECTIVES["ntasks-per-node"]) == int(DIRECTIVES["gpus-per-node"])
    assert config["trainer"]["num_nodes"] == int(os.environ["SLURM_NNODES"]) == int(DIRECTIVES["nodes"])
    assert "fsdp" in str(config["trainer"]["strategy"])
    assert config["data"]["seed"] == 5
    logger = config["trainer"]["logger"]["init_args"]
    assert "/".join((logger["save_dir"], logger["name"], logger["version"])) == LOGS
    assert "ckpt_path" not in words


@pytest.mark.parametrize("overlay", ["ddp", "fsdp"])
def test_what_the_comments_offer_is_parsed(
    job: Path, overlay: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other ways that the header names; one GPU is the command without an overlay."""
    words = asked_of_srun(job)
    assert "--config configs/ddp.yaml" not in shlex.join(words)
    swapped = [word.replace("fsdp.yaml", f"{overlay}.yaml") for word in words]
    assert overlay in str(parsed(swapped, monkeypatch, capsys)["trainer"]["strategy"])


def test_environment(job: Path) -> None:
    """No process asks the hub; each has the cores that were asked for."""
    asked_of_srun(job)
    environment = dict(line.split("=", 1) for line in (job / "env.txt").read_text().splitlines() if "=" in line)
    expected = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "4", "SRUN_CPUS_PER_TASK": "4"}
    assert expected.items() <= environment.items()
    assert DIRECTIVES["job-name"] not in ("bash", "interactive")


def test_a_requeued_job_goes_on_from_its_newest_checkpoint(job: Path) -> None:
    """In the same folder; of two the newer one."""
    folder = job / LOGS / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "best-step40.ckpt").touch()
    assert "--ckpt_path" not in asked_of_srun(job)
    for age, name in enumerate(("last.ckpt", "last-v1.ckpt")):
        (folder / name).touch()
        os.utime(folder / name, (1e9 - age, 1e9 - age))
    words = asked_of_srun(job)
    assert words[words.index("--ckpt_path") + 1] == f"{LOGS}/checkpoints/last.ckpt"


def test_signal_requeues_the_job_once_and_waits(job: Path) -> None:
    """The signal that the directive names goes to the shell, which stops the processes and asks for a new place."""
    assert DIRECTIVES["signal"] == "B:SIGUSR1@90"
    assert "requeue" in DIRECTIVES
    (job / "nap").write_text("3")
    with subprocess.Popen(["bash", str(SCRIPT)], stdout=subprocess.PIPE, text=True) as running:
        while not (job / "env.txt").exists():
            time.sleep(0.05)
        running.send_signal(signal.SIGUSR1)
        out, _ = running.communicate(timeout=60)
    assert (job / "scancel.txt").read_text().split() == ["--signal=TERM", "7"]
    assert (job / "scontrol.txt").read_text().split() == ["requeue", "7"]
    assert "goes back into the queue" in out
    assert running.returncode == 3  # srun's, so the script waited for it


def test_weights_are_fetched_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a hub model everything but pickles; of one on this machine nothing."""
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: asked.append((name, options)))
    monkeypatch.setattr(model, "whole_config", lambda *_, **__: PretrainedConfig())
    assert model.fetch(BaseModel("someone/model", revision="v1")).endswith(" someone/model")
    (name, options) = asked[0]
    assert (name, options["revision"]) == ("someone/model", "v1")
    assert not any(pattern.endswith((".bin", ".pt", "*")) for pattern in options["allow_patterns"])
    assert "*.safetensors" in options["allow_patterns"]
    model.fetch(BaseModel())
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("words", "said"), [([], "usage: "), (["--help"], "usage: "), (["./no-such-model"], "error: base.name_or_path: got")]
)
def test_a_model_that_cannot_be_fetched_is_said_in_a_line(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No traceback, and an exit status that ends a batch script."""
    monkeypatch.setattr("sys.argv", ["model.py", *words])
    with pytest.raises(SystemExit, match=f"^{said}"):
        runpy.run_module("introspection_lit.model", run_name="__main__")
