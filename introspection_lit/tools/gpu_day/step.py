"""Runs steps one after the other, each in processes of its own with a limit of time, and keeps what each found as JSON."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from introspection_lit.tools.fit_runs import GRACE, Training
from introspection_lit.utils.checksums import checksum_problem, write_json
from introspection_lit.utils.errors import ConfigurationError, RunError, visible
from introspection_lit.utils.launchers import without_launcher

Record = dict[str, Any]
DONE, FAILED, OUT_OF_TIME = "done", "failed", "out of time"
# A step may take so many times its estimate, which is of a GPU: a rehearsal may take longer.
PATIENCE = 2.0
KEPT = 1500  # characters of a failed process's last words
MEASURE = ["-m", "introspection_lit.tools.gpu_day.measure"]
RECORD = "--trainer.callbacks+=introspection_lit.tools.gpu_day.recorder.RunRecorder"


@dataclass(frozen=True)
class Step:
    """A step: what is run, and how its result is read.

    Attributes:
        name: Of its file; the part before the first hyphen is its kind (see :mod:`.tables`).
        minutes: An estimate. A step is not begun with less time left, and ended after :data:`PATIENCE` times as much.
        commands: Arguments of Python, from the root of the checkout; run one after the other.
        collect: Reads the result from what the commands wrote.
        seed: Of the randomness in it.
        accepted: Exit statuses with which there is a result.
    """

    name: str
    minutes: float
    commands: Sequence[Sequence[str]]
    collect: Callable[[], Mapping[str, Any]]
    seed: int = 0
    accepted: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Day:
    """Where and for how long steps are run.

    Attributes:
        root: Of the checkout; commands are run there.
        folder: Gets a JSON file and a log for each step, and in ``work`` what the commands write; absolute.
        tiny: A rehearsal with tiny models.
        end: On the clock of :func:`time.monotonic`.
        origin: Command, commit, versions and hardware, for each file (see :func:`machine`).
    """

    root: Path
    folder: Path
    tiny: bool
    end: float
    origin: Mapping[str, Any]

    @property
    def minutes_left(self) -> float:
        """Until the end."""
        return (self.end - time.monotonic()) / 60


def fit_command(folder: Path, options: Sequence[str]) -> list[str]:
    """Arguments of Python for a fit into a folder, with what :class:`~.recorder.RunRecorder` writes beside it."""
    return ["-m", "introspection_lit", *Training(folder, [*options, RECORD]).arguments]


def measure_command(name: str, file: Path, *options: str) -> list[str]:
    """Arguments of Python for a measurement of :mod:`.measure` that writes a JSON file."""
    return [*MEASURE, name, str(file), *options]


def machine(root: Path, command: str) -> Record:
    """Command, commit, versions and hardware; found in another process, since torch keeps a part of a GPU for itself.

    Raises:
        RunError: Torch cannot be asked.
    """
    with TemporaryDirectory() as scratch:
        file = Path(scratch, "machine.json")
        words = [sys.executable, *measure_command("machine", file)]
        done = subprocess.run(words, cwd=root, capture_output=True, text=True, check=False)
        if not file.is_file():
            raise RunError([f"what hardware there is cannot be found out:\n{done.stderr.strip()[-KEPT:]}"])
        return read_result(file) | {"command": command}


def read_result(file: Path) -> Record:
    """What a command wrote as JSON."""
    found: Record = json.loads(file.read_text(encoding="utf-8"))
    return found


def read_records(folder: Path) -> dict[str, Record]:
    """The files of steps in a folder, by name; none if there is no folder.

    Raises:
        ConfigurationError: A file is damaged.
    """
    records, problems = {}, []
    for file in sorted(folder.glob("*.json")):
        try:
            record = read_result(file)
            problem = checksum_problem(record)
            records[file.stem] = record
        except (OSError, ValueError, AttributeError) as error:
            problem = f"cannot be read ({error})"
        problems += [f"{file}: {problem}. Move it away, and the step is run again."] if problem else []
    if problems:
        raise ConfigurationError(problems)
    return records


def run_steps(day: Day, steps: Sequence[Step], say: Callable[[str], None]) -> list[str]:
    """Run what is not done: first what was never tried, then what has failed before.

    Args:
        day: Where and for how long.
        steps: In the order of their worth.
        say: Called with each line for the user.

    Returns:
        The names of steps that failed now.

    Raises:
        ConfigurationError: The folder holds steps of another machine, or of a rehearsal and of none.
    """
    records = read_records(day.folder)
    others = [name for name, record in records.items() if not _same_kind(record, day)]
    if others:
        raise ConfigurationError(
            [
                f"{day.folder}: {', '.join(others)} there: measured on other hardware, or with another --tiny "
                f"(this is {day.origin['hardware']}). Name another --folder."
            ]
        )
    done = {name for name, record in records.items() if record["status"] == DONE}
    for step in steps:
        if step.name in done:
            say(f"{step.name}: there already, of commit {records[step.name]['commit']}")
    failed = []
    for step in sorted((step for step in steps if step.name not in done), key=lambda step: step.name in records):
        if day.minutes_left < step.minutes:
            say(f"{step.name}: not begun, it takes {step.minutes:g} minutes and {max(day.minutes_left, 0):.1f} are left")
            continue
        say(f"{step.name}: about {step.minutes:g} minutes, {day.minutes_left:.1f} left")
        record = run_step(day, step)
        say(f"{step.name}: {record['status']} after {record['seconds'] / 60:.1f} minutes")
        if record["status"] != DONE:
            failed.append(step.name)
            say("\n".join(f"  {line}" for line in record["error"].splitlines()[-6:]))
    return failed


def remaining(folder: Path, steps: Sequence[Step]) -> list[Step]:
    """The steps that are not done."""
    records = read_records(folder)
    return [step for step in steps if records.get(step.name, {}).get("status") != DONE]


def _same_kind(record: Mapping[str, Any], day: Day) -> bool:
    return (record.get("tiny"), record.get("hardware")) == (day.tiny, day.origin["hardware"])


def run_step(day: Day, step: Step) -> Record:
    """Run the commands of a step and write its file, whatever happens to them; Ctrl-C leaves none."""
    work = day.folder / "work" / step.name
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    start = time.monotonic()
    end = day.end if day.tiny else min(start + 60 * PATIENCE * step.minutes, day.end)
    status, error, result = DONE, None, None
    log = day.folder / f"{step.name}.log"
    with log.open("w", encoding="utf-8") as output:
        for words in step.commands:
            output.write(f"$ {shown(words, day)}\n")
            output.flush()
            code = _run([sys.executable, *words], day.root, output, end - time.monotonic())
            if code is None:
                status, error = OUT_OF_TIME, f"ended after {(time.monotonic() - start) / 60:.1f} minutes"
            elif code not in step.accepted:
                status, error = FAILED, f"exit status {code}"
            if status != DONE:
                break
    if status == DONE:
        try:
            result = dict(step.collect())
        except (OSError, ValueError, LookupError, TypeError, RunError) as problem:
            status, error = FAILED, f"{type(problem).__name__}: {problem}"
    if error is not None:
        printed = log.read_text(encoding="utf-8", errors="replace")
        printed = re.sub(r"[^\n]*\r(?!\n)", "", printed)  # of a progress bar only its last state
        last = printed[-KEPT:].strip()
        error = without_places(visible(f"{error}. {log.name} ends with:\n{last}"), day)
    record = {
        "step": step.name,
        "status": status,
        "error": error,
        "tiny": day.tiny,
        "seed": step.seed,
        "seconds": time.monotonic() - start,
        "estimated_minutes": step.minutes,
        "step_commands": [shown(words, day) for words in step.commands],
        **day.origin,
        "command": without_places(day.origin["command"], day),
        "result": result,
    }
    write_json(day.folder / f"{step.name}.json", record)
    return record


def shown(words: Sequence[str], day: Day) -> str:
    """A command as a user types it in the root of the checkout."""
    return without_places(f"python {shlex.join(words)}", day)


def without_places(text: str, day: Day) -> str:
    """A text whose paths begin in the checkout, or with FOLDER for a folder outside it: records are published."""
    return text.replace(f"{day.root}{os.sep}", "").replace(str(day.folder), "FOLDER")


def _run(words: Sequence[str], root: Path, output: Any, seconds: float) -> int | None:
    """Run a process and all that it starts; its exit status, or None if it took longer and was ended."""
    environment = without_launcher() | {"HF_HUB_OFFLINE": "1"}  # nothing needs a network, and nothing waits for one
    process = subprocess.Popen(
        words, cwd=root, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        status = process.wait(max(seconds, 0.0))
        _wait_for_group(process.pid)  # other processes of DDP may still be writing
        return status
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end_group(process)


def _wait_for_group(group: int) -> None:
    """Wait until a group of processes has ended, at most :data:`GRACE` seconds."""
    end = time.monotonic() + GRACE
    with suppress(ProcessLookupError):  # all have ended
        while time.monotonic() < end:
            os.killpg(group, 0)
            time.sleep(0.05)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it has started, which would keep a GPU's memory: first asked to, then killed."""
    for action in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, action)
            _wait_for_group(process.pid)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
