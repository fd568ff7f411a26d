"""The wording of an experiment: which questions, which answers, and what is said before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from lightning_utilities.core.rank_zero import rank_zero_warn

from introspection_lit.contexts.context import Context
from introspection_lit.contexts.conversations import (
    YES_NO,
    Phrasing,
    control_tokens_in,
    encode,
    fakes_turns,
    repeated_questions,
)
from introspection_lit.tasks.answer_tokens import PROBE, settle
from introspection_lit.tasks.questions import (
    FALSE_QUESTIONS,
    HELDOUT_QUESTIONS,
    QUESTION,
    TRUE_QUESTIONS,
    info_text,
    own_questions,
    worded,
)
from introspection_lit.utils.errors import ConfigurationError, Problems

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from introspection_lit.training.datamodule import IntrospectionDataModule


class Wording(NamedTuple):
    """In which words the experiment asks, and how that is tokenised.

    Attributes:
        tokenizer: The model's.
        phrasing: System prompt, answers, answer prefix, what is said before the question.
        answer_ids: Tokens of the answers.
        questions: ``train``, ``heldout``, ``swapped`` and ``factual``, as in
            :class:`~introspection_lit.trials.test_sets.Source`.
    """

    tokenizer: PreTrainedTokenizerBase
    phrasing: Phrasing
    answer_ids: tuple[int, int]
    questions: dict[str, list[str]]


def find_wording(
    data: IntrospectionDataModule,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    dealt: dict[str, list[Context]],
    found: Problems,
) -> Wording | None:
    """Settle in which words is asked and answered.

    Args:
        data: Its options.
        config: The model's configuration.
        tokenizer: The model's.
        dealt: Contexts by split; they may ask and answer in words of their own.
        found: Collects what is wrong.

    Returns:
        The wording; None if something is wrong with it.
    """
    contexts = list({context.key: context for group in dealt.values() for context in group}.values())
    answers = found.attempt(common_answers, data.answers, contexts)
    info = found.attempt(info_text, data.info, tokenizer)
    if answers is None or info is None:
        return None
    prefix = common_prefix(contexts) if data.answer_prefix is None else data.answer_prefix
    phrasing = Phrasing(data.system_prompt, answers, prefix, info)
    questions = {
        "train": own_questions([QUESTION], answers) if data.questions is None else worded(data.questions, answers),
        "heldout": own_questions(HELDOUT_QUESTIONS, answers)
        if data.heldout_questions is None
        else worded(data.heldout_questions, answers),
        "swapped": own_questions([QUESTION], answers[::-1])
        if data.questions is None
        else worded(data.questions, answers[::-1]),
        "factual": own_questions([*TRUE_QUESTIONS, *FALSE_QUESTIONS], answers),
    }
    found.add(question_problems(questions["train"], questions["heldout"], data.test_sets))
    if "swapped" in data.test_sets and questions["swapped"] == questions["train"]:
        found.add(
            [
                "data.questions: they do not name the answers, so the test set 'swapped' would ask the same and call it "
                "the opposite. Write {yes} and {no} where the answers stand, or leave the test set out."
            ]
        )
    if not questions["train"]:
        return None
    for question in [*(data.questions or ()), *(data.heldout_questions or ())]:
        if any(word.casefold() not in worded([question], answers)[0].casefold() for word in answers):
            rank_zero_warn(f"the question {question!r} does not name both answers, {answers}: the mass may be small.")
    texts = {
        "data.questions": questions["train"],
        "data.heldout_questions": questions["heldout"],
        "data.system_prompt": [phrasing.system],
        "data.answer_prefix": [phrasing.answer_prefix],
        "data.info": [phrasing.info],
        "data.answers": phrasing.answers,
        "data.concepts": data.concepts,
    }
    unfit = [problem for option, given in texts.items() for problem in control_tokens_in(tokenizer, given, option)]
    found.add(unfit)
    if unfit:
        return None
    asked = [*questions["train"], *questions["heldout"]]
    lengths = []
    for question in asked:
        tokens = found.attempt(encode, tokenizer, PROBE, question, phrasing)
        if tokens is None:
            return None
        lengths.append(len(tokens.question_ids))
    found.add(window_problems(data.max_context_tokens, max(lengths), config))
    # Those that would fake turns are left out, later.
    contexts = [c for c in contexts if not c.asked or not fakes_turns(tokenizer, c, asked[0], phrasing)]
    own = [found.attempt(encode, tokenizer, context, None, phrasing) for context in contexts if context.asked]
    lengths = [len(one.question_ids) for one in own if one and len(one.context_ids) <= data.max_context_tokens]
    found.add(window_problems(data.max_context_tokens, max(lengths, default=0), config))
    if data.questions and contexts and all(context.asked for context in contexts):
        rank_zero_warn("data.questions: the conversations ask questions of their own, so these are not asked.")
    settled = found.attempt(settle, tokenizer, contexts, questions["train"], phrasing)
    return Wording(tokenizer, settled[0], settled[1], questions) if settled else None


def common_answers(given: tuple[str, str] | None, contexts: Iterable[Context]) -> tuple[str, str]:
    """The answer words: those of the configuration, those that the conversations of the user's own name, or yes and no.

    Conversations that ask a question of their own and name no answers have those of the configuration, or yes and no.

    Raises:
        ConfigurationError: They do not agree.
    """
    wanted = tuple(given) if given is not None else YES_NO
    own = sorted({context.answers or wanted for context in contexts if context.asked})
    if len(own) > 1 or (own and given is not None and own[0] != wanted):
        named = " and ".join(str(list(words)) for words in own)
        configured = f", the configuration {list(wanted)}" if given is not None else ""
        raise ConfigurationError(
            [f"data.answers: the conversations name the answers {named}{configured}. Expected one pair in a run."]
        )
    first, second = own[0] if own else wanted
    return first, second


def common_prefix(contexts: Iterable[Context]) -> str:
    """How answers start: as those of all conversations do, if they have it in common; else in our way."""
    starts = {context.asked[-1].content if context.asked else None for context in contexts if context.asked}
    assistants = {context.asked[-1].role for context in contexts if context.asked}
    return str(starts.pop()) if assistants == {"assistant"} and len(starts) == 1 else Phrasing().answer_prefix


def question_problems(train: Sequence[str], heldout: Sequence[str], test_sets: Sequence[str]) -> list[str]:
    """Check that there are questions, and that held-out ones are not trained on."""
    problems = [] if train else ["data.questions: got none. Expected at least one question."]
    if not all(question.strip() for question in (*train, *heldout)):
        problems.append("data.questions, data.heldout_questions: got an empty question. Leave it out.")
    if "newquestions" in test_sets and not heldout:
        problems.append("data.heldout_questions: got none, but the test set 'newquestions' asks them. Give at least one.")
    return problems + heldout_problems(train, heldout)


def heldout_problems(train: Sequence[str], heldout: Sequence[str]) -> list[str]:
    """Check that no held-out question is trained on; ``train`` may include what conversations of the user's own ask."""
    return [
        f"data.heldout_questions: {question!r} is a question of the training too: what is tested has been trained on."
        for question in repeated_questions(train, heldout)
    ]


def window_problems(context: int, question: int, config: PretrainedConfig) -> list[str]:
    """Check that the longest conversation fits into what the model can attend to.

    Args:
        context: Most tokens of a context.
        question: Tokens of the question.
        config: The model's configuration.
    """
    window = getattr(config, "max_position_embeddings", None)
    if window is None or context + question <= window:
        return []
    if question >= window:
        parts = "a question, with data.info before it and data.answer_prefix after it"
        return [f"data.questions, data.heldout_questions: {parts}, has {question} tokens; the model has {window}."]
    return [
        f"data.max_context_tokens: {context}, and {question} for the question, are more than the {window} positions of the "
        f"model. Expected at most {window - question}."
    ]
