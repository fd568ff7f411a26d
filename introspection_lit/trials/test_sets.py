"""The test sets: which vectors, contexts and questions each is made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """What the trials of a split are made of.

    Attributes:
        vectors: The split of the bank that directions come from.
        contexts: The split of the contexts; several are mixed evenly by kind, and ``odd`` are made from ``heldout``.
        questions: ``train``, ``heldout``, ``swapped`` (the answer words change places) or ``factual`` (about the world).
        sign: What directions are multiplied by.
        positions: The share of a context's tokens that is steered, drawn at random.
        doses: Its trials run through ``data.test_doses``.
    """

    vectors: str
    contexts: str
    questions: str = "train"
    sign: float = 1.0
    positions: float = 1.0
    doses: bool = False


# Every split of an experiment.
SOURCES = {
    "train": Source("train", "train"),
    "validation": Source("validation", "validation"),
    "seen": Source("train", "seen"),
    "heldout": Source("heldout", "heldout"),
    "concept": Source("concept", "concept"),
    "newkinds": Source("heldout", "newkinds"),
    "newquestions": Source("heldout", "heldout", "heldout"),
    "concept_pca": Source("concept_pca", "concept"),
    "imported": Source("imported", "concept"),
    # How detection depends on the dose.
    "doses": Source("heldout", "heldout+newkinds", doses=True),
    "doses_concept": Source("concept", "concept+newkinds", doses=True),
    # Controls.
    "flipped": Source("train", "seen", sign=-1.0),
    "scattered": Source("heldout", "heldout", positions=0.5),
    "odd": Source("heldout", "odd"),
    "swapped": Source("heldout", "heldout", "swapped"),
    "factual": Source("heldout", "heldout", "factual"),
}
TEST_SETS = tuple(split for split in SOURCES if split not in ("train", "validation"))
# Where something other than steering is asked about, or in another code: for these the stored threshold means nothing.
OTHER_QUESTIONS = ("swapped", "factual")
DEFAULT_TEST_SETS = ("seen", "heldout", "concept", "newkinds")
