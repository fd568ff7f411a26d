"""Endurance test: trains for an hour and checks that nothing grows: memory, hooks, open files, tensors, cached entries.

    python soak.py --minutes 60
    python soak.py --minutes 10 --model smollm2-135m --out soak-135m

Half of the time is one long fit with validations, figures and checkpoints every few seconds; the other half is many short
lives of training, resuming and testing, each with a new model. By default the model is a tiny one with random weights, on
the CPU. Writes soak.json (every sample, and every check with its limit) and soak.png. Runs on Linux.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from introspection_lit.tools import option_types, pipeline
from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.files import save_figure, write_file

if TYPE_CHECKING:
    from endurance.soak import Sample


def main(args: Sequence[str] | None = None) -> None:
    """Run the script.

    Args:
        args: The command line, without the program's name; default: ``sys.argv``.

    Raises:
        SystemExit: 1 if anything grows, 2 if the command cannot work, 130 after Ctrl-C.
    """
    others = "Any other option is one of `python -m introspection_lit`, such as --data.batch_size 8."
    parser = option_types.parser(__doc__, others)
    parser.add_argument("--minutes", type=option_types.finite_number, default=60.0, help="how long (default: %(default)s)")
    parser.add_argument(
        "--every",
        type=option_types.finite_number,
        default=5.0,
        help="seconds between samples, at least (default: %(default)s)",
    )
    parser.add_argument("--model", default="random:tiny", help="hub id, folder, or random:NAME (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("soak"), help="folder for soak.json and soak.png (default: soak)")
    options, more = parser.parse_known_args(args)
    grown: list[str] = []
    pipeline.guarded(lambda: grown.extend(run(options, more)))
    if grown:
        raise SystemExit(1)


def run(options: argparse.Namespace, more: Sequence[str]) -> list[str]:
    """Train, write and print.

    Returns:
        The names of the checks that failed.

    Raises:
        ConfigurationError: The time is not above zero, or this is not Linux.
    """
    if options.minutes <= 0 or options.every < 0:
        raise ConfigurationError(
            [f"--minutes {options.minutes}, --every {options.every}: expected --minutes above 0 and --every at least 0."]
        )
    if not Path("/proc/self/statm").is_file():
        raise ConfigurationError(["soak: reads /proc, which is there on Linux only."])
    output = pipeline.writable(options.out / "soak.json")

    from endurance import soak, soak_report
    from rich.console import Console  # with what follows it takes seconds to import: not for --help

    from introspection_lit.utils.provenance import provenance

    arguments = ["--model.base.name_or_path", options.model, *more]
    measured = soak.soak(arguments, 60 * options.minutes, options.every, report)
    checks = soak_report.checks(measured)
    results = {
        **provenance(),
        "options": vars(options),
        "more": list(more),
        "settings": soak.SETTINGS,
        "checks": [check._asdict() for check in checks],
        "most_encoded": measured.most_encoded,
        "most_remembered": measured.most_remembered,
        "samples": [sample._asdict() | {"holds": sample.holds._asdict()} for sample in measured.samples],
    }
    write_file(output, json.dumps(results, indent=2, allow_nan=False, default=str) + "\n")
    save_figure(output.with_suffix(".png"), soak_report.figure(measured.samples))
    Console(width=120).print(soak_report.table(checks))
    print(f"{measured.samples[-1].steps} training batches, {measured.samples[-1].life} lives. Details: {output}")
    return [check.name for check in checks if not check.passed]


def report(sample: Sample) -> None:
    """Print a line for a sample."""
    holds = sample.holds
    print(
        f"{sample.seconds / 60:6.2f} min, {sample.scene} {sample.life or ''}: {holds.resident / 2**20:.0f} MiB, "
        f"{holds.tensors} tensors, {holds.hooks} hooks, {holds.files} files, {sample.trials_per_second:.0f} trials/s",
        flush=True,
    )


if __name__ == "__main__":
    main()
