"""Measures the training step: trials a second, the hardware's share, memory, and seconds to start.

    python benchmark.py --model smollm2-135m --batch-sizes 4 16
    python benchmark.py --model qwen2.5-coder-32b --sweep --json speed.json     # random weights, no download
    python benchmark.py --model tiny --rounds 5 --against ../../before          # this build and another one in turn

The project's own training at each batch size, with nothing reused and with everything reused (data.reuse), beside training
on one trial at a time as earlier implementations do, with the same model in the same run. Each row has its ratio to that.
Nothing is trained that could be used: weights may be random, and adapters are thrown away.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from introspection_lit.models.base_model import SAFE_PRECISIONS, SHORT_NAMES
from introspection_lit.models.random_models import RANDOM, SHAPES
from introspection_lit.tools import option_types, pipeline
from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.files import write_file

ROOT = Path(__file__).resolve().parent.parent
# Each number: its default, and what it means.
NUMBERS = {
    "contexts": (100, "different contexts in training"),
    "context-tokens": (72, "their length, about; the nearest are taken"),
    "question-tokens": (36, "length of questions, at least; ours get words before them"),
    "steps": (3, "optimiser steps in a measurement"),
    "rounds": (3, "measurements of each row"),
    "sweep-limit": (1024, "the sweep looks no further"),
}


def main(args: Sequence[str] | None = None) -> None:
    """Run the script.

    Args:
        args: The command line, without the program's name; default: ``sys.argv``.

    Raises:
        SystemExit: 2 if the command cannot work, 130 after Ctrl-C.
    """
    options, more = argument_parser().parse_known_args(args)
    pipeline.guarded(lambda: run(options, more) if options.against is None else run_against(options, args))


def argument_parser() -> argparse.ArgumentParser:
    """The script's own options."""
    others = "Any other option is one of `python -m introspection_lit`, such as --model.lora.r 4."
    parser = option_types.parser(__doc__, others)
    shapes = ", ".join(name for name in SHAPES if name not in SHORT_NAMES)
    parser.add_argument(
        "--model",
        default="smollm2-135m",
        help=f"hub id, folder or {', '.join(SHORT_NAMES)} (default: smollm2-135m); with random weights, {shapes}, or "
        f"{RANDOM}NAME",
    )
    parser.add_argument("--precision", help="of the trainer (default: bf16-mixed on a GPU, 32-true on the CPU)")
    parser.add_argument("--quantization", choices=("none", "nf4"), help="default: nf4 on a GPU, none on the CPU")
    sizes = "even; 1 is one trial at a time, which is always measured (default: 4 16 32)"
    parser.add_argument("--batch-sizes", nargs="+", type=option_types.positive, default=[4, 16, 32], help=sizes)
    for name, (default, meaning) in NUMBERS.items():
        parser.add_argument(
            f"--{name}", type=option_types.positive, default=default, help=f"{meaning} (default: {default})"
        )
    parser.add_argument("--sweep", action="store_true", help="also find the largest batch that fits, and measure it")
    parser.add_argument("--each-saving", action="store_true", help="also measure each saving of data.reuse alone")
    tasks = "also measure training with four questions for each cache (data.tasks): a trial is a question"
    parser.add_argument("--tasks", action="store_true", help=tasks)
    other = "compare with another checkout: processes of both builds in turn, --rounds of each, with the same other options"
    parser.add_argument("--against", type=Path, metavar="FOLDER", help=other)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there, too")
    return parser


