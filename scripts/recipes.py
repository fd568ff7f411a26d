"""Which change of a training finds weaker steering: train a configuration again with each of some changes, in one table.

    python recipes.py --config ../docs/results/recipes/weak-doses.yaml --recipes ../docs/results/recipes/recipes.yaml
    python recipes.py --config ../configs/smollm2-135m.yaml --recipes ../docs/results/recipes/recipes.yaml --only rank-32

RECIPES is a YAML file with options of `fit` by name of the recipe; `base`, the configuration as it is unless the file
gives it options (such as measurements that the others go without), comes first. Each training lands in FOLDER/NAME/seed-N.
What is there already is not run again, so the same command goes on after Ctrl-C.
Writes recipes.json: mean, standard deviation and worst seed of every number of the table.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from introspection_lit.tools import option_types, pipeline
from introspection_lit.tools.compared_runs import run_and_compare
from introspection_lit.tools.fit_runs import reserved_option_problems
from introspection_lit.tools.recipe_numbers import LOWER_IS_BETTER, NUMBERS, recipe_numbers
from introspection_lit.utils.config_files import read_yaml_file
from introspection_lit.utils.errors import ConfigurationError

BASE = "base"
# Options that the script sets for each run.
RESERVED = ("--config", "--seed_everything", "--data.seed", "--test_after_fit", "--trainer.logger", "--ckpt_path")


def main(args: Sequence[str] | None = None) -> None:
    """Run the script.

    Args:
        args: The command line, without the program's name; default: ``sys.argv``.

    Raises:
        SystemExit: 1 if a training failed, 2 if the command cannot work, 130 after Ctrl-C.
    """
    parser = option_types.parser(__doc__)
    parser.add_argument("--config", required=True, type=Path, metavar="YAML", help="the experiment")
    parser.add_argument("--recipes", required=True, type=Path, metavar="YAML", help="options of fit by recipe")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="recipes of the file (default: all)")
    parser.add_argument("--seeds", type=option_types.positive, default=1, help="how many (default: %(default)s)")
    parser.add_argument("--first", type=option_types.seed, default=0, help="the first one (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="gets the runs (default: lightning_logs/recipes/CONFIG)")
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
        ConfigurationError: A file cannot be read, a recipe is not in it, or an option is reserved.
    """
    recipes = {BASE: {}, **read_recipes(options.recipes)}
    wanted = options.only or list(recipes)
    problems = [] if options.config.is_file() else [f"--config {options.config}: no such file."]
    problems += [
        f"--only: {name!r} is not in {options.recipes} ({', '.join(recipes)})." for name in wanted if name not in recipes
    ]
    problems += reserved_option_problems(more, RESERVED)
    for recipe in recipes.values():
        problems += reserved_option_problems([f"--{option}" for option in recipe], RESERVED)
    if problems:
        raise ConfigurationError(problems)
    names = dict.fromkeys([BASE, *wanted])
    return run_and_compare(
        {name: ["--config", str(options.config), *pipeline.as_arguments(recipes[name])] for name in names},
        more,
        range(options.first, options.first + options.seeds),
        (options.folder or Path("lightning_logs") / "recipes" / options.config.stem).expanduser(),
        "recipes.json",
        recipe_numbers,
        NUMBERS,
        LOWER_IS_BETTER,
        "Recipes",
    )


def read_recipes(path: Path) -> Mapping[str, Mapping[str, Any]]:
    """Options of ``fit`` by recipe.

    Raises:
        ConfigurationError: The file cannot be read, or is not options by name by recipe.
    """
    read = read_yaml_file(path, "--recipes")
    if not isinstance(read, dict) or not read or not all(isinstance(recipe, dict) for recipe in read.values()):
        raise ConfigurationError(
            [f"--recipes {path}: expected options of fit by recipe, such as rank-32: {{model.lora.r: 32}}."]
        )
    return {str(name): recipe for name, recipe in read.items()}


if __name__ == "__main__":
    main()
