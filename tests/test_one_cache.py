"""Several questions to one cache: the answers of the detector, and of plain passes over the whole conversation."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from introspection_lit import Detector, Question, Steering, ask_one_cache, concept_question, load_contexts
from introspection_lit.utils.errors import ConfigurationError, RunError

RUN = Path(__file__).parent / "contract" / "run"
TALK = ("Which of the two rivers is longer?", "The second one, by far.")
ASKED = [
    Question("Was your internal state tampered with just now? Answer yes or no."),
    Question("Is ice made of frozen water? Answer A or B.", ("A", "B")),
    Question("Which of the lines above was it? Answer with its number.", ("A", "B", "C")),
]


@pytest.fixture(scope="module")
def detector() -> Detector:
    """That of the run that tests/contract holds."""
    return Detector.from_pretrained(RUN / "adapter", device="cpu")


@pytest.fixture
def steering(detector: Detector) -> Steering:
    """A strong one."""
    assert detector.bank is not None
    return Steering(detector.bank.directions["heldout"][0], 4.0)


def plain_logits(detector: Detector, messages: list[dict[str, str]], start: str) -> torch.Tensor:
    """Of the token after a conversation: one pass over text that the tokenizer's own template writes, no adapter."""
    turns = [{"role": "system", "content": ""}, *messages]
    text = detector.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) + start
    ids = detector.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with detector.model.disable_adapter(), torch.no_grad():
        return detector.model(input_ids=ids).logits[0, -1]


def token(detector: Detector, word: str) -> int:
    """The only token of a word with the space before it."""
    (number,) = detector.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
    return int(number)


def talk_with(question: str) -> list[dict[str, str]]:
    """The conversation and a question."""
    texts = [*TALK, question]
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]


def test_own_question_is_answered_as_the_detector_answers_it(detector: Detector, steering: Steering) -> None:
    """Clean and steered, alone and among others."""
    own = Question(detector.question)
    for condition in (None, steering):
        expected = detector.ask(*TALK, condition)
        alone, among = (
            ask_one_cache(detector, TALK, [own], condition)[0],
            ask_one_cache(detector, TALK, [*ASKED, own], condition)[3],
        )
        for reading in (alone, among):
            assert reading.log_odds == pytest.approx(expected.log_odds, abs=1e-5)
            assert reading.mass == pytest.approx(expected.mass, rel=1e-4)


def test_untrained_answers_are_those_of_one_plain_pass(detector: Detector) -> None:
    """Each question after the whole conversation, without cache, adapter or steering."""
    for question, reading in zip(ASKED, ask_one_cache(detector, TALK, ASKED, adapter=False), strict=True):
        assert question.text
        logits = plain_logits(detector, talk_with(question.text), "The answer is")
        words = question.answers or ("yes", "no")
        tokens = [token(detector, word) for word in words]
        for word, number in zip(words, tokens, strict=True):
            assert reading.probabilities[word] == pytest.approx(float(logits.softmax(0)[number]), rel=1e-3)
        chosen = logits[tokens]
        assert reading.answer == words[int(chosen.argmax())]
        assert reading.log_odds == pytest.approx(float(chosen[0] - chosen[1:].max()), abs=1e-4)


def test_concept_is_asked_for_by_the_first_token_of_its_name(detector: Detector) -> None:
    """Among the names and "nothing", in the words of the test set ``naming``; two that begin alike are refused."""
    names = ("the ocean", "extraordinarily", "bread")
    question = concept_question(detector, names)
    asked, answered = "Which of these was put into your thoughts?", "Answer with one of the words"
    assert question.text == f"{asked} {answered} {', '.join(names)}, nothing."
    (reading,) = ask_one_cache(detector, TALK, [question], adapter=False)
    shares = plain_logits(detector, talk_with(question.text), "The answer is").softmax(0)
    begun = [detector.tokenizer(f" {name}", add_special_tokens=False)["input_ids"] for name in (*names, "nothing")]
    assert max(map(len, begun)) > 1
    assert list(reading.probabilities) == [*names, "nothing"]
    for (first, *_), found in zip(begun, reading.probabilities.values(), strict=True):
        assert found == pytest.approx(float(shares[first]), rel=1e-3)
    with pytest.raises(ConfigurationError, match="no two of which begin with the same token"):
        ask_one_cache(detector, TALK, [concept_question(detector, ("the ocean", "the sea"))])


def test_question_of_a_file_is_asked_with_its_words_and_its_start(detector: Detector, tmp_path: Path) -> None:
    """As published prompts are written."""
    messages = talk_with("Were you changed? A: yes. B: no.")
    marked = [message | ({"add_injection": True} if place < 2 else {}) for place, message in enumerate(messages)]
    marked.append({"role": "assistant", "content": "I choose", "continue_msg": True})  # type: ignore[dict-item]
    file = tmp_path / "prompt.json"
    file.write_text(json.dumps({"messages": marked, "yes_token": " A", "no_token": " B"}))
    (reading,) = ask_one_cache(detector, load_contexts(str(file))[0], adapter=False)
    logits = plain_logits(detector, messages, "I choose")
    assert reading.log_odds == pytest.approx(float(logits[token(detector, "A")] - logits[token(detector, "B")]), abs=1e-4)
    assert set(reading.probabilities) == {"A", "B"}


def test_what_is_added_changes_the_answers_and_nothing_afterwards(detector: Detector, steering: Steering) -> None:
    """The next conversation is read as before."""
    before = ask_one_cache(detector, TALK, ASKED)
    steered = ask_one_cache(detector, TALK, ASKED, steering)
    assert all(abs(one.log_odds - other.log_odds) > 1e-4 for one, other in zip(before, steered, strict=True))
    assert ask_one_cache(detector, TALK, ASKED) == before
    assert all(math.isclose(reading.mass, sum(reading.probabilities.values())) for reading in before)


def test_all_problems_come_at_once(detector: Detector) -> None:
    """Of questions and of the steering, each with what was given."""
    bad = [Question(), Question("Was it?", ("yes",)), Question("Was it so?", ("extraordinarily so", "no", "no"))]
    with pytest.raises(ConfigurationError) as caught:
        ask_one_cache(detector, TALK, bad, Steering(torch.zeros(3), 1.0))
    first, second, third, fourth = caught.value.problems
    assert first.startswith("questions: got Question() for a conversation without its own")
    assert "'Was it?': got the answers ['yes']. Expected two words or more" in second
    assert "extraordinarily so" in third
    assert fourth.startswith("steering.direction: got shape (3,)")
    for questions in ([], [Question("x" * 40_000)]):
        with pytest.raises(ConfigurationError, match=r"Expected at least one Question|Shorten one of them"):
            ask_one_cache(detector, TALK, questions)


def test_answers_that_are_nan_stop_it(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many, and what to do."""

    def broken(*args: object, **options: object) -> torch.Tensor:
        return torch.full((2, 50_000), torch.nan)

    monkeypatch.setattr("introspection_lit.one_cache.read_answers", broken)
    with pytest.raises(RunError, match=r"2 of 2 answers have a score that is NaN or infinite\. Steer less\."):
        ask_one_cache(detector, TALK, ASKED[:2])
