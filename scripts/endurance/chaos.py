"""Fault injection: kills a training, resumes it, and compares the result with that of an uninterrupted run.

A process is signalled at a place in the code (the third validation batch, a checkpoint of which half is written) or at any
moment. Processes are forked from this one, which has imported everything and computed nothing, so that a run costs its own
seconds only.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch.strategies import Strategy
from peft import LoraConfig

from introspection_lit import cli
from introspection_lit.training.checkpoint_files import read_checkpoint
from introspection_lit.training.module import IntrospectionModule
from introspection_lit.utils.checksums import file_hash
from introspection_lit.utils.seeds import generator
from introspection_lit.utils.tensor_hash import content_hash

# The place of a fault by the clock; its number is then in thousandths of the uninterrupted run's time.
ANY = "any moment"
# Seconds that the other processes may live after one has failed, and that any run may take.
GRACE, LONGEST = 20.0, 300.0


@dataclass(frozen=True)
class Fault:
    """A signal at a place."""

    place: str  # one of PLACES, or ANY
    number: int  # which time the process reaches the place, from 1
    signal: signal.Signals
    rank: int | None  # the process that gets it; None: all of them

    def __str__(self) -> str:
        process = "" if self.rank is None else f" in process {self.rank}"
        at = f"{self.number / 10:g} % of the time" if self.place == ANY else f"{self.place} {self.number}"
        return f"{self.signal.name} at {at}{process}"


@dataclass(frozen=True)
class Outcome:
    """The result of a run with a fault."""

    fault: Fault
    statuses: list[int]  # exit statuses of the processes; negative: ended by that signal
    step: int | None  # the step of the checkpoint from which it was resumed; None: it began anew
    resumed: bool  # the resumed run came to its end
    identical: bool  # adapter and checkpoint equal those of the uninterrupted run, bit by bit


Install = Callable[[Callable[[], None]], None]


def _before(owner: Any, name: str, when: Callable[..., bool] = lambda *_, **__: True) -> Install:
    """Call something before a function, for the arguments that a condition accepts."""

    def install(act: Callable[[], None]) -> None:
        original = getattr(owner, name)

        def acting(*args: Any, **options: Any) -> Any:
            if when(*args, **options):
                act()
            return original(*args, **options)

        setattr(owner, name, acting)

    return install


def _half_written(act: Callable[[], None]) -> None:
    """Call something when half of a checkpoint's bytes are written."""
    original = Path.write_bytes

    def write_bytes(path: Path, content: Any) -> int:
        if path.suffix == ".ckpt":
            original(path, memoryview(content)[: len(content) // 2])
            act()
        return original(path, content)

    Path.write_bytes = write_bytes  # type: ignore[assignment, method-assign]


# Where a run may be killed, and how a call is installed there.
PLACES: dict[str, Install] = {
    "batch": _before(IntrospectionModule, "on_train_batch_start"),
    "backward pass": _before(IntrospectionModule, "on_after_backward"),
    "optimiser step": _before(IntrospectionModule, "on_before_optimizer_step"),
    "validation batch": _before(IntrospectionModule, "validation_step"),
    "end of an epoch": _before(IntrospectionModule, "on_train_epoch_end"),
    "half a checkpoint": _half_written,
    "unnamed checkpoint": _before(os, "replace", lambda _, target: str(target).endswith(".ckpt")),
    "removal": _before(Strategy, "remove_checkpoint"),
    "half an adapter": _before(LoraConfig, "save_pretrained"),  # its weights are written, this is not
}
# Only the first of several processes writes files.
OF_FIRST = ("half a checkpoint", "unnamed checkpoint", "removal", "half an adapter")


class Runs:
    """The runs of an experiment, each in a folder of its own.

    Args:
        folder: For the runs.
        words: Options of ``fit``, the same for all.
        processes: Processes of each run.
        places: Where they are killed; empty: everywhere.
    """

    def __init__(self, folder: Path, words: Sequence[str], processes: int, places: Sequence[str] = ()) -> None:
        self.folder, self.words, self.processes = folder, list(words), processes
        self.places = places or (*PLACES, ANY)
        self.passed: Counter[str] = Counter()  # how often the first process of the reference run reaches each place
        self.seconds, self.expected = 0.0, ""

    def reference(self) -> list[int]:
        """Run without a fault; returns the exit statuses of the processes."""
        begun = time.monotonic()
        statuses = self._run(self.folder / "reference", None)
        self.seconds = time.monotonic() - begun
        if not any(statuses):
            self.passed = Counter(json.loads((self.folder / "reference" / "passed.json").read_text(encoding="utf-8")))
            self.expected = result_hash(self.folder / "reference")
        return statuses

    def draw(self, seed: int, number: int, by: signal.Signals) -> Fault:
        """Draw a fault; the places take turns.

        Args:
            seed: Of all draws.
            number: Of this one.
            by: The signal.
        """
        random = generator(seed, "chaos", by.name, self.processes, number)
        places = [place for place in self.places if self.passed[place] or place == ANY]
        place = places[number % len(places)]
        last = 999 if place == ANY else self.passed[place]
        ranks = [None, *range(self.processes)] if self.processes > 1 and place not in OF_FIRST else [0]
        return Fault(place, int(random.integers(1, last + 1)), by, ranks[int(random.integers(len(ranks)))])

    def kill_and_resume(self, number: int, fault: Fault) -> Outcome:
        """Run with a fault in a folder of this number, resume, compare."""
        folder = self.folder / f"{fault.signal.name.lower()}-{number}"
        statuses = self._run(folder, fault)
        last = newest(folder)
        step = read_checkpoint(last)["global_step"] if last else None
        resumed = not any(self._run(folder, None, last))
        return Outcome(fault, statuses, step, resumed, resumed and result_hash(folder) == self.expected)

    def _run(self, folder: Path, fault: Fault | None, resume: Path | None = None) -> list[int]:
        """Start all processes and wait for them; returns their exit statuses."""
        folder.mkdir(parents=True, exist_ok=True)
        words = ["fit", *self.words, "--trainer.logger.init_args.save_dir", str(folder)]
        words += ["--ckpt_path", str(resume)] if resume else []
        context, port = multiprocessing.get_context("fork"), find_free_network_port()
        shared = (port, folder, words, fault)
        processes = [context.Process(target=self._train, args=(rank, *shared)) for rank in range(self.processes)]
        for process in processes:
            process.start()
        begun = time.monotonic()
        deadline = begun + LONGEST
        moment = begun + self.seconds * fault.number / 1000 if fault and fault.place == ANY else inf
        while alive := [(rank, process) for rank, process in enumerate(processes) if process.exitcode is None]:
            now = time.monotonic()
            if any(process.exitcode for process in processes):
                deadline = min(deadline, now + GRACE)
            for rank, process in alive:
                if now > deadline:
                    process.kill()
                elif fault and now > moment and fault.rank in (None, rank):
                    os.kill(process.pid or 0, fault.signal)
            moment = inf if now > moment else moment
            time.sleep(0.02)
        return [process.exitcode or 0 for process in processes]

    def _train(self, rank: int, port: int, folder: Path, words: list[str], fault: Fault | None) -> None:
        """Run the command line in a forked process."""
        with (folder / f"output.{rank}.txt").open("a") as output:
            for stream in (sys.stdout, sys.stderr):
                os.dup2(output.fileno(), stream.fileno())
        if self.processes > 1:
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
            os.environ |= {"LOCAL_RANK": str(rank), "WORLD_SIZE": str(self.processes)}
        signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let background processes ignore it
        passed = arm(fault, rank)
        cli.main(words)
        if rank == 0:
            (folder / "passed.json").write_text(json.dumps(passed), encoding="utf-8")


def arm(fault: Fault | None, rank: int) -> Counter[str]:
    """Count how often this process, of this rank, reaches each place, and send it the fault's signal there."""
    passed: Counter[str] = Counter()

    def act(place: str) -> None:
        passed[place] += 1
        if fault and (place, passed[place]) == (fault.place, fault.number) and fault.rank in (None, rank):
            os.kill(os.getpid(), fault.signal)

    for place, install in PLACES.items():
        install(lambda place=place: act(place))  # type: ignore[misc]
    return passed


def newest(folder: Path) -> Path | None:
    """The checkpoint to resume from: the last one of the newest run that has any."""
    checkpoints = folder.glob("default/version_*/checkpoints/last*.ckpt")
    return max(checkpoints, key=lambda path: path.stat().st_mtime_ns, default=None)


def result_hash(folder: Path) -> str:
    """A hash of the newest finished run's adapter, and of the weights and optimiser in its last checkpoint."""
    adapters = sorted(folder.glob("default/version_*/adapter"), key=lambda path: int(path.parent.name.split("_")[1]))
    last = newest(folder)
    if not adapters or last is None:
        return "nothing"
    weights = file_hash(adapters[-1] / "adapter_model.safetensors")
    description = json.loads((adapters[-1] / "introspection.json").read_text(encoding="utf-8"))
    checkpoint = read_checkpoint(last)
    state = [checkpoint[key] for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step")]
    return content_hash([weights, description, *state])
