"""The loss of a batch: of a single question, or of several tasks together with its parts."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from introspection_lit.steering.prefill import Forward
from introspection_lit.steering.question_pass import read_texts
from introspection_lit.tasks.questionnaire import DETECTION, PLAIN_TEXT
from introspection_lit.tasks.scoring import answer_loss, kl_divergence, task_losses
from introspection_lit.trials.batch import Texts, TrialBatch
from introspection_lit.trials.trial import Trial

# The name of the loss at the question marks, among the names of tasks.
EARLY = "early"
# The splits that several tasks are trained and validated on; tests compare scores only.
LEARNING = ("train", "validation")


class Scored(NamedTuple):
    """What a training batch has given.

    Attributes:
        trials: Its trials.
        loss: ``()``.
        scores: Log-odds, ``(batch,)``.
        masses: ``(batch,)``.
    """

    trials: list[Trial]
    loss: Tensor
    scores: Tensor
    masses: Tensor

    def broken(self) -> list[Trial]:
        """The trials whose own scores are NaN or infinite."""
        finite = (self.scores.isfinite() & self.masses.isfinite()).tolist()
        return [trial for trial, is_finite in zip(self.trials, finite, strict=True) if not is_finite]


def batch_loss(
    forward: Forward, batch: TrialBatch, logits: Tensor, kind: str, early: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch.

    Args:
        forward: Runs the model with its adapter, for the plain texts.
        batch: With its references answered.
        logits: At the answer position of each row, ``(batch, vocabulary)``.
        kind: Of :func:`~introspection_lit.tasks.scoring.answer_loss`, for a single question.
        early: Logits at the question mark of each row, ``(batch, vocabulary)``; needed where the batch trains them.

    Returns:
        The loss, ``()``: of a single question the mean over the rows, of several tasks the sum of their weighted means. And
        what each task of the split adds to it, without gradient, ``()`` each; empty for a single question.
    """
    if batch.weights is None or batch.split not in LEARNING:
        return answer_loss(logits, batch.answer_ids, batch.targets.clamp(min=0), kind), {}
    references = batch.references
    place = torch.full_like(batch.targets, -1) if references is None else references.place
    answers = None if references is None else references.log_probabilities
    losses = task_losses(logits, batch.answer_ids, batch.targets, answers, place)
    weighted = losses * batch.weights
    loss, parts = weighted.sum(), {}
    # Of every task of the split, also where this batch has none of its rows: all processes log the same names.
    for task in batch.all_tasks:
        rows = torch.tensor([name == task for name in batch.tasks], device=weighted.device)
        parts[task] = weighted.detach()[rows].sum()
    if batch.early is not None and early is not None:
        answers = None if references is None else references.early_log_probabilities
        factors, tokens = batch.early.factors, batch.early.tokens
        # Rows whose answer is a token have it as their only answer word.
        divergences = task_losses(early, tokens[:, None], (tokens < 0).long().neg(), answers, place)
        added = (divergences * factors * batch.weights).sum()
        loss, parts[EARLY] = loss + added, added.detach()
    if batch.texts is not None:
        divergence = text_divergence(forward, batch, batch.texts)
        loss, parts[PLAIN_TEXT] = loss + divergence, divergence.detach()
    elif batch.has_texts:
        parts[PLAIN_TEXT] = torch.zeros_like(loss)
    return loss, parts


def text_divergence(forward: Forward, batch: TrialBatch, texts: Texts) -> Tensor:
    """Divergence from the untrained model on the plain texts of a batch: weighted sum of means over tokens, ``()``."""
    assert texts.log_probabilities is not None, "the untrained model has not read the texts"
    mask = batch.context_mask[texts.caches]
    by_token = kl_divergence(read_texts(forward, batch.context_ids[texts.caches], mask), texts.log_probabilities) * mask
    return (by_token.sum(dim=1) / mask.sum(dim=1) * texts.weights).sum()


def detection_rows(batch: TrialBatch) -> slice | list[int]:
    """The rows that metrics count: those about steering while several tasks are trained, else all."""
    if batch.weights is None or batch.split not in LEARNING:
        return slice(None)
    return [row for row, task in enumerate(batch.tasks) if task == DETECTION]
