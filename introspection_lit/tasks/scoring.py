"""Scores of an answer: log-odds, mass and loss at the answer position."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def log_odds(logits: Tensor, answer_ids: Tensor) -> Tensor:
    """The score: logit(yes) - logit(no), in nats.

    Args:
        logits: At the answer position, ``(batch, vocabulary)``.
        answer_ids: Token ids of yes and no, ``(2,)``.

    Returns:
        ``(batch,)`` in float32 (a bfloat16 softmax only knows multiples of 1/256). Higher means "steered".
    """
    answers = logits.float()[:, answer_ids]
    return answers[:, 0] - answers[:, 1]


def mass(logits: Tensor, answer_ids: Tensor) -> Tensor:
    """P(yes) + P(no) under the full softmax, ``(batch,)`` in [0, 1]. Where it is small, the log-odds mean nothing."""
    return logits.float().softmax(dim=-1)[:, answer_ids].sum(dim=-1).clamp(max=1)  # rounding may go beyond


def detection_loss(logits: Tensor, answer_ids: Tensor, labels: Tensor, kind: str = "full") -> Tensor:
    """Cross-entropy of the right answer, averaged over the batch, in nats.

    Args:
        logits: ``(batch, vocabulary)``.
        answer_ids: Token ids of yes and no, ``(2,)``.
        labels: True where the trial was steered, ``(batch,)``.
        kind: ``full``: over the whole vocabulary, which keeps the mass. ``pairwise``: over the two answers alone, which
            leaves the mass free; it has been seen to fall to .013 in published work.
    """
    if kind == "pairwise":
        return functional.binary_cross_entropy_with_logits(log_odds(logits, answer_ids), labels.float())
    yes, no = answer_ids
    return functional.cross_entropy(logits.float(), torch.where(labels.bool(), yes, no))
