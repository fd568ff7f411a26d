"""What ``gpu_day.py`` and ``gpu_node.py`` share: their options, where files go, and what is printed."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from introspection_lit.tools import option_types, pipeline
from introspection_lit.utils.console import PlainConsole
from introspection_lit.utils.errors import ConfigurationError


@dataclass(frozen=True)
class Programme:
    """One of the two scripts.

    Attributes:
        name: ``gpu_day`` or ``gpu_node``.
        description: Its docstring.
        root: Of the checkout.
        minutes: How long it takes by default.
        least: The GPUs that it needs, unless it is a rehearsal.
    """

    name: str
    description: str | None
    root: Path
    minutes: int
    least: int


def parser(programme: Programme) -> argparse.ArgumentParser:
    """The options."""
    folder = programme.name.replace("_", "-")
    made = option_types.parser(programme.description, "")
    made.add_argument(
        "--minutes", type=option_types.positive, default=programme.minutes, help="how long (default: %(default)s)"
    )
    made.add_argument("--only", nargs="+", metavar="STEP", help="these steps (default: all)")
    made.add_argument("--folder", type=Path, help=f"gets the files (default: lightning_logs/{folder}, -tiny with --tiny)")
    made.add_argument("--tiny", action="store_true", help="tiny models and few trials; runs without a GPU, too")
    made.add_argument("--tables", type=Path, metavar="FOLDER", help="write the tables in docs from these files, and end")
    if programme.least > 1:
        made.add_argument("--processes", type=option_types.positive, help="how many (default: all GPUs; with --tiny 2)")
    else:
        contexts = "of the full experiment, from build_contexts.py elsewhere (default: built from what is installed here)"
        made.add_argument("--contexts", type=Path, metavar="FILE", help=contexts)
    return made


def main(programme: Programme, args: Sequence[str] | None) -> None:
    """Run the script.

    Args:
        programme: The script.
        args: The command line, without the program's name; None: ``sys.argv``.

    Raises:
        SystemExit: 1 if a step failed, 2 if the command cannot work, 128 + n after signal n.
    """
    began = time.monotonic()
    words = list(sys.argv[1:] if args is None else args)
    options = parser(programme).parse_args(words)
    command = f"python scripts/{programme.name}.py {shlex.join(words)}".strip()
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the step's processes are ended, too
    try:
        pipeline.guarded_runs(lambda: run(programme, options, command, began))
    finally:
        signal.signal(signal.SIGTERM, before)


def run(programme: Programme, options: argparse.Namespace, command: str, began: float) -> list[str]:
    """Write the tables, or run the steps that are not done.

    Returns:
        The names of steps that failed.

    Raises:
        ConfigurationError: There are not enough GPUs, a step is unknown, or the folder holds other steps.
    """
    from introspection_lit.tools.gpu_day import pages
    from introspection_lit.tools.gpu_day.figures import figures
    from introspection_lit.tools.gpu_day.step import DONE, Day, machine, read_records, remaining, run_steps

    root = programme.root
    if options.tables is not None:
        for line in pages.rewrite(root, {programme.name: options.tables}):
            print(line)
        return []
    default = root / "lightning_logs" / (programme.name.replace("_", "-") + ("-tiny" if options.tiny else ""))
    folder = (options.folder or default).expanduser().resolve()
    pipeline.writable(folder / "any")
    origin = machine(root, command)
    steps = _steps(programme, options, folder, len(origin["gpus"]))
    if unknown := set(options.only or ()) - {step.name for step in steps}:
        names = ", ".join(step.name for step in steps)
        raise ConfigurationError([f"--only: got {', '.join(sorted(unknown))}. Expected some of {names}."])
    wanted = [step for step in steps if not options.only or step.name in options.only]
    say: Callable[[str], None] = lambda line: print(line, flush=True)  # noqa: E731 - its type is needed
    say(f"{origin['hardware']}, commit {origin['commit']}: {folder}")
    failed = run_steps(Day(root, folder, options.tiny, began + 60 * options.minutes, origin), wanted, say)
    table = Table("step", "what", "target", "measured", padding=(0, 1))
    records = read_records(folder)
    for step in steps:
        record = records.get(step.name, {})
        for number, figure in enumerate(figures(step.name, record.get("result") if record.get("status") == DONE else None)):
            table.add_row("" if number else step.name, *figure)
    PlainConsole().print(table)
    if left := remaining(folder, steps):
        say(f"What remains: {', '.join(f'{step.name} ({step.minutes:g} min)' for step in left)}. Go on with: {command}")
    else:
        say(f"Nothing remains. Copy {folder}/*.json to docs/results/{programme.name.replace('_', '-')}, then --tables.")
    return failed


def _steps(programme: Programme, options: argparse.Namespace, folder: Path, gpus: int) -> list:
    """The steps of the script; refuses to begin where there are too few GPUs."""
    from introspection_lit.tools.gpu_day.day import day_steps
    from introspection_lit.tools.gpu_day.node import node_steps

    processes = getattr(options, "processes", None) or (2 if options.tiny else max(gpus, programme.least))
    needed = max(programme.least, processes if programme.least > 1 else 1)
    if gpus < needed and not options.tiny:
        raise ConfigurationError(
            [f"GPUs: torch finds {gpus}. Expected at least {needed}; --tiny rehearses every step with tiny models."]
        )
    if programme.least == 1:
        return day_steps(programme.root, folder, options.tiny, options.contexts and options.contexts.resolve())
    if not 2 <= processes <= 8:
        raise ConfigurationError([f"--processes: got {processes}. Expected 2 to 8, of one node."])
    return node_steps(folder, processes, options.tiny, "gpu" if gpus >= processes else "cpu")
