"""Caches as deployed: false alarms and detection under each change of the cache that is not steering."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from introspection_lit.evaluation.analysis import auroc_interval, finite_or_none, rate_interval
from introspection_lit.evaluation.statistics import auroc, rate
from introspection_lit.evaluation.trial_table import ADAPTER, TrialTable
from introspection_lit.steering.change_names import CHANGES, UNTOUCHED
from introspection_lit.trials.test_sets import DEPLOYED

Row = dict[str, Any]


def deployed_rows(rows: Iterable[Mapping[str, Any]], threshold: float) -> list[Row]:
    """Rates of the test sets with changed caches, for each change.

    Args:
        rows: Trials of a test, as of :meth:`~introspection_lit.trials.split.Split.describe`, with ``scores`` by observer.
        threshold: The stored threshold, on the log-odds.

    Returns:
        A row for each set and change, untouched caches first, in the order of
        :data:`~introspection_lit.steering.change_names.CHANGES`: ``set``, ``change``, ``benign``, ``n_clean``, ``alarms``
        and ``fpr``; ``n_steered`` and ``tpr``; ``auroc`` of steered against clean caches with the same change; and
        ``auroc_untouched``, of clean changed caches against clean untouched ones (.5: the adapter does not see the change).
        Each rate has its interval, None where there is nothing to compare.
    """
    found = []
    by_set: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for row in rows:
        if row["split"] in DEPLOYED and ADAPTER in row["scores"]:
            by_set.setdefault(row["split"], {}).setdefault(row.get("change", ""), []).append(row)
    for name, by_change in by_set.items():
        untouched = TrialTable.from_rows(by_change.get("", []), ())
        for change in ("", *CHANGES):
            if change in by_change:
                table = TrialTable.from_rows(by_change[change], ())
                benign = change == "" or CHANGES[change].benign
                row = {"set": name, "change": change or UNTOUCHED, "benign": benign} | _rates(table, threshold)
                found.append(row | (_against(table, untouched) if change else _against(table, None)))
    return found


def _rates(table: TrialTable, threshold: float) -> Row:
    clean, steered, scores = table.clean(), table.where(table.steered), table.scores[ADAPTER]
    alarms, hits = (part.scores[ADAPTER] > threshold for part in (clean, steered))
    return {
        "n_clean": len(clean),
        "alarms": int(alarms.sum()),
        "fpr": rate(alarms) if len(clean) else None,
        "fpr_interval": rate_interval(alarms, clean) if len(clean) else None,
        "n_steered": len(steered),
        "tpr": rate(hits) if len(steered) else None,
        "tpr_interval": rate_interval(hits, steered) if len(steered) else None,
        "auroc": finite_or_none(auroc(scores, table.steered)),
        "auroc_interval": auroc_interval(scores, table) if len(set(table.steered)) == 2 else None,
    }


def _against(table: TrialTable, untouched: TrialTable | None) -> Row:
    """How often a clean changed cache scores above a clean untouched one, with its interval."""
    nothing = {"auroc_untouched": None, "auroc_untouched_interval": None}
    if untouched is None:
        return nothing
    parts = (untouched.clean(), table.clean())
    if not all(len(part) for part in parts):
        return nothing
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(table) if name != "scores"}
    scores = np.concatenate([part.scores[ADAPTER] for part in parts])
    both = TrialTable(**columns, scores={ADAPTER: scores})
    changed = np.arange(len(both)) >= len(parts[0])
    area = finite_or_none(auroc(scores, changed))
    return {
        "auroc_untouched": area,
        "auroc_untouched_interval": auroc_interval(scores, replace(both, steered=changed)),
    }
