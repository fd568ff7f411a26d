"""Detection metrics: the summary of a set of trials, and the torchmetrics class that gathers them.

Scores are log-odds; a trial counts as "steered" when its score is above the threshold.
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
    """Everything that is reported of a set of trials.

    Args:
        scores: Log-odds, ``(n,)``.
        labels: True where steered, ``(n,)``.
        masses: P(yes) + P(no), ``(n,)``.
        inputs: A number for each distinct context and question, ``(n,)``: a deterministic model answers equal clean
            inputs equally, so the FPR, its interval and d' count each once.
        threshold: On the log-odds.

    Returns:
        ``auroc``, ``accuracy``, ``tpr``, ``fpr``, ``fpr_interval`` (95 %, Wilson, distinct clean inputs),
        ``tpr_at_1pct_fpr``, ``dprime``, ``mass`` (mean), ``p_yes_clean`` and
        ``p_yes_steered`` (means, under the full softmax), ``n_steered``, ``n_clean``, ``n_clean_distinct``, ``threshold``.
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
    """Some scores are not finite.

    Args:
        rows: Their places among the scores.
        total: How many scores there are.
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
    """Check that scores are numbers: a nan outranks every score, and metrics of it would look plausible and mean nothing.

    Args:
        scores: ``(n,)``.
        masses: ``(n,)``, to be checked, too.

    Raises:
        NotFinite: One is not.
    """
    broken = ~scores.isfinite() if masses is None else ~(scores.isfinite() & masses.isfinite())
    if broken.any():
        raise NotFinite(broken.nonzero()[:, 0].tolist(), len(scores))


class Gathered(NamedTuple):
    """The trials of a split over batches and processes, on the CPU; each ``(n,)``, as in :func:`summarise`."""

    scores: Tensor
    labels: Tensor
    masses: Tensor
    inputs: Tensor
    kinds: Tensor


# Clean inputs of a kind from which on it has a limit of its own; smaller kinds have one together, if they are as many.
FEWEST = 8


def chosen_threshold(trials: Gathered, max_fpr: float) -> float:
    """The threshold that validation sets.

    Args:
        trials: Of validation.
        max_fpr: The share of false alarms allowed. 1: the threshold is where TPR - FPR is largest. Less: it keeps to that
            share of the distinct clean inputs, too, and is not below the limit under which, with 95 % confidence, all but
            that share of the clean scores of each kind of context lie if they are normally distributed
            (:func:`~introspection_lit.evaluation.statistics.tolerance_limit`).
    """
    if max_fpr >= 1:
        return best_threshold(trials.scores, trials.labels)
    counted = once(trials)
    best = best_threshold(counted.scores, counted.labels, max_fpr)
    clean, kinds = counted.scores[~counted.labels].double(), counted.kinds[~counted.labels]
    sizes = {kind: int((kinds == kind).sum()) for kind in set(kinds.tolist())}
    large = [kind for kind, size in sizes.items() if size >= FEWEST]
    groups = [clean[kinds == kind] for kind in large] + [clean[~torch.isin(kinds, torch.tensor(large))]]
    limits = [tolerance_limit(group, 1 - max_fpr) for group in groups if len(group) >= FEWEST] if max_fpr > 0 else []
    return max([best, *limits])


def once(trials: Gathered) -> Gathered:
    """The trials with each distinct clean input once, as the FPR counts them."""
    clean = (~trials.labels).nonzero()[:, 0]
    _, first = np.unique(trials.inputs[clean].numpy(), return_index=True)
    kept = torch.cat([trials.labels.nonzero()[:, 0], clean[torch.from_numpy(first)]])
    return Gathered(*(column[kept] for column in trials))


class DetectionMetrics(Metric):
    """Gathers the scores of a split over batches and processes, and summarises them.

    Attributes:
        threshold: What ``compute`` decides by; None: the best one for the gathered scores with at most ``max_fpr``.
        max_fpr: The share of false alarms that such a threshold may have, over distinct clean inputs.
        total: Trials with this number or a higher one are left out: they only filled up the last batches.
        gathered: What the last ``compute`` summarised.
        summarised: The numbers of these trials in their split, ``(n,)``.
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
        self.gathered: Gathered | None = None
        self.summarised = torch.empty(0, dtype=torch.long)
        for name in self.states:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(
        self, scores: Tensor, labels: Tensor, masses: Tensor, inputs: Tensor, numbers: Tensor, kinds: Tensor | None = None
    ) -> None:
        """Add a batch; all ``(batch,)``, as in :func:`summarise`.

        ``numbers`` are those of the trials in their split, ``kinds`` a number for each kind of context (one, if None).
        """
        self.kinds.append(torch.zeros_like(numbers).long() if kinds is None else kinds.long())
        self.scores.append(scores.detach().float())
        self.labels.append(labels.bool())
        self.masses.append(masses.detach().float())
        self.inputs.append(inputs.long())
        self.numbers.append(numbers.long())

    def compute(self) -> dict[str, Any]:
        """Summarise what was gathered; see :func:`summarise`.

        Raises:
            NotFinite: A score or mass is not: every metric of it would look plausible and mean nothing.
        """
        scores, labels, masses, inputs, numbers, kinds = (dim_zero_cat(getattr(self, name)).cpu() for name in self.states)
        wanted = slice(None) if self.total is None else numbers < self.total
        self.summarised = numbers[wanted]
        require_finite(scores[wanted], masses[wanted])
        self.gathered = Gathered(*(column[wanted] for column in (scores, labels, masses, inputs, kinds)))
        threshold = self.threshold
        if threshold is None:
            threshold = chosen_threshold(self.gathered, self.max_fpr)
        return summarise(*self.gathered[:4], threshold)
