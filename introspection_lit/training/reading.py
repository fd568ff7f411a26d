"""The question pass of a run: with its adapter, its attention implementation, and the savings that its processes allow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributed import is_initialized

from introspection_lit.models.attention import question_attention
from introspection_lit.steering.prefill import Forward
from introspection_lit.steering.question_pass import answer_positions, read_positions

if TYPE_CHECKING:
    from introspection_lit.training.module import IntrospectionModule
    from introspection_lit.trials.batch import TrialBatch


def read_batch(
    module: IntrospectionModule, batch: TrialBatch, also: Tensor | None = None, forward: Forward | None = None
) -> Tensor:
    """Read the caches of a batch with its questions.

    Args:
        module: The module.
        batch: With its cache, which stays as it is.
        also: A position of each question to read besides that of the answer, ``(rows,)``.
        forward: What to call; default: the module.

    Returns:
        Logits at the answer position and at ``also``, ``(rows, 1 or 2, vocabulary)``.
    """
    answers = answer_positions(batch)
    places = torch.stack([answers] if also is None else [answers, also], dim=1)
    with question_attention(module.base, module.model, module.recompute):
        return read_positions(
            forward or module,
            batch,
            places,
            module.layers,
            module.recompute,
            head=module.model.get_base_model().get_output_embeddings(),
            group=not is_initialized(),  # several processes must make the same passes
        )
