"""The numbers that say whether an adapter answers what it is asked, out of ``results.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from introspection_lit.report.formatting import lookup
from introspection_lit.trials.test_sets import CHOICES

# Numbers and their titles. Accuracies and "right in both orders" are those at strength .5 or more; numbers of facts and of
# questions about the text are right where they are the untrained model's.
NUMBERS = {
    "heldout": "held-out random vectors: AUROC",
    "concept": "concept vectors: AUROC",
    "newkinds_fpr": "unseen kinds of text: FPR",
    "newquestions": "new wordings: AUROC",
    "swapped": "yes and no exchanged: AUROC",
    "codes": "trained words, both orders: AUROC",
    "codes_both": "the same: right in both orders",
    "newcodes": "new words, both orders: AUROC",
    "newcodes_both": "the same: right in both orders",
    "facts": "facts: AUROC of steered against clean",
    "facts_changed": "the same: answers changed",
    "facts_bare": "facts without lead-in: AUROC",
    "reading": "about the text: AUROC",
    "reading_changed": "the same: answers changed",
    "halves": "which half (chance .5)",
    "lines": "which of four lines (chance .25)",
    "comparison": "which half more (chance .5)",
    "identification": "which of ten concepts (chance .1)",
    "naming": "which concept, by name (chance .1)",
    "perplexity": "perplexity, adapter on / off",
    "accuracy": "facts, nothing steered: balanced accuracy",
}


def task_numbers(results: Mapping[str, Any], observer: str) -> dict[str, float | None]:
    """Every number of :data:`NUMBERS` of an observer; None where its test did not ask.

    Args:
        results: Content of ``results.json``.
        observer: ``adapter`` or ``untrained``.
    """
    tasks = {row["set"]: row for row in lookup(results, "evidence", "tasks") or [] if row["observer"] == observer}
    choices = {row["set"]: row for row in lookup(results, "evidence", "choices") or [] if row["observer"] == observer}
    references = {row["set"]: row for row in lookup(results, "evidence", "references") or [] if row["observer"] == observer}
    sets = (results.get("sets") or {}) if observer == "adapter" else references
    numbers: dict[str, float | None] = {
        name: lookup(sets, name, "auroc") for name in ("heldout", "concept", "newquestions", "swapped")
    }
    numbers["newkinds_fpr"] = lookup(sets, "newkinds", "fpr") if observer == "adapter" else None
    for name in ("codes", "newcodes"):
        numbers |= {name: lookup(tasks, name, "auroc"), f"{name}_both": lookup(tasks, name, "both_right")}
    for name in ("facts", "facts_bare", "reading"):
        numbers |= {name: lookup(tasks, name, "auroc"), f"{name}_changed": lookup(tasks, name, "changed")}
    for name in CHOICES:
        numbers[name] = lookup(choices, name, "strong")
    effects, state = lookup(results, "evidence", "side_effects") or {}, "on" if observer == "adapter" else "off"
    now, before = (lookup(effects, "perplexity", which, "perplexity") for which in (state, "off"))
    numbers["perplexity"] = now / before if now and before else None
    numbers["accuracy"] = lookup(effects, "factual", state, "accuracy")
    return {name: numbers[name] for name in NUMBERS}


def task_intervals(results: Mapping[str, Any], observer: str) -> dict[str, tuple[float, float] | None]:
    """The 95 % intervals of :func:`task_numbers`, where there are any; arguments as there."""
    evidence = results.get("evidence") or {}
    rows = {
        (part, row["set"]): row
        for part in ("tasks", "choices", "references")
        for row in evidence.get(part) or []
        if row["observer"] == observer
    }
    places = {name: ("references", name, "auroc_interval") for name in ("heldout", "concept")}
    for name in ("codes", "newcodes", "facts", "facts_bare", "reading"):
        places |= {name: ("tasks", name, "auroc_interval")}
        places |= {
            f"{name}_both": ("tasks", name, "both_right_interval"),
            f"{name}_changed": ("tasks", name, "changed_interval"),
        }
    places |= {name: ("choices", name, "strong_interval") for name in CHOICES}
    found = {name: lookup(rows.get((part, of)) or {}, key) for name, (part, of, key) in places.items()}
    if observer == "adapter":
        found["newkinds_fpr"] = lookup(results.get("sets") or {}, "newkinds", "fpr_interval")
    return {name: tuple(ends) if (ends := found.get(name)) and None not in ends else None for name in NUMBERS}
