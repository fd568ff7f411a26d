"""What caches are asked: balanced in both orders, drawn from named streams, held-out words and questions apart."""

from __future__ import annotations

from collections import Counter

import pytest
from transformers import PreTrainedTokenizerFast

from introspection_lit.contexts.conversations import Phrasing
from introspection_lit.tasks.answer_tokens import usable_words
from introspection_lit.tasks.questionnaire import (
    DETECTION,
    FACTUAL,
    PLAIN_TEXT,
    READING,
    Questionnaire,
    Truth,
    part_of_test_set,
    task_problems,
    training_parts,
)
from introspection_lit.tasks.questions import HELDOUT_QUESTIONS, load_facts
from introspection_lit.tasks.task import LEAD_IN, AnswerWords, TaskOptions
from introspection_lit.tasks.task_questions import (
    DETECTION as DETECTION_QUESTIONS,
)
from introspection_lit.tasks.task_questions import (
    FACTUAL as FACTUAL_QUESTIONS,
)
from introspection_lit.tasks.task_questions import (
    HELDOUT_PAIRS,
    HELDOUT_READING,
    TRAINED_PAIRS,
)
from introspection_lit.tasks.task_questions import READING as READING_QUESTIONS

WORDS = tuple(AnswerWords(pair, (2 * number, 2 * number + 1)) for number, pair in enumerate(TRAINED_PAIRS))
TASKS = {DETECTION: TaskOptions(questions=2), FACTUAL: TaskOptions(2.0), READING: TaskOptions(), PLAIN_TEXT: TaskOptions()}


def questionnaire(split: str = "train", seed: int = 0) -> Questionnaire:
    """Two questions about steering, one about the world and one about the text."""
    return Questionnaire(seed, split, training_parts(TASKS), WORDS, LEAD_IN)


def test_whoever_says_one_word_is_right_half_of_the_time_over_every_cache() -> None:
    """Detection is asked in both orders of the same words; over a cache, each word is right once."""
    asked = questionnaire()
    for pair in range(50):
        queries = [asked.query(pair, place, Truth(steered)) for steered in (False, True) for place in (0, 1)]
        assert {query.task for query in queries} == {DETECTION}
        right = [query.answers.words[query.target or 0] for query in queries]
        assert set(right[:2]) == set(right[2:]) == set(queries[0].answers.words)
        for query in queries:
            assert query.answers.ids == tuple(dict(zip(*by_word(query), strict=True))[word] for word in query.answers.words)


def by_word(query: object) -> tuple[list[str], list[int]]:
    """All trained words and their ids."""
    return [word for pair in WORDS for word in pair.words], [number for pair in WORDS for number in pair.ids]


def test_both_caches_of_a_pair_are_asked_the_same() -> None:
    """Only the right answer differs, and only where the question is about steering."""
    asked = questionnaire()
    for pair in range(20):
        for place in range(len(asked.places)):
            clean, steered = (asked.query(pair, place, Truth(label)) for label in (False, True))
            assert clean._replace(target=None) == steered._replace(target=None)
            expected = (1, 0) if clean.task == DETECTION else (None, None)
            assert (clean.target, steered.target) == expected


def test_questions_are_a_function_of_seed_split_and_pair() -> None:
    """Whatever was asked before; and other splits and seeds draw others."""
    first = [questionnaire().query(pair, place, Truth(steered=True)) for pair in range(30) for place in range(4)]
    again = [questionnaire().query(pair, place, Truth(steered=True)) for pair in reversed(range(30)) for place in range(4)]
    assert sorted(first) == sorted(again)
    for other in (questionnaire("validation"), questionnaire(seed=1)):
        assert [other.query(pair, place, Truth(steered=True)) for pair in range(30) for place in range(4)] != first


