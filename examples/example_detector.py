"""What the examples share: their arguments, a tiny detector where no adapter is given, and where figures go."""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib.figure import Figure

from introspection_lit import Detector, main

OUT = Path("lightning_logs/examples")
TALK = ("What should I cook tonight?", "A risotto with mushrooms: it takes half an hour, and one pan.")
# The options of `python -m introspection_lit fit`: a tiny model with random weights, few trials, strong steering.
TRAINING = {
    "model.base.name_or_path": "random:tiny",
    "model.learning_rate": "1e-2",
    "data.strengths": "[2, 8]",
    "data.max_context_tokens": "48",
    "data.trials_per_epoch": "160",
    "data.validation_trials": "32",
    "trainer.max_epochs": "1",
    "trainer.accelerator": "cpu",
    "trainer.log_every_n_steps": "1",
    "trainer.enable_progress_bar": "false",
}


def arguments(description: str | None, adapters: tuple[str, ...] = ("adapter",)) -> argparse.ArgumentParser:
    """A parser with the adapters, which may be left out, and ``--out``; ``description`` is the example's docstring."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in adapters:
        parser.add_argument(name, nargs="?", help="Folder or hub id; default: a tiny model with random weights is trained.")
    parser.add_argument("--out", type=Path, help=f"Folder of the figure; default: that of the run, or {OUT}.")
    return parser


def train(folder: str | Path, **options: str) -> Path:
    """Train a tiny adapter with the options above, or others as ``data__seed="1"``, and return its folder."""
    given = TRAINING | {name.replace("__", "."): value for name, value in options.items()}
    given |= {"trainer.logger.init_args.save_dir": str(folder)}
    cli = main(["fit", *(word for name, value in given.items() for word in (f"--{name}", value))])
    return Path(cli.trainer.log_dir) / "adapter"


def load(adapter: str | None, name: str = "tiny", **options: str) -> Detector:
    """The detector of an adapter; without one, the tiny one of this name, which is trained once and kept in ``OUT``."""
    kept = sorted((OUT / name).glob("default/version_*/adapter/adapter_model.safetensors"))
    detector = Detector.from_pretrained(adapter or (kept[-1].parent if kept else train(OUT / name, **options)))
    if detector.bank is None:
        raise SystemExit(f"{adapter} has no vectors.safetensors of its run beside it or above it: see docs/python.md.")
    return detector


def save(figure: Figure, name: str, adapter: str | None, out: Path | None) -> None:
    """Write a figure as PNG, into ``out`` or beside the adapter's run, and say where."""
    folder = out or (Path(adapter).parent if adapter and Path(adapter).is_dir() else OUT)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / name, dpi=150)
    print(f"figure: {folder / name}")
