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

from introspection_lit.report.result_files import read_results
from introspection_lit.tools import option_types, pipeline
from introspection_lit.tools.compared_runs import run_and_compare
from introspection_lit.tools.fit_runs import reserved_option_problems
from introspection_lit.tools.task_numbers import NUMBERS, task_numbers
from introspection_lit.training.options import DataOptions
from introspection_lit.utils.config_files import read_yaml_file
from introspection_lit.utils.errors import ConfigurationError

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
TITLE = "What each task buys"


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
    variants = {ALL: (), **{f"without-{task}": (task,) for task in left_out}}
    return run_and_compare(
        {name: ["--config", str(options.config), *options_without(data, without)] for name, without in variants.items()},
        more,
        range(options.first, options.first + options.seeds),
        folder,
        "ablations.json",
        lambda training: task_numbers(read_results(training.results), "adapter"),
        NUMBERS,
        LOWER_IS_BETTER,
        TITLE,
    )


def data_of(config: Path) -> dict[str, Any]:
    """The part ``data`` of a configuration.

    Raises:
        ConfigurationError: The file cannot be read, or has no tasks.
    """
    read = read_yaml_file(config, "--config")
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


if __name__ == "__main__":
    main()
