"""Runs one measurement in this process, and writes what it found as JSON: a process of a step."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from introspection_lit.tools.gpu_day.copies import measure_copies
from introspection_lit.tools.gpu_day.quantised import compare_devices
from introspection_lit.utils.files import write_file
from introspection_lit.utils.provenance import provenance


def machine() -> dict[str, Any]:
    """Commit, versions and hardware; of each GPU its name, memory and compute capability."""
    gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return {
        **provenance(),
        "cuda": torch.version.cuda,
        "gpus": [{"name": p.name, "gib": p.total_memory / 2**30, "capability": [p.major, p.minor]} for p in gpus],
    }


def main(args: Sequence[str] | None = None) -> None:
    """Measure, and write."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("measurement", choices=("machine", "copies", "quantised"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--processes", type=int, default=2, help="copies: of FSDP")
    parser.add_argument("--backend", default="gloo", help="copies: gloo lets several processes share a GPU, nccl does not")
    parser.add_argument("--trials", type=int, default=64, help="quantised: scored on each device")
    options = parser.parse_args(args)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.measurement == "copies":
        found = measure_copies(device.type, options.processes, options.backend)
    elif options.measurement == "quantised":
        found = compare_devices(device, options.trials)
    else:
        found = machine()
    write_file(options.file, json.dumps(found, allow_nan=False))


if __name__ == "__main__":
    main()
