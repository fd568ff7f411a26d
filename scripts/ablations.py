"""What each task buys: train a configuration with several tasks again, each time without one of them, in one table.

    python ablations.py --config ../configs/tasks.yaml --seeds 3
    python ablations.py --config ../configs/tasks.yaml --leave-out factual reading --trainer.max_epochs 2 --folder short

Each training lands in FOLDER/without-TASK/seed-N, that with all tasks in FOLDER/all/seed-N; pairs of caches in a step and
in an epoch stay the same. What is there already is not run again, so the same command goes on after Ctrl-C. Writes
ablations.json: mean, standard deviation and worst seed of every number of the table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from introspection_lit.report.result_files import read_results
from introspection_lit.tools import option_types, pipeline
from introspection_lit.tools.fit_runs import Training, reserved_option_problems, run_missing
from introspection_lit.tools.several_seeds import Row, seed_statistics
from introspection_lit.tools.task_numbers import NUMBERS, task_numbers
from introspection_lit.training.options import DataOptions
from introspection_lit.utils.checksums import write_json
from introspection_lit.utils.config_files import read_plain_yaml
from introspection_lit.utils.console import PlainConsole
from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.provenance import provenance

# Options that the script sets for each run.
RESERVED = (
    "--config",
    "--data.tasks",
    "--seed_everything",
    "--data.seed",
    "--test_after_fit",
    "--trainer.logger",
    "--ckpt_path",
)
# Sizes that count questions, and so follow from the questions of a cache.
SIZES = ("batch_size", "effective_batch", "eval_batch_size", "trials_per_epoch", "validation_trials")
# Numbers of which the highest is the worst.
LOWER_IS_BETTER = ("perplexity", "newkinds_fpr", "facts_changed", "reading_changed")
ALL = "all"
# Trainings without a task in a table.
BESIDE = 2


def main(args: Sequence[str] | None = None) -> None:
    """Run the script.

    Args:
        args: The command line, without the program's name; default: ``sys.argv``.

    Raises:
        SystemExit: 1 if a training failed, 2 if the command cannot work, 130 after Ctrl-C.
    """
    parser = option_types.parser(__doc__)
    parser.add_argument("--config", required=True, type=Path, metavar="YAML", help="the experiment, with data.tasks")
    parser.add_argument("--seeds", type=option_types.positive, default=3, help="how many (default: %(default)s)")
    parser.add_argument("--first", type=option_types.seed, default=0, help="the first one (default: %(default)s)")
    parser.add_argument("--leave-out", nargs="+", metavar="TASK", help="the tasks (default: each but detection)")
    parser.add_argument("--folder", type=Path, help="gets the runs (default: lightning_logs/ablations/CONFIG)")
    options, more = parser.parse_known_args(args)
    pipeline.guarded_runs(lambda: compare(options, more))


def compare(options: argparse.Namespace, more: Sequence[str]) -> list[str]:
    """Run what is missing, and put all results together.

    Args:
        options: Options of the script.
        more: Options of ``fit``.

    Returns:
        The trainings that failed.

    Raises:
        ConfigurationError: The configuration has no tasks, a task is not among them, or an option is reserved.
    """
    data = data_of(options.config)
    tasks = data["tasks"]
    left_out = options.leave_out or [task for task in tasks if task != "detection"]
    problems = [
        f"--leave-out: {task!r} is not in data.tasks ({', '.join(tasks)})." for task in left_out if task not in tasks
    ]
    problems += ["--leave-out: detection cannot be left out."] if "detection" in left_out else []
    problems += reserved_option_problems(more, RESERVED)
    if problems:
        raise ConfigurationError(problems)
    folder = (options.folder or Path("lightning_logs") / "ablations" / options.config.stem).expanduser()
    seeds = range(options.first, options.first + options.seeds)
    names = {ALL: (), **{f"without-{task}": (task,) for task in left_out}}
    trainings = {
        f"{name}/seed-{seed}": Training(
            folder / name / f"seed-{seed}",
            [
                *("--config", str(options.config)),
                *options_without(data, without),
                *("--seed_everything", str(seed), "--data.seed", str(seed), "--test_after_fit", "true"),
                *more,
            ],
        )
        for name, without in names.items()
        for seed in seeds
    }
    failed = run_missing(trainings)
    rows = {
        name: summary({seed: trainings[f"{name}/seed-{seed}"] for seed in seeds if f"{name}/seed-{seed}" not in failed})
        for name in names
    }
    rows = {name: row for name, row in rows.items() if row}
    origin = provenance()
    write_json(folder / "ablations.json", {"commit": origin["commit"], "command": origin["command"], "rows": rows})
    for table in ablation_tables(rows):
        PlainConsole().print(table)
    print(f"details: {folder / 'ablations.json'}")
    return failed


def data_of(config: Path) -> dict[str, Any]:
    """The part ``data`` of a configuration.

    Raises:
        ConfigurationError: The file cannot be read, or has no tasks.
    """
    try:
        read = read_plain_yaml(config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigurationError([f"--config {config}: cannot be read ({error})."]) from error
    data = read.get("data") if isinstance(read, dict) else None
    if not isinstance(data, dict) or not isinstance(data.get("tasks"), dict):
        raise ConfigurationError([f"--config {config}: has no data.tasks. Expected one such as configs/tasks.yaml."])
    return data


def options_without(data: Mapping[str, Any], left_out: Sequence[str]) -> list[str]:
    """Options of ``fit`` for all tasks but some, with the same pairs of caches in every step.

    Args:
        data: The part ``data`` of the configuration.
        left_out: Tasks.
    """
    tasks = {name: settings or {} for name, settings in data["tasks"].items() if name not in left_out}
    before, after = (questions_of_cache(of) for of in (data["tasks"], tasks))
    sizes = {name: data.get(name, getattr(DataOptions, name)) for name in SIZES}
    sizes = {f"data.{name}": size * after // before for name, size in sizes.items() if isinstance(size, int)}
    return ["--data.tasks", json.dumps(tasks), *pipeline.as_arguments(sizes)]


def questions_of_cache(tasks: Mapping[str, Any]) -> int:
    """Questions that a clean or steered cache is asked."""
    return sum(
        int((tasks[name] or {}).get("questions", 1)) for name in ("detection", "factual", "reading") if name in tasks
    )


def summary(trainings: Mapping[int, Training]) -> dict[str, Row]:
    """Statistics over seeds of every number of :data:`~introspection_lit.tools.task_numbers.NUMBERS`."""
    numbers = {seed: task_numbers(read_results(training.results), "adapter") for seed, training in trainings.items()}
    rows = {name: {seed: found.get(name) for seed, found in numbers.items()} for name in NUMBERS}
    return {
        name: seed_statistics(values, highest_is_worst=name in LOWER_IS_BETTER)
        for name, values in rows.items()
        if any(value is not None for value in values.values())
    }


def ablation_tables(rows: Mapping[str, Mapping[str, Row]]) -> list[Table]:
    """Tables of 80 columns: a row for each number; all tasks, and :data:`BESIDE` trainings without one, by their means."""
    without = [name for name in rows if name != ALL]
    tables = []
    for first in range(0, max(len(without), 1), BESIDE):
        shown = [*(name for name in (ALL,) if name in rows), *without[first : first + BESIDE]]
        table = Table(title="What each task buys: mean over seeds", padding=0)
        table.add_column("", no_wrap=True)
        for name in shown:
            table.add_column(name.replace("-", "\n", 1), justify="right")
        for number, title in NUMBERS.items():
            means = [(rows[name].get(number) or {}).get("mean") for name in shown]
            if any(mean is not None for mean in means):
                table.add_row(title, *("" if mean is None else f"{mean:.3f}" for mean in means))
        tables.append(table)
    return tables


if __name__ == "__main__":
    main()
