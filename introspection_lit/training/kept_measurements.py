"""What measurements of a model depend on besides the texts that it reads, for those that are kept for other runs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from introspection_lit.training.run_context import RunContext

# Options that say where a model is, which what it is says better.
PLACES = {"name_or_path", "revision"}


def measured_with(run: RunContext) -> dict[str, Any] | None:
    """The model and the arithmetic of a run, as JSON can hold it; None: the model cannot be told from others.

    With all of this equal, on one machine, numbers that are computed again are equal to the last bit.

    Args:
        run: With its trainer, and a module whose model is loaded.
    """
    model = run.module.base_identity.exactly()
    if model is None:
        return None
    device = run.trainer.strategy.root_device
    return {
        "model": model,
        "options": {name: value for name, value in asdict(run.module.base).items() if name not in PLACES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "precision": [str(run.trainer.precision), torch.get_float32_matmul_precision()],
    }
