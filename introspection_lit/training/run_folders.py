"""The folder of a run: one for each run, whatever the logger. The first process takes it, and tells the others."""

from __future__ import annotations

import os
import re
from pathlib import Path
from weakref import WeakKeyDictionary, WeakSet

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger

from introspection_lit.training.logged import note
from introspection_lit.training.run_context import RunContext
from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.files import folder_problems
from introspection_lit.utils.paths import parse_path

# What runs write. A new run is not written into a folder that has any of these.
CURVES = "events.out.tfevents.*"
RESULTS = ("results*.json", "predictions*.jsonl", "trials.jsonl", "report.html")
FILES = ("config.yaml", "vectors.safetensors", "checkpoints/*.ckpt", "adapter", *RESULTS, "metrics.csv", CURVES)

# What one trainer does is one run, also if it tests several data modules.
_taken: WeakKeyDictionary[Trainer, Path] = WeakKeyDictionary()
# Loggers whose version was chosen here: another trainer may test with them what the first one has trained.
_numbered_here: WeakSet[TensorBoardLogger | CSVLogger] = WeakSet()


def numbering_loggers(trainer: Trainer) -> list[TensorBoardLogger | CSVLogger]:
    """The loggers that have a folder for each run; the folder of the first one is the run's."""
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger | CSVLogger)]


def place_problems(trainer: Trainer) -> list[str]:
    """Check that the run's folder, or the one in which it will be made, can be written to.

    Raises:
        ConfigurationError: The logger's folder is no path.
    """
    option = "trainer.logger" if trainer.logger else "trainer.default_root_dir"
    place = parse_path(option, str(getattr(trainer.logger, "save_dir", None) or trainer.default_root_dir))
    for logger in numbering_loggers(trainer)[:1]:
        place = Path(logger.root_dir if logger._version is None else logger.log_dir)
    return folder_problems(place, option)


def taken_problems(run: RunContext) -> list[str]:
    """Check that a new run does not write into the folder of another one, over its files.

    A run may go on in a folder from a checkpoint that lies in it, and a job that SLURM has requeued in a folder whose name
    holds the job's number.
    """
    trainer, problems = run.trainer, list[str]()
    if trainer in _taken:
        return problems
    for logger in numbering_loggers(trainer):
        if logger._version is None or (logger in _numbered_here and trainer.state.fn != "fit"):
            continue
        folder, opened = Path(logger.log_dir), logger._experiment is not None  # then there are curves of its own
        held = [path for pattern in FILES if pattern != CURVES or not opened for path in sorted(folder.glob(pattern))]
        if held and not _goes_on(run, folder):
            names = ", ".join(str(path.relative_to(folder)) for path in held[:3])
            problems.append(
                f"trainer.logger: {folder} holds files of another run ({names}). Leave the logger's version out, name "
                "another one, or go on with that run by ckpt_path, from a checkpoint in this folder. In a job that SLURM "
                "may requeue before its first checkpoint: a version with the job's number, such as job-$SLURM_JOB_ID."
            )
    given = getattr(trainer.checkpoint_callback, "dirpath", None) if trainer.state.fn == "fit" else None
    if given and not _lies_in(_resumed(run), given) and not _requeued() and any(Path(given).glob("*.ckpt")):
        problems.append(f"checkpoint.dirpath: {given} holds the checkpoints of another run. Name another folder.")
    return problems


def _goes_on(run: RunContext, folder: Path) -> bool:
    array = "_".join(os.environ.get(f"SLURM_ARRAY_{part}_ID", "") for part in ("JOB", "TASK"))
    jobs = [re.escape(job) for job in (os.environ.get("SLURM_JOB_ID", ""), array) if job.strip("_")]
    if jobs and _requeued() and re.search(rf"(?<!\d)({'|'.join(jobs)})(?!\d)", folder.name):
        return True
    given = getattr(run.trainer.checkpoint_callback, "dirpath", None)
    return any(_lies_in(_resumed(run), place) for place in (folder / "checkpoints", given) if place)


