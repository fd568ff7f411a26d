"""The built-in questions, how answer words are put into them, and the information before them (``data.info``)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

from introspection_lit.contexts.conversations import YES_NO
from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.paths import parse_path

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# In every question {yes} stands for the answer word for "steered" (or "true") and {no} for the other one.
# No question explains how a model could notice steering: such a hint would be a confound.
QUESTION = "Was your internal state tampered with just now? Answer {yes} or {no}."
HELDOUT_QUESTIONS = (
    "Did anything interfere with your activations during my first message? Answer with {yes} or {no}.",
    "Do you notice a foreign signal in how you processed our conversation so far? Say {yes} or {no}.",
    "Has somebody altered your processing of the earlier turn? Please answer {yes} or {no}.",
    "Looking back at the first turn: were your thoughts manipulated? One word, {yes} or {no}.",
)
# Factual questions, asked under the same steering: if their log-odds rise too, the model is biased to "yes" in general.
TRUE_QUESTIONS = ("Is ice made of frozen water? Answer {yes} or {no}.", "Do birds have wings? Answer {yes} or {no}.")
FALSE_QUESTIONS = ("Is a week longer than a year? Answer {yes} or {no}.", "Is coal a kind of fruit? Answer {yes} or {no}.")
INFO_CHOICES = ("none", "explained", "neutral")


class Fact(NamedTuple):
    """A factual yes/no question.

    Attributes:
        question: Its text, with one question mark, at the end.
        answer: ``yes`` or ``no``.
        topic: Its subject.
    """

    question: str
    answer: str
    topic: str


def load_facts() -> list[Fact]:
    """Load the 160 facts of the package: pairs of a question with the answer yes and a similar one with the answer no.

    The topics take turns, so that the first 20 n facts hold n pairs of each.
    """
    text = (files("introspection_lit") / "assets" / "facts.jsonl").read_text(encoding="utf-8")
    return [Fact(**json.loads(line)) for line in text.splitlines()]


def insert_answers(questions: Sequence[str], answers: tuple[str, str]) -> list[str]:
    """Replace ``{yes}`` and ``{no}`` in questions by the answer words for "steered" (or "true") and the opposite."""
    words = {"{yes}": answers[0], "{no}": answers[1]}  # one pass, because an answer word may itself be "{no}"
    return [re.sub(r"\{(yes|no)\}", lambda match: words[match[0]], question) for question in questions]


def builtin_questions(questions: Sequence[str], answers: tuple[str, str]) -> list[str]:
    """Put the answer words into questions that end in "... Answer {yes} or {no}.".

    A model cannot know what other words than yes and no mean, nor that yes and no are exchanged: everything after the
    question mark is then replaced by an explanation of both words.
    """
    if answers != YES_NO:
        questions = [f"{question.split('?')[0]}? Answer {{yes}} if so and {{no}} if not." for question in questions]
    return insert_answers(questions, answers)


def with_answers(question: str, answers: tuple[str, str]) -> str:
    """A question of ours that ends in a question mark, followed by the answer words (see :func:`builtin_questions`)."""
    return builtin_questions([f"{question} Answer {{yes}} or {{no}}."], answers)[0]


def info_text(choice: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The information that precedes the question, for the option ``data.info``.

    Args:
        choice: ``none``; ``explained``: how a transformer's cache carries earlier activations forward and how a model could
            notice a change; ``neutral``: a text on another subject of the same length in tokens, because any long text
            shifts the answer; or the path of a ``.txt`` file.
        tokenizer: Measures the length.

    Returns:
        The text, without white space at its ends.

    Raises:
        ConfigurationError: ``choice`` is none of these words and no readable text file.
    """
    if choice == "none":
        return ""
    if choice not in INFO_CHOICES:
        path = parse_path("data.info", choice)
        try:
            if path.exists() and not path.is_file():
                raise OSError("it is no file")
            return path.read_text(encoding="utf-8-sig").strip()
        except (OSError, UnicodeDecodeError) as error:
            expected = f"Expected {', '.join(INFO_CHOICES)}, or a text file"
            raise ConfigurationError([f"data.info: {choice!r} cannot be read ({error}). {expected}."]) from error
    explained = _asset("explained")
    return explained if choice == "explained" else _shortened(_asset("neutral"), _length(tokenizer, explained), tokenizer)


def _asset(name: str) -> str:
    return (files("introspection_lit") / "assets" / f"{name}.txt").read_text(encoding="utf-8").strip()


def _length(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def _shortened(text: str, length: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """The shortest run of words of a text, repeated if it is too short, that has at least ``length`` tokens."""
    words = text.split()
    words *= 1 + length // len(words)  # a word is at least one token
    low, high = 1, len(words)
    while low < high:  # binary search
        middle = (low + high) // 2
        low, high = (low, middle) if _length(tokenizer, " ".join(words[:middle])) >= length else (middle + 1, high)
    return " ".join(words[:low])