def arguments(options: argparse.Namespace, more: Sequence[str], gpu: bool) -> list[str]:
    """The configuration, as arguments of the command line; what the user gave comes last and wins."""
    precision = options.precision or ("bf16-mixed" if gpu else "32-true")
    storage = next((name for name, safe in SAFE_PRECISIONS.items() if precision in safe), "uint8")
    shape = options.model in SHAPES and options.model not in SHORT_NAMES
    settings = {
        "trainer.devices": 1,
        "trainer.precision": precision,
        "trainer.enable_progress_bar": False,
        "trainer.enable_model_summary": False,
        "trainer.logger": False,
        "model.base.name_or_path": f"{RANDOM}{options.model}" if shape else options.model,
        "model.base.dtype": storage if storage != "uint8" else "float32",
        "model.base.quantization": options.quantization or ("nf4" if gpu else "none"),
        "model.base.quant_storage": storage,
        "data.max_context_tokens": 2 * options.context_tokens,  # room for lengths on both sides
        "data.validation_trials": 2,
        "data.test_trials": {"heldout": 2},
    }
    return [*pipeline.as_arguments(settings), *more]


def run(options: argparse.Namespace, more: Sequence[str]) -> None:
    """Measure, print and write.

    Raises:
        ConfigurationError: A batch size is odd, or there is none.
    """
    sizes = sorted(set(options.batch_sizes) - {1})
    if odd := [size for size in sizes if size % 2]:
        raise ConfigurationError([f"--batch-sizes: got {odd}. Expected even numbers: half of every batch is steered."])
    if not sizes and not options.sweep:
        raise ConfigurationError(["--batch-sizes: got only 1, which is one trial at a time. Expected an even one, too."])
    if options.tasks and (odd := [size for size in sizes if size % 8]):
        expected = "Expected multiples of 8 with --tasks: a clean and a steered cache, four questions each"
        raise ConfigurationError([f"--batch-sizes: got {odd}. {expected}."])
    output = pipeline.writable(options.json) if options.json else None

    import torch  # with what follows it takes seconds to import: not for --help
    from rich.console import Console

    from introspection_lit.cli import attach
    from introspection_lit.tools.benchmark import benchmark, benchmark_report
    from introspection_lit.tools.benchmark.hardware import seconds_since_start
    from introspection_lit.tools.benchmark.measurement import Amount
    from introspection_lit.training.checks import half_problems
    from introspection_lit.utils.provenance import provenance

    imported = seconds_since_start()
    cli = attach(arguments(options, more, gpu=torch.cuda.is_available()))
    parsed = seconds_since_start()
    if problems := half_problems(str(cli.trainer.precision)):
        raise ConfigurationError(problems)
    amount = Amount(
        steps=options.steps,
        contexts=options.contexts,
        context_tokens=options.context_tokens,
        question_tokens=options.question_tokens,
    )
    limit = options.sweep_limit if options.sweep else None
    found = benchmark.compare(cli, sizes, amount, options.rounds, limit, options.each_saving, options.tasks)
    options_took = None if imported is None or parsed is None else parsed - imported
    found["seconds_to_start"] = {"imports": imported, "options": options_took, **found["seconds_to_start"]}
    results = {**provenance(), "options": vars(options), "more": list(more), **found}
    console = Console(width=100)
    console.print(benchmark_report.table(results))
    console.print("\n".join(benchmark_report.notes(results)), soft_wrap=True)
    if output is not None:
        write_file(output, json.dumps(results, indent=2, allow_nan=False, default=str) + "\n")


def run_against(options: argparse.Namespace, args: Sequence[str] | None) -> None:
    """Measure this build and another one in turn, print and write.

    Raises:
        ConfigurationError: The folder is no checkout, or a build refuses the options.
        RunError: A process failed.
    """
    from rich.console import Console

    from introspection_lit.tools.benchmark import against
    from introspection_lit.utils.provenance import provenance

    own = option_types.parser(None)
    for name in ("--against", "--rounds", "--json"):
        own.add_argument(name)
    words = own.parse_known_args(args)[1]  # as they were typed: the other build has its own idea of their defaults
    output = pipeline.writable(options.json) if options.json else None
    other = against.checkout(options.against)
    found = against.measure(ROOT, other, words, options.rounds, lambda line: print(line, flush=True))
    console = Console(width=80)
    console.print(against.table(found))
    console.print("ratio: geometric mean over the pairs; ±: its standard error; range: of single pairs")
    if output is not None:
        write_file(output, json.dumps({**provenance(), "options": words, **found}, indent=2, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
