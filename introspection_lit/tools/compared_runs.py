"""Trainings that differ in one thing, side by side: each with several seeds, statistics of their numbers, and tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.table import Table

from introspection_lit.report.formatting import format_rate
from introspection_lit.tools.fit_runs import Training, run_missing
from introspection_lit.tools.several_seeds import Row, seed_statistics
from introspection_lit.utils.checksums import write_json
from introspection_lit.utils.console import PlainConsole
from introspection_lit.utils.provenance import provenance

# What is compared, by name; each with its numbers by name.
Rows = dict[str, dict[str, Row]]
# Columns of a table besides that of reference.
BESIDE = 2


def run_and_compare(
    variants: Mapping[str, Sequence[str]],
    more: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    file: str,
    numbers_of: Callable[[Training], Mapping[str, float | None]],
    titles: Mapping[str, str],
    lower_is_better: Sequence[str],
    title: str,
) -> list[str]:
    """Run what is missing, write statistics of all results, and print them as tables.

    Args:
        variants: Options of ``fit`` by name, without those of seed and logger; the first is the one of reference.
        more: Options of all.
        seeds: Seeds of each.
        folder: Gets the runs, in NAME/seed-N.
        file: Name of the file in it that gets the statistics.
        numbers_of: The numbers of a training that is done; None where it has none.
        titles: Of the numbers.
        lower_is_better: Those of which the highest is the worst.
        title: Of the tables.

    Returns:
        The trainings that failed.

    Raises:
        ConfigurationError: A folder holds the results of another command.
    """
    trainings = {
        f"{name}/seed-{seed}": Training(
            folder / name / f"seed-{seed}",
            [*options, "--seed_everything", str(seed), "--data.seed", str(seed), "--test_after_fit", "true", *more],
        )
        for name, options in variants.items()
        for seed in seeds
    }
    failed = run_missing(trainings)
    rows: Rows = {}
    for name in variants:
        done = {seed: trainings[run] for seed in seeds if (run := f"{name}/seed-{seed}") not in failed}
        numbers = {seed: numbers_of(training) for seed, training in done.items()}
        columns = {number: {seed: found.get(number) for seed, found in numbers.items()} for number in titles}
        statistics = {
            number: seed_statistics(values, highest_is_worst=number in lower_is_better)
            for number, values in columns.items()
            if any(value is not None for value in values.values())
        }
        rows |= {name: statistics} if statistics else {}
    origin = provenance()
    write_json(folder / file, {"commit": origin["commit"], "command": origin["command"], "rows": rows})
    for table in compared_tables(rows, next(iter(variants)), titles, title):
        PlainConsole().print(table)
    print(f"details: {folder / file}")
    return failed


def compared_tables(
    rows: Mapping[str, Mapping[str, Row]], reference: str, titles: Mapping[str, str], title: str
) -> list[Table]:
    """Tables of 80 columns: a row for each number; the reference and :data:`BESIDE` others, by their means."""
    others = [name for name in rows if name != reference]
    tables = []
    for first in range(0, max(len(others), 1), BESIDE):
        shown = [*(name for name in (reference,) if name in rows), *others[first : first + BESIDE]]
        table = Table(title=f"{title}: mean over seeds", padding=0)
        table.add_column("", no_wrap=True)
        for name in shown:
            table.add_column(name.replace("-", "\n", 1), justify="right")
        for number, words in titles.items():
            means = [(rows[name].get(number) or {}).get("mean") for name in shown]
            if any(mean is not None for mean in means):
                table.add_row(words, *("" if mean is None else format_rate(mean) for mean in means))
        tables.append(table)
    return tables
