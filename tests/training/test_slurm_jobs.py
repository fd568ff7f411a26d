"""Jobs under SLURM: tasks that do not fit the trainer are refused, and nothing is loaded that nobody has named."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from project_paths import CONFIG

from introspection_lit.cli import main

TASK = {"SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
TWO = TASK | {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1"}
ONE = TASK | {"SLURM_NTASKS": "1"}
DDP = ["--trainer.strategy", "ddp", "--trainer.devices", "2"]


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Sets the variables of a job; one that this machine may have is removed."""

    def variables(given: dict[str, str]) -> None:
        for name in ("MASTER_ADDR", "MASTER_PORT", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", *TWO):
            monkeypatch.delenv(name, raising=False)
        for name, value in given.items():
            monkeypatch.setenv(name, value)

    return variables


@pytest.mark.parametrize(
    ("variables", "options", "advice"),
    [
        pytest.param(TWO, [], "2 tasks, and the trainer has 1 process (", id="two tasks, no strategy"),
        pytest.param(TWO | {"SLURM_PROCID": "1"}, [], "--ntasks-per-node=1", id="the second of them"),
        pytest.param(ONE, DDP, "1 task, and the trainer has 2 processes (", id="one task for two processes"),
        pytest.param(
            TWO | {"SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "1"},
            DDP,
            "#SBATCH --nodes=2 and --ntasks-per-node=2",
            id="two nodes",
        ),
        pytest.param(
            TASK | {"SLURM_NTASKS": "2"}, DDP, "write #SBATCH --ntasks-per-node=N instead of --ntasks=2", id="in all"
        ),
        pytest.param(TASK | {"SLURM_NTASKS": "two"}, [], "SLURM_NTASKS: got 'two'", id="no number"),
        pytest.param({"SLURM_NTASKS": "2"}, [], "start the program with srun", id="not by srun"),
        pytest.param({"SLURM_NTASKS": "1"}, DDP, "srun has not started this process", id="one, not by srun"),
        pytest.param(
            TWO | {"SLURM_JOB_NAME": "interactive", "SLURM_STEP_NUM_TASKS": "2"},
            [],
            "srun --job-name=train",
            id="from a shell",
        ),
    ],
)
def test_tasks_that_do_not_fit(
    refused: Callable[..., str],
    job: Callable[[dict[str, str]], None],
    variables: dict[str, str],
    options: list[str],
    advice: str,
) -> None:
    """Each would train the whole run, or wait for ever: the message says what to write."""
    job(variables)
    printed = refused(*options)
    assert advice in printed
    assert len(printed.splitlines()) < 6
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    "variables",
    [
        pytest.param(ONE, id="srun"),
        pytest.param({"SLURM_NTASKS": "1", "SLURM_JOB_ID": "7"}, id="a notebook"),
        pytest.param({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "interactive", "SLURM_STEP_NUM_TASKS": "1"}, id="salloc"),
        pytest.param(ONE | {"SLURM_JOB_NAME": "bash", "SLURM_STEP_NUM_TASKS": "1"}, id="srun --pty bash"),
        pytest.param(ONE | {"SLURM_NTASKS_PER_NODE": "8", "SLURM_NNODES": "2"}, id="one task of a larger job"),
    ],
)
def test_shells_and_single_tasks_work(
    tiny: Path,
    some_contexts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    job: Callable[[dict[str, str]], None],
    variables: dict[str, str],
) -> None:
    """One process does the whole run."""
    monkeypatch.chdir(tmp_path)
    job(variables)
    main(["validate", "--config", CONFIG, "--model.base.name_or_path", str(tiny), *some_contexts])


@pytest.mark.parametrize("subcommand", ["fit", "validate", "test", "predict"])
def test_a_checkpoint_nobody_named(
    refused: Callable[..., str], job: Callable[[dict[str, str]], None], tmp_path: Path, subcommand: str
) -> None:
    """What SIGUSR1 once left: Lightning would load it, and the untrained model would be a trained one."""
    job(ONE)
    (tmp_path / "hpc_ckpt_3.ckpt").write_text("somebody's")
    printed = refused("--trainer.accelerator", "cpu", subcommand=subcommand)
    assert f"Lightning would load {tmp_path / 'hpc_ckpt_3.ckpt'}" in printed
    assert "would load" not in refused("--ckpt_path", "hpc_ckpt_3.ckpt", subcommand=subcommand)  # refused for what it is


def test_the_checkpoint_of_an_exception(refused: Callable[..., str], tmp_path: Path) -> None:
    """Lightning goes on from this one, too, if the callback is there."""
    (tmp_path / "on_exception.ckpt").write_text("somebody's")
    saver = ["--trainer.callbacks+=OnExceptionCheckpoint", f"--trainer.callbacks.dirpath={tmp_path}"]
    assert "Lightning would load" in refused(*saver)


def test_lightning_does_not_requeue(
    tiny: Path,
    some_contexts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    job: Callable[[dict[str, str]], None],
) -> None:
    """Its handler saves in the middle of anything, into a folder of all runs; outside of training a signal ends the run."""
    monkeypatch.chdir(tmp_path)
    job(ONE)
    before = signal.getsignal(signal.SIGUSR1)
    monkeypatch.setattr(_SignalConnector, "_slurm_sigusr_handler_fn", lambda *_: pytest.fail("Lightning saves"))
    words = ["--config", CONFIG, "--model.base.name_or_path", str(tiny), *some_contexts]
    with monkeypatch.context() as patched, pytest.raises(SystemExit) as left:
        step = "introspection_lit.training.module.IntrospectionModule.validation_step"
        patched.setattr(step, lambda *_: signal.raise_signal(signal.SIGUSR1))
        main(["validate", *words])
    assert left.value.code == 128 + signal.SIGUSR1
    assert not list(tmp_path.rglob("*.ckpt"))
    signal.signal(signal.SIGUSR1, before)