def test_all_words_and_questions_are_used() -> None:
    """In a few hundred pairs, each question equally often; every question of detection begins with the lead-in."""
    asked = questionnaire()
    queries = [asked.query(pair, place, Truth(steered=False)) for pair in range(200) for place in range(4)]
    assert {query.answers.words for query in queries if query.task == DETECTION} == {
        words for pair in TRAINED_PAIRS for words in (pair, pair[::-1])
    }
    counts = Counter(
        query.text.removeprefix(f"{LEAD_IN} ").split("?")[0] + "?" for query in queries if query.task == FACTUAL
    )
    assert set(counts) == set(FACTUAL_QUESTIONS)
    assert set(counts.values()) == {2}
    assert all(query.text.startswith(LEAD_IN) for query in queries if query.task == DETECTION)
    others = [query.text.startswith(LEAD_IN) for query in queries if query.task != DETECTION]
    assert 0.4 < sum(others) / len(others) < 0.6


@pytest.mark.parametrize("words", [WORDS, WORDS[:1]])
def test_no_question_is_longer_than_the_longest(words: tuple[AnswerWords, ...]) -> None:
    """The memory of a step is tried on these; also where yes and no are the only words, and explained when exchanged."""
    asked = Questionnaire(0, "train", training_parts(TASKS), words, LEAD_IN)
    longest = max(map(len, asked.longest_texts()))
    assert longest >= max(
        len(asked.query(pair, place, Truth(steered=False)).text) for pair in range(300) for place in range(4)
    )


def test_weights_make_the_mean_of_each_task_count_once() -> None:
    """However many questions a task asks; times its weight."""
    asked = questionnaire()
    totals: Counter[str] = Counter()
    for place in range(len(asked.places)):
        query = asked.query(3, place, Truth(steered=True))
        totals[query.task] += query.weight  # type: ignore[assignment]
    assert totals == {DETECTION: 1.0, FACTUAL: 2.0, READING: 1.0}


def test_what_is_tested_was_not_trained() -> None:
    """Facts, questions about the text, wordings and answer words."""
    assert not {fact.question for fact in load_facts()} & set(FACTUAL_QUESTIONS)
    assert not set(READING_QUESTIONS) & set(HELDOUT_READING)
    assert not set(DETECTION_QUESTIONS) & {question.split("?")[0] + "?" for question in HELDOUT_QUESTIONS}
    trained = {word for pair in TRAINED_PAIRS for word in pair}
    assert not trained & {word for pair in HELDOUT_PAIRS for word in pair}
    texts = questionnaire().texts()
    for name in ("facts", "facts_bare", "reading"):
        assert not set(Questionnaire(0, name, (part_of_test_set(name),), WORDS, LEAD_IN).texts()) & set(texts)


def test_words_of_several_tokens_are_left_out(tokenizer: PreTrainedTokenizerFast) -> None:
    """And the tokens of the others are those that follow the answer prefix."""
    pairs = usable_words(tokenizer, "Was it? Answer yes or no.", Phrasing(), [("yes", "no"), ("incomprehensible", "no")])
    assert [words.words for words in pairs] == [("yes", "no")]
    assert tokenizer.convert_ids_to_tokens(list(pairs[0].ids)) == ["Ġyes", "Ġno"]
    assert pairs[0].exchanged().ids == pairs[0].ids[::-1]


@pytest.mark.parametrize(
    ("tasks", "part"),
    [
        ({"guessing": TaskOptions()}, "'guessing' is no task"),
        ({FACTUAL: TaskOptions()}, "detection is missing"),
        ({DETECTION: TaskOptions(questions=3)}, "an even number"),
        ({DETECTION: TaskOptions(weight=0)}, "weight > 0"),
        ({DETECTION: TaskOptions(), FACTUAL: TaskOptions(questions=0.5)}, "whole number"),
    ],
)
def test_errors_in_the_option(tasks: dict[str, TaskOptions], part: str) -> None:
    """Each says what was given and what was expected."""
    assert any(part in problem for problem in task_problems(tasks))
    assert task_problems(TASKS) == []
