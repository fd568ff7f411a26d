"""Fault injection: kills a training again and again, resumes it, and compares the adapter with an uninterrupted run's.

    python chaos.py                          # 20 times each: kill -9, SIGTERM, Ctrl-C; some ten minutes on two CPU cores
    python chaos.py --processes 2            # the same with two processes (DDP)
    python chaos.py --kills 4 --signals KILL

Runs are killed before a batch, between the batches of a step, during a validation, while a checkpoint is written, before a
file gets its name, while the adapter is exported, and at any moment. Prints for each whether it was killed, was resumed and
ended with the identical adapter, bit by bit; the exit status is 0 only if all did.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from endurance.chaos import ANY, PLACES, Outcome, Runs
from rich.console import Console
from rich.table import Table

from introspection_lit.tools import option_types, pipeline
from introspection_lit.utils.errors import RunError
from introspection_lit.utils.files import write_file
from introspection_lit.utils.provenance import provenance

# Small, but complete: steps of two batches, a validation in the middle of each epoch and at its end.
SMALL = """
--model.base.name_or_path random:tiny --model.learning_rate 1e-2
--data.concepts [bread,cats,rain] --data.max_context_tokens 160
--data.train_vectors 4 --data.validation_vectors 3 --data.heldout_vectors 4
--data.batch_size 4 --data.eval_batch_size 8 --data.trials_per_epoch 32 --data.validation_trials 16
--data.test_trials '{heldout: 8}' --evidence.enabled false
--trainer.accelerator cpu --trainer.deterministic true --trainer.max_epochs 3 --trainer.val_check_interval 0.5
--trainer.num_sanity_val_steps 0 --trainer.enable_progress_bar false --trainer.enable_model_summary false
--trainer.log_every_n_steps 1
"""


def main(args: Sequence[str] | None = None) -> None:
    """Run the script.

    Args:
        args: The command line, without the program's name; default: ``sys.argv``.

    Raises:
        SystemExit: 1 if a run could not be resumed, or to another adapter; 2 if the command cannot work; 130 after Ctrl-C.
    """
    others = "Any other option is one of `python -m introspection_lit fit`; without any, a tiny random model is trained."
    parser = option_types.parser(__doc__, others)
    parser.add_argument("--kills", type=option_types.positive, default=20, help="times for each signal (default: 20)")
    parser.add_argument("--signals", nargs="+", choices=("KILL", "TERM", "INT"), default=["KILL", "TERM", "INT"])
    parser.add_argument("--processes", type=option_types.positive, default=1, help="that train together (default: 1)")
    parser.add_argument("--places", nargs="+", choices=(*PLACES, ANY), default=[], help="where (default: everywhere)")
    parser.add_argument("--seed", type=option_types.seed, default=0, help="of places and moments (default: 0)")
    parser.add_argument("--folder", type=Path, help="gets the runs and chaos.json (default: a temporary one)")
    options, more = parser.parse_known_args(args)
    failed: list[Outcome] = []
    pipeline.guarded(lambda: failed.extend(chaos(options, more)))
    if failed:
        raise SystemExit(1)


def chaos(options: argparse.Namespace, more: Sequence[str]) -> list[Outcome]:
    """Kill and resume runs; print and write the outcomes.

    Args:
        options: The script's own.
        more: Those of ``fit``.

    Returns:
        The outcomes that are not identical.

    Raises:
        RunError: The run without a fault failed.
    """
    torch.set_num_threads(1)
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="chaos-"))).expanduser().resolve()
    accumulated = "2" if options.processes == 1 else "1"
    words = [*shlex.split(SMALL), "--trainer.accumulate_grad_batches", accumulated]
    if options.processes > 1:
        words += ["--trainer.strategy", "ddp", "--trainer.devices", str(options.processes)]
    runs = Runs(folder, [*words, *more], options.processes, options.places)
    if any(statuses := runs.reference()):
        raise RunError([f"the run without a fault ended with {statuses}: see {folder}/reference/output.0.txt."])
    print(f"the run without a fault: {runs.seconds:.1f} s; it reaches {dict(runs.passed)}", flush=True)
    faults = [runs.draw(options.seed, n, signal.Signals[f"SIG{s}"]) for s in options.signals for n in range(options.kills)]
    outcomes = []
    for number, fault in enumerate(faults, start=1):
        outcome = runs.kill_and_resume(number, fault)
        outcomes.append(outcome)
        origin = "began anew" if outcome.step is None else f"resumed from step {outcome.step}"
        end = "identical" if outcome.identical else "ANOTHER ADAPTER" if outcome.resumed else "NOT RESUMED"
        print(f"{number:3}/{len(faults)}  {fault}: exit {outcome.statuses}, {origin}, {end}", flush=True)
    origin_of_results = provenance()
    results: dict[str, Any] = {key: origin_of_results[key] for key in ("command", "commit", "versions", "hardware")}
    results |= {"seed": options.seed, "processes": options.processes, "outcomes": [asdict(each) for each in outcomes]}
    write_file(folder / "chaos.json", json.dumps(results, indent=2))
    Console().print(table(outcomes))
    print(f"details: {folder / 'chaos.json'}")
    return [outcome for outcome in outcomes if not outcome.identical]


def table(outcomes: Sequence[Outcome]) -> Table:
    """For each signal, the number of runs, and of those that were killed, resumed, and identical."""
    rows = Table(title="Killed and resumed")
    for column in ("signal", "tried", "killed", "resumed", "identical"):
        rows.add_column(column, justify="left" if column == "signal" else "right")
    for name in dict.fromkeys(outcome.fault.signal.name for outcome in outcomes):
        group = [outcome for outcome in outcomes if outcome.fault.signal.name == name]
        killed, resumed = sum(any(each.statuses) for each in group), sum(each.resumed for each in group)
        rows.add_row(name, *map(str, (len(group), killed, resumed, sum(each.identical for each in group))))
    return rows


if __name__ == "__main__":
    main()
