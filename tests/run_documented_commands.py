"""Runs every documented command as it is written, in a copy of the project with tiny models, and says how each ended.

    python tests/run_documented_commands.py                  # all: half an hour of CPU time
    python tests/run_documented_commands.py docs/tasks.md    # those of one file, or with one of some texts in them

Models and sizes are small (tests/helpers/small_checkout.py); the commands are not changed. Some would run for hours, or
need what is not there: WHILE says what they must print before they are stopped, NOT_RUN why they are not run. The exit
status is 1 if one of them failed.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue

sys.path.insert(0, str(Path(__file__).parent / "helpers"))

from documented_commands import Command, documented_commands
from peers import PEERS
from small_checkout import WITH_PEERS, SmallCheckout

JOBS = 2
# Commands that go on for longer than a test may: what each prints when it works, after which it is stopped.
WHILE = {
    r"tensorboard --logdir": r"TensorBoard [\d.]+ at http",
    r"introspection_lit serve|^make serve": r"^http://127\.0\.0\.1:\d+/$",
    r"chaos\.py": r"^ *1/\d+ ",
    r"soak\.py": r"trials/s$",
    r"ablations\.py": r"^all/seed-1: ",
    r"recipes\.py": r"^base/seed-\d: ",
}
# The steps of the pipeline need what those before them have left: they are run one after the other, in this order.
PIPELINE = r"(generate_vectors|baseline_benchmark|generate_training_data|finetune|evaluate)\.py"
NOT_RUN = {
    r"^make (install|lint|test|test-all|commands)$|^pip install|^python -m venv": "CI runs it, or `make install`",
    r"^python -m introspection_lit( show)?$": "the name of a program, without what it is asked to do",
    r"push .* --private": "needs an account of the hub; tests/publishing/test_push.py pushes to a hub in this process",
    r"^make (oldest|newest|short)$": "installs gigabytes; .ci/nightly runs it",
    r"-m pytest": "runs tests of this project; `make test` and `make test-all` run them",
    r"^torchrun --nnodes 2": "two nodes with eight GPUs each",
    r"^sbatch ": "a cluster; tests/test_slurm.py runs the script with a stand-in for srun",
    r"gpu_(day|node)\.py --minutes": "needs GPUs, or minutes; tests/tools/test_gpu_steps.py rehearses every step",
    r"--tasks (mmlu|arc_easy)": "data sets from the hub; the two commands below them, with a task of our own, are run",
}
if not (PEERS / "inspect").exists():
    NOT_RUN[WITH_PEERS] = "needs other libraries; `make .venv-peers/.installed` installs them"


def match(patterns: dict[str, str], command: Command) -> str | None:
    """What a table says of a command."""
    return next((said for pattern, said in patterns.items() if re.search(pattern, command.text)), None)


def run(command: Command, checkout: SmallCheckout) -> tuple[bool, str]:
    """Run a command: whether it did what it should, and the end of what it printed."""
    until = match(WHILE, command)
    status, printed = checkout.run(command.text, command.folder, command.state, until=until)
    worked = re.search(until, printed, re.MULTILINE) is not None if until else status == 0
    failures = "failed with exit status" if until else "Traceback (most recent call last)"
    return worked and failures not in printed, printed


def main(*wanted: str) -> int:
    """Run those with one of some texts in their place or in themselves, or all; the number that failed."""
    places = [(command, f"{command.source}: {command.text}") for command in documented_commands()]
    commands = [command for command, place in places if not wanted or any(text in place for text in wanted)]
    groups: dict[str, list[Command]] = {}
    for command in commands:
        if why := match(NOT_RUN, command):
            print(f"not run   {command.source}: {command.text}\n          {why}", flush=True)
        else:
            groups.setdefault("pipeline" if re.search(PIPELINE, command.text) else command.source, []).append(command)
    waiting: SimpleQueue[list[Command]] = SimpleQueue()
    for group in sorted(groups.values(), key=len, reverse=True):
        waiting.put(group)
    failed: list[Command] = []

    def work(number: int) -> None:
        checkout = SmallCheckout(Path(folder) / str(number))
        while True:
            try:
                group = waiting.get_nowait()
            except Empty:
                return
            for command in group:
                started = time.monotonic()
                worked, printed = run(command, checkout)
                end = "stopped" if match(WHILE, command) and worked else "done" if worked else "FAILED"
                seconds = f"{time.monotonic() - started:.0f} s"
                print(f"{end:8}{seconds:>6}  {command.source}: {command.text}", flush=True)
                if not worked:
                    failed.append(command)
                    print(printed[-6000:], flush=True)

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(JOBS) as workers:
        for job in [workers.submit(work, number) for number in range(JOBS)]:
            job.result()
    print(f"{len(commands)} commands, {len(failed)} failed")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) > 0)
