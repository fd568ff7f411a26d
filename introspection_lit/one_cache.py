"""Several questions to one KV cache: the conversation is read once, and each question is asked of what it left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import Cache

from introspection_lit.contexts.context import Context
from introspection_lit.contexts.conversations import YES_NO, Encoded, Phrasing, encode
from introspection_lit.contexts.rows import Conversation, as_context
from introspection_lit.contexts.usable import control_token_problems
from introspection_lit.detector import Detector
from introspection_lit.models.architecture import usable_positions
from introspection_lit.models.architectures import reach
from introspection_lit.models.attention_reach import layer_reaches
from introspection_lit.steering.intervention import Intervention
from introspection_lit.steering.prefill import pad, prefill_mode, steered_cache
from introspection_lit.steering.question_pass import read_answers
from introspection_lit.steering.specification import Steering
from introspection_lit.tasks.answer_tokens import first_tokens, usable_words
from introspection_lit.tasks.task import AnswerWords, with_lead_in
from introspection_lit.tasks.task_questions import IDENTIFICATION, NAMES, NOTHING
from introspection_lit.training.window_checks import unread_band
from introspection_lit.utils.errors import ConfigurationError, Problems, RunError


class Question(NamedTuple):
    """A question, and the words of its answer.

    Attributes:
        text: The user's message, answer words included; None: the question that follows in the conversation's own file
            (:attr:`~introspection_lit.contexts.context.Context.question_turns`).
        answers: Two words or more, each one token, or else no two of which begin with the same token: then each is
            scored by its first one. None: those that the conversation's file names, or yes and no.
    """

    text: str | None = None
    answers: tuple[str, ...] | None = None


def concept_question(detector: Detector, concepts: Sequence[str]) -> Question:
    """The question which of some concepts was added, or nothing, answered by name: as test set ``naming`` asks it.

    Args:
        detector: Its lead-in begins the question. Only an adapter that was trained to name concepts
            (:attr:`~introspection_lit.detector.Detector.concepts`) has learned to answer.
        concepts: Their names, without "nothing", which comes last.
    """
    names = (*concepts, NOTHING)
    text = f"{IDENTIFICATION[0]} {NAMES.format(names=', '.join(names))}"
    return Question(with_lead_in(detector.lead_in, text), names)


class _Asked(NamedTuple):
    """A question as tokens, its answer words, and the token of each."""

    encoded: Encoded
    words: tuple[str, ...]
    tokens: tuple[int, ...]


class Reading(NamedTuple):
    """The answer to one question.

    Attributes:
        answer: The most probable of the answer words.
        probabilities: Of each answer word under the full softmax. Their sum is the mass: where it is small, they mean
            nothing.
        log_odds: Logit of the first word minus that of the most probable other one, in nats.
    """

    answer: str
    probabilities: dict[str, float]
    log_odds: float

    @property
    def mass(self) -> float:
        """Probability of all answer words together, in [0, 1]."""
        return sum(self.probabilities.values())


@dataclass
class _Batch:
    """One cache and the questions to it, as in :class:`~introspection_lit.steering.question_pass.QuestionBatch`."""

    cache: Cache | None
    context_mask: Tensor
    question_ids: Tensor
    question_mask: Tensor
    cache_of: Tensor | None
    question_prefix_ids: Tensor | None = None


def ask_one_cache(
    detector: Detector,
    conversation: Conversation,
    questions: Sequence[Question] = (Question(),),
    steering: Steering | None = None,
    adapter: bool = True,
) -> list[Reading]:
    """Let the model read a conversation once, steered or not, and ask its KV cache every question.

    Args:
        detector: The model with its adapter; its own question, answer words and threshold play no part.
        conversation: As for :meth:`~introspection_lit.detector.Detector.ask_many`. Of a
            :class:`~introspection_lit.contexts.context.Context` with a question of its own, ``Question()`` asks that one.
        questions: What is asked, each of the same cache.
        steering: What is added while the conversation is read; None: nothing.
        adapter: False: the questions are read without the adapter, as the untrained model answers them.

    Returns:
        The answers, in the order of the questions.

    Raises:
        ConfigurationError: The conversation, a question or the steering cannot be used; all problems.
        RunError: A logit of an answer is NaN or infinite.
    """
    problems = Problems()
    context = problems.attempt(as_context, conversation)
    problems.add([None if questions else "questions: got none. Expected at least one Question."])
    problems.raise_if_any()
    assert context is not None
    asked = [problems.attempt(_asked, detector, context, question) for question in questions]
    added = problems.attempt(_added, detector, steering)
    ready = [each for each in asked if each is not None]
    if added is not None and (steered := added[1].nonzero().flatten().tolist()):
        longest = max((len(each.encoded.question_ids) for each in ready), default=0)
        unread = unread_band(layer_reaches(detector.config), (steered[0], steered[-1]), longest)
        problems.add([unread and f"steering: {unread}"])
    if any(each.encoded.context_ids != ready[0].encoded.context_ids for each in ready[1:]):
        problems.add(["questions: the chat template writes the conversation otherwise before some. Ask each by itself."])
    problems.raise_if_any()
    assert added is not None
    fill, device = detector.tokenizer.pad_token_id or 0, detector.model.get_base_model().device
    ids, mask = (part.to(device) for part in pad([ready[0].encoded.context_ids], fill, "left"))
    asked_ids, asked_mask = (part.to(device) for part in pad([each.encoded.question_ids for each in ready], fill, "right"))
    intervention = Intervention(added[0][None].to(device), added[1][None].to(device), mask.bool())
    cache = steered_cache(
        detector.model, detector.model, detector.layers, ids, mask, intervention, detector.prefill_adapter and adapter
    )
    batch = _Batch(cache, mask, asked_ids, asked_mask, torch.zeros(len(ready), dtype=torch.long, device=device))
    with prefill_mode(detector.model, adapter):
        logits = read_answers(detector.model, batch, group=True).float().cpu()
    if broken := int((~logits.isfinite().all(dim=1)).sum()):
        raise RunError([f"{broken} of {len(logits)} answers have a score that is NaN or infinite. Steer less."])
    return [_reading(row, each.words, each.tokens) for row, each in zip(logits, ready, strict=True)]


def _added(detector: Detector, steering: Steering | None) -> tuple[Tensor, Tensor]:
    """Directions, ``(layers, hidden)``, and the length that is added at each layer, ``(layers,)``."""
    layers, hidden = len(detector.layers), int(detector.config.hidden_size)
    if steering is None:
        return torch.zeros(layers, hidden), torch.zeros(layers)
    norms = detector.bank.residual_norms if detector.bank is not None else None
    return steering.added(layers, hidden, norms, reach(detector.config))


def _asked(detector: Detector, context: Context, question: Question) -> _Asked:
    """A question after a conversation as tokens."""
    phrasing, text = detector.phrasing, question.text
    words = question.answers or (context.answers if text is None else None) or YES_NO
    if text is None:
        if context.question is None:
            expected = "Expected its text, or a conversation with messages after the one that is marked steering_ends"
            raise ConfigurationError([f"questions: got Question() for a conversation without its own. {expected}."])
        start = context.question_turns[-1]
        prefix = start.content if start.role == "assistant" else phrasing.answer_prefix
        phrasing = replace(phrasing, answer_prefix=prefix, info="")
    shown = context.question if text is None else text
    assert shown is not None
    found = _answer_words(detector, shown, phrasing, tuple(words))
    if found is None:
        expected = f"Expected two words or more, no two of which begin with the same token after {phrasing.answer_prefix!r}"
        raise ConfigurationError([f"questions: {shown[:60]!r}: got the answers {list(words)}. {expected}."])
    encoded = encode(detector.tokenizer, context, text, replace(phrasing, joint=found.joint))
    count, window = len(encoded.context_ids) + len(encoded.question_ids), usable_positions(detector.config)
    if window is not None and count > window:
        taken = f"it has {count} tokens with the conversation; the model takes {window}"
        raise ConfigurationError([f"questions: {shown[:60]!r}: {taken}. Shorten one of them."])
    return _Asked(encoded, found.words, found.ids)


def _answer_words(detector: Detector, question: str, phrasing: Phrasing, words: tuple[str, ...]) -> AnswerWords | None:
    """The token by which each word is scored: its only one, or if a word has several, the first; None: they cannot be."""
    if len(words) < 2 or not all(word.strip() for word in words) or control_token_problems(detector.tokenizer, words):
        return None
    if whole := usable_words(detector.tokenizer, question, phrasing, [words]):
        return whole[0]
    begun = first_tokens(detector.tokenizer, question, phrasing, words)
    return begun if begun is not None and len(set(begun.ids)) == len(words) else None


def _reading(logits: Tensor, words: tuple[str, ...], tokens: tuple[int, ...]) -> Reading:
    """The answer of one row of logits, ``(vocabulary,)``."""
    chosen, share = logits[list(tokens)], logits.softmax(dim=0)[list(tokens)]
    return Reading(
        words[int(chosen.argmax())],
        dict(zip(words, share.tolist(), strict=True)),
        float(chosen[0] - chosen[1:].max()),
    )
