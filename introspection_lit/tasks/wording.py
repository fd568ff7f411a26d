"""The wording of a run: its questions, answer words, answer prefix and the information before the question."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from lightning_utilities.core.rank_zero import rank_zero_warn

from introspection_lit.contexts.context import Context
from introspection_lit.contexts.conversations import YES_NO, Phrasing, encode
from introspection_lit.contexts.usable import control_token_problems, fakes_turns
from introspection_lit.models.architecture import usable_positions
from introspection_lit.tasks.answer_tokens import SAMPLE_CONTEXT, find_answer_tokens, usable_words
from introspection_lit.tasks.questions import (
    FALSE_QUESTIONS,
    HELDOUT_QUESTIONS,
    QUESTION,
    TRUE_QUESTIONS,
    builtin_questions,
    info_text,
    insert_answers,
)
from introspection_lit.tasks.task import AnswerWords, with_lead_in
from introspection_lit.tasks.task_questions import DIGITS, HELDOUT_PAIRS, LETTERS, TRAINED_PAIRS
from introspection_lit.utils.errors import ConfigurationError, Problems

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True)
class WordingOptions:
    """The options of ``data`` that decide the wording; each attribute has the option's name and meaning.

    Attributes:
        questions: Training questions; None: the built-in one.
        heldout_questions: Questions of the test set ``newquestions``; None: the built-in ones.
        answers: Words for "steered" and "not steered"; None: those of the conversations, or yes and no.
        answer_prefix: Start of every answer; None: that of the conversations, or "The answer is".
        system_prompt: The system prompt.
        info: Text before the question: ``none``, ``explained``, ``neutral`` or the path of a ``.txt`` file.
        concepts: Words whose directions are extracted; they are checked for control tokens with the other texts.
        max_context_tokens: Longer contexts are left out.
        longest_trained: Tokens of the longest context of training.
        longest_validated: Tokens of the longest context of validation.
        longest_tested: Tokens of the longest context of the test sets.
        test_sets: Names of the test sets of the run.
        lead_in_text: First words of every question; empty: none.
        thinking: Whether an answer starts after a block of thoughts (``closed``) or inside of it (``open``).
    """

    questions: Sequence[str] | None
    heldout_questions: Sequence[str] | None
    answers: tuple[str, str] | None
    answer_prefix: str | None
    system_prompt: str
    info: str
    concepts: Sequence[str]
    max_context_tokens: int
    longest_trained: int
    longest_validated: int
    longest_tested: int
    test_sets: Sequence[str]
    lead_in_text: str
    thinking: Literal["closed", "open"]


class Wording(NamedTuple):
    """The questions and answers of a run, with the tokens of the answers.

    Attributes:
        tokenizer: The model's.
        phrasing: System prompt, answer words, answer prefix and information before the question.
        answer_ids: Token ids of the words for "steered" and "not steered".
        questions: Questions by set: ``train``, ``heldout``, ``swapped`` and ``factual``, as in
            :class:`~introspection_lit.trials.test_sets.Source`.
        answer_words: Those that are one token each, for questionnaires: pairs (``trained``, ``heldout`` and ``yes_no``),
            and ``series``, digits and letters.
    """

    tokenizer: PreTrainedTokenizerBase
    phrasing: Phrasing
    answer_ids: tuple[int, int]
    questions: dict[str, list[str]]
    answer_words: dict[str, tuple[AnswerWords, ...]]


def build_wording(
    options: WordingOptions,
    contexts: Iterable[Context],
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> Wording:
    """Choose questions, answers and prefix, and check that the model can read them.

    Args:
        options: What the configuration says.
        contexts: Contexts of all splits; conversation files may bring questions and answers of their own.
        config: The model's configuration.
        tokenizer: The model's.

    Raises:
        ConfigurationError: Any text cannot be used; all problems at once, as far as they can be found.
    """
    contexts = list({context.key: context for context in contexts}.values())
    problems = Problems()
    answers = problems.attempt(common_answers, options.answers, contexts)
    info = problems.attempt(info_text, options.info, tokenizer)
    problems.raise_if_any()
    assert answers is not None and info is not None  # noqa: PT018 - else there was a problem
    prefix = common_prefix(contexts) if options.answer_prefix is None else options.answer_prefix
    phrasing = Phrasing(options.system_prompt, answers, prefix, info, thinking=options.thinking)
    questions = _questions(options, answers)
    problems.add(question_problems(questions, options.test_sets))
    if not questions["train"]:
        problems.raise_if_any()
    _warn_without_answers(options, answers)
    control_problems = _control_token_problems(options, questions, phrasing, tokenizer)
    problems.add(control_problems)
    if control_problems:
        problems.raise_if_any()
    configured = [*questions["train"], *questions["heldout"]]
    longest = problems.attempt(longest_question, tokenizer, configured, phrasing)
    if longest is None:
        problems.raise_if_any()
    lengths_by = {options.longest_tested: "data.long.test_tokens", options.longest_trained: "data.long.tokens"}
    lengths_by[options.longest_validated] = "data.long.validation_tokens"
    lengths_by[options.max_context_tokens] = "data.max_context_tokens"
    for length, option in lengths_by.items():
        problems.add(window_problems(length, longest or 0, config, option))
    contexts = [c for c in contexts if not c.question_turns or not fakes_turns(tokenizer, c, configured[0], phrasing)]
    encoded = [
        problems.attempt(encode, tokenizer, context, None, phrasing) for context in contexts if context.question_turns
    ]
    lengths = [len(one.question_ids) for one in encoded if one and len(one.context_ids) <= options.max_context_tokens]
    problems.add(window_problems(options.max_context_tokens, max(lengths, default=0), config))
    if options.questions and contexts and all(context.question_turns for context in contexts):
        rank_zero_warn("data.questions: the conversations ask questions of their own, so these are not asked.")
    tokens = problems.attempt(find_answer_tokens, tokenizer, contexts, questions["train"], phrasing)
    problems.raise_if_any()
    assert tokens is not None
    pools: dict[str, Sequence[tuple[str, ...]]] = {"trained": TRAINED_PAIRS, "heldout": HELDOUT_PAIRS}
    pools |= {"yes_no": [YES_NO], "series": [DIGITS, LETTERS]}
    words = {name: usable_words(tokenizer, questions["train"][0], phrasing, pool) for name, pool in pools.items()}
    return Wording(tokenizer, *tokens, questions, words)


def _questions(options: WordingOptions, answers: tuple[str, str]) -> dict[str, list[str]]:
    """The questions of each set, with the answer words in them; ``swapped`` are those of ``train``, words exchanged."""

    def choose(configured: Sequence[str] | None, builtin: Sequence[str], words: tuple[str, str]) -> list[str]:
        texts = builtin_questions(builtin, words) if configured is None else insert_answers(configured, words)
        return [with_lead_in(options.lead_in_text, text) for text in texts]

    return {
        "train": choose(options.questions, [QUESTION], answers),
        "heldout": choose(options.heldout_questions, HELDOUT_QUESTIONS, answers),
        "swapped": choose(options.questions, [QUESTION], answers[::-1]),
        "factual": choose(None, [*TRUE_QUESTIONS, *FALSE_QUESTIONS], answers),
    }


def _warn_without_answers(options: WordingOptions, answers: tuple[str, str]) -> None:
    """Warn about configured questions that do not name both answer words."""
    for question in [*(options.questions or ()), *(options.heldout_questions or ())]:
        if any(word.casefold() not in insert_answers([question], answers)[0].casefold() for word in answers):
            rank_zero_warn(f"the question {question!r} does not name both answers, {answers}: the mass may be small.")


def _control_token_problems(
    options: WordingOptions, questions: dict[str, list[str]], phrasing: Phrasing, tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    """Check that no configured text holds control tokens of the model or marks of a turn."""
    texts = {
        "data.questions": questions["train"],
        "data.heldout_questions": questions["heldout"],
        "data.system_prompt": [phrasing.system],
        "data.answer_prefix": [phrasing.answer_prefix],
        "data.info": [phrasing.info],
        "data.answers": phrasing.answers,
        "data.concepts": options.concepts,
    }
    return [problem for option, group in texts.items() for problem in control_token_problems(tokenizer, group, option)]


def longest_question(tokenizer: PreTrainedTokenizerBase, questions: Sequence[str], phrasing: Phrasing) -> int:
    """Tokens of the longest question turn, information and answer prefix included."""
    return max(len(encode(tokenizer, SAMPLE_CONTEXT, question, phrasing).question_ids) for question in questions)


def common_answers(configured: tuple[str, str] | None, contexts: Iterable[Context]) -> tuple[str, str]:
    """Choose the answer words: those of the configuration, those that the conversations name, or yes and no.

    Conversations that ask a question of their own and name no answers use those of the configuration, or yes and no.

    Args:
        configured: The option ``data.answers``; None: not set.
        contexts: Contexts of all splits.

    Raises:
        ConfigurationError: Configuration and conversations name different answers.
    """
    default = tuple(configured) if configured is not None else YES_NO
    own = sorted({context.answers or default for context in contexts if context.question_turns})
    if len(own) > 1 or (own and configured is not None and own[0] != default):
        named = " and ".join(str(list(words)) for words in own)
        addition = f", the configuration {list(default)}" if configured is not None else ""
        raise ConfigurationError(
            [f"data.answers: the conversations name the answers {named}{addition}. Expected one pair in a run."]
        )
    first, second = own[0] if own else default
    return first, second


def common_prefix(contexts: Iterable[Context]) -> str:
    """The answer prefix that all conversations with a question share; otherwise the default one."""
    starts = {
        context.question_turns[-1].content if context.question_turns else None
        for context in contexts
        if context.question_turns
    }
    assistants = {context.question_turns[-1].role for context in contexts if context.question_turns}
    return str(starts.pop()) if assistants == {"assistant"} and len(starts) == 1 else Phrasing().answer_prefix


def question_problems(questions: dict[str, list[str]], test_sets: Sequence[str]) -> list[str]:
    """Check that there are questions, that held-out ones are not trained on, and that ``swapped`` can be asked."""
    train, heldout = questions["train"], questions["heldout"]
    problems = [] if train else ["data.questions: got none. Expected at least one question."]
    if not all(question.strip() for question in (*train, *heldout)):
        problems.append("data.questions, data.heldout_questions: got an empty question. Leave it out.")
    if "newquestions" in test_sets and not heldout:
        problems.append("data.heldout_questions: got none, but the test set 'newquestions' asks them. Give at least one.")
    problems += heldout_problems(train, heldout)
    if "swapped" in test_sets and questions["swapped"] == train:
        problems.append(
            "data.questions: they do not name the answers, so the test set 'swapped' would ask the same and call it "
            "the opposite. Write {yes} and {no} where the answers stand, or leave the test set out."
        )
    return problems


def heldout_problems(train: Sequence[str], heldout: Sequence[str]) -> list[str]:
    """Check that no held-out question is trained on; ``train`` may include the questions of conversation files."""
    return [
        f"data.heldout_questions: {question!r} is a question of the training too: what is tested has been trained on."
        for question in repeated_questions(train, heldout)
    ]


def repeated_questions(train: Sequence[str], heldout: Sequence[str]) -> list[str]:
    """List the held-out questions that are also training questions, ignoring case and white space; each is a leak."""
    trained = {" ".join(question.casefold().split()) for question in train}
    return [question for question in heldout if " ".join(question.casefold().split()) in trained]


def window_problems(
    context: int, question: int, config: PretrainedConfig, option: str = "data.max_context_tokens"
) -> list[str]:
    """Check that the longest conversation fits into the model's context window.

    Args:
        context: Tokens of the longest context.
        question: Tokens of the longest question turn.
        config: The model's configuration.
        option: That says how long contexts are.
    """
    window = usable_positions(config)
    if window is None or context + question <= window:
        return []
    if question >= window:
        parts = "a question, with data.info before it and data.answer_prefix after it"
        return [f"data.questions, data.heldout_questions: {parts}, has {question} tokens; the model has {window}."]
    return [
        f"{option}: {context}, and {question} for the question, are more than the {window} positions of the "
        f"model. Expected at most {window - question}."
    ]
