"""Jobs under SLURM: tasks that do not fit the trainer, and checkpoints that nobody has named."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import OnExceptionCheckpoint

from introspection_lit.utils.errors import ConfigurationError

# Jobs of these names are shells for Lightning, which then starts processes itself.
SHELLS = ("bash", "interactive")
NO_JOB = "If the program is not meant to be a task of SLURM (a shell, a notebook), unset SLURM_NTASKS."


def task_problems() -> list[str]:
    """Check the tasks of a job by themselves, before a trainer is made of them."""
    tasks, shell = os.environ.get("SLURM_NTASKS"), os.environ.get("SLURM_JOB_NAME") in SHELLS
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun starts the processes
        return []
    if shell and os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        step = os.environ["SLURM_STEP_NUM_TASKS"]
        return [
            f"SLURM_JOB_NAME: srun has started {step} tasks in a job called {os.environ['SLURM_JOB_NAME']!r}, which is a "
            "shell for Lightning: each task would do the whole run. Start them with srun --job-name=train, or one task "
            "with srun --ntasks=1. In a shell that has several tasks: unset SLURM_STEP_NUM_TASKS."
        ]
    if tasks is None or shell:
        return []
    if not tasks.isdecimal() or int(tasks) < 1:
        return [f"SLURM_NTASKS: got {tasks!r}. Expected the number of tasks, as SLURM sets it. {NO_JOB}"]
    missing = [name for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID") if name not in os.environ]
    if int(tasks) > 1 and missing:
        return [f"SLURM_NTASKS: got {tasks} tasks, but no {missing[0]}: start the program with srun. {NO_JOB}"]
    if int(tasks) > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:
        return [
            f"SLURM_NTASKS: got {tasks} tasks. Expected their number on each node, too: write #SBATCH --ntasks-per-node=N "
            f"instead of --ntasks={tasks} into the sbatch file. {NO_JOB}"
        ]
    return []


@contextmanager
def explained_tasks(checked: bool = True) -> Iterator[None]:
    """Say what is wrong with the tasks of a job while a trainer is made of them.

    Args:
        checked: Check them first; False: a plugin decides about the processes.

    Raises:
        ConfigurationError: They cannot be those of a trainer, or were not started by srun.
    """
    if checked and (problems := task_problems()):
        raise ConfigurationError(problems)
    try:
        yield
    except KeyError as error:
        name = str(error.args[0])
        if not name.startswith("SLURM_"):
            raise
        raise ConfigurationError(
            [f"{name}: not set, so srun has not started this process. Start it with srun. {NO_JOB}"]
        ) from error


def process_problems(trainer: Trainer) -> list[str]:
    """Check that each task of a job is one process of the trainer, on the node that SLURM has put it on."""
    environment = trainer._accelerator_connector.cluster_environment
    if not isinstance(environment, SLURMEnvironment) or os.environ.get("SLURM_JOB_NAME") in SHELLS:
        return []
    tasks, devices, nodes = environment.world_size(), trainer.num_devices, trainer.num_nodes
    each, hosts = (os.environ.get(f"SLURM_{name}", "") for name in ("NTASKS_PER_NODE", "NNODES"))
    fits = tasks == devices * nodes and (tasks == 1 or (each in ("", str(devices)) and hosts in ("", str(nodes))))
    if fits:
        return []
    per_node = int(each) if each.isdecimal() else tasks
    return [
        f"trainer.devices: SLURM starts {tasks} task{'s' * (tasks > 1)}, and the trainer has {devices * nodes} "
        f"process{'es' * (devices * nodes > 1)} (trainer.devices {devices}, trainer.num_nodes {nodes}). Expected one task "
        "for each process: two without a strategy would each do the whole run. Write into the sbatch file, for one "
        "process, #SBATCH --nodes=1 and --ntasks-per-node=1; for several, such as "
        f"#SBATCH --nodes={hosts or 1} and --ntasks-per-node={max(per_node, 2)}, also start them by srun, with "
        f"--trainer.strategy ddp --trainer.devices {max(per_node, 2)} --trainer.num_nodes {hosts or 1} "
        f"(scripts/slurm/train.sbatch). {NO_JOB}"
    ]


def never_requeue(trainer: Trainer) -> None:
    """Switch Lightning's answer to SIGUSR1 off.

    It saves ``hpc_ckpt_N.ckpt`` in the middle of any operation, into a folder that runs share, and requeues the job;
    :class:`~introspection_lit.training.callbacks.interruption.Interruption` finishes the step instead.
    """
    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment):
        environment.auto_requeue = False


def unnamed_checkpoints(trainer: Trainer, named: str | None) -> list[str]:
    """Refuse checkpoints that Lightning would load by itself, though the command line names none.

    Args:
        trainer: Of the run.
        named: The checkpoint that the command line names; None if it names none.
    """
    if named is not None:
        return []
    found: list[Path] = []
    if "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in SHELLS:
        found += sorted(Path(trainer.default_root_dir).glob("hpc_ckpt_*.ckpt"))
    if trainer.state.fn == "fit":
        savers = [each for each in trainer.callbacks if isinstance(each, OnExceptionCheckpoint)]  # type: ignore[attr-defined]
        found += [Path(saver.ckpt_path) for saver in savers if Path(saver.ckpt_path).exists()]
    return [
        f"ckpt_path: not given, and Lightning would load {path}, which an earlier run has left. Go on from it with "
        f"--ckpt_path {path}, or move it away, or name another folder (hpc_ckpt files: --trainer.default_root_dir)."
        for path in found[-1:]
    ]
