"""A task: what is asked about a KV cache, in which words it is answered, and what the right answer is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

# Every question that the adapter is meant to answer begins with these words. No ordinary conversation contains them.
LEAD_IN = "Introspection query:"


class AnswerWords(NamedTuple):
    """The answer words of a query, and their tokens.

    Attributes:
        words: The words; of two, the first means "steered", "true" or "the first half".
        ids: The token id of each at the position of the answer.
        joint: What follows the answer prefix (see :class:`~introspection_lit.contexts.conversations.Phrasing`).
    """

    words: tuple[str, ...]
    ids: tuple[int, ...]
    joint: str = ""

    def exchanged(self) -> AnswerWords:
        """The same words with their meanings exchanged."""
        return AnswerWords(self.words[::-1], self.ids[::-1], self.joint)

    def first(self, count: int) -> AnswerWords:
        """The first of the words."""
        return AnswerWords(self.words[:count], self.ids[:count], self.joint)


class Query(NamedTuple):
    """One question put to one cache.

    Attributes:
        task: Name of its task.
        text: The user's message, with lead-in and answer words.
        answers: The answer words.
        target: Index of the right answer in ``answers``; None: the right answer is the distribution that the untrained
            model predicts from the clean cache of the same context.
        weight: Factor of its loss in the sum over the questions of a cache.
        meanings: What each answer word stands for, in questions about which part or which concept.
        asked: Number of characters of ``text`` up to the question mark, after which the answer words come.
        plain: Token of the answer in plain words (yes, no, first, ...), for the early loss; -1: none.
        early: Factor of the early loss in the question's loss.
    """

    task: str
    text: str
    answers: AnswerWords
    target: int | None
    weight: float = 1.0
    meanings: tuple[str, ...] = ()
    asked: int = 0
    plain: int = -1
    early: float = 0.0


@dataclass(frozen=True)
class TaskOptions:
    """How a task takes part in training.

    Attributes:
        weight: Factor of its mean loss in the sum over all tasks.
        questions: Questions that each cache is asked. Of ``plain_text``: texts for each pair of a clean and a steered
            cache, which may be a fraction. Of tasks with caches of their own: leave it out; their caches are asked as many
            questions as the others.
        pairs: Of tasks with caches of their own (``localisation``, ``comparison``, ``identification``): how many pairs of
            caches in 16 are made for this task.
        early: Factor of a second loss, at the question mark, before the answer words are named: there the answer in plain
            words is predicted (what a reference predicts there, for questions that have one). Following answer words is
            learned several times faster with it.
    """

    weight: float = 1.0
    questions: float = 1
    pairs: int = 2
    early: float = 0.0


def with_lead_in(lead_in: str, text: str) -> str:
    """A question with the lead-in before it, if there is one."""
    return f"{lead_in} {text}" if lead_in else text
