"""End a training again and again, resume it, and see whether the adapter is the one of a run that nobody ended.

    python chaos.py                          # 20 times each: kill -9, SIGTERM, Ctrl-C; some ten minutes on two CPU cores
    python chaos.py --processes 2            # the same with two processes (DDP)
    python chaos.py --kills 4 --signals KILL

Runs are ended before a batch, between the batches of a step, during a validation, in the middle of writing a checkpoint,
before a file gets its name, while the adapter is exported, and at any moment. Says for each whether it was ended, went on
and came to the identical adapter, bit by bit; the exit status is 0 only if all did.
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

import torch
from rich.console import Console
from rich.table import Table

from introspection_lit.tools import option_types, pipeline
from introspection_lit.tools.endurance.chaos import ANY, PLACES, Outcome, Runs
from introspection_lit.utils.errors import RunError
from introspection_lit.utils.files import write_file
from introspection_lit.utils.provenance import provenance

# Small, but with all that a run has: steps of two batches, a validation in the middle of each epoch and at its end.
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
        SystemExit: 1 if a run came to another adapter or did not go on, 2 if the command cannot work, 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Any other option is one of `python -m introspection_lit fit`; without any, a tiny random model is trained.",
        allow_abbrev=False,
    )
    parser.add_argument("--kills", type=option_types.positive, default=20, help="times for each signal (default: 20)")
    parser.add_argument("--signals", nargs="+", choices=("KILL", "TERM", "INT"), default=["KILL", "TERM", "INT"])
    parser.add_argument("--processes", type=option_types.positive, default=1, help="that train together (default: 1)")
    parser.add_argument("--places", nargs="+", choices=(*PLACES, ANY), default=[], help="where (default: everywhere)")
    parser.add_argument("--seed", type=option_types.seed, default=0, help="of places and moments (default: 0)")
    parser.add_argument("--folder", type=Path, help="gets the runs and chaos.json (default: a temporary one)")
    options, more = parser.parse_known_args(args)
    lost: list[Outcome] = []
    pipeline.guarded(lambda: lost.extend(chaos(options, more)))
    if lost:
        raise SystemExit(1)


def chaos(options: argparse.Namespace, more: Sequence[str]) -> list[Outcome]:
    """End runs, let them go on, and say what came of it.

    Args:
        options: The script's own.
        more: Those of ``fit``.

    Returns:
        The runs that did not come to the same.

    Raises:
        RunError: The run without a fault failed.
    """
    torch.set_num_threads(1)
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="chaos-"))).expanduser().resolve()
    share = "2" if options.processes == 1 else "1"
    words = [*shlex.split(SMALL), "--trainer.accumulate_grad_batches", share]
    if options.processes > 1:
        words += ["--trainer.strategy", "ddp", "--trainer.devices", str(options.processes)]
    runs = Runs(folder, [*words, *more], options.processes, options.places)
    if any(statuses := runs.reference()):
        raise RunError([f"the run without a fault ended with {statuses}: see {folder}/reference/output.0.txt."])
    print(f"a whole run: {runs.seconds:.1f} s; it comes by {dict(runs.passed)}", flush=True)
    faults = [runs.draw(options.seed, n, signal.Signals[f"SIG{s}"]) for s in options.signals for n in range(options.kills)]
    outcomes = []
    for number, fault in enumerate(faults, start=1):
        outcome = runs.kill_and_resume(number, fault)
        outcomes.append(outcome)
        origin = "began anew" if outcome.step is None else f"went on from step {outcome.step}"
        end = "identical" if outcome.identical else "ANOTHER ADAPTER" if outcome.resumed else "DID NOT GO ON"
        print(f"{number:3}/{len(faults)}  {fault}: exit {outcome.statuses}, {origin}, {end}", flush=True)
    made_by = provenance()
    found = {key: made_by[key] for key in ("command", "commit", "versions", "hardware")} | {"seed": options.seed}
    rows = [asdict(outcome) for outcome in outcomes]
    write_file(folder / "chaos.json", json.dumps(found | {"processes": options.processes, "outcomes": rows}, indent=2))
    Console().print(table(outcomes))
    print(f"details: {folder / 'chaos.json'}")
    return [outcome for outcome in outcomes if not outcome.identical]


def table(outcomes: Sequence[Outcome]) -> Table:
    """How many runs were ended by each signal, went on, and came to the identical adapter."""
    drawn = Table(title="Ended and resumed")
    for column in ("signal", "tried", "killed", "resumed", "identical"):
        drawn.add_column(column, justify="left" if column == "signal" else "right")
    for name in dict.fromkeys(outcome.fault.signal.name for outcome in outcomes):
        mine = [outcome for outcome in outcomes if outcome.fault.signal.name == name]
        killed = sum(any(outcome.statuses) for outcome in mine)
        drawn.add_row(name, *map(str, (len(mine), killed, sum(o.resumed for o in mine), sum(o.identical for o in mine))))
    return drawn


if __name__ == "__main__":
    main()
