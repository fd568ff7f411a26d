"""The test sets: the vectors, contexts and questions that each one combines.

A test set is a split of the experiment that is only tested on; :data:`SOURCES` defines all splits in one table.
"""

from __future__ import annotations

from dataclasses import dataclass

from introspection_lit.steering.limits import LEAST_STRENGTH


@dataclass(frozen=True)
class Source:
    """Where the trials of a split get their vectors, contexts and questions.

    Attributes:
        vectors: Split of the vector bank that directions come from.
        contexts: Split of the contexts. ``first+second`` mixes two, evenly by kind; ``odd`` are corrupted copies of
            ``heldout``.
        questions: ``train``, ``heldout``, ``swapped`` (answer words exchanged), ``factual`` (not about steering) or one of
            :data:`QUESTIONNAIRES`.
        sign: Factor of every direction, 1 or -1.
        positions: Share of the context's tokens that are steered, drawn at random; 0 to 1.
        doses: The strengths are those of ``data.test_doses`` instead of random ones.
        long: Contexts are joined into conversations of the lengths of ``data.long.test_tokens``.
        strength: The strength of every trial; 0: those of the options.
        changed: Caches are changed besides, clean ones too, by each of ``data.test_changes`` in turn.
    """

    vectors: str
    contexts: str
    questions: str = "train"
    sign: float = 1.0
    positions: float = 1.0
    doses: bool = False
    long: bool = False
    strength: float = 0.0
    changed: bool = False


# Every split of an experiment. In the field's terms: seen = in-distribution, heldout = held-out directions, newkinds =
# held-out domains of text, newquestions = held-out questions.
SOURCES = {
    "train": Source("train", "train"),
    "validation": Source("validation", "validation"),
    "seen": Source("train", "seen"),
    "heldout": Source("heldout", "heldout"),
    "concept": Source("concept", "concept"),
    "newkinds": Source("heldout", "newkinds"),
    "newquestions": Source("heldout", "heldout", "heldout"),
    # As heldout; also scored by the exported adapter, loaded by plain PEFT, in one pass.
    "as_exported": Source("heldout", "heldout"),
    # As heldout and newkinds at one strength, over caches as deployed: compressed, cut, tampered with.
    "deployed": Source("heldout", "heldout", changed=True),
    "deployed_newkinds": Source("heldout", "newkinds", changed=True),
    "concept_pca": Source("concept_pca", "concept"),
    "imported": Source("imported", "concept"),
    # Detection as a function of the strength (dose).
    "doses": Source("heldout", "heldout+newkinds", doses=True),
    "doses_concept": Source("concept", "concept+newkinds", doses=True),
    # Long and many-turned conversations, made of contexts of trained and of unseen kinds.
    "long": Source("heldout", "heldout", long=True),
    "long_newkinds": Source("heldout", "newkinds", long=True),
    # Controls: sign-flipped, a random half of the tokens, a strength that changes rounding only, corrupted texts, answers
    # exchanged, factual questions.
    "flipped": Source("train", "seen", sign=-1.0),
    "scattered": Source("heldout", "heldout", positions=0.5),
    "vanishing": Source("heldout", "heldout", strength=LEAST_STRENGTH),
    "odd": Source("heldout", "odd"),
    "swapped": Source("heldout", "heldout", "swapped"),
    "factual": Source("heldout", "heldout", "factual"),
    # Is the question answered, or a word said? Detection in both orders of trained and of held-out answer words; facts,
    # with and without the lead-in, and questions about the text, all over the same steered and clean caches.
    "codes": Source("heldout", "heldout", "codes"),
    "newcodes": Source("heldout", "heldout", "newcodes"),
    "facts": Source("heldout", "heldout", "facts"),
    "facts_bare": Source("heldout", "heldout", "facts_bare"),
    "reading": Source("heldout", "heldout", "reading"),
    # Tasks that saying one word does not solve, over caches of their own: which half or which of four lines was steered,
    # which half more strongly, and which concept was added.
    "halves": Source("heldout", "heldout", "halves"),
    "lines": Source("heldout", "heldout", "lines"),
    "comparison": Source("heldout", "heldout", "comparison"),
    "identification": Source("concept", "concept", "identification"),
    "naming": Source("concept", "concept", "naming"),  # the same, answered by the concept's name
}
TEST_SETS = tuple(split for split in SOURCES if split not in ("train", "validation"))
OF_NEW_KINDS = tuple(name for name, source in SOURCES.items() if source.contexts == "newkinds")
AS_EXPORTED = "as_exported"
MANY = 10**6  # stands for no end in a range of exchanges
LONG_SETS = tuple(name for name, source in SOURCES.items() if source.long)
DEPLOYED = tuple(split for split, source in SOURCES.items() if source.changed)
# Test sets over caches of their own, and all that ask each cache several questions.
CHOICES = ("halves", "lines", "comparison", "identification", "naming")
OF_CONCEPTS = ("identification", "naming")
QUESTIONNAIRES = ("codes", "newcodes", "facts", "facts_bare", "reading", *CHOICES)
# Those that ask trained questions; of codes and newcodes, the answer words are what is tested.
ASK_TRAINED = ("train", "codes", "newcodes", *CHOICES)
# Test sets with other questions or answer words: the threshold of the checkpoint does not apply to them.
OTHER_QUESTIONS = ("swapped", "factual", *QUESTIONNAIRES)
DEFAULT_TEST_SETS = ("seen", "heldout", "concept", "newkinds")
