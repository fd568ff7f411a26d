"""What the examples share: their arguments, the detector, and where figures go."""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib.figure import Figure

from introspection_lit import Detector
from introspection_lit.models.adapters import EMBEDDED

OUT = Path("lightning_logs/examples")
TALK = ("What should I cook tonight?", "A risotto with mushrooms: it takes half an hour, and one pan.")


def arguments(description: str | None, adapters: tuple[str, ...] = ("adapter",)) -> argparse.ArgumentParser:
    """A parser with the adapters, which may be left out, and ``--out``; ``description`` is the example's docstring."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in adapters:
        parser.add_argument(name, nargs="?", help="Folder or hub id; default: the one that comes with this package.")
    parser.add_argument("--out", type=Path, help=f"Folder of the figure; default: that of the run, or {OUT}.")
    return parser


def load(adapter: str | None) -> Detector:
    """The detector of an adapter; without one, that of the adapter which comes with this package."""
    detector = Detector.from_pretrained(adapter or EMBEDDED)
    if detector.bank is None:
        raise SystemExit(f"{adapter} has no vectors.safetensors of its run beside it or above it: see docs/python.md.")
    return detector


def save(figure: Figure, name: str, adapter: str | None, out: Path | None) -> None:
    """Write a figure as PNG, into ``out`` or beside the adapter's run, and say where."""
    folder = out or (Path(adapter).parent if adapter and Path(adapter).is_dir() else OUT)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / name, dpi=150)
    print(f"figure: {folder / name}")
