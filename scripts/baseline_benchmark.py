"""Step 2: measure the answers of the untrained model to clean and steered contexts.

    python baseline_benchmark.py --n-vectors 50                 # every concept and 50 random directions
    python baseline_benchmark.py --n-vectors 50 --with-info     # also with the info prompt and a neutral one of its length
    python baseline_benchmark.py --model smollm2-135m --sweep   # over bands and strengths
    python baseline_benchmark.py --conversations mine.json      # contexts from your own file, such as published prompts

Every direction is added in every context; the detection question and factual control questions are asked about each cache.
If steering shifts the control questions as far, it pushes every answer toward yes. For Qwen2.5-Coder-32B the layers are
21..42 and the strength is 20, as published; for other models the middle third and a relative strength of 1. Prints tables,
and writes baseline.json, baseline.jsonl (every trial) and baseline.png.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from introspection_lit.tools import baseline, baseline_figures, option_types, pipeline
from introspection_lit.training.protocol import grid_protocol
from introspection_lit.utils.console import PlainConsole
from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.files import atomic_file, save_figure, write_file
from introspection_lit.utils.provenance import provenance

ROOT = Path(__file__).resolve().parent.parent
# Bands and unit of the strength: as published for the 32B model, the middle third and a relative strength for others.
PUBLISHED = {pipeline.DEFAULT_MODEL: ([[21, 42]], "absolute")}
OTHERS = (["middle"], "relative")
STRENGTHS = {"absolute": [20.0], "relative": [1.0]}
SWEEP_BANDS = ["early", "middle", "late"]
SWEEP = {"absolute": [5.0, 10.0, 20.0, 40.0], "relative": [0.25, 0.5, 1.0, 2.0]}


def main(args: Sequence[str] | None = None) -> None:
    """Run the step.

    Args:
        args: The command line, without the program's name; default: ``sys.argv``.
    """
    parser = pipeline.make_parser(__doc__, ROOT)
    parser.add_argument(
        "--n-vectors", type=option_types.positive, default=50, help="random directions; concepts are all run (default: 50)"
    )
    parser.add_argument("--n-contexts", type=option_types.positive, help="contexts (default: 8, or all of --conversations)")
    parser.add_argument("--with-info", action="store_true", help="also with the info prompt, and with a neutral one")
    parser.add_argument("--sweep", action="store_true", help="over three bands and four strengths")
    parser.add_argument(
        "--bands", type=option_types.bands, help="such as '[\"middle\", [21, 42]]', first and last layer inclusive"
    )
    parser.add_argument("--strengths", type=option_types.strengths, help="such as '[10, 20]'")
    parser.add_argument("--unit", choices=("relative", "absolute"), help="of the strengths; see ARCHITECTURE.md")
    parser.add_argument("--adapter", help="run a trained adapter instead of the untrained model: folder or hub id")
    parser.add_argument("--name", help="what the files are called (default: baseline, and what is special about the run)")
    pipeline.guarded(lambda: benchmark(pipeline.parse(parser, args, "baseline")))


def grid_arguments(options: argparse.Namespace) -> list[str]:
    """The grid of the options, as arguments for the command line."""
    bands, unit = PUBLISHED.get(options.model, OTHERS)
    unit = options.unit or unit
    strengths = STRENGTHS[unit]
    if options.sweep:
        bands, strengths = SWEEP_BANDS, SWEEP[unit]
    grid = {
        "random_vectors": options.n_vectors,
        "contexts": options.n_contexts,
        "info": ["none", "explained", "neutral"] if options.with_info else ["none"],
        "bands": bands if options.bands is None else options.bands,
        "strengths": strengths if options.strengths is None else options.strengths,
    }
    return pipeline.as_arguments({"data.grid": grid, "data.strength_unit": unit})


def file_name(options: argparse.Namespace) -> str:
    """The name of a run's files, which contains its special options, so that other runs are not overwritten."""
    if options.name:
        if not re.fullmatch(r"\w[\w.-]*", options.name) or options.name in ("train", "vectors", "ladder"):
            raise ConfigurationError([f"--name: got {options.name!r}. Expected letters, digits, dots and dashes; no path."])
        return str(options.name)
    special = {
        "info": options.with_info,
        "sweep": options.sweep,
        Path(options.conversations or "").stem: options.conversations,
        re.sub(r"[^\w-]", "_", "-".join(options.answers or ())): options.answers,
        "adapter": options.adapter,
    }
    return "-".join(["baseline", *(name for name, value in special.items() if value)])


def benchmark(steps: pipeline.Steps) -> None:
    """Run the grid, compare steered with clean trials, print tables and write the files."""
    from introspection_lit.cli import main as run
    from introspection_lit.training.run_context import run_folder  # takes seconds to import: not for --help

    options, name = steps.options, file_name(steps.options)
    bank = ["--data.bank", str(steps.bank)] if steps.bank.is_file() or options.vectors else []
    if not bank:
        print("no vector bank yet: one is made for this run (generate_vectors.py makes one to keep)")
    if any(word.startswith(("--data.strength_unit", "--data.grid")) for word in steps.user_options):
        raise ConfigurationError(["--data.strength_unit, --data.grid: use --unit, --strengths, --bands and --n-contexts."])
    adapter = [
        *pipeline.training_options(options.adapter, steps),
        *pipeline.as_arguments({"model.adapter": options.adapter}),
    ]
    arguments = steps.command([*bank, "--data.eval_batch_size", "40"], [*adapter, *grid_arguments(options)])
    print(pipeline.equivalent_command("predict", arguments))
    cli = run(["predict", *arguments])
    folder = run_folder(cli.trainer)
    cli.trainer.strategy.barrier()  # every process writes rows of its own
    if not cli.trainer.is_global_zero:
        return
    rows = sorted(folder.glob("predictions*.jsonl"))
    compared = baseline.compare_directions(baseline.read_rows(rows))
    summary = baseline.average_directions(compared)
    origin = {**provenance(), **cli.model.identity(), "adapter": options.adapter, **grid_protocol(cli.datamodule.run)}
    results = {**origin, "grid": asdict(cli.datamodule.options.grid), "summary": summary, "directions": compared}
    text, figure = json.dumps(results, indent=1, allow_nan=False), baseline_figures.draw_baseline(compared, summary)
    with atomic_file(steps.folder / f"{name}.jsonl") as copied:
        copied.write_bytes(b"".join(path.read_bytes() for path in rows))
    write_file(steps.folder / f"{name}.json", text + "\n")
    save_figure(steps.folder / f"{name}.png", figure)
    console = PlainConsole()
    console.print(baseline.direction_table(compared, summary))
    console.print(baseline.control_table(summary))
    console.print(f"every direction: {steps.folder / name}.json, .png; every trial: .jsonl", soft_wrap=True)


if __name__ == "__main__":
    main()
