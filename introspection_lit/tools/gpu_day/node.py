"""The steps of ``scripts/gpu_node.py``: DDP against FSDP against one GPU, on one node.

The minutes are estimates: nothing has been measured on several GPUs yet.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from introspection_lit.report.result_files import read_results
from introspection_lit.tools import pipeline
from introspection_lit.tools.gpu_day.day import FEW, NF4
from introspection_lit.tools.gpu_day.recorded import differences, read_recorded
from introspection_lit.tools.gpu_day.step import Step, fit_command, measure_command, read_result

# The embedded model, whose scores mean something, and random weights of the largest one, which take time and memory.
MODELS = {"smollm2": "quickstart", "32b": "qwen2.5-coder-32b"}
WAYS = ("one", "ddp", "fsdp")
STEPS = 10  # optimiser steps


def node_steps(folder: Path, processes: int, tiny: bool, accelerator: str) -> list[Step]:
    """The steps of the node: for each model one GPU, DDP and FSDP with the same trials in each step; and copies.

    Args:
        folder: Gets their files; absolute.
        processes: GPUs; processes in a rehearsal.
        tiny: A rehearsal: tiny models and few trials.
        accelerator: ``gpu``, or ``cpu`` where a rehearsal has fewer GPUs than processes.
    """
    found = folder / "work" / "fsdp2" / "found.json"
    backend = "gloo" if accelerator == "cpu" else "nccl"
    copies = measure_command("copies", found, "--processes", str(processes), "--backend", backend)
    runs = [_run(folder, model, way, processes, tiny, accelerator) for model in MODELS for way in WAYS]
    return [*runs, Step("fsdp2", 1, [copies], lambda: read_result(found))]


def _run(folder: Path, model: str, way: str, processes: int, tiny: bool, accelerator: str) -> Step:
    """A short training and its test."""
    places = {each: folder / "work" / f"{each}-{model}" / "run" for each in WAYS}
    overlay = [] if way == "one" else ["--config", f"configs/{way}.yaml"]
    each = 4 if tiny else 16
    settings: dict[str, Any] = NF4 | (FEW if tiny else {"trainer.max_epochs": 1})
    if model == "32b" and not tiny:
        settings["model.base.name_or_path"] = "random:qwen2.5-coder-32b"
    settings |= {
        "trainer.accelerator": accelerator,
        "trainer.devices": 1 if way == "one" else processes,
        "model.lora.dropout": 0.0,  # each process draws its own
        "data.long": "null",
        "data.batch_size": each,
        "data.effective_batch": each * processes,
        "data.trials_per_epoch": each * processes * (2 if tiny else STEPS),
        "data.validation_trials": 16,
        "data.test_trials": {"heldout": 8 if tiny else 96},
        "evidence.enabled": False,
        "test_after_fit": True,
    }
    options = ["--config", f"configs/{MODELS[model]}.yaml", *overlay, *pipeline.as_arguments(settings)]

    def collect() -> dict[str, Any]:
        recorded = read_recorded(places[way])
        auroc = read_results(places[way] / "results.json")["sets"]["heldout"]["auroc"]
        against = None
        if way != "one" and (places["one"] / "results.json").is_file():  # else that step was not run, or failed
            against = differences(recorded, read_recorded(places["one"]))
        return {**recorded, "auroc": auroc, "against_one": against}

    return Step(f"{way}-{model}", 3 if model == "32b" else 1.5, [fit_command(places[way], options)], collect)
