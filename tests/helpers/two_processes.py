"""What tests run in two processes: the command line, several times, and a callback that counts what each process holds."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from project_paths import HELPERS, ROOT

from introspection_lit.utils.launchers import without_launcher


class ShardCount(Callback):
    """Writes down how many parameters this process holds after each training step, to ``shards.rankN.json``."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Count them."""
        self.counts.append(sum(parameter.numel() for parameter in pl_module.parameters()))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the counts into the run's folder."""
        folder = Path(trainer.log_dir or ".")
        (folder / f"shards.rank{trainer.global_rank}.json").write_text(json.dumps(self.counts))


def environment_of_processes() -> dict[str, str]:
    """The environment of processes that work together, one thread each."""
    return {**without_launcher(), "PYTHONPATH": f"{ROOT}:{HELPERS}", "OMP_NUM_THREADS": "1"}


def run_together(folder: Path, commands: Sequence[Sequence[str]]) -> None:
    """Run command lines one after the other in two processes, started as ``torchrun`` starts them.

    Args:
        folder: Where they run.
        commands: Without the program's name.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = environment_of_processes() | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": "0"}
    running = []
    for rank in range(2):
        words = [sys.executable, str(Path(__file__)), json.dumps(list(map(list, commands)))]
        with (folder / f"output.rank{rank}.txt").open("w") as output:
            own = environment | {"LOCAL_RANK": str(rank)}
            running.append(subprocess.Popen(words, cwd=folder, env=own, stdout=output, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=400) for process in running]
    finally:
        for process in running:
            process.kill()
    outputs = [(folder / f"output.rank{rank}.txt").read_text()[-3000:] for rank in range(2)]
    assert codes == [0, 0], "\n".join(outputs)


if __name__ == "__main__":
    from introspection_lit.cli import main

    given = json.loads(sys.argv[1])
    sys.argv = sys.argv[:1]
    for command in given:
        main(command)
