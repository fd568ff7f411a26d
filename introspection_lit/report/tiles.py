"""The key numbers of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from introspection_lit.evaluation.rungs import RUNGS
from introspection_lit.report.parts import Tile, count, interval, part, rate, with_interval
from introspection_lit.report.verdict import detection, rungs, worst_unseen


def tiles(results: Mapping[str, Any]) -> list[Tile]:
    """What is looked for first: "not measured" where a run has not got it."""
    held = part(results, "sets", "heldout") or {}
    rows = part(results, "evidence", "references") or []
    ours: Mapping[str, Any] = next((r for r in rows if (r["observer"], r["set"]) == ("adapter", "heldout")), {})
    auroc = interval(ours.get("auroc_interval"))
    made = [Tile("AUROC, held-out random vectors", rate(held.get("auroc")), f"95 %: {auroc}" if auroc else "")]
    for vectors in ("random", "concept"):
        value, ends = detection(results, vectors)
        made.append(Tile(f"75 % detected from strength, {vectors}", value, f"95 %: {ends}" if ends else ""))
    worst, newkinds = worst_unseen(results), part(results, "sets", "newkinds")
    if worst:
        ends = interval(worst.get("fpr_interval"))
        made.append(
            Tile(f"Worst FPR of an unseen kind: {worst['kind']}", rate(worst["fpr"]), f"95 %: {ends}" if ends else "")
        )
    else:
        known = with_interval(newkinds.get("fpr"), newkinds.get("fpr_interval")) if newkinds else ""
        made.append(Tile("Worst FPR of an unseen kind", rate(None), f"all unseen kinds together: {known}" if known else ""))
    made.append(Tile("TPR, held-out random vectors", rate(held.get("tpr")), "at the threshold"))
    masses = {name: row["mass"] for name, row in rungs(results).items() if row.get("mass") is not None}
    lowest = min(masses, key=lambda name: masses[name], default=None)
    made.append(
        Tile("Lowest mass of a test set", rate(masses[lowest] if lowest else None), RUNGS[lowest] if lowest else "")
    )
    return [*made, Tile("Distinct clean inputs", count(results.get("n_clean_distinct_total")), "in all test sets")]
