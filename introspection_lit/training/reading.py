"""The question pass of a run: with its adapter, its attention implementation, and the savings that its processes allow."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from introspection_lit.models.base_model import BaseModel
from introspection_lit.steering.attention import attention
from introspection_lit.steering.prefill import Forward
from introspection_lit.steering.question_pass import QuestionBatch, answer_positions, read_positions
from introspection_lit.training.distributed import in_process_group

if TYPE_CHECKING:
    from introspection_lit.utils.lazy_types import PeftModel


class Reader(Forward, Protocol):
    """What is needed of the Lightning module."""

    base: BaseModel
    model: PeftModel
    layers: list[nn.Module]
    recompute: bool


def question_attention(base: BaseModel, model: PeftModel) -> AbstractContextManager[None]:
    """The attention implementation for the question pass, under the autocast of the moment.

    Args:
        base: Options of the model.
        model: It and its adapter.
    """
    device, inner = model.device.type, model.get_base_model()
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else inner.dtype
    switchable = getattr(type(inner), "_supports_attention_backend", False)
    eager = switchable and base.eager_for_questions(device, dtype == torch.bfloat16)
    return attention([model], "eager") if eager else nullcontext()


def read_batch(module: Reader, batch: QuestionBatch, also: Tensor | None = None, forward: Forward | None = None) -> Tensor:
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
    with question_attention(module.base, module.model):
        return read_positions(
            forward or module,
            batch,
            places,
            module.layers,
            module.recompute,
            head=module.model.get_base_model().get_output_embeddings(),
            group=not in_process_group(),
        )
