"""Writes the tables of GPU measurements in docs from the files of the steps; by hand nobody changes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from introspection_lit.tools.gpu_day.day import MODES, SEEDS, SHAPES, seed_numbers
from introspection_lit.tools.gpu_day.figures import MISSING, digits, figures
from introspection_lit.tools.gpu_day.node import MODELS, WAYS
from introspection_lit.tools.gpu_day.step import DONE, Record, read_records, read_result
from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.files import write_file

BEGIN, END = "<!-- tables of GPU measurements: begin -->", "<!-- tables of GPU measurements: end -->"
FOLDERS = {"gpu_day": Path("docs/results/gpu-day"), "gpu_node": Path("docs/results/gpu-node")}
CPU = Path("docs/results/smollm2-135m")
PERFORMANCE, CLUSTERS = Path("docs/performance.md"), Path("docs/clusters.md")
# The steps of each page.
TRAINED = (*(f"seed-{seed}" for seed in SEEDS), "nf4", *(f"repeat-{mode}" for mode in MODES))
SPEED = ("tests", *(f"speed-{name}" for name in SHAPES), *TRAINED)
MEMORY = ("auto", "fsdp2")
NODE = (*(f"{way}-{model}" for model in MODELS for way in WAYS), "fsdp2")
Records = Mapping[str, Record]


def rewrite(root: Path, folders: Mapping[str, Path]) -> list[str]:
    """Write the tables into the pages.

    Args:
        root: Of the checkout.
        folders: Of ``gpu_day`` or ``gpu_node``, instead of those of :data:`FOLDERS`.

    Returns:
        A line for each page.

    Raises:
        ConfigurationError: A folder does not exist, a page has no place for the tables, or a file is of a rehearsal.
    """
    if missing := [folder for folder in folders.values() if not folder.is_dir()]:
        raise ConfigurationError([f"--tables: {folder} is no folder. Expected one with the files." for folder in missing])
    said = []
    for page, tables in parts(root, folders).items():
        file = root / page
        text = file.read_text(encoding="utf-8")
        before, begin, rest = text.partition(BEGIN)
        _, end, after = rest.partition(END)
        if not (begin and end):
            raise ConfigurationError([f"{page}: has no lines {BEGIN} and {END}, between which tables are written."])
        write_file(file, f"{before}{BEGIN}\n{tables}{END}{after}")
        said.append(f"wrote the tables of {page}")
    return said


def parts(root: Path, folders: Mapping[str, Path] | None = None) -> dict[Path, str]:
    """What stands between the two lines of each page.

    Raises:
        ConfigurationError: A file is damaged, or of a rehearsal.
    """
    places = {name: (folders or {}).get(name, root / folder) for name, folder in FOLDERS.items()}
    day, node = (read_records(places[name]) for name in FOLDERS)
    if tiny := [name for records in (day, node) for name, record in records.items() if record["tiny"]]:
        raise ConfigurationError([f"--tables: {', '.join(tiny)} measured with --tiny: a rehearsal is no result."])
    cpu = {run["seed"]: run for run in map(read_result, sorted((root / CPU).glob("*.json"))) if "sets" in run}
    return {PERFORMANCE: performance_tables(day, cpu), CLUSTERS: cluster_tables(day, node)}


def performance_tables(day: Records, cpu: Mapping[int, Mapping[str, Any]]) -> str:
    """The tables of docs/performance.md.

    Args:
        day: The steps' files, by name.
        cpu: Results of the full experiment on a CPU, by seed.
    """
    lines = [*_figures("gpu_day", SPEED, day), *_sources("gpu_day", SPEED, day)]
    for name in (name for name in SPEED if name.startswith("speed") and _result(day, name)):
        lines += [*_speeds(name, day[name]["result"]), ""]
    return "\n".join([*lines, *_seeds(day, cpu), ""])


def cluster_tables(day: Records, node: Records) -> str:
    """The tables of docs/clusters.md."""
    lines = [*_figures("gpu_day", MEMORY, day), *_sources("gpu_day", MEMORY, day)]
    lines += [*_runs(node), *_figures("gpu_node", NODE[-1:], node), *_sources("gpu_node", NODE, node)]
    return "\n".join(lines)


def _result(records: Records, name: str) -> Mapping[str, Any] | None:
    record = records.get(name)
    return record["result"] if record and record["status"] == DONE else None


def _figures(script: str, names: tuple[str, ...], records: Records) -> Iterator[str]:
    yield from (f"| `{script}.py` | what | target | measured |", "|---|---|---|---|")
    for name in names:
        for number, row in enumerate(figures(name, _result(records, name))):
            yield f"| {'' if number else f'`{name}`'} | {row.what} | {row.target} | {row.measured} |"
    yield ""


def _runs(node: Records) -> Iterator[str]:
    """The trainings of a node, a line each."""
    titles = [row.what for row in figures(NODE[0], None)]
    yield from (f"| `gpu_node.py` | {' | '.join(titles)} |", "|---|" + "---:|" * len(titles))
    for name in NODE[:-1]:
        cells = [row.measured for row in figures(name, _result(node, name))]
        yield f"| `{name}` | {' | '.join(cells)} |"
    yield ""


def _sources(script: str, names: tuple[str, ...], records: Records) -> Iterator[str]:
    """Which file, hardware and commit each step is of, and what failed."""
    folder = FOLDERS[script].relative_to("docs")
    for name in (name for name in names if name in records):
        record = records[name]
        place = f"[{name}.json]({folder}/{name}.json)"
        origin = f"{record['hardware']}, commit `{record['commit']}`, seed {record['seed']}, `{record['command']}`"
        yield f"- {place}: {record['status']}; {origin}"
    if any(name in records for name in names):
        yield ""


def _speeds(name: str, result: Mapping[str, Any]) -> Iterator[str]:
    yield f"`{name}`: every row; the ceiling is {digits(result['ceiling_tflops'])} TFLOP/s."
    yield from ("", "| training | batch | trials/s | range | ratio | share | GiB |", "|---|---:|---:|---:|---:|---:|---:|")
    for row in result["rows"]:
        if row["out_of_memory"]:
            yield f"| {row['path']} | {row['batch']} | out of memory | | | | |"
            continue
        rates = f"{digits(row['trials_per_second'])} | {digits(row['lowest'])}-{digits(row['highest'])}"
        shares = f"{row['ratio']:.2f} | {row['of_ceiling']:.0%} | {row['peak_gib']:.2f}"
        yield f"| {row['path']} | {row['batch']} | {rates} | {shares} |"


def _seeds(day: Records, cpu: Mapping[int, Mapping[str, Any]]) -> Iterator[str]:
    """The full experiment on a GPU, beside that on a CPU."""
    found = {seed: _result(day, f"seed-{seed}") for seed in SEEDS}
    columns = [*({} if one is None else one["numbers"] for one in found.values())]
    columns += [seed_numbers(cpu[seed]) if seed in cpu else {} for seed in SEEDS]
    titles = [f"{place}, seed {seed}" for place in ("GPU", "CPU") for seed in SEEDS]
    yield from (f"| `configs/smollm2-135m.yaml` | {' | '.join(titles)} |", "|---|" + "---:|" * len(columns))
    for number in dict.fromkeys(number for column in columns for number in column):
        cells = [MISSING if column.get(number) is None else f"{column[number]:.4f}" for column in columns]
        yield f"| {number} | {' | '.join(cells)} |"
    yield ""
    for run in cpu.values():
        origin = f"{run['hardware']}, commit `{run['commit']}`"
        yield f"- CPU, seed {run['seed']}: {origin}, [results]({CPU.relative_to('docs')})"
