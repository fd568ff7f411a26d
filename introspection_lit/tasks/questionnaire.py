"""The questions that every cache of a split is asked: how many of which task, in which words; drawn from named streams."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from introspection_lit.contexts.conversations import YES_NO
from introspection_lit.tasks import task_questions
from introspection_lit.tasks.questions import load_facts, with_answers
from introspection_lit.tasks.task import AnswerWords, Query, TaskOptions, with_lead_in
from introspection_lit.tasks.task_questions import HALVES, NAMED_SHARE, NOTHING, YES_NO_SHARE
from introspection_lit.utils.seeds import draw_in_rounds, generator

# Of factual and reading the right answer is that of the untrained model over the clean cache.
DETECTION, FACTUAL, READING, PLAIN_TEXT = "detection", "factual", "reading", "plain_text"
# Tasks with caches of their own, in which both caches of a pair are steered, differently.
LOCALISATION, COMPARISON, IDENTIFICATION = "localisation", "comparison", "identification"
OWN_CACHES = (LOCALISATION, COMPARISON, IDENTIFICATION)
TASKS = (DETECTION, FACTUAL, READING, *OWN_CACHES, PLAIN_TEXT)
# Kinds of pairs of caches: one clean and one steered; both clean, but the text of one says that it is steered; steered in
# one half each, in one line each, in one half more than in the other, with one concept each.
STEERING, VISIBLE, IN_HALVES, IN_LINES, UNEQUAL, CONCEPTS = "steering", "visible", "halves", "lines", "unequal", "concepts"
TASK_OF = {IN_HALVES: LOCALISATION, IN_LINES: LOCALISATION, UNEQUAL: COMPARISON, CONCEPTS: IDENTIFICATION}
# ``TaskOptions.pairs`` counts in these.
PAIRS_IN_ROUND = 16
# Answers of a question about concepts, "nothing" among them; and numbered lines of a context.
OPTIONS, LINES = 10, 4
ANSWERS = {IN_HALVES: 2, UNEQUAL: 2, IN_LINES: LINES, CONCEPTS: OPTIONS}
HALF_NAMES = ("first half", "second half")
MAX_QUESTIONS = 64
# Questions that test sets ask each cache: of detection, the two orders of the same words.
QUESTIONS_OF_TEST_SETS = 2
# The pairs of answer words (``Wording.answer_words``) of the questionnaires of test sets, if not the trained ones.
WORDS_OF = {"newcodes": "heldout", "facts": "yes_no", "facts_bare": "yes_no", "reading": "yes_no"}
# The kind of pairs of test sets, if not a clean and a steered cache.
KIND_OF = {"halves": IN_HALVES, "lines": IN_LINES, "comparison": UNEQUAL, "identification": CONCEPTS, "naming": CONCEPTS}


class Part(NamedTuple):
    """A task in a questionnaire.

    Attributes:
        task: Its name.
        questions: Its questions, each ending in a question mark.
        each: Questions that a cache is asked, one after another.
        weight: Factor of its mean loss.
        lead_in: Share of the questions that begin with the lead-in.
        exchanged: Share of the questions whose answer words change places, where not every cache is asked in both orders.
        early: Factor of the early loss (:class:`~introspection_lit.tasks.task.TaskOptions`).
        named: Share of the questions about concepts that are answered by the concept's name, not by a digit or letter.
    """

    task: str
    questions: Sequence[str]
    each: int
    weight: float = 1.0
    lead_in: float = 1.0
    exchanged: float = 0.5
    early: float = 0.0
    named: float = 0.0


class PlainAnswers(NamedTuple):
    """Tokens of answers in plain words, each after a question mark.

    Attributes:
        steered: Yes and no.
        halves: First and second.
        lines: Digits from 1.
        concepts: The first token of each concept, and of "nothing" last.
    """

    steered: tuple[int, ...]
    halves: tuple[int, ...]
    lines: tuple[int, ...]
    concepts: tuple[int, ...]


class PairKinds(NamedTuple):
    """The kind of each pair of caches of a split: every round of pairs holds each kind as often as ``kinds`` does.

    Attributes:
        seed: The experiment's seed.
        split: Name of the split.
        kinds: The kinds of a round.
    """

    seed: int
    split: str
    kinds: tuple[str, ...] = (STEERING,)

    def of(self, pair: int) -> str:
        """The kind of a pair."""
        return self.kinds[draw_in_rounds(self.seed, self.split, "kind", pair, len(self.kinds))]

    def share(self, task: str | None) -> float:
        """The share of the pairs that are made for a task; None: of those of a clean and a steered cache."""
        return sum(TASK_OF.get(kind) == task for kind in self.kinds) / len(self.kinds)


class Truth(NamedTuple):
    """What was done to a pair of caches, as far as questions and right answers depend on it.

    Attributes:
        steered: Whether the cache that is asked is steered.
        places: The place that is steered (most) in each cache of the pair, from 0.
        concepts: Index of the concept that was added to each cache; -1: none.
        second: Whether the cache that is asked is the second one of the pair.
    """

    steered: bool
    places: tuple[int, int] = (0, 0)
    concepts: tuple[int, int] = (-1, -1)
    second: bool = False


@dataclass(frozen=True)
class Questionnaire:
    """The questions that every cache of a split is asked, a pure function of (seed, split, pair, place).

    Both caches of a pair are asked the same, in the same words. Questions about steering come in pairs, with the same words
    in both orders, so that whoever says one word always is right as often as wrong, over every cache.

    Attributes:
        seed: The experiment's seed.
        split: Name of the split; names the random stream.
        parts: The tasks, in order.
        words: Pairs of answer words that are drawn from, the same for all tasks.
        lead_in: Words at the beginning of the questions.
        kinds: The kinds of pairs; those with caches of their own are asked nothing but their task.
        series: Digits and letters as answers of questions with many answers.
        concepts: Names of the concepts that are added.
        names: They and, last, "nothing" as answers, each by its first token; None: they cannot be.
        plain: Tokens of answers in plain words; None: there is no early loss.
    """

    seed: int
    split: str
    parts: tuple[Part, ...]
    words: tuple[AnswerWords, ...]
    lead_in: str
    kinds: PairKinds = field(default_factory=lambda: PairKinds(0, ""))
    series: tuple[AnswerWords, ...] = ()
    concepts: tuple[str, ...] = ()
    names: AnswerWords | None = None
    plain: PlainAnswers | None = None

    @cached_property
    def places(self) -> list[tuple[Part, int]]:
        """The part of each question of a clean or steered cache, and which of the part's questions it is."""
        return [(part, number) for part in self.parts if part.task not in OWN_CACHES for number in range(part.each)]

    @cached_property
    def each(self) -> int:
        """Questions of each cache."""
        return len(self.places) or max(part.each for part in self.parts)

    @cached_property
    def references(self) -> int:
        """Questions of a pair of caches that the untrained model answers, too, over the clean one."""
        return sum(part.task in (FACTUAL, READING) for part, _ in self.places)

    def part_of(self, pair: int, place: int) -> tuple[Part, int]:
        """The part of a question, and which of the part's questions it is."""
        kind = self.kinds.of(pair)
        if kind not in TASK_OF:
            return self.places[place]
        return next(part for part in self.parts if part.task == TASK_OF[kind]), place

    def query(self, pair: int, place: int, truth: Truth) -> Query:
        """A question of a cache.

        Args:
            pair: Number of the pair of caches.
            place: Which of the cache's questions.
            truth: What was done to the pair.
        """
        query, early = self._query(pair, place, truth), self.part_of(pair, place)[0].early
        if not early or self.plain is None:
            return query
        kind, plain = self.kinds.of(pair), -1
        if query.task == DETECTION:
            plain = self.plain.steered[int(not truth.steered)]
        elif query.task in OWN_CACHES:
            where = truth.concepts if kind == CONCEPTS else truth.places
            tokens = {CONCEPTS: self.plain.concepts, IN_LINES: self.plain.lines}.get(kind, self.plain.halves)
            plain = tokens[where[truth.second]]  # of no concept, -1, the last
        return query._replace(asked=query.text.index("?") + 1, plain=plain, early=early)

    def _query(self, pair: int, place: int, truth: Truth) -> Query:
        part, number = self.part_of(pair, place)
        own = part.task in OWN_CACHES
        asks_both_orders = own or (part.task == DETECTION and part.each > 1)
        alone = own and self.each % 2 and number == self.each - 1  # has no partner in the other order
        turn, order = divmod(number, 2) if asks_both_orders else (number, 0)
        random = generator(self.seed, "query", self.split, part.task, pair, turn)
        weight = part.weight / (self.kinds.share(part.task if own else None) * (self.each if own else part.each))
        kind = self.kinds.of(pair)
        if kind in (IN_LINES, CONCEPTS):
            text, words, right, meanings = self._choice(kind, part, pair, number, truth)
            return Query(part.task, with_lead_in(self.lead_in, text), words, right, weight, meanings)
        words = self._draw_words(random)
        if order or ((alone or not asks_both_orders) and random.random() < part.exchanged):
            words = words.exchanged()
        lead_in = self.lead_in if random.random() < part.lead_in else ""
        turns = part.each // 2 if asks_both_orders and not own else part.each
        question = part.questions[
            draw_in_rounds(self.seed, self.split, part.task, pair * turns + turn, len(part.questions))
        ]
        if own:
            text = f"{question} {HALVES.format(first=words.words[0], second=words.words[1])}"
            return Query(part.task, with_lead_in(lead_in, text), words, truth.places[truth.second], weight, HALF_NAMES)
        text = with_lead_in(lead_in, with_answers(question, (words.words[0], words.words[1])))
        target = int(not truth.steered) if part.task == DETECTION else None
        return Query(part.task, text, words, target, weight)

    def _choice(
        self, kind: str, part: Part, pair: int, number: int, truth: Truth
    ) -> tuple[str, AnswerWords, int, tuple[str, ...]]:
        """A question with many answers, its answer words, the right one, and what they stand for."""
        random = generator(self.seed, "choice", self.split, kind, pair, number)
        if kind == IN_LINES:
            words = next(series for series in self.series if series.words[0].isdigit()).first(LINES)
            question = f"{random.choice(task_questions.SENTENCES)} Answer with its number."
            return question, words, truth.places[truth.second], tuple(f"line {word}" for word in words.words)
        by_name = self.names if part.named and random.random() < part.named else None
        words = self.series[int(random.integers(len(self.series)))]
        others = [concept for concept in range(len(self.concepts)) if concept not in truth.concepts]
        added = {*truth.concepts, -1}
        options = [*added, *random.choice(others, OPTIONS - len(added), replace=False).tolist()]
        random.shuffle(options)
        named = tuple(NOTHING if option < 0 else self.concepts[option] for option in options)
        listed = ", ".join(f"{word} {name}" for word, name in zip(words.words, named, strict=True)) + "."
        ids = tuple(by_name.ids[option] for option in options) if by_name else ()
        if len(set(ids)) == OPTIONS:  # else two names begin with the same token
            words, listed = AnswerWords(named, ids), task_questions.NAMES.format(names=", ".join(named))
        return f"{random.choice(part.questions)} {listed}", words, options.index(truth.concepts[truth.second]), named

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
        texts = set()
        for part in self.parts:
            if part.task == IDENTIFICATION:
                longest = sorted([NOTHING, *self.concepts], key=len)[-OPTIONS:]
                listed = [", ".join(map(" ".join, zip(words.words, longest, strict=False))) for words in self.series]
                listed = [*(f"{concepts}." for concepts in listed), task_questions.NAMES.format(names=", ".join(longest))]
                texts |= {f"{question} {concepts}" for question in part.questions for concepts in listed}
            elif part.task in OWN_CACHES:
                texts |= {f"{q} {HALVES.format(first=a, second=b)}" for q in part.questions for a, b in pairs}
            else:
                texts |= {with_answers(question, pair) for question in part.questions for pair in pairs}
        return [with_lead_in(self.lead_in, text) for text in sorted(texts, key=len)[-count:]]


