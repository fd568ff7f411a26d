"""Detection by length of the context; in long conversations also by number of exchanges and by what was steered of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from introspection_lit.evaluation.analysis import auroc_interval, finite_or_none, rate_interval, rates_of
from introspection_lit.evaluation.statistics import auroc, wilson_interval
from introspection_lit.evaluation.trial_table import ADAPTER, TrialTable
from introspection_lit.trials.test_sets import MANY

Row = dict[str, Any]
# Fewest and most exchanges of each class, the last without end.
EXCHANGES = ((1, 1), (2, 3), (4, 7), (8, MANY))
# Exchanges between the last steered one and the question, of trials in which only some are steered.
AFTER = ((0, 0), (1, 1), (2, 3), (4, MANY))


def long_results(
    rows: Iterable[Mapping[str, Any]],
    trained_kinds: Iterable[str],
    threshold: float,
    classes: Sequence[tuple[int, int]],
    longest_trained: int,
) -> dict[str, Any] | None:
    """Rates at the stored threshold in each class of conversations.

    Args:
        rows: Rows of ``trials.jsonl``; those of long conversations have ``tokens`` and ``exchanges``.
        trained_kinds: Kinds of context of training and validation.
        threshold: The stored threshold, on the log-odds.
        classes: Fewest and most tokens of each length class.
        longest_trained: Tokens of the longest context of training.

    Returns:
        None without long conversations. Else ``trained``, these tokens, and rows ``by_length`` (fewest and most
        ``tokens``), ``by_exchanges`` (fewest and most ``exchanges``) and ``by_part`` (fewest and most exchanges ``after``
        the steered ones). FPR and AUROC are those of the class; ``tpr`` counts trials in which all of it is steered,
        ``part_tpr`` those in which some exchanges are.
    """
    rows = [row for row in rows if "exchanges" in row]
    if not rows:
        return None
    trials = TrialTable.from_rows(rows, trained_kinds)
    tokens, exchanges = (np.array([row[name] for row in rows]) for name in ("tokens", "exchanges"))
    after = np.array([_exchanges_after(row.get("parts") or ()) for row in rows])
    found: dict[str, Any] = {"trained": longest_trained, "by_length": [], "by_exchanges": [], "by_part": []}
    for name in dict.fromkeys(trials.sets):
        of_set = trials.sets == name
        for part, ends, values, bounds in (
            ("by_length", "tokens", tokens, classes),
            ("by_exchanges", "exchanges", exchanges, EXCHANGES),
        ):
            for low, high in bounds:
                inside = of_set & (values >= low) & (values <= high)
                if inside.any():
                    row = {"set": str(name), ends: [low, high], **_rates(trials.where(inside), after[inside], threshold)}
                    found[part].append(row)
        for low, high in AFTER:
            inside = of_set & (after >= low) & (after <= high)
            if inside.any():
                part_rates = _hits(trials.where(inside), threshold, "tpr", "n_steered")
                found["by_part"].append({"set": str(name), "after": [low, high], **part_rates})
    return found


def rates_by_length(trials: TrialTable, threshold: float, tokens: Mapping[str, int], trained: Sequence[int]) -> list[Row]:
    """:func:`~introspection_lit.evaluation.analysis.rates_of` contexts by their length, in tokens.

    The classes end at the median of training's contexts, at their 95th percentile, and at the longest; the last is longer.

    Args:
        trials: The trials.
        threshold: The stored threshold.
        tokens: Length of each context, by its fingerprint.
        trained: Lengths of the contexts of training; none: no rows.

    Returns:
        A row for each class that has trials: fewest and most ``tokens``, and how many contexts of training it has,
        ``n_trained``.
    """
    if not trained:
        return []
    lengths, known, rows = np.array([tokens[key] for key in trials.contexts]), np.array(trained), []
    ends = [0, *(int(end) for end in np.quantile(known, (0.5, 0.95, 1), method="higher")), MANY]
    for low, high in pairwise(dict.fromkeys(ends)):
        if (inside := (lengths > low) & (lengths <= high)).any():
            n_trained = int(((known > low) & (known <= high)).sum())
            row = {"tokens": [low + 1, high], "n_trained": n_trained}
            rows.append(row | rates_of(trials.where(inside), threshold))
    return rows


def _exchanges_after(parts: Sequence[float]) -> int:
    """Exchanges after the last steered one; -1: the trial is not divided."""
    return len(parts) - 1 - max(place for place, share in enumerate(parts) if share) if parts else -1


def _rates(trials: TrialTable, after: NDArray[np.int64], threshold: float) -> Row:
    clean, scores = trials.clean(), trials.scores[ADAPTER]
    alarms = int((clean.scores[ADAPTER] > threshold).sum())
    both = len(set(trials.steered)) == 2
    return {
        "n_clean": len(clean),
        "alarms": alarms,
        "fpr": alarms / len(clean) if len(clean) else None,
        "fpr_interval": list(wilson_interval(alarms, len(clean))),
        "auroc": finite_or_none(auroc(scores, trials.steered)) if both else None,
        "auroc_interval": auroc_interval(scores, trials) if both else None,
        **_hits(trials.where(trials.steered & (after < 0)), threshold, "tpr", "n_steered"),
        **_hits(trials.where(trials.steered & (after >= 0)), threshold, "part_tpr", "n_part"),
    }


def _hits(trials: TrialTable, threshold: float, rate: str, count: str) -> Row:
    """The share of steered trials above the threshold, with its interval; None without any."""
    hits = trials.scores[ADAPTER] > threshold
    known = len(hits) > 0
    return {
        count: len(hits),
        rate: float(hits.mean()) if known else None,
        f"{rate}_interval": rate_interval(hits, trials) if known else None,
    }
