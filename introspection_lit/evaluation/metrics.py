"""Detection metrics: the summary of a set of trials, the choice of the threshold, and the torchmetrics class.

Scores are log-odds in nats; a trial counts as "steered" when its score is above the threshold.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from introspection_lit.evaluation.statistics import (
    auroc,
    best_threshold,
    dprime,
    rate,
    tolerance_limit,
    tpr_at_fpr,
    wilson_interval,
)
from introspection_lit.utils.errors import RunError


def summarise(scores: Tensor, labels: Tensor, masses: Tensor, inputs: Tensor, threshold: float) -> dict[str, Any]:
    """Compute every metric of a set of trials.

    Args:
        scores: Log-odds, ``(n,)``.
        labels: True where steered, ``(n,)``.
        masses: P(yes) + P(no), ``(n,)``.
        inputs: A number for each distinct context and question, ``(n,)``: a deterministic model answers equal clean
            inputs equally, so the FPR, its interval and d' count each once.
        threshold: On the log-odds, in nats.

    Returns:
        ``auroc``, ``accuracy``, ``tpr``, ``fpr``, ``fpr_interval`` (95 %, Wilson, distinct clean inputs),
        ``tpr_at_1pct_fpr``, ``dprime``, ``mass`` (mean), ``p_yes_clean`` and ``p_yes_steered`` (means, under the full
        softmax), ``n_steered``, ``n_clean``, ``n_clean_distinct`` and ``threshold``.
    """
    labels = labels.bool()
    decisions = scores > threshold
    p_yes = masses.double() * torch.sigmoid(scores.double())
    distinct = torch.unique(inputs[~labels])
    distinct_alarms = torch.unique(inputs[~labels & decisions])
    hits, n_steered, n_clean = int(decisions[labels].sum()), int(labels.sum()), int((~labels).sum())
    alarms, n_distinct = len(distinct_alarms), len(distinct)
    return {
        "auroc": auroc(scores, labels),
        "accuracy": rate(decisions == labels),
        "tpr": rate(decisions[labels]),
        "fpr": alarms / n_distinct if n_distinct else float("nan"),
        "fpr_interval": list(wilson_interval(alarms, n_distinct)),
        "tpr_at_1pct_fpr": tpr_at_fpr(scores, labels),
        "dprime": dprime(hits, n_steered, alarms, n_distinct),
        "mass": float(masses.double().mean()),
        "p_yes_clean": rate(p_yes[~labels]),
        "p_yes_steered": rate(p_yes[labels]),
        "n_steered": n_steered,
        "n_clean": n_clean,
        "n_clean_distinct": n_distinct,
        "threshold": threshold,
    }


class NotFinite(RunError):
    """Some scores are NaN or infinite.

    Args:
        rows: Their indices.
        total: Number of scores.
    """

    def __init__(self, rows: list[int], total: int) -> None:
        self.rows = rows
        super().__init__(
            [
                f"{len(rows)} of {total} trials gave no finite score: training has diverged, or the strength or the "
                "precision overflows. Lower model.learning_rate or data.strengths, or use trainer.precision 32-true."
            ]
        )


def require_finite(scores: Tensor, masses: Tensor | None = None) -> None:
    """Check that no score is NaN or infinite. A NaN outranks every score: metrics would look plausible and be wrong.

    Args:
        scores: ``(n,)``.
        masses: ``(n,)``, checked too if given.

    Raises:
        NotFinite: At least one is NaN or infinite.
    """
    broken = ~scores.isfinite() if masses is None else ~(scores.isfinite() & masses.isfinite())
    if broken.any():
        raise NotFinite(broken.nonzero()[:, 0].tolist(), len(scores))


class SplitScores(NamedTuple):
    """The trials of a split, of all batches and processes, on the CPU; columns ``(n,)`` as in :func:`summarise`.

    ``kinds`` holds a number for each kind of context.
    """

    scores: Tensor
    labels: Tensor
    masses: Tensor
    inputs: Tensor
    kinds: Tensor


# Kinds with fewer distinct clean inputs are pooled before their tolerance limit is computed.
MIN_CLEAN_OF_KIND = 8


def choose_threshold(trials: SplitScores, max_fpr: float) -> float:
    """Choose the decision threshold from the validation trials.

    Args:
        trials: Of validation.
        max_fpr: Highest FPR allowed. 1: the threshold maximises TPR - FPR. Less than 1: among thresholds whose FPR over
            distinct clean inputs is at most ``max_fpr``, the one that maximises TPR - FPR; raised to the highest
            tolerance limit of any kind of context, below which a share ``1 - max_fpr`` of its clean scores lies with 95 %
            confidence if they are normally distributed
            (:func:`~introspection_lit.evaluation.statistics.tolerance_limit`).

    Returns:
        The threshold on the log-odds, in nats.
    """
    if max_fpr >= 1:
        return best_threshold(trials.scores, trials.labels)
    distinct = distinct_clean_inputs(trials)
    best = best_threshold(distinct.scores, distinct.labels, max_fpr)
    clean, kinds = distinct.scores[~distinct.labels].double(), distinct.kinds[~distinct.labels]
    sizes = {kind: int((kinds == kind).sum()) for kind in set(kinds.tolist())}
    large = [kind for kind, size in sizes.items() if size >= MIN_CLEAN_OF_KIND]
    groups = [clean[kinds == kind] for kind in large] + [clean[~torch.isin(kinds, torch.tensor(large))]]
    limits = (
        [tolerance_limit(group, 1 - max_fpr) for group in groups if len(group) >= MIN_CLEAN_OF_KIND] if max_fpr > 0 else []
    )
    return max([best, *limits])


def distinct_clean_inputs(trials: SplitScores) -> SplitScores:
    """All steered trials, and one clean trial of each distinct input, as the FPR counts them."""
    clean = (~trials.labels).nonzero()[:, 0]
    _, first = np.unique(trials.inputs[clean].numpy(), return_index=True)
    rows = torch.cat([trials.labels.nonzero()[:, 0], clean[torch.from_numpy(first)]])
    return SplitScores(*(column[rows] for column in trials))


class DetectionMetrics(Metric):
    """Gathers the scores of a split over batches and processes, and summarises them.

    Attributes:
        threshold: Decision threshold of ``compute``, in nats; None: :func:`choose_threshold` with ``max_fpr``.
        max_fpr: Highest FPR that a chosen threshold may have, over distinct clean inputs.
        total: Trials with this number or a higher one are left out: they only fill up the last batches.
        trials: The trials of the last ``compute``.
        trial_numbers: Their numbers in the split, ``(n,)``.
    """

    full_state_update = False
    states = ("scores", "labels", "masses", "inputs", "numbers", "kinds")
    scores: list[Tensor]
    labels: list[Tensor]
    masses: list[Tensor]
    inputs: list[Tensor]
    numbers: list[Tensor]
    kinds: list[Tensor]

    def __init__(self, threshold: float | None = None, total: int | None = None) -> None:
        super().__init__()
        self.threshold, self.total, self.max_fpr = threshold, total, 1.0
        self.trials: SplitScores | None = None
        self.trial_numbers = torch.empty(0, dtype=torch.long)
        for name in self.states:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(
        self, scores: Tensor, labels: Tensor, masses: Tensor, inputs: Tensor, numbers: Tensor, kinds: Tensor | None = None
    ) -> None:
        """Add a batch; all ``(batch,)``, as in :func:`summarise`.

        ``numbers`` are the trials' numbers in their split, ``kinds`` a number for each kind of context (None: one kind).
        """
        self.kinds.append(torch.zeros_like(numbers).long() if kinds is None else kinds.long())
        self.scores.append(scores.detach().float())
        self.labels.append(labels.bool())
        self.masses.append(masses.detach().float())
        self.inputs.append(inputs.long())
        self.numbers.append(numbers.long())

    def compute(self) -> dict[str, Any]:
        """Summarise all trials; see :func:`summarise`.

        Raises:
            NotFinite: A score or mass is NaN or infinite.
        """
        scores, labels, masses, inputs, numbers, kinds = (dim_zero_cat(getattr(self, name)).cpu() for name in self.states)
        real = slice(None) if self.total is None else numbers < self.total
        self.trial_numbers = numbers[real]
        require_finite(scores[real], masses[real])
        self.trials = SplitScores(*(column[real] for column in (scores, labels, masses, inputs, kinds)))
        threshold = self.threshold
        if threshold is None:
            threshold = choose_threshold(self.trials, self.max_fpr)
        return summarise(*self.trials[:4], threshold)
