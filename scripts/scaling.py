"""Measures how time, memory and files grow with the work, and writes docs/scaling.md.

    python scaling.py --model tiny --axes context --sizes 32 64 --json growth.json

Without options it measures everything, on SmolLM2-135M, in about ten minutes on two cores. With --write, docs/scaling.md,
its figure and docs/results/scaling.json get the measurements in the end.

Axes: length of contexts, questions of a cache, trials of a batch, contexts whose caches are kept, trials of a manifest, and
trials of a test (its results and report; their scores are made up). Each is measured in a process of its own. Every size is
written to lightning_logs/scaling.json as soon as it has been measured, and an interrupted run goes on with the next one.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from introspection_lit.tools import option_types, pipeline
from introspection_lit.tools.scaling import axes
from introspection_lit.utils.errors import ConfigurationError

ROOT = Path(__file__).resolve().parent.parent


def main(args: Sequence[str] | None = None) -> None:
    """Run the script.

    Args:
        args: The command line, without the program's name; default: ``sys.argv``.
    """
    parser = option_types.parser(__doc__, "Any other option is one of `python -m introspection_lit`.")
    parser.add_argument("--model", default="smollm2-135m", help="as in benchmark.py (default: %(default)s)")
    parser.add_argument("--axes", nargs="+", choices=list(axes.AXES), default=list(axes.AXES), help="default: all")
    parser.add_argument("--sizes", nargs="+", type=option_types.positive, help="of a single axis, instead of its own")
    measured = ROOT / "lightning_logs" / "scaling.json"
    parser.add_argument("--json", type=Path, default=measured, help="measurements (default: lightning_logs/scaling.json)")
    pages = "write page, figure and results/scaling.json into this folder at the end (without a name: docs)"
    parser.add_argument("--write", type=Path, nargs="?", const=ROOT / "docs", metavar="FOLDER", help=pages)
    options, more = parser.parse_known_args(args)
    pipeline.guarded(lambda: run(options, more))


def run(options: argparse.Namespace, more: Sequence[str]) -> None:
    """Measure what is missing, print, and write the page.

    Raises:
        ConfigurationError: Sizes of several axes, or odd ones where half of the trials is steered.
    """
    if options.sizes and len(options.axes) > 1:
        raise ConfigurationError([f"--sizes: got {options.sizes} for {len(options.axes)} axes. Name one with --axes."])
    for name in options.axes:
        sizes = options.sizes or axes.SIZES[name]
        if axes.AXES[name].even and (odd := [size for size in sizes if size % 2]):
            raise ConfigurationError(
                [f"--sizes: got {odd} of {name}. Expected even numbers: half of the trials is steered."]
            )
    path = pipeline.writable(options.json)
    if len(options.axes) == 1:
        measure(options.axes[0], options, path, more)
    else:  # in one process, an axis would be measured with the memory of those before it
        for name in options.axes:
            command = [sys.executable, __file__, "--model", options.model, "--axes", name, "--json", str(path), *more]
            if status := subprocess.run(command, check=False).returncode:
                raise SystemExit(status)
    if options.write is not None:  # not before: results of a changed checkout would say so
        from introspection_lit.tools.scaling import page

        page.write_page(options.write.expanduser(), axes.read(path))


def measure(name: str, options: argparse.Namespace, path: Path, more: Sequence[str]) -> None:
    """Measure the sizes of an axis that are missing, and print all."""
    import torch  # with what follows it takes seconds to import: not for --help
    from rich.console import Console

    from introspection_lit.models.base_model import SHORT_NAMES
    from introspection_lit.models.random_models import RANDOM, SHAPES
    from introspection_lit.tools.scaling import page
    from introspection_lit.utils.provenance import provenance

    shape = options.model in SHAPES and options.model not in SHORT_NAMES
    model = f"{RANDOM}{options.model}" if shape else options.model
    settings = {
        "model": options.model,
        "threads": torch.get_num_threads(),
        **({"options": shlex.join(more)} if more else {}),
    }
    sizes = ["--sizes", *map(str, options.sizes)] if options.sizes else []
    command = shlex.join(["python", "scripts/scaling.py", "--model", options.model, "--axes", name, *sizes, *more])
    left = axes.missing(axes.read(path), name, options.sizes or axes.SIZES[name], settings)
    point = _instrument(name, model, tuple(more)) if left else None
    for size in left:
        assert point is not None
        found = point(size)
        axes.add(path, name, found, settings, provenance() | {"command": command})
        print(f"{name} {size}: {found['seconds']:.3g} s, {found['memory'] / page.MIB:,.0f} MiB", flush=True)
    points = axes.read(path)[name]["points"]
    console = Console(width=80)
    console.print(page.console_table(name, points))
    console.print(page.sentence(name, points))


def _instrument(name: str, model: str, more: tuple[str, ...]) -> Callable[[int], dict[str, Any]]:
    """What measures a size of an axis; a model is loaded if need be."""
    if name in (axes.MANIFEST, axes.TESTED):
        from introspection_lit.tools.scaling import trial_files

        return trial_files.ManifestWork(model, more).point if name == axes.MANIFEST else trial_files.tested_point
    from introspection_lit.tools.scaling.training_steps import TrainingSteps

    steps = TrainingSteps(model, more)
    return lambda size: steps.point(name, size)


if __name__ == "__main__":
    main()
