"""The score and the loss of an answer, from the logits at the answer position.

The score of a trial is its log-odds, logit("steered") - logit("not steered"); training minimises :func:`detection_loss`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def log_odds(logits: Tensor, answer_ids: Tensor) -> Tensor:
    """The score of a trial: logit(yes) - logit(no), in nats.

    Args:
        logits: At the answer position, ``(batch, vocabulary)``.
        answer_ids: Token ids of yes ("steered") and no, ``(2,)``.

    Returns:
        ``(batch,)`` in float32, since bfloat16 is too coarse. Higher means "steered"; 0 means that both are equally likely.
    """
    answers = logits.float()[:, answer_ids]
    return answers[:, 0] - answers[:, 1]


def mass(logits: Tensor, answer_ids: Tensor) -> Tensor:
    """The answer probability P(yes) + P(no) under the full softmax.

    Args:
        logits: At the answer position, ``(batch, vocabulary)``.
        answer_ids: Token ids of yes and no, ``(2,)``.

    Returns:
        ``(batch,)`` in [0, 1], in float32. Higher is better: where it is small, the log-odds have no meaning.
    """
    return logits.float().softmax(dim=-1)[:, answer_ids].sum(dim=-1).clamp(max=1)  # the sum may round to more than 1


def detection_loss(logits: Tensor, answer_ids: Tensor, labels: Tensor, kind: str = "full") -> Tensor:
    """Cross-entropy of the right answer, averaged over the batch, in nats.

    Args:
        logits: ``(batch, vocabulary)``.
        answer_ids: Token ids of yes and no, ``(2,)``.
        labels: True where the trial was steered, ``(batch,)``.
        kind: ``full``: over the whole vocabulary, which keeps the mass high. ``pairwise``: over the two answers alone,
            which does not constrain the mass; in published work it fell to .013.

    Returns:
        A scalar in float32.
    """
    if kind == "pairwise":
        return functional.binary_cross_entropy_with_logits(log_odds(logits, answer_ids), labels.float())
    yes, no = answer_ids
    return functional.cross_entropy(logits.float(), torch.where(labels.bool(), yes, no))
