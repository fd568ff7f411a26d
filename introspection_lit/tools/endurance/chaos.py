"""Ends a training on purpose, goes on, and compares: what comes out must be what comes out of a run that nobody ended.

A run is ended at a place in the code (the third validation batch, half of the second checkpoint's bytes) or at any moment,
by a signal that a process sends itself or gets. Processes are forked from this one, which has imported everything but has
computed nothing, so that a run costs its own seconds only.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import Strategy
from peft import LoraConfig

from introspection_lit import cli
from introspection_lit.training.checkpoint_files import read_checkpoint
from introspection_lit.training.module import IntrospectionModule
from introspection_lit.utils.checksums import file_hash
from introspection_lit.utils.seeds import generator
from introspection_lit.utils.tensor_hash import content_hash

# At any moment instead of at a place; the number is then a thousandth of the time that a whole run takes.
ANY = "any moment"
# How long processes may live that have lost one of theirs, in seconds, and how long any run may take.
GRACE, LONGEST = 20.0, 300.0


@dataclass(frozen=True)
class Fault:
    """What is done to a run.

    Attributes:
        place: One of ``PLACES``, or ``ANY``.
        number: The how manieth time that a process comes by.
        signal: What it is sent then.
        rank: The process that is sent it; None: all of them.
    """

    place: str
    number: int
    signal: signal.Signals
    rank: int | None

    def __str__(self) -> str:
        whom = "" if self.rank is None else f" in process {self.rank}"
        at = f"{self.number / 10:g} % of the time" if self.place == ANY else f"{self.place} {self.number}"
        return f"{self.signal.name} at {at}{whom}"


@dataclass(frozen=True)
class Outcome:
    """What became of a run with a fault.

    Attributes:
        fault: What was done.
        statuses: Exit statuses of its processes; negative: ended by that signal.
        step: The step of the checkpoint that it was resumed from; None: it began anew.
        resumed: The run that went on came to its end.
        identical: Adapter and checkpoint are those of the run without a fault, bit by bit.
    """

    fault: Fault
    statuses: list[int]
    step: int | None
    resumed: bool
    identical: bool


def _before(owner: Any, name: str) -> Callable[[Callable[[], None]], None]:
    """Put something before a function."""

    def install(act: Callable[[], None]) -> None:
        original = getattr(owner, name)

        def acting(*args: Any, **options: Any) -> Any:
            act()
            return original(*args, **options)

        setattr(owner, name, acting)

    return install


def _in_the_middle_of_writing(act: Callable[[], None]) -> None:
    """Let a checkpoint's file have half of its bytes."""
    original = Path.write_bytes

    def write_bytes(path: Path, content: Any) -> int:
        if path.suffix == ".ckpt":
            original(path, memoryview(content)[: len(content) // 2])
            act()
        return original(path, content)

    Path.write_bytes = write_bytes  # type: ignore[assignment, method-assign]


def _before_renaming(act: Callable[[], None]) -> None:
    """Let a checkpoint be complete under its other name."""
    original = Path.replace

    def replace(path: Path, target: Any) -> Path:
        if str(target).endswith(".ckpt"):
            act()
        return original(path, target)

    Path.replace = replace  # type: ignore[assignment, method-assign]


# Where a run may be ended, and how something is put there.
PLACES: dict[str, Callable[[Callable[[], None]], None]] = {
    "batch": _before(IntrospectionModule, "on_train_batch_start"),
    "backward pass": _before(IntrospectionModule, "on_after_backward"),
    "optimiser step": _before(IntrospectionModule, "on_before_optimizer_step"),
    "validation batch": _before(IntrospectionModule, "validation_step"),
    "end of an epoch": _before(IntrospectionModule, "on_train_epoch_end"),
    "half a checkpoint": _in_the_middle_of_writing,
    "unnamed checkpoint": _before_renaming,
    "removal": _before(Strategy, "remove_checkpoint"),
    "half an adapter": _before(LoraConfig, "save_pretrained"),  # its weights are written, this is not
}
# What only the first of several processes comes by.
OF_FIRST = ("half a checkpoint", "unnamed checkpoint", "removal", "half an adapter")


class Runs:
    """The runs of an experiment, each in a folder of its own.

    Args:
        folder: Gets them.
        words: Options of ``fit``, all the same.
        processes: How many run together.
        places: Where they are ended; empty: everywhere.
    """

    def __init__(self, folder: Path, words: Sequence[str], processes: int, places: Sequence[str] = ()) -> None:
        self.folder, self.words, self.processes = folder, list(words), processes
        self.places = places or (*PLACES, ANY)
        self.passed: Counter[str] = Counter()  # how often the first process of a whole run comes by each place
        self.seconds = 0.0
        self.wanted = ""

    def whole(self) -> list[int]:
        """Run without a fault; the statuses of its processes."""
        begun = time.monotonic()
        statuses = self._run(self.folder / "whole", None)
        self.seconds = time.monotonic() - begun
        if not any(statuses):
            self.passed = Counter(json.loads((self.folder / "whole" / "passed.json").read_text(encoding="utf-8")))
            self.wanted = made(self.folder / "whole")
        return statuses

    def draw(self, seed: int, number: int, by: signal.Signals) -> Fault:
        """Draw fault ``number``: the places come in turn, and one in as many as there are is at any moment.

        Args:
            seed: Of all draws.
            number: Of this one.
            by: The signal.
        """
        random = generator(seed, "chaos", by.name, self.processes, number)
        places = [place for place in self.places if self.passed[place] or place == ANY]
        place = places[number % len(places)]
        last = 999 if place == ANY else self.passed[place]
        # One process of several gets it, or all of them do; a file is written by the first.
        ranks = [None, *range(self.processes)] if self.processes > 1 and place not in OF_FIRST else [0]
        return Fault(place, int(random.integers(1, last + 1)), by, ranks[int(random.integers(len(ranks)))])

    def end_and_go_on(self, number: int, fault: Fault) -> Outcome:
        """Run with a fault, resume, compare.

        Args:
            number: Names the folder.
            fault: What is done to it.
        """
        folder = self.folder / f"{fault.signal.name.lower()}-{number}"
        statuses = self._run(folder, fault)
        last = newest(folder)
        step = read_checkpoint(last)["global_step"] if last else None
        resumed = not any(self._run(folder, None, last))
        return Outcome(fault, statuses, step, resumed, resumed and made(folder) == self.wanted)

    def _run(self, folder: Path, fault: Fault | None, resume: Path | None = None) -> list[int]:
        """Run all processes, and wait for them; their statuses."""
        folder.mkdir(parents=True, exist_ok=True)
        words = ["fit", *self.words, "--trainer.logger.init_args.save_dir", str(folder)]
        words += ["--ckpt_path", str(resume)] if resume else []
        port = free_port()
        ids = [self._start(rank, port, folder, words, fault) for rank in range(self.processes)]
        begun, statuses = time.monotonic(), dict[int, int]()
        moment = self.seconds * fault.number / 1000 if fault and fault.place == ANY else None
        while len(statuses) < len(ids):
            for rank, process in enumerate(ids):
                if rank not in statuses and (found := os.waitpid(process, os.WNOHANG))[0]:
                    statuses[rank] = os.waitstatus_to_exitcode(found[1])
                    begun = min(begun, time.monotonic() + GRACE - LONGEST) if statuses[rank] else begun
            gone = time.monotonic() - begun
            if moment is not None and gone > moment:
                assert fault is not None
                self._send(fault, [process for rank, process in enumerate(ids) if rank not in statuses], ids)
                moment = None
            if gone > LONGEST:
                for rank, process in enumerate(ids):
                    if rank not in statuses:
                        os.kill(process, signal.SIGKILL)
            time.sleep(0.02)
        return [statuses[rank] for rank in range(self.processes)]

    @staticmethod
    def _send(fault: Fault, alive: list[int], ids: list[int]) -> None:
        for process in alive:
            if fault.rank is None or process == ids[fault.rank]:
                os.kill(process, fault.signal)

    def _start(self, rank: int, port: int, folder: Path, words: list[str], fault: Fault | None) -> int:
        """Fork a process that runs the command line; its id."""
        process = os.fork()
        if process:
            return process
        status = 1
        try:
            with (folder / f"output.{rank}.txt").open("a") as output:
                for stream in (sys.stdout, sys.stderr):
                    os.dup2(output.fileno(), stream.fileno())
            if self.processes > 1:
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
                os.environ |= {"LOCAL_RANK": str(rank), "WORLD_SIZE": str(self.processes)}
            signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have what is in the background ignore it
            passed = armed(fault, rank)
            cli.main(words)
            if rank == 0:
                (folder / "passed.json").write_text(json.dumps(passed), encoding="utf-8")
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)


def armed(fault: Fault | None, rank: int) -> Counter[str]:
    """Count how often this process comes by each place, and do there what a fault says. For the rest of the process's life.

    Args:
        fault: What is to be done, if anything.
        rank: This process.
    """
    passed: Counter[str] = Counter()

    def act(place: str) -> None:
        passed[place] += 1
        if fault and (place, passed[place]) == (fault.place, fault.number) and fault.rank in (None, rank):
            os.kill(os.getpid(), fault.signal)

    for place, install in PLACES.items():
        install(lambda place=place: act(place))  # type: ignore[misc]
    return passed


def newest(folder: Path) -> Path | None:
    """The checkpoint that somebody would resume from: the last one of the newest run that has any."""
    found = sorted(folder.glob("default/version_*/checkpoints/last*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    return found[-1] if found else None


def made(folder: Path) -> str:
    """A hash of what the newest finished run has made: its adapter, and weights and optimiser of its last checkpoint."""
    adapters = sorted(folder.glob("default/version_*/adapter"), key=lambda path: int(path.parent.name.split("_")[1]))
    last = newest(folder)
    if not adapters or last is None:
        return "nothing"
    weights = file_hash(adapters[-1] / "adapter_model.safetensors")
    description = json.loads((adapters[-1] / "introspection.json").read_text(encoding="utf-8"))
    checkpoint = read_checkpoint(last)
    kept = [checkpoint[key] for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step")]
    return content_hash([weights, description, *kept])


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
