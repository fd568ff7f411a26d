"""Side effects of the adapter on the unsteered model: perplexity of texts, and answers to factual questions.

Both are measured with the adapter off and on. The factual questions have the form of the detection question: a model that
has learned to give the same answer to every question shows here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from introspection_lit.contexts.context import Context, Message
from introspection_lit.contexts.conversations import Phrasing, render
from introspection_lit.evaluation.metrics import require_finite
from introspection_lit.evaluation.statistics import auroc, rate, wilson_interval
from introspection_lit.steering.prefill import Forward, pad, prefill_mode
from introspection_lit.tasks.questions import QUESTION, Fact, load_facts, with_answers
from introspection_lit.tasks.scoring import log_odds, mass
from introspection_lit.utils.errors import ConfigurationError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

# Losses above it, of a ruined model, have one perplexity, 3e43: that of 710 is no float, nor is the square of that of 355.
MOST_NATS = 100.0


class Adapted(Forward, Protocol):
    """A forward pass, and the model with its adapter that it runs.

    Attributes:
        model: The model.
    """

    model: PeftModel


def fact_prompt(tokenizer: PreTrainedTokenizerBase, phrasing: Phrasing, question: str) -> str:
    """Render a factual question as a conversation of its own that ends where the answer word comes next.

    Args:
        tokenizer: Has the chat template.
        phrasing: System prompt, answers, answer prefix and joint; its info prompt is left out.
        question: Without the list of answers.

    Returns:
        The prompt, chat template included.
    """
    text = with_answers(question, phrasing.answers)
    start = Message("assistant", phrasing.answer_prefix)
    return render(tokenizer, Context("fact", (Message("user", text),), (start,)), None, replace(phrasing, info=""))[0]


def context_texts(
    tokenizer: PreTrainedTokenizerBase, phrasing: Phrasing, contexts: Sequence[Context], n_texts: int
) -> list[str]:
    """Render contexts with the chat template, without the question.

    Args:
        tokenizer: Has the chat template.
        phrasing: Provides the system prompt.
        contexts: ``n_texts`` of them, evenly spaced, are used.
        n_texts: At most; fewer if there are fewer contexts.

    Returns:
        The texts.
    """
    n_texts = min(n_texts, len(contexts))
    selection = [contexts[number * len(contexts) // n_texts] for number in range(n_texts)]
    rendered = (render(tokenizer, context, QUESTION, phrasing) for context in selection)
    return [text[:boundary] for text, boundary in rendered]


def perplexity(
    forward: Forward,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    batch_size: int,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Compute the perplexity of texts, over all tokens of each but the first.

    Args:
        forward: The model; the caller sets its mode and disables gradients.
        tokenizer: The model's; it adds no special tokens.
        texts: Texts to predict.
        batch_size: Texts in a forward pass; the result does not depend on it.
        device: The model's device.

    Returns:
        ``nats``: mean cross-entropy per token (logits in float32); ``perplexity``: exp(``nats``), best 1, at most
        exp(:data:`MOST_NATS`); ``tokens``: their number.

    Raises:
        ConfigurationError: No text has two tokens.
        RunError: A loss is NaN or infinite.
    """
    rows = [row for row in _tokens(tokenizer, texts) if len(row) > 1]
    if not rows:
        raise ConfigurationError([f"side effects: got {len(texts)} texts. Expected one of two tokens or more."])
    losses = []
    for batch in _by_length(rows, batch_size):
        ids, mask = (tensor.to(device) for tensor in pad([rows[number] for number in batch], 0, "right"))
        positions = torch.arange(ids.shape[1] - 1, device=device)
        logits = forward(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=positions).logits
        for row, number in enumerate(batch):  # one by one: float32 logits of a whole batch are large
            last = len(rows[number]) - 1
            losses.append(functional.cross_entropy(logits[row, :last].float(), ids[row, 1 : last + 1], reduction="none"))
    token_losses = torch.cat(losses).double().cpu()
    require_finite(token_losses)
    nats = float(token_losses.mean())
    return {"nats": nats, "perplexity": math.exp(min(nats, MOST_NATS)), "tokens": len(token_losses)}


