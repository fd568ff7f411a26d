"""Runs several trainings with ``fit``, each in a process and a folder of its own, and skips those that are done."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from introspection_lit.report.result_files import read_results
from introspection_lit.utils.errors import ConfigurationError

LOGGER = "--trainer.logger.init_args"
# Seconds that a process has to exit after Ctrl-C before it is terminated, and then before it is killed.
GRACE = 5
Name = TypeVar("Name")


class Training(NamedTuple):
    """A training and its folder.

    Attributes:
        folder: Of the run's files.
        options: Of ``python -m introspection_lit fit``, without those of the logger.
    """

    folder: Path
    options: list[str]

    @property
    def arguments(self) -> list[str]:
        """Arguments of ``python -m introspection_lit``; with an empty name the logger's folder is save_dir/version."""
        logger = {"save_dir": self.folder.parent, "name": "", "version": self.folder.name}
        return ["fit", *self.options, *(f"{LOGGER}.{name}={value}" for name, value in logger.items())]

    @property
    def command(self) -> str:
        """The command as the run's results record it."""
        return f"python -m introspection_lit {shlex.join(self.arguments)}"

    @property
    def results(self) -> Path:
        """The file that the run writes when its tests are done."""
        return self.folder / "results.json"

    def done(self) -> bool:
        """Whether the run has been tested.

        Raises:
            ConfigurationError: The folder holds the results of another command.
        """
        if not self.results.exists():
            return False
        recorded = read_results(self.results).get("command")
        if not same_command(str(recorded), self.command, self.folder.parent):
            raise ConfigurationError(
                [
                    f"{self.results}: made by another command ({recorded}). Expected none yet, or one made by: "
                    f"{self.command}. Name another --folder, or move {self.folder} away."
                ]
            )
        return True

    def run(self) -> int:
        """Train and test in a new process; files of an unfinished attempt are moved aside.

        Returns:
            The exit status, 0 for success.
        """
        if self.folder.is_dir() and any(self.folder.iterdir()):
            self.folder.rename(unfinished_folder(self.folder))
        process = subprocess.Popen([sys.executable, "-m", "introspection_lit", *self.arguments])
        try:
            return process.wait()
        except BaseException:
            end_process(process)
            raise


def same_command(one: str, other: str, logs: Path) -> bool:
    """Whether two commands are the same training, each as typed in its own working directory.

    Paths are compared by the way to them from the command's own logger folder: ``configs/a.yaml`` beside ``logs`` is
    ``../configs/a.yaml`` beside ``../logs``. Through a symbolic link the way as typed is another, so files that are there
    are compared, too.

    Args:
        one: A command.
        other: Another.
        logs: The logger folder of both.
    """
    try:
        first, second = shlex.split(one), shlex.split(other)
    except ValueError:  # a quotation mark that is not closed: not a command
        return one == other
    if len(first) != len(second):
        return False
    return any(
        all(
            way == way_now or (typed == typed_now and before != "--config")  # as typed: a model's name is no path
            for before, typed, typed_now, way, way_now in zip(["", *first[:-1]], first, second, ways, ways_now, strict=True)
        )
        for ways in _readings(first, logs)
        for ways_now in _readings(second, logs)
    )


def _readings(words: Sequence[str], logs: Path) -> Iterator[list[str]]:
    """A command's words with paths as typed, and as found from each directory in which it may have been typed.

    Such a directory is this one, one above or one in it, from which the command's logger folder is ``logs``.
    """
    yield _ways_from_logs(words)
    here = Path.cwd()
    for directory in (here, *here.parents, *(path for path in here.iterdir() if path.is_dir())):
        if (directory / _logger_folder(words)).resolve() == logs.resolve():
            yield _ways_from_logs(words, directory)


def _logger_folder(words: Sequence[str]) -> str:
    """A command's logger folder, as typed."""
    return next((word.split("=", 1)[1] for word in words if word.startswith(f"{LOGGER}.save_dir=")), ".")


def _ways_from_logs(words: Sequence[str], directory: Path | None = None) -> list[str]:
    """The words of a command, with what may be a path, alone or after an option's ``=``, relative to its logger folder.

    Args:
        words: Of the command.
        directory: In which it was typed: symbolic links are followed from there. Without it paths are read as typed.
    """

    def place(path: str) -> str:
        return os.path.realpath(directory / path) if directory else path

    logs = place(_logger_folder(words))
    parts = [word.rpartition("=") if word.startswith("--") else ("", "", word) for word in words]
    return [
        option + (os.path.relpath(place(value), logs) if value and value[0] not in "{[-" else value)
        for option, _, value in parts
    ]


def unfinished_folder(folder: Path) -> Path:
    """An unused name for the folder of an unfinished run."""
    name, number = f"{folder.name}.unfinished", 1
    while folder.with_name(name).exists():
        number += 1
        name = f"{folder.name}.unfinished-{number}"
    return folder.with_name(name)


def end_process(process: subprocess.Popen[bytes]) -> None:
    """End a process after Ctrl-C. A terminal sends the signal to it, too, so it first gets time to clean up."""
    for action in (process.terminate, process.kill):
        try:
            process.wait(GRACE)
            return
        except subprocess.TimeoutExpired:
            action()
    process.wait()


def run_missing(trainings: Mapping[Name, Training], prefix: str = "") -> list[Name]:
    """Run every training that is not done, one after the other, with a line for each.

    Args:
        trainings: By name.
        prefix: Precedes the names in messages.

    Returns:
        The names of those that are not done after it.

    Raises:
        ConfigurationError: A folder holds the results of another command.
    """
    missing = [name for name, training in trainings.items() if not training.done()]
    for name, training in trainings.items():
        state = training.command if name in missing else f"there already, {training.folder}"
        print(f"{prefix}{name}: {state}", flush=True)
        if name in missing and (status := training.run()):
            print(f"{prefix}{name}: failed with exit status {status}", flush=True)
    return [name for name, training in trainings.items() if not training.done()]


def reserved_option_problems(arguments: Sequence[str], reserved: Sequence[str]) -> list[str]:
    """Problems of a command line that contains options which the script sets itself.

    Args:
        arguments: Options of ``fit`` that the user typed.
        reserved: Options of the script; an option below one of these counts, too.
    """
    options = [word.split("=")[0] for word in arguments if word.startswith("--")]
    conflicts = [word for word in options if any(word == name or word.startswith(f"{name}.") for name in reserved)]
    return [f"{word}: is decided by the script. Leave it out." for word in dict.fromkeys(conflicts)]
