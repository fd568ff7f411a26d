"""The numbers that say how weak steering an adapter finds, out of ``results.json``, and how long its training took."""

from __future__ import annotations

from typing import Any

from introspection_lit.evaluation.cache_reader import READER
from introspection_lit.evaluation.trial_table import ADAPTER, CURVES
from introspection_lit.report.formatting import lookup
from introspection_lit.report.result_files import read_results
from introspection_lit.report.verdict import worst_unseen
from introspection_lit.tools.fit_runs import Training

# The strength at which a weak dose is judged, of the median residual norm.
WEAK = 0.04
NUMBERS = {
    **{f"{vectors}_auroc": f"{vectors} vectors at {WEAK:g}: AUROC" for vectors in CURVES},
    **{f"{vectors}_reader": "the same, the cache reader" for vectors in CURVES},
    **{f"{vectors}_strength": f"{vectors} vectors: 75 % found from" for vectors in CURVES},
    "heldout": "held-out random vectors: AUROC",
    "worst_cell": "lowest TPR of a band and strength",
    "worst_kind": "worst unseen kind of text: FPR",
    "newkinds_fpr": "unseen kinds of text: FPR",
    "swapped": "yes and no exchanged: AUROC",
    "perplexity": "perplexity, adapter on / off, less 1",
}
LOWER_IS_BETTER = ("random_strength", "concept_strength", "worst_kind", "newkinds_fpr", "perplexity")


def recipe_numbers(training: Training) -> dict[str, float | None]:
    """Every number of :data:`NUMBERS` of a training; None where its test did not ask."""
    results = read_results(training.results)
    found: dict[str, float | None] = {}
    for vectors in CURVES:
        for name, observer in (("auroc", ADAPTER), ("reader", READER)):
            found[f"{vectors}_{name}"] = auroc_at(lookup(results, "evidence", "curves", vectors, observer) or [], WEAK)
        found[f"{vectors}_strength"] = lookup(results, "evidence", "detection_strength", vectors, "strength")
    worst = worst_unseen(results)
    found |= {name: lookup(results, "sets", name, "auroc") for name in ("heldout", "swapped")}
    found |= {"newkinds_fpr": lookup(results, "sets", "newkinds", "fpr"), "worst_kind": worst["fpr"] if worst else None}
    found["worst_cell"] = lookup(results, "evidence", "worst", "cell", "tpr")
    found["perplexity"] = lookup(results, "evidence", "side_effects", "perplexity", "change")
    return {name: found[name] for name in NUMBERS}


def auroc_at(points: list[dict[str, Any]], strength: float) -> float | None:
    """The AUROC of a curve at a strength; None if the test did not have it."""
    return next((point["auroc"] for point in points if abs(point["strength"] - strength) < 1e-9), None)
