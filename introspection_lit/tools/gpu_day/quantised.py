"""NF4 quantised on the CPU against NF4 quantised on a GPU: bytes, dequantised weights, scores of the untrained model."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from introspection_lit.contexts.context import BUILTIN
from introspection_lit.contexts.loading import load_contexts
from introspection_lit.detector import Detector
from introspection_lit.models.architecture import find_decoder_layers
from introspection_lit.models.base_model import EMBEDDED, BaseModel, Lora
from introspection_lit.models.loading import add_lora, load_model, load_tokenizer
from introspection_lit.steering.specification import Steering
from introspection_lit.utils.lazy_types import PreTrainedModel

BASE = BaseModel(EMBEDDED, dtype="bfloat16", quantization="nf4", quant_storage="bfloat16")
STRENGTH = 20.0  # absolute, at each layer of the middle band; of residual norms of about 140


def packed_weights(model: PreTrainedModel) -> dict[str, Any]:
    """Every weight in 4 bits, by name."""
    return {name: weight for name, weight in model.named_parameters() if getattr(weight, "quant_state", None) is not None}


def dequantised(weight: Any, device: torch.device) -> Tensor:
    """A weight in float32, dequantised on a device; back on the CPU."""
    from bitsandbytes.functional import dequantize_4bit

    moved = copy.deepcopy(weight).to(device)  # bitsandbytes moves the scales of the one that is asked, too
    return dequantize_4bit(moved.data, moved.quant_state).float().cpu()


def compare_weights(one: dict[str, Any], other: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Compare packed weights of the same matrices.

    Args:
        one: By name, from :func:`packed_weights`.
        other: The same names.
        device: Both are dequantised there.

    Returns:
        ``matrices``, ``bytes`` and ``bytes_that_differ``; the ``largest_difference`` of dequantised weights, each over the
        largest weight of its matrix; and the same of the other's weights, dequantised on the device and on the CPU
        (``dequantised_elsewhere``).
    """
    assert one.keys() == other.keys()
    total = changed = 0
    weights = elsewhere = 0.0
    for name, weight in one.items():
        packed = [w.detach().cpu().contiguous().view(torch.uint8).flatten() for w in (weight, other[name])]
        total, changed = total + len(packed[0]), changed + int((packed[0] != packed[1]).sum())
        dense = [dequantised(w, device) for w in (weight, other[name])]
        there = dequantised(other[name], torch.device("cpu"))
        largest = float(dense[1].abs().max())
        weights = max(weights, float((dense[0] - dense[1]).abs().max()) / largest)
        elsewhere = max(elsewhere, float((there - dense[1]).abs().max()) / largest)
    return {
        "matrices": len(one),
        "bytes": total,
        "bytes_that_differ": changed,
        "largest_difference": weights,
        "dequantised_elsewhere": elsewhere,
    }


def scores(model: PreTrainedModel, trials: int) -> list[float]:
    """Log-odds of the untrained model on built-in contexts, every other one of them steered."""
    detector = Detector(add_lora(model, Lora(dropout=0.0)), load_tokenizer(BASE), find_decoder_layers(model))
    contexts = load_contexts(BUILTIN)[:trials]
    random = torch.Generator().manual_seed(0)
    directions = torch.randn(len(contexts), int(detector.config.hidden_size), generator=random)
    steerings = [
        Steering(direction, STRENGTH, unit="absolute") if number % 2 else None
        for number, direction in enumerate(directions)
    ]
    answers = detector.ask_many(contexts, steerings, batch_size=8)
    detector.model.unload()
    return [answer.log_odds for answer in answers]


def compare_devices(device: torch.device, trials: int) -> dict[str, Any]:
    """Quantise the embedded model on the CPU and on a device, and compare.

    Args:
        device: A GPU; with the CPU everything is compared with itself, and nothing differs.
        trials: How many are scored.

    Returns:
        :func:`compare_weights`; and the largest differences of log-odds, in nats, of the model quantised and computed on
        the device against: quantised on the CPU and computed on the device (``scores_quantised_elsewhere``), and quantised
        and computed on the CPU (``scores_all_elsewhere``); and their range over trials, to compare with.
    """
    cpu, other = load_model(BASE, "cpu"), load_model(BASE, device)
    found = compare_weights(packed_weights(cpu), packed_weights(other), device)
    there = scores(other, trials)
    all_elsewhere = scores(cpu, trials)
    moved = scores(cpu.to(device), trials)
    return found | {
        "device": device.type,
        "trials": trials,
        "scores_all_elsewhere": _largest(there, all_elsewhere),
        "scores_quantised_elsewhere": _largest(there, moved),
        "scores_range": max(there) - min(there),
    }


def _largest(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))
