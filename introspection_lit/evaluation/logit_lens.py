"""The logit lens: log-odds of the answers read from the residual stream after every layer.

The residual stream at the answer position is read after every layer through the final norm and the head (nostalgebraist
2020, "interpreting GPT: the logit lens"). After the last layer that is the model's answer itself.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from introspection_lit.models.architecture import find_head
from introspection_lit.steering.residual import residual
from introspection_lit.tasks.scoring import log_odds

if TYPE_CHECKING:
    from peft import PeftModel

    from introspection_lit.trials.batch import TrialBatch


class Answering(Protocol):
    """A model with its adapter that answers questions about caches.

    Attributes:
        model: The model.
        layers: Its decoder layers.
    """

    model: PeftModel
    layers: list[nn.Module]

    def answer_logits(self, batch: TrialBatch) -> Tensor:
        """Logits at the answer position, ``(batch, vocabulary)``."""


def log_odds_by_layer(module: Answering, batch: TrialBatch) -> Tensor:
    """Compute the log-odds of the answers after every layer.

    Args:
        module: With its model.
        batch: With its cache, each row with one of its own.

    Returns:
        logit(yes) - logit(no), ``(layers, batch)`` float32.

    Raises:
        ValueError: The model's final norm or head is not found, or something else (a scale, a soft cap) changes its logits.
    """
    norm, head = find_head(module.model)
    last = batch.question_mask.sum(dim=1) - 1
    rows = torch.arange(len(last), device=last.device)
    residuals: dict[int, Tensor] = {}

    def record(layer: int) -> Any:
        def hook(layer_module: nn.Module, _: Any, output: Any) -> None:
            hidden = residual(layer_module, output)
            if hidden.shape[:2] == batch.question_ids.shape:  # skips the pass over the shared question prefix
                residuals[layer] = hidden[rows, last]

        return hook

    with ExitStack() as hooks, torch.no_grad():
        for number, layer in enumerate(module.layers):
            hooks.callback(layer.register_forward_hook(record(number)).remove)
        answers = log_odds(module.answer_logits(batch), batch.answer_ids)
        layers = [log_odds(head(norm(residuals[number])), batch.answer_ids) for number in range(len(module.layers))]
    if not torch.allclose(layers[-1], answers, rtol=0.02, atol=0.05):
        raise ValueError("the head does more to its logits than a matrix (a scale, or a soft cap): no logit lens.")
    return torch.stack(layers)


def summarise_lens(read: dict[int, tuple[np.ndarray, bool]]) -> dict[str, Any] | None:
    """Log-odds by layer: mean and quartiles over clean and over steered trials; None unless there are both."""
    labels = np.array([steered for _, steered in read.values()], dtype=bool)
    if len(set(labels)) < 2:
        return None
    values = np.stack([layers for layers, _ in read.values()], axis=1)
    found: dict[str, Any] = {"layers": list(range(len(values))), "n": len(labels)}
    for name, which in (("clean", ~labels), ("steered", labels)):
        low, high = np.quantile(values[:, which], (0.25, 0.75), axis=1)
        found[name] = {"mean": values[:, which].mean(1).tolist(), "low": low.tolist(), "high": high.tolist()}
    return found
