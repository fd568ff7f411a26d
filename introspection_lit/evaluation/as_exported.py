"""Whether an exported adapter, loaded by plain PEFT and used in one pass, does what the protocol's table says."""

from __future__ import annotations

from typing import Any

import numpy as np

from introspection_lit.evaluation.analysis import auroc_interval, finite_or_none, rate_interval
from introspection_lit.evaluation.statistics import auroc, rate
from introspection_lit.evaluation.trial_table import ADAPTER, TrialTable
from introspection_lit.trials.test_sets import AS_EXPORTED

EXPORTED = "as exported"


def compare_exported(trials: TrialTable, threshold: float) -> dict[str, Any] | None:
    """Rates of the same trials by the protocol (two passes) and by the exported adapter (one pass); None if not tested.

    Args:
        trials: All trials of the test.
        threshold: The stored threshold, on the log-odds.

    Returns:
        Number of trials, ``protocol`` and ``exported`` with their rates and intervals, the largest difference of their
        log-odds in nats, and how many trials they decide differently.
    """
    subset = trials.of_sets(AS_EXPORTED).scored(EXPORTED)
    if len(set(subset.steered)) < 2:
        return None
    protocol, exported = subset.scores[ADAPTER], subset.scores[EXPORTED]
    return {
        "n": len(subset),
        "threshold": threshold,
        "protocol": _rates(subset, ADAPTER, threshold),
        "exported": _rates(subset, EXPORTED, threshold),
        "largest_difference": finite_or_none(float(np.abs(protocol - exported).max())),
        "decided_differently": int(((protocol > threshold) != (exported > threshold)).sum()),
    }


def _rates(trials: TrialTable, observer: str, threshold: float) -> dict[str, Any]:
    clean, steered, scores = trials.clean(), trials.where(trials.steered), trials.scores[observer]
    alarms, hits = (part.scores[observer] > threshold for part in (clean, steered))
    return {
        "auroc": finite_or_none(auroc(scores, trials.steered)),
        "auroc_interval": auroc_interval(scores, trials),
        "tpr": rate(hits),
        "tpr_interval": rate_interval(hits, steered),
        "fpr": rate(alarms),
        "fpr_interval": rate_interval(alarms, clean),
        "n_clean": len(clean),
    }
