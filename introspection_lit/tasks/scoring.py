"""The score and the loss of an answer, from the logits at the answer position.

The score of a row is its log-odds, logit("steered") - logit("not steered"). Training minimises :func:`answer_loss` for one
question, :func:`task_losses` for several tasks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


def answer_logits(logits: Tensor, answer_ids: Tensor) -> Tensor:
    """The logits of the answer words, in float32, since bfloat16 is too coarse.

    Args:
        logits: At the answer position, ``(rows, vocabulary)``.
        answer_ids: Token ids, ``(words,)`` for all rows or ``(rows, words)``; -1 where a row has fewer answers.

    Returns:
        ``(rows, words)``; minus infinity where there is no answer.
    """
    ids = answer_ids.expand(len(logits), -1)
    answers: Tensor = logits.float().gather(1, ids.clamp(min=0))
    return answers if ids.shape[1] == 2 else answers.masked_fill(ids < 0, -torch.inf)


def log_odds(logits: Tensor, answer_ids: Tensor, targets: Tensor | None = None) -> Tensor:
    """The score of a row, in nats: logit(yes) - logit(no), or of more than two answers the margin of the right one.

    Args:
        logits: At the answer position, ``(rows, vocabulary)``.
        answer_ids: Token ids of yes ("steered") and no, ``(2,)`` or ``(rows, 2)``; or of more, ``(rows, words)``.
        targets: Index of the right answer, ``(rows,)``; needed where a row has more than two answers.

    Returns:
        ``(rows,)`` in float32. Higher means "steered"; 0 means that both are equally likely. Of more than two answers:
        the logit of the right one minus the highest of the others.
    """
    answers = answer_logits(logits, answer_ids)
    odds = answers[:, 0] - answers[:, 1]
    if answers.shape[1] == 2 or targets is None:
        return odds
    right = targets.clamp(min=0)[:, None]
    others = answers.scatter(1, right, -torch.inf).max(dim=1).values
    margin = answers.gather(1, right)[:, 0] - others
    return torch.where((answer_ids >= 0).sum(dim=1) > 2, margin, odds)


def mass(logits: Tensor, answer_ids: Tensor) -> Tensor:
    """The answer probability P(yes) + P(no) under the full softmax.

    Args:
        logits: At the answer position, ``(rows, vocabulary)``.
        answer_ids: Token ids of yes and no, ``(2,)`` or ``(rows, 2)``.

    Returns:
        ``(rows,)`` in [0, 1], in float32. Higher is better: where it is small, the log-odds have no meaning.
    """
    probabilities = answer_logits(logits.float().softmax(dim=-1), answer_ids).clamp(min=0)
    return probabilities.sum(dim=-1).clamp(max=1)  # the sum may round to more than 1


class Answers(NamedTuple):
    """The answers of a batch, without gradient.

    Attributes:
        log_odds: See :func:`log_odds`, ``(rows,)``.
        mass: See :func:`mass`, ``(rows,)``.
        given: Index of the most probable of the answer words, ``(rows,)``; of two equally probable ones the second, as for
            a decision at a threshold of 0.
    """

    log_odds: Tensor
    mass: Tensor
    given: Tensor


def read(logits: Tensor, answer_ids: Tensor, targets: Tensor) -> Answers:
    """Read the answers of a batch; arguments as of :func:`log_odds`."""
    logits = logits.detach()
    odds = log_odds(logits, answer_ids, targets)
    given = answer_logits(logits, answer_ids).argmax(dim=1)
    pairs = (answer_ids >= 0).expand(len(logits), -1).sum(dim=1) == 2
    return Answers(odds, mass(logits, answer_ids), torch.where(pairs, (odds <= 0).long(), given))


def answer_loss(logits: Tensor, answer_ids: Tensor, targets: Tensor, kind: str = "full") -> Tensor:
    """Cross-entropy of the right answer, averaged over the rows, in nats.

    Args:
        logits: ``(rows, vocabulary)``.
        answer_ids: Token ids of yes and no, ``(2,)`` or ``(rows, 2)``.
        targets: Index of the right answer, ``(rows,)``: 0 where the trial was steered, else 1.
        kind: ``full``: over the whole vocabulary, which keeps the mass high. ``pairwise``: over the two answers alone,
            which does not constrain the mass; in published work it fell to .013.

    Returns:
        A scalar in float32.
    """
    if kind == "pairwise":
        return functional.binary_cross_entropy_with_logits(log_odds(logits, answer_ids), (targets == 0).float())
    right = answer_ids.expand(len(logits), -1).gather(1, targets[:, None])[:, 0]
    return functional.cross_entropy(logits.float(), right)


def kl_divergence(logits: Tensor, reference: Tensor) -> Tensor:
    """KL divergence of a prediction from a reference over the whole vocabulary, in nats.

    Args:
        logits: ``(..., vocabulary)``.
        reference: Log-probabilities, ``(..., vocabulary)``; without gradient.

    Returns:
        ``(...)`` in float32; 0 where both are equal.
    """
    predicted = logits.float().log_softmax(dim=-1)
    return (reference.exp() * (reference - predicted)).sum(dim=-1)


def task_losses(logits: Tensor, answer_ids: Tensor, targets: Tensor, references: Tensor | None, place: Tensor) -> Tensor:
    """The loss of each row: cross-entropy of the right answer, or the divergence from a reference; in nats.

    Args:
        logits: ``(rows, vocabulary)``.
        answer_ids: ``(rows, words)``.
        targets: Index of the right answer, ``(rows,)``; -1: the right answer is a reference.
        references: Log-probabilities of the references, ``(references, vocabulary)``; None: there are none.
        place: The reference of each row, ``(rows,)``; -1: none.

    Returns:
        ``(rows,)`` in float32.
    """
    losses = torch.zeros(len(logits), device=logits.device)
    labelled = (targets >= 0).nonzero()[:, 0]
    right = answer_ids[labelled, targets[labelled]]
    losses[labelled] = functional.cross_entropy(logits[labelled].float(), right, reduction="none")
    if references is not None:
        others = (place >= 0).nonzero()[:, 0]
        losses[others] = kl_divergence(logits[others], references[place[others]])
    return losses