QUESTIONS = {
    DETECTION: task_questions.DETECTION,
    FACTUAL: task_questions.FACTUAL,
    READING: task_questions.READING,
    LOCALISATION: task_questions.LOCALISATION,
    COMPARISON: task_questions.COMPARISON,
    IDENTIFICATION: task_questions.IDENTIFICATION,
}


def training_parts(tasks: Mapping[str, TaskOptions]) -> tuple[Part, ...]:
    """The parts of the questionnaire of training and validation; ``plain_text`` asks nothing.

    Half of the questions about the world and the text come without the lead-in: there, too, nothing may change.
    """
    return tuple(
        Part(
            name,
            questions,
            1 if name in OWN_CACHES else int(tasks[name].questions),
            tasks[name].weight,
            0.5 if name in (FACTUAL, READING) else 1.0,
            early=tasks[name].early,
            named=NAMED_SHARE if name == IDENTIFICATION else 0.0,
        )
        for name, questions in QUESTIONS.items()
        if name in tasks
    )


def training_kinds(tasks: Mapping[str, TaskOptions]) -> tuple[str, ...]:
    """The kinds of a round of pairs of training and validation: half of the pairs of localisation are steered in lines."""
    kinds: list[str] = []
    for name in OWN_CACHES:
        own = [kind for kind, task in TASK_OF.items() if task == name]
        kinds += [own[number % len(own)] for number in range(tasks[name].pairs if name in tasks else 0)]
    return (*[STEERING] * (PAIRS_IN_ROUND - len(kinds)), *kinds) if kinds else (STEERING,)


