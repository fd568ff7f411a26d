"""Questions: what is asked after the context, in which words it is answered, and what may be said before it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING

from introspection_lit.contexts.conversations import YES_NO
from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.paths import parse_path

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# In every question {yes} and {no} stand for the answer words: the one for "steered" (or "true") and the other one.
# None of these explains how a model could notice: that would be a crutch (and a confound).
QUESTION = "Was your internal state tampered with just now? Answer {yes} or {no}."
HELDOUT_QUESTIONS = (
    "Did anything interfere with your activations during my first message? Answer with {yes} or {no}.",
    "Do you notice a foreign signal in how you processed our conversation so far? Say {yes} or {no}.",
    "Has somebody altered your processing of the earlier turn? Please answer {yes} or {no}.",
    "Looking back at the first turn: were your thoughts manipulated? One word, {yes} or {no}.",
)
# Questions about the world, with the steering of the trial: if log-odds move here too, everything is pushed to "yes".
TRUE_QUESTIONS = ("Is ice made of frozen water? Answer {yes} or {no}.", "Do birds have wings? Answer {yes} or {no}.")
FALSE_QUESTIONS = ("Is a week longer than a year? Answer {yes} or {no}.", "Is coal a kind of fruit? Answer {yes} or {no}.")
INFO_CHOICES = ("none", "explained", "neutral")


def worded(questions: Sequence[str], answers: tuple[str, str]) -> list[str]:
    """Put the answer words where questions have ``{yes}`` and ``{no}``: the word for "steered" (or "true"), the other."""
    words = {"{yes}": answers[0], "{no}": answers[1]}  # in one go: an answer may look like one of these itself
    return [re.sub(r"\{(yes|no)\}", lambda match: words[match[0]], question) for question in questions]


def own_questions(questions: Sequence[str], answers: tuple[str, str]) -> list[str]:
    """Put the answer words into questions of this file.

    Of words other than yes and no, or of these the other way round, a model cannot know which means what: what comes after
    the question mark is then replaced by an explanation.
    """
    if answers != YES_NO:
        questions = [f"{question.split('?')[0]}? Answer {{yes}} if so and {{no}} if not." for question in questions]
    return worded(questions, answers)


def info_text(choice: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """What is said before the question.

    Args:
        choice: ``none``; ``explained``: how a transformer's cache carries earlier activations forward and how a model could
            notice a change; ``neutral``: a text about something else, as many tokens long, since any long text moves the
            answer; or the path of a ``.txt`` file.
        tokenizer: Measures the length.

    Returns:
        The text, without white space at its ends.

    Raises:
        ConfigurationError: It is neither a choice nor a text file.
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
    return explained if choice == "explained" else _matched(_asset("neutral"), _length(tokenizer, explained), tokenizer)


def _asset(name: str) -> str:
    return (files("introspection_lit") / "assets" / f"{name}.txt").read_text(encoding="utf-8").strip()


def _length(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def _matched(text: str, length: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """The fewest words of a text (from its beginning again, if it is too short) that make at least ``length`` tokens."""
    words = text.split()
    words *= 1 + length // len(words)  # a word is a token at least
    low, high = 1, len(words)
    while low < high:  # the fewest words of at least that length
        middle = (low + high) // 2
        low, high = (low, middle) if _length(tokenizer, " ".join(words[:middle])) >= length else (middle + 1, high)
    return " ".join(words[:low])