def fact_scores(
    forward: Forward,
    tokenizer: PreTrainedTokenizerBase,
    phrasing: Phrasing,
    answer_ids: Sequence[int] | Tensor,
    facts: Sequence[Fact],
    batch_size: int,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Score factual questions, each in a conversation of its own.

    Args:
        forward: The model; the caller sets its mode and disables gradients.
        tokenizer: The model's.
        phrasing: See :func:`fact_prompt`.
        answer_ids: Tokens of yes and no after the answer prefix, ``(2,)``.
        facts: The questions.
        batch_size: Questions in a forward pass; the result does not depend on it.
        device: The model's device.

    Returns:
        Log-odds in nats and P(yes) + P(no) in [0, 1], both ``(facts,)`` float32 on the CPU.

    Raises:
        RunError: A score is NaN or infinite.
    """
    rows = _tokens(tokenizer, [fact_prompt(tokenizer, phrasing, fact.question) for fact in facts])
    answers = torch.as_tensor(answer_ids)
    scores, masses = (torch.empty(len(rows), dtype=torch.float32) for _ in range(2))
    for batch in _by_length(rows, batch_size):
        ids, mask = (tensor.to(device) for tensor in pad([rows[number] for number in batch], 0, "right"))
        positions, place = torch.unique(mask.sum(dim=1) - 1, return_inverse=True)
        logits = forward(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=positions).logits
        logits = logits[torch.arange(len(batch), device=device), place].cpu()
        scores[batch], masses[batch] = log_odds(logits, answers.cpu()), mass(logits, answers.cpu())
    require_finite(scores)
    return scores, masses


def summarise_facts(scores: Tensor, masses: Tensor, facts: Sequence[Fact]) -> dict[str, Any]:
    """Summarise the answers to factual questions.

    Args:
        scores: Log-odds, ``(facts,)``; above 0 means yes.
        masses: P(yes) + P(no), ``(facts,)``.
        facts: The questions.

    Returns:
        ``accuracy``: balanced accuracy, chance .5 (also for one answer to everything), best 1. ``accuracy_interval``: 95 %,
        Wilson, of the unbalanced accuracy. ``auroc``: of yes against no, chance .5, best 1. ``yes``: the share answered
        yes. ``mass`` and ``log_odds``: means.

    Raises:
        ConfigurationError: All facts have the same answer.
    """
    labels = _labels(facts)
    if labels.all() or not labels.any():
        raise ConfigurationError([f"side effects: got {len(facts)} facts of one answer. Expected both yes and no."])
    answers = scores > 0
    right = answers == labels
    return {
        "accuracy": (rate(right[labels]) + rate(right[~labels])) / 2,
        "accuracy_interval": list(wilson_interval(int(right.sum()), len(right))),
        "auroc": auroc(scores, labels),
        "yes": rate(answers),
        "mass": float(masses.double().mean()),
        "log_odds": float(scores.double().mean()),
    }


def side_effects(
    module: Adapted,
    tokenizer: PreTrainedTokenizerBase,
    phrasing: Phrasing,
    answer_ids: Sequence[int] | Tensor,
    contexts: Sequence[Context],
    n_texts: int = 64,
    batch_size: int = 16,
    n_facts: int = 160,
) -> dict[str, Any]:
    """Measure the model with the adapter off, then on.

    Args:
        module: With its model loaded; the model's mode is restored. Collective: of a sharded model every rank must call it.
        tokenizer: The model's.
        phrasing: Resolved phrasing of the detection question and its answers.
        answer_ids: Tokens of yes and no after the answer prefix, ``(2,)``.
        contexts: Held-out contexts for the perplexity.
        n_texts: Number of contexts to use.
        batch_size: Texts or questions in a forward pass.
        n_facts: Number of factual questions, from the first on; even, so that half of the answers are yes.

    Returns:
        ``perplexity``: ``off`` and ``on`` (see :func:`perplexity`) and ``change``, relative: .1 means 10 % higher.
        ``factual``: ``off`` and ``on`` (see :func:`summarise_facts`), and how many answers are right only with the adapter
        off (``lost``) or on (``gained``). ``facts`` and ``texts``: their numbers.

    Raises:
        ConfigurationError: ``n_facts``, ``n_texts`` or ``contexts`` are out of range.
        RunError: A loss or score is NaN or infinite.
    """
    available = load_facts()
    if not (2 <= n_facts <= len(available) and n_facts % 2 == 0 and n_texts > 0 and contexts):
        raise ConfigurationError(
            [
                f"side effects: got n_facts {n_facts}, n_texts {n_texts} and {len(contexts)} contexts. Expected an even "
                f"number of facts in 2..{len(available)}, and a text and a context or more."
            ]
        )
    facts = available[:n_facts]
    texts = context_texts(tokenizer, phrasing, contexts, n_texts)
    device = module.model.get_base_model().device
    perplexities: dict[str, dict[str, Any]] = {}
    answers: dict[str, dict[str, Any]] = {}
    right: dict[str, Tensor] = {}
    for name, adapter in (("off", False), ("on", True)):
        with prefill_mode(module.model, adapter):
            perplexities[name] = perplexity(module, tokenizer, texts, batch_size, device)
            scores, masses = fact_scores(module, tokenizer, phrasing, answer_ids, facts, batch_size, device)
        answers[name] = summarise_facts(scores, masses, facts)
        right[name] = (scores > 0) == _labels(facts)
    change = perplexities["on"]["perplexity"] / perplexities["off"]["perplexity"] - 1
    flips = {"lost": int((right["off"] & ~right["on"]).sum()), "gained": int((right["on"] & ~right["off"]).sum())}
    return {
        "perplexity": {**perplexities, "change": change},
        "factual": {**answers, **flips},
        "facts": len(facts),
        "texts": len(texts),
    }


def _labels(facts: Sequence[Fact]) -> Tensor:
    """True where the answer is yes, ``(facts,)``."""
    return torch.tensor([fact.answer == "yes" for fact in facts])


def _tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts that already contain all special tokens."""
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def _by_length(rows: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    """Yield the indices of batches of rows of similar length, which need little padding."""
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
