"""A training split of a dozen contexts, and a manifest of its trials."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerFast

from introspection_lit.contexts.context import exchange
from introspection_lit.contexts.conversations import Phrasing
from introspection_lit.steering.vector_bank import VectorBank
from introspection_lit.trials.manifest import distinct_pairs, manifest_row, manifest_settings, write_manifest
from introspection_lit.trials.plans import TrialPlan
from introspection_lit.trials.split import Split
from introspection_lit.trials.test_sets import SOURCES

CONTEXTS = [exchange("chat", f"message {number}", f"reply {number}") for number in range(12)]
QUESTIONS, BANDS, STRENGTHS = ["Did it?", "Was it?"], ((0, 1), (2, 3)), (0.5, 2.0)


def training_split(tokenizer: PreTrainedTokenizerFast, contexts: int = 12, vectors: int = 8) -> Split:
    """A training split with two questions, two bands and vectors of ``random_bank``."""
    plan = TrialPlan(0, "train", contexts, 2, vectors, BANDS, STRENGTHS)
    return Split("train", plan, CONTEXTS[:contexts], QUESTIONS, tokenizer, Phrasing(), (1, 2), "relative", SOURCES["train"])


def manifest_of(path: Path, split: Split, bank: VectorBank, n: int) -> Path:
    """A manifest of n trials."""
    rows = (
        manifest_row(2 * number + steered, trial, split, bank)
        for number, pair in enumerate(distinct_pairs(split.plan, n // 2))
        for steered, trial in enumerate(pair)
    )
    write_manifest(path, {"n": n, "base_model": "m", "revision": "", **manifest_settings(split, bank, 0)}, rows)
    return path
