"""Repeat an experiment with several seeds of vectors, contexts and training, and say how far its numbers differ.

    python several_seeds.py --config ../configs/quickstart.yaml --seeds 3

Each seed is trained and tested in a process of its own and lands in FOLDER/seed-N. Seeds that are there already are not run
again, so the same command goes on after Ctrl-C; what an unfinished run has left is moved aside. Writes seeds.json (mean,
standard deviation and worst of every number) and, of two seeds or more, report.html, which compares them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from introspection_lit import report
from introspection_lit.report.result_files import read_results
from introspection_lit.tools import option_types, pipeline
from introspection_lit.tools.fit_runs import Training, reserved_option_problems, run_missing
from introspection_lit.tools.several_seeds import seed_tables, seeds_with_repeated_bank, summarise_seeds
from introspection_lit.utils.checksums import write_json
from introspection_lit.utils.console import PlainConsole
from introspection_lit.utils.errors import ConfigurationError

# Options that the script sets for each run.
RESERVED = (
    *("--seed_everything", "--data.seed", "--test_after_fit", "--trainer.logger", "--ckpt_path"),
    "--checkpoint.dirpath",  # one folder would hold the checkpoints of all
)


def main(args: Sequence[str] | None = None) -> None:
    """Run the script.

    Args:
        args: The command line, without the program's name; default: ``sys.argv``.

    Raises:
        SystemExit: 1 if a seed failed, 2 if the command cannot work, 130 after Ctrl-C.
    """
    parser = option_types.parser(__doc__)
    parser.add_argument("--config", action="append", required=True, metavar="YAML", help="the experiment; may be repeated")
    parser.add_argument("--seeds", type=option_types.positive, default=3, help="how many (default: %(default)s)")
    parser.add_argument("--first", type=option_types.seed, default=0, help="the first one (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="gets the runs (default: lightning_logs/seeds/CONFIG)")
    options, more = parser.parse_known_args(args)
    pipeline.guarded_runs(lambda: repeat(options, more))


def repeat(options: argparse.Namespace, more: Sequence[str]) -> list[int]:
    """Run the seeds that are missing, and summarise all results.

    Args:
        options: Options of the script.
        more: Options of ``fit``.

    Returns:
        The seeds that failed.

    Raises:
        ConfigurationError: A configuration does not exist, an option is reserved, or a folder holds another run.
    """
    problems = [f"--config {config}: no such file." for config in options.config if not Path(config).is_file()]
    problems += reserved_option_problems(more, RESERVED)
    if problems:
        raise ConfigurationError(problems)
    folder = options.folder or Path("lightning_logs") / "seeds" / Path(options.config[-1]).stem
    shared = [word for config in options.config for word in ("--config", config)] + list(more)
    trainings = {
        seed: Training(
            folder.expanduser() / f"seed-{seed}",
            [*shared, "--seed_everything", str(seed), "--data.seed", str(seed), "--test_after_fit", "true"],
        )
        for seed in range(options.first, options.first + options.seeds)
    }
    failed = run_missing(trainings, "seed ")
    done = {seed: training for seed, training in trainings.items() if seed not in failed}
    if done:
        write_summary(" + ".join(options.config), done, folder.expanduser())
    if failed:
        print(f"failed, or left nothing tested: seed {', '.join(map(str, failed))}. The same command tries them again.")
    return failed


def write_summary(experiment: str, done: dict[int, Training], folder: Path) -> None:
    """Write ``seeds.json`` and the comparing report, and print the tables."""
    results = {seed: read_results(training.results) for seed, training in done.items()}
    summary = summarise_seeds(experiment, {seed: (str(done[seed].folder), run) for seed, run in results.items()})
    write_json(folder / "seeds.json", summary)
    console = PlainConsole()
    for table in seed_tables(summary):
        console.print(table)
    if repeated := seeds_with_repeated_bank(results):
        print(f"the vectors of seed {', '.join(map(str, repeated))} are those of an earlier one: data.bank is the same.")
    print(f"details: {folder / 'seeds.json'}")
    if len(done) > 1:
        runs = [word for training in done.values() for word in ("--run", str(training.folder))]
        report.main([*runs, "--out", str(folder / "report.html")])


if __name__ == "__main__":
    main()
