"""The exported adapter in the report: whether plain PEFT in one pass does what the protocol does in two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from introspection_lit.report.elements import Table
from introspection_lit.report.formatting import format_count, format_rate, format_rate_with_interval, lookup

Results = Mapping[str, Any]
ROADS = {"protocol": "the protocol: two passes", "exported": "as exported: plain PEFT, one pass"}
RATES = ("auroc", "tpr", "fpr")
# How far TPR and FPR of the exported adapter may lie from the protocol's on the same trials.
MOST_MOVED = 0.02


def exported_table(evidence: Results) -> Table | None:
    """The same trials by the protocol and by the exported adapter in one pass of plain PEFT."""
    found = lookup(evidence, "as_exported") or {}
    rows = [
        (ROADS[road], *(format_rate_with_interval(rates.get(name), rates.get(f"{name}_interval")) for name in RATES))
        for road in ROADS
        if (rates := found.get(road))
    ]
    if not rows:
        return None
    note = (
        f"{format_count(found.get('n'))} trials at threshold {format_rate(found.get('threshold'))}: "
        f"{format_count(found.get('decided_differently'))} decided differently, largest difference of the log-odds "
        f"{format_rate(found.get('largest_difference'))}."
    )
    return Table("The exported adapter, as people use it", ("how", "AUROC", "TPR", "FPR"), rows, note)


def exported_sentences(results: Results) -> list[str]:
    """Say whether the exported adapter, loaded by plain PEFT, decides as the protocol does."""
    found = lookup(results, "evidence", "as_exported")
    if not found or not found.get("exported") or not found.get("protocol"):
        return []
    exported, protocol = (found[road] for road in ("exported", "protocol"))
    numbers = (
        f"TPR {format_rate(exported.get('tpr'))} and FPR {format_rate(exported.get('fpr'))} in one pass of plain PEFT "
        f"(the protocol: {format_rate(protocol.get('tpr'))} and {format_rate(protocol.get('fpr'))})"
    )
    moved = max(abs((exported.get(rate) or 0) - (protocol.get(rate) or 0)) for rate in ("tpr", "fpr"))
    if moved > MOST_MOVED:
        return [f"The exported adapter does not do what the table says: {numbers}."]
    return [f"The exported adapter does what the table says: {numbers}."]
