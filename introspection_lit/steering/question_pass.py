"""The question pass: reads KV caches with a question appended, and predicts the answer. Nothing is steered here."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import Cache

from introspection_lit.steering.activation_checkpointing import recompute_layers
from introspection_lit.steering.prefill import Forward, fork, no_logits, position_ids


class QuestionBatch(Protocol):
    """Caches and the questions that are put to them; a row is one question put to one cache.

    Attributes:
        cache: The KV caches of the contexts, without gradient; None before the prefill.
        context_mask: 1 at tokens, 0 at (left) padding, ``(caches, context)``.
        cache_of: The cache that each row reads, ``(rows,)``; None: row ``i`` reads cache ``i``.
        question_prefix_ids: Tokens that all questions begin with, ``(prefix,)``: read once for each cache. None: not split.
        question_ids: Right-padded, without this prefix, ``(rows, question)``.
        question_mask: 1 at tokens, 0 at padding, ``(rows, question)``.
    """

    cache: Cache | None
    context_mask: Tensor
    cache_of: Tensor | None
    question_prefix_ids: Tensor | None
    question_ids: Tensor
    question_mask: Tensor


def read_answers(
    forward: Forward, batch: QuestionBatch, layers: Sequence[nn.Module] = (), recompute: bool = False
) -> Tensor:
    """Read the caches with the questions, and predict the answers. Steering hooks must be off.

    Args:
        forward: What to call; the model itself or the wrapper around it. The adapter must be on.
        batch: With its cache, which stays as it is.
        layers: The model's decoder layers; needed for ``recompute`` only.
        recompute: Keep only each decoder layer's input for the backward pass, and run the layer again there (see
            :func:`~introspection_lit.steering.activation_checkpointing.recompute_layers`). No effect without gradients.

    Returns:
        Logits at the answer position, which is the last token of each question, ``(rows, vocabulary)``.
    """
    return read_positions(forward, batch, answer_positions(batch)[:, None], layers, recompute)[:, 0]


def answer_positions(batch: QuestionBatch) -> Tensor:
    """The last token of each question, where its answer is predicted, ``(rows,)``."""
    return batch.question_mask.sum(dim=1) - 1


def read_positions(
    forward: Forward,
    batch: QuestionBatch,
    positions: Tensor,
    layers: Sequence[nn.Module] = (),
    recompute: bool = False,
) -> Tensor:
    """Predict the tokens after some positions of each question, ``(rows, positions)``; otherwise as :func:`read_answers`.

    Returns:
        Logits, ``(rows, positions, vocabulary)``.
    """
    assert batch.cache is not None, "the prefill has not run"
    cache, context_mask = fork(batch.cache), batch.context_mask
    if batch.question_prefix_ids is not None:
        prefix = batch.question_prefix_ids.expand(len(context_mask), -1)
        context_mask = torch.cat([context_mask, torch.ones_like(prefix)], dim=1)
        forward(
            input_ids=prefix,
            attention_mask=context_mask,
            position_ids=position_ids(context_mask)[:, -prefix.shape[1] :],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=no_logits(prefix),
        )
    if batch.cache_of is not None:
        cache.batch_select_indices(batch.cache_of)
        context_mask = context_mask[batch.cache_of]
    mask = torch.cat([context_mask, batch.question_mask], dim=1)
    kept, place = torch.unique(positions, return_inverse=True)
    with recompute_layers(layers) if recompute and torch.is_grad_enabled() else nullcontext():
        outputs = forward(
            input_ids=batch.question_ids,
            attention_mask=mask,
            position_ids=position_ids(mask)[:, context_mask.shape[1] :],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=kept,
        )
    logits: Tensor = outputs.logits[torch.arange(len(place), device=place.device)[:, None], place]
    return logits


def read_texts(forward: Forward, ids: Tensor, mask: Tensor) -> Tensor:
    """Predict every next token of left-padded texts, without steering or cache.

    Args:
        forward: What to call.
        ids: ``(texts, seq)``.
        mask: 1 at tokens, 0 at padding, ``(texts, seq)``.

    Returns:
        Logits, ``(texts, seq, vocabulary)``; arbitrary at padding.
    """
    outputs = forward(input_ids=ids, attention_mask=mask, position_ids=position_ids(mask), use_cache=False)
    logits: Tensor = outputs.logits
    return logits
