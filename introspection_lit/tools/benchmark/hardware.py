"""Counters for a measurement: operations, the rate of a large matrix product, peak memory, and the process's age."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from introspection_lit.steering.residual import residual

if TYPE_CHECKING:
    from introspection_lit.training.module import IntrospectionModule


def matrix_weights(layers: Sequence[nn.Module]) -> int:
    """Weights in the matrices of decoder layers, the adapter's left out, however they are packed."""
    named = [pair for layer in layers for pair in layer.named_modules()]
    return sum(m.in_features * m.out_features for name, m in named if isinstance(m, nn.Linear) and "lora_" not in name)


def nominal_operations(weights: int, context: int, question: int) -> float:
    """Floating point operations of a trial on the plain path: 2·N·(c + 2·q)."""
    return 2.0 * weights * (context + 2 * question)


class TokensRun:
    """Counts operations in the decoder layers, by hooks that stay until :meth:`remove`.

    Args:
        module: With its model.
    """

    def __init__(self, module: IntrospectionModule) -> None:
        self.recompute = module.recompute
        self.forward = self.backward = 0.0
        self.handles = [layer.register_forward_hook(self._hook(2.0 * matrix_weights([layer]))) for layer in module.layers]

    def _hook(self, per_token: float) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            hidden = residual(module, output)
            operations = per_token * hidden.shape[0] * hidden.shape[1]
            self.forward += operations
            if torch.is_grad_enabled() and hidden.requires_grad:
                self.backward += operations

        return hook

    def reset(self) -> None:
        """Set the counts to 0."""
        self.forward = self.backward = 0.0

    def operations(self) -> float:
        """Floating point operations since the last reset: 2·N for each token forward, and as much backward."""
        return self.forward + self.backward * (2 if self.recompute else 1)  # recomputed layers do not call the hooks

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self.handles:
            handle.remove()


def matmul_ceiling(device: torch.device, dtype: torch.dtype, size: int | None = None, times: int = 4) -> float:
    """The rate of a large square matrix product on this device, in TFLOP/s: the best of several measurements."""
    size = size or (8192 if device.type == "cuda" else 1536)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(times + 1):  # the first warms up
        synchronise(device)
        start = time.perf_counter()
        torch.mm(a, b)
        synchronise(device)
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best / 1e12


def synchronise(device: torch.device) -> None:
    """Wait for a GPU to finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    """Reset the peak of memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):  # not Linux, or not allowed: the peak is then that of the whole run
            Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> int:
    """The peak since the last reset, in bytes: of tensors on a GPU, or of the whole process's memory on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return 1024 * int(lines["VmHWM"].split()[0])


def seconds_since_start() -> float | None:
    """The age of this process in seconds; None where the system does not say (not Linux)."""
    stat = Path("/proc/self/stat")
    if not stat.exists():
        return None
    ticks = int(stat.read_text().rsplit(")", 1)[1].split()[19])  # field 22: its start, since that of the machine
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
