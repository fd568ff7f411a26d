"""What the page asks a detector: a conversation, clean and steered, in both codes, and over strengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from threading import Lock
from typing import NamedTuple

import numpy as np

from introspection_lit.contexts.conversations import Encoded, encode
from introspection_lit.contexts.rows import as_context
from introspection_lit.detector import Answer, Detector
from introspection_lit.one_cache import Question, Reading, ask_one_cache, concept_question
from introspection_lit.steering.specification import Steering
from introspection_lit.tasks.questions import with_answers
from introspection_lit.utils.errors import ConfigurationError

# Strengths of the curve, beside 0, which is the clean conversation.
STRENGTHS = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
# Concepts that are offered when it is asked which one was added, as in training.
CONCEPTS = 9
# Of a conversation: some 1,500 tokens, which two cores read in half a minute.
MOST_CHARACTERS = 6_000


class Findings(NamedTuple):
    """The answers about one conversation.

    Attributes:
        clean: As trained, of the conversation as it is.
        steered: As trained, of the conversation read under steering.
        swapped_clean: As ``clean``, with the answer words exchanged. Log-odds are those of the word that now means steered;
            the adapter's threshold does not apply to them, so theirs is 0: the likelier word.
        swapped_steered: As ``steered``, with the answer words exchanged.
    """

    clean: Answer
    steered: Answer
    swapped_clean: Answer
    swapped_steered: Answer


class Examiner:
    """Asks one detector for everybody: one conversation at a time, and nothing is kept from one to the next.

    Steering is hooks on the model's layers, so a second pass at the same time would be steered, too.

    Args:
        detector: With a bank.
    """

    def __init__(self, detector: Detector) -> None:
        self.detector, self.swapped, self._model = detector, exchanged(detector), Lock()

    def compare(self, conversation: tuple[str, str], steering: Steering) -> Findings:
        """Ask about a conversation, clean and steered, in both codes.

        Args:
            conversation: A user message, and the reply to it.
            steering: What is added while it is read.

        Raises:
            ConfigurationError: The conversation or the steering cannot be used.
            RunError: A score is NaN or infinite.
        """
        _check(conversation)
        with self._model:
            trained, swapped = (
                detector.ask_many([conversation] * 2, [None, steering]) for detector in (self.detector, self.swapped)
            )
        return Findings(*trained, *swapped)

    def curve(
        self, conversation: tuple[str, str], steering: Steering, strengths: Sequence[float] = STRENGTHS
    ) -> dict[float, Answer]:
        """Ask about a conversation at several strengths; by strength, arguments and errors as for :meth:`compare`."""
        _check(conversation)
        doses = [replace(steering, strength=strength) for strength in strengths]
        with self._model:
            return dict(zip(strengths, self.detector.ask_many([conversation] * len(doses), doses), strict=True))

    def name_concept(
        self, conversation: tuple[str, str], steering: Steering, concept: str
    ) -> tuple[Reading, Reading] | None:
        """Ask which concept was added, by name, about the clean and the steered conversation.

        Args:
            conversation: A user message, and the reply to it.
            steering: What is added while it is read.
            concept: Its name in the bank; it is offered among eight others of the bank, and "nothing".

        Returns:
            The answers of both; None if the adapter was not trained to name concepts, or these names cannot be told apart.

        Raises:
            ConfigurationError: The conversation or the steering cannot be used.
            RunError: A score is NaN or infinite.
        """
        question = self.naming(concept)
        if question is None:
            return None
        with self._model:
            clean, steered = (ask_one_cache(self.detector, conversation, [question], added) for added in (None, steering))
        return clean[0], steered[0]

    def naming(self, concept: str) -> Question | None:
        """The question which of nine concepts was added, in an order that depends on the concept alone."""
        assert self.detector.bank is not None
        tokenizer = self.detector.tokenizer
        offered: dict[int, str] = {}  # by the first token of the name
        others = [name for name in self.detector.bank.names["concept"] if name != concept]
        random = np.random.default_rng(list(concept.encode()))
        for name in (concept, *random.permutation(others)):
            offered.setdefault(tokenizer(f" {name}", add_special_tokens=False)["input_ids"][0], str(name))
        names = list(offered.values())[:CONCEPTS]
        if not self.detector.concepts or len(names) < CONCEPTS:
            return None
        return concept_question(self.detector, [names[place] for place in random.permutation(CONCEPTS)])

    def tokens(self, conversation: tuple[str, str]) -> Encoded:
        """The conversation and the question as the model reads them."""
        detector = self.detector
        return encode(detector.tokenizer, as_context(conversation), detector.question, detector.phrasing)


def exchanged(detector: Detector) -> Detector:
    """The same model and adapter, asked with the answer words exchanged: "no" means steered, and the question says so."""
    words = detector.phrasing.answers[::-1]
    question = with_answers(f"{detector.question.split('?')[0]}?", words)
    phrasing = replace(detector.phrasing, answers=words, joint="")
    model, bank = detector.model, detector.bank
    return Detector(model, detector.tokenizer, detector.layers, question, phrasing, 0.0, detector.prefill_adapter, bank)


def _check(conversation: tuple[str, str]) -> None:
    """Refuse what is no conversation, or too long for the page, in words.

    Raises:
        ConfigurationError: It is.
    """
    length = sum(map(len, conversation))
    if length > MOST_CHARACTERS:
        limit = f"this page takes at most {MOST_CHARACTERS:,}, so that nobody waits for minutes"
        raise ConfigurationError([f"The conversation has {length:,} characters; {limit}. Shorten it."])
    if not conversation[0].strip():
        raise ConfigurationError(["The message of the user is empty, so there is nothing to read. Write one."])
