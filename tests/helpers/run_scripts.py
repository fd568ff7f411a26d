"""What tests of the scripts share: scripts as modules, their common options, and all five steps in a row."""

from __future__ import annotations

import importlib.util
import io
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType, SimpleNamespace

from project_paths import CONFIG, ROOT

SCRIPTS = ("generate_vectors", "baseline_benchmark", "generate_training_data", "finetune", "evaluate")


def script(name: str) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec and spec.loader  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def options(model: Path | str, folder: Path) -> list[str]:
    """What every step gets."""
    return ["--model", str(model), "--config", CONFIG, "--folder", str(folder)]


GRID = ["--n-vectors", "2", "--n-contexts", "3"]


def all_steps(tiny: Path, folder: Path) -> SimpleNamespace:
    """Run all five steps on a model: their folder, the shared options, and what ``finetune`` printed."""
    shared = options(tiny, folder)
    script("generate_vectors").main([*shared, "--n-random", "8", "--data.validation_vectors", "3"])
    script("baseline_benchmark").main([*shared, *GRID, "--with-info"])
    script("generate_training_data").main([*shared, "--n-examples", "24", "--n-train-vectors", "4"])
    train = ["--epochs", "2", "--grad-accum", "2", "--lr", "1e-2", "--output", str(folder / "checkpoints")]
    with redirect_stdout(io.StringIO()) as printed:
        script("finetune").main([*shared, *train])
    adapter = ["--adapter", str(folder / "checkpoints" / "best")]
    script("evaluate").main([*shared, *adapter, "--n-train-vectors", "4"])
    return SimpleNamespace(
        folder=folder, shared=shared, train=train, finetuned=printed.getvalue(), adapter=adapter, model=tiny
    )
