"""The questions that every cache of a split is asked: how many of which task, in which words; drawn from named streams."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from introspection_lit.contexts.conversations import YES_NO
from introspection_lit.tasks.questions import load_facts, with_answers
from introspection_lit.tasks.task import AnswerWords, Query, TaskOptions, with_lead_in
from introspection_lit.tasks.task_questions import DETECTION as DETECTION_QUESTIONS
from introspection_lit.tasks.task_questions import FACTUAL as FACTUAL_QUESTIONS
from introspection_lit.tasks.task_questions import HELDOUT_READING, YES_NO_SHARE
from introspection_lit.tasks.task_questions import READING as READING_QUESTIONS
from introspection_lit.utils.seeds import draw_in_rounds, generator

# Of all but detection the right answer is that of the untrained model over the clean cache.
DETECTION, FACTUAL, READING, PLAIN_TEXT = "detection", "factual", "reading", "plain_text"
TASKS = (DETECTION, FACTUAL, READING, PLAIN_TEXT)
MAX_QUESTIONS = 64
# Questions that test sets ask each cache: of detection, the two orders of the same words.
QUESTIONS_OF_TEST_SETS = 2
# The pairs of answer words (``Wording.pairs``) of the questionnaires of test sets, if not the trained ones.
WORDS_OF = {"newcodes": "heldout", "facts": "yes_no", "facts_bare": "yes_no", "reading": "yes_no"}


class Part(NamedTuple):
    """A task in a questionnaire.

    Attributes:
        task: Its name.
        questions: Its questions, each ending in a question mark.
        each: Questions that a cache is asked, one after another.
        weight: Factor of its mean loss.
        lead_in: Share of the questions that begin with the lead-in.
        exchanged: Share of the questions whose answer words change places, where not every cache is asked in both orders.
    """

    task: str
    questions: Sequence[str]
    each: int
    weight: float = 1.0
    lead_in: float = 1.0
    exchanged: float = 0.5


@dataclass(frozen=True)
class Questionnaire:
    """The questions that every cache of a split is asked, a pure function of (seed, split, pair, place).

    Both caches of a pair, the clean one and the steered one, are asked the same, in the same words. Detection asks two
    questions after another in both orders of the same words, so that whoever says one word always is right as often as
    wrong, over every cache.

    Attributes:
        seed: The experiment's seed.
        split: Name of the split; names the random stream.
        parts: The tasks, in order.
        words: Pairs of answer words that are drawn from, the same for all tasks.
        lead_in: Words at the beginning of the questions.
    """

    seed: int
    split: str
    parts: tuple[Part, ...]
    words: tuple[AnswerWords, ...]
    lead_in: str

    @cached_property
    def places(self) -> list[tuple[Part, int]]:
        """The part of each question of a cache, and which of the part's questions it is."""
        return [(part, number) for part in self.parts for number in range(part.each)]

    def query(self, pair: int, place: int, steered: bool) -> Query:
        """A question of a cache.

        Args:
            pair: Number of the pair of a clean and a steered cache.
            place: Which of the cache's questions.
            steered: Whether the cache is steered.
        """
        part, number = self.places[place]
        asks_both_orders = part.task == DETECTION and part.each > 1
        turn, order = divmod(number, 2) if asks_both_orders else (number, 0)
        random = generator(self.seed, "query", self.split, part.task, pair, turn)
        words = self._draw_words(random)
        if order or (not asks_both_orders and random.random() < part.exchanged):
            words = words.exchanged()
        lead_in = self.lead_in if random.random() < part.lead_in else ""
        turns = part.each // 2 if asks_both_orders else part.each
        place_in_rounds = pair * turns + turn
        question = part.questions[draw_in_rounds(self.seed, self.split, part.task, place_in_rounds, len(part.questions))]
        text = with_lead_in(lead_in, with_answers(question, (words.words[0], words.words[1])))
        target = int(not steered) if part.task == DETECTION else None
        return Query(part.task, text, words, target, part.weight / part.each)

    def _draw_words(self, random: np.random.Generator) -> AnswerWords:
        """Yes and no, with their share, or any other pair."""
        kinds = [[words for words in self.words if (set(words.words) == set(YES_NO)) == yes_no] for yes_no in (True, False)]
        pool = kinds[0] if kinds[0] and (not kinds[1] or random.random() < YES_NO_SHARE) else kinds[1]
        return pool[int(random.integers(len(pool)))]

    def texts(self) -> list[str]:
        """All questions in the words yes and no, for the record of what was trained on."""
        return [with_lead_in(self.lead_in, with_answers(text, YES_NO)) for part in self.parts for text in part.questions]

    def longest_texts(self, count: int = 16) -> list[str]:
        """The longest questions by characters, in any answer words."""
        pairs = [(words[0], words[1]) for answers in self.words for words in (answers.words, answers.words[::-1])]
        texts = {with_answers(question, pair) for part in self.parts for question in part.questions for pair in pairs}
        return [with_lead_in(self.lead_in, text) for text in sorted(texts, key=len)[-count:]]


def training_parts(tasks: Mapping[str, TaskOptions]) -> tuple[Part, ...]:
    """The parts of the questionnaire of training and validation; ``plain_text`` asks nothing.

    Half of the questions about the world and the text come without the lead-in: there, too, nothing may change.
    """
    questions = {DETECTION: DETECTION_QUESTIONS, FACTUAL: FACTUAL_QUESTIONS, READING: READING_QUESTIONS}
    return tuple(
        Part(name, questions[name], int(tasks[name].questions), tasks[name].weight, 1.0 if name == DETECTION else 0.5)
        for name in questions
        if name in tasks
    )


def part_of_test_set(name: str) -> Part:
    """The part that a test set asks (``questions`` of :class:`~introspection_lit.trials.test_sets.Source`)."""
    facts = [fact.question for fact in load_facts()]
    return {
        "codes": Part(DETECTION, DETECTION_QUESTIONS, QUESTIONS_OF_TEST_SETS),
        "newcodes": Part(DETECTION, DETECTION_QUESTIONS, QUESTIONS_OF_TEST_SETS),
        "facts": Part(FACTUAL, facts, QUESTIONS_OF_TEST_SETS, exchanged=0),
        "facts_bare": Part(FACTUAL, facts, QUESTIONS_OF_TEST_SETS, lead_in=0, exchanged=0),
        "reading": Part(READING, HELDOUT_READING, QUESTIONS_OF_TEST_SETS, exchanged=0),
    }[name]


def task_problems(tasks: Mapping[str, TaskOptions]) -> list[str]:
    """Errors in the option ``data.tasks``."""
    problems = [
        f"data.tasks: {name!r} is no task. Expected some of: {', '.join(TASKS)}." for name in tasks if name not in TASKS
    ]
    for name, task in tasks.items():
        whole = name == PLAIN_TEXT or float(task.questions).is_integer()
        if not (0 < task.weight < math.inf and 0 < task.questions <= MAX_QUESTIONS and whole):
            expected = f"Expected weight > 0 and 0 < questions <= {MAX_QUESTIONS}, a whole number except for {PLAIN_TEXT}"
            problems.append(f"data.tasks.{name}: got weight {task.weight} and questions {task.questions}. {expected}.")
    if DETECTION not in tasks:
        problems.append("data.tasks: detection is missing. Expected it among the tasks.")
    elif (each := tasks[DETECTION].questions) > 1 and each % 2:
        problems.append(
            f"data.tasks.detection: got {each} questions. Expected 1, or an even number: both orders are asked."
        )
    return problems