def _resumed(run: RunContext) -> str | Path | None:
    """The checkpoint from which training goes on."""
    return (run.checkpoint or run.trainer.ckpt_path) if run.trainer.state.fn == "fit" else None


def _lies_in(file: str | Path | None, folder: str | Path) -> bool:
    return file is not None and Path(file).resolve().parent == Path(folder).resolve()


def _requeued() -> bool:
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def take_folder(run: RunContext) -> Path:
    """Make the run's folder, which no other run has; loggers that have none of their own are opened. First process only.

    With TensorBoard or CSV it is the folder of that logger. With other loggers it is ``save_dir/name/version``, where
    Lightning puts their checkpoints, or a numbered folder below it if that is there already; without a logger, a numbered
    folder in ``lightning_logs`` of ``trainer.default_root_dir``, where those of loggers that have no folder are, too.

    Raises:
        ConfigurationError: The folder that was asked for holds another run's files, or a logger cannot be opened.
    """
    trainer, numbering = run.trainer, numbering_loggers(run.trainer)
    if trainer in _taken:
        return _taken[trainer]
    if problems := taken_problems(run):
        raise ConfigurationError(problems)
    for each in numbering:
        if each._version is not None:
            Path(each.log_dir).mkdir(parents=True, exist_ok=True)
            _keep_metrics(each)
        elif Path(each.root_dir) == Path(numbering[0].root_dir) and each is not numbering[0]:
            each._version = numbering[0].version
        else:
            _numbered_here.add(each)
            each._version = int(each.version)
            while not _made(Path(each.log_dir)):  # by another run, in this moment
                each._version += 1
    logger = trainer.logger
    if numbering:
        folder = Path(numbering[0].log_dir)
    elif logger is None or isinstance(logger, DummyLogger):
        unused = trainer.state.fn == "fit" and trainer.fast_dev_run  # type: ignore[attr-defined]
        folder = _numbered(Path(trainer.default_root_dir, "lightning_logs"), make=not unused)
    else:
        try:
            _ = getattr(logger, "experiment", None)
            name, version = str(logger.name or ""), logger.version
        except Exception as error:  # of any package
            reason = " ".join(str(error).split())
            raise ConfigurationError([f"trainer.logger: {type(logger).__name__} cannot be opened: {reason}"]) from error
        place = Path(logger.save_dir or Path(trainer.default_root_dir, "lightning_logs"), name)
        if version in (None, ""):
            folder = _numbered(place)
        else:
            folder = place / (version if isinstance(version, str) else f"version_{version}")
            folder = folder if _made(folder) or _goes_on(run, folder) else _numbered(folder)
    for other in trainer.loggers:
        if other not in numbering:  # its page says where the run's files are
            note(other, {"folder": str(folder.resolve())}, f"the run's folder, {folder}")
    _taken[trainer] = folder
    return folder


def _keep_metrics(logger: TensorBoardLogger | CSVLogger) -> None:
    """Move the table of a run that goes on aside: Lightning's CSVLogger would begin it anew, over what is there."""
    file = Path(logger.log_dir, "metrics.csv")
    if isinstance(logger, CSVLogger) and logger._experiment is None and file.exists():
        number = len(list(file.parent.glob("metrics-before-*.csv"))) + 1
        file.rename(file.with_name(f"metrics-before-{number}.csv"))


def _made(folder: Path) -> bool:
    """Make a folder; False if it was there."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


def _numbered(place: Path, make: bool = True) -> Path:
    """A new folder ``version_N`` in a folder; N is above those that are there."""
    names = [path.name.removeprefix("version_") for path in place.glob("version_*")]
    number = max((int(name) + 1 for name in names if name.isdecimal()), default=0)
    while make and not _made(place / f"version_{number}"):
        number += 1
    return place / f"version_{number}"


def share_folder(run: RunContext) -> Path:
    """The run's folder, in every process; it is taken now if it has not been before. Collective."""
    if run.trainer.is_global_zero and run.folder == Path():
        run.folder = take_folder(run)
    return Path(run.trainer.strategy.broadcast(str(run.folder)))
