"""The key numbers of a run, as tiles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from introspection_lit.evaluation.rungs import RUNGS
from introspection_lit.report.elements import Tile
from introspection_lit.report.formatting import (
    format_count,
    format_interval,
    format_rate,
    format_rate_with_interval,
    lookup,
)
from introspection_lit.report.verdict import detection_strength_text, rung_summaries, worst_unseen


def key_numbers(results: Mapping[str, Any]) -> list[Tile]:
    """The most important numbers of a run; "not measured" where the results have none."""
    heldout = lookup(results, "sets", "heldout") or {}
    rows = lookup(results, "evidence", "references") or []
    adapter: Mapping[str, Any] = next((r for r in rows if (r["observer"], r["set"]) == ("adapter", "heldout")), {})
    auroc = format_interval(adapter.get("auroc_interval"))
    tiles = [Tile("AUROC, held-out random vectors", format_rate(heldout.get("auroc")), f"95 %: {auroc}" if auroc else "")]
    for vectors in ("random", "concept"):
        value, ends = detection_strength_text(results, vectors)
        tiles.append(Tile(f"75 % detected from strength, {vectors}", value, f"95 %: {ends}" if ends else ""))
    worst, newkinds = worst_unseen(results), lookup(results, "sets", "newkinds")
    if worst:
        ends = format_interval(worst.get("fpr_interval"))
        tiles.append(
            Tile(
                f"Worst FPR of an unseen kind: {worst['kind']}", format_rate(worst["fpr"]), f"95 %: {ends}" if ends else ""
            )
        )
    else:
        pooled = format_rate_with_interval(newkinds.get("fpr"), newkinds.get("fpr_interval")) if newkinds else ""
        tiles.append(
            Tile("Worst FPR of an unseen kind", format_rate(None), f"all unseen kinds together: {pooled}" if pooled else "")
        )
    tiles.append(Tile("TPR, held-out random vectors", format_rate(heldout.get("tpr")), "at the threshold"))
    masses = {name: row["mass"] for name, row in rung_summaries(results).items() if row.get("mass") is not None}
    lowest = min(masses, key=lambda name: masses[name], default=None)
    tiles.append(
        Tile("Lowest mass of a test set", format_rate(masses[lowest] if lowest else None), RUNGS[lowest] if lowest else "")
    )
    return [*tiles, Tile("Distinct clean inputs", format_count(results.get("n_clean_distinct_total")), "in all test sets")]