def part_of_test_set(name: str) -> Part:
    """The part that a test set asks (``questions`` of :class:`~introspection_lit.trials.test_sets.Source`)."""
    facts = [fact.question for fact in load_facts()]
    if name in KIND_OF:
        task = TASK_OF[KIND_OF[name]]
        return Part(task, QUESTIONS[task], QUESTIONS_OF_TEST_SETS, named=float(name == "naming"))
    return {
        **dict.fromkeys(("codes", "newcodes"), Part(DETECTION, QUESTIONS[DETECTION], QUESTIONS_OF_TEST_SETS)),
        "facts": Part(FACTUAL, facts, QUESTIONS_OF_TEST_SETS, exchanged=0),
        "facts_bare": Part(FACTUAL, facts, QUESTIONS_OF_TEST_SETS, lead_in=0, exchanged=0),
        "reading": Part(READING, task_questions.HELDOUT_READING, QUESTIONS_OF_TEST_SETS, exchanged=0),
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
        if not 0 <= task.early < math.inf:
            problems.append(f"data.tasks.{name}.early: got {task.early}. Expected a factor of 0 or more.")
        if name in OWN_CACHES and task.pairs < 1:
            problems.append(f"data.tasks.{name}.pairs: got {task.pairs}. Expected at least 1 of {PAIRS_IN_ROUND}.")
    own = sum(task.pairs for name, task in tasks.items() if name in OWN_CACHES)
    if own >= PAIRS_IN_ROUND:
        problems.append(
            f"data.tasks: {', '.join(OWN_CACHES)} have {own} of {PAIRS_IN_ROUND} pairs of caches. Expected fewer: the "
            "others are a clean and a steered cache each, for detection."
        )
    if DETECTION not in tasks:
        problems.append("data.tasks: detection is missing. Expected it among the tasks.")
    elif (each := tasks[DETECTION].questions) > 1 and each % 2:
        expected = "Expected 1 or an even number: answer words are asked in both orders"
        problems.append(f"data.tasks.detection.questions: got {each}. {expected}.")
    return problems
