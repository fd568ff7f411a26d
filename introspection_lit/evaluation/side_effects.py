"""Side effects: what the adapter does to the model besides noticing steering. Nothing is steered here.

Two measures, each with the adapter off and on: how well the model predicts texts, and what it answers to questions of fact
that are put exactly like the detection question. A model that has learned to say one word to every question shows here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from introspection_lit.contexts.context import Context, Message
from introspection_lit.contexts.conversations import Phrasing, render
from introspection_lit.evaluation.metrics import require_finite
from introspection_lit.evaluation.statistics import auroc, rate, wilson_interval
from introspection_lit.steering.prefill import Forward, pad, prefill_mode
from introspection_lit.tasks.questions import QUESTION, builtin_questions
from introspection_lit.tasks.scoring import log_odds, mass
from introspection_lit.utils.errors import ConfigurationError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase


# The rows of the table below the perplexity.
ROWS = {
    "nats": "nats per token",
    "accuracy": "facts: accuracy",
    "auroc": "facts: AUROC",
    "yes": "facts: share answered yes",
    "mass": "facts: mass of yes and no",
    "log_odds": "facts: mean log-odds",
}


class Adapted(Forward, Protocol):
    """A forward pass, and the model with its adapter that it runs.

    Attributes:
        model: The model.
    """

    model: PeftModel


class Fact(NamedTuple):
    """A question about the world.

    Attributes:
        question: Ends in its only question mark.
        answer: ``yes`` or ``no``.
        topic: What it is about.
    """

    question: str
    answer: str
    topic: str


def load_facts() -> list[Fact]:
    """The facts that come with the package: 160 in pairs, a true and a false version of one kind of question.

    The topics take turns, so that the first 20 n facts hold n pairs of each.
    """
    text = (files("introspection_lit") / "assets" / "facts.jsonl").read_text(encoding="utf-8")
    return [Fact(**json.loads(line)) for line in text.splitlines()]


def fact_prompt(tokenizer: PreTrainedTokenizerBase, phrasing: Phrasing, question: str) -> str:
    """Put a question of fact as a conversation of its own, up to where the answer word comes.

    Args:
        tokenizer: Carries the chat template.
        phrasing: System prompt, answers, answer prefix and joint; its info is left out.
        question: Without the answers.

    Returns:
        The whole text.
    """
    asked = builtin_questions([question + " Answer {yes} or {no}."], phrasing.answers)[0]
    start = Message("assistant", phrasing.answer_prefix)
    return render(tokenizer, Context("fact", (Message("user", asked),), (start,)), None, replace(phrasing, info=""))[0]


def context_texts(
    tokenizer: PreTrainedTokenizerBase, phrasing: Phrasing, contexts: Sequence[Context], n_texts: int
) -> list[str]:
    """Write contexts out as the model reads them, chat template included, without the question.

    Args:
        tokenizer: Carries the chat template.
        phrasing: Its system prompt comes first.
        contexts: Where they are taken from, evenly over the list.
        n_texts: How many; all if there are fewer.

    Returns:
        The texts.
    """
    n_texts = min(n_texts, len(contexts))
    chosen = [contexts[number * len(contexts) // n_texts] for number in range(n_texts)]
    rendered = (render(tokenizer, context, QUESTION, phrasing) for context in chosen)
    return [text[:seam] for text, seam in rendered]


def perplexity(
    forward: Forward,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    batch_size: int,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """How well a model predicts texts, over all tokens of each but the first.

    Args:
        forward: The model; its mode and gradients are the caller's business.
        tokenizer: The model's; it adds no special tokens.
        texts: What is predicted.
        batch_size: Texts at a time; it does not matter to the result.
        device: Where the model is.

    Returns:
        ``nats``: the mean cross-entropy of a token, in float32; ``perplexity``: exp of it, 1 at best; ``tokens``: how many.

    Raises:
        ConfigurationError: There is nothing to predict.
        RunError: A loss is not finite.
    """
    rows = [row for row in _tokens(tokenizer, texts) if len(row) > 1]
    if not rows:
        raise ConfigurationError([f"side effects: got {len(texts)} texts. Expected one of two tokens or more."])
    losses = []
    for chosen in _by_length(rows, batch_size):
        ids, mask = (tensor.to(device) for tensor in pad([rows[number] for number in chosen], 0, "right"))
        kept = torch.arange(ids.shape[1] - 1, device=device)
        logits = forward(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=kept).logits
        for row, number in enumerate(chosen):  # one by one: logits of a whole batch in float32 are large
            last = len(rows[number]) - 1
            losses.append(functional.cross_entropy(logits[row, :last].float(), ids[row, 1 : last + 1], reduction="none"))
    every = torch.cat(losses).double().cpu()
    require_finite(every)
    nats = float(every.mean())
    return {"nats": nats, "perplexity": math.exp(nats), "tokens": len(every)}


def fact_scores(
    forward: Forward,
    tokenizer: PreTrainedTokenizerBase,
    phrasing: Phrasing,
    answer_ids: Sequence[int] | Tensor,
    facts: Sequence[Fact],
    batch_size: int,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Ask the facts, each in a conversation of its own.

    Args:
        forward: The model; its mode and gradients are the caller's business.
        tokenizer: The model's.
        phrasing: See :func:`fact_prompt`.
        answer_ids: Tokens of yes and no after the answer prefix, ``(2,)``.
        facts: What is asked.
        batch_size: Questions at a time; it does not matter to the result.
        device: Where the model is.

    Returns:
        Log-odds in nats and mass in [0, 1], both ``(facts,)`` float32 on the CPU.

    Raises:
        RunError: A score is not finite.
    """
    rows = _tokens(tokenizer, [fact_prompt(tokenizer, phrasing, fact.question) for fact in facts])
    answers = torch.as_tensor(answer_ids)
    scores, masses = (torch.empty(len(rows), dtype=torch.float32) for _ in range(2))
    for chosen in _by_length(rows, batch_size):
        ids, mask = (tensor.to(device) for tensor in pad([rows[number] for number in chosen], 0, "right"))
        kept, place = torch.unique(mask.sum(dim=1) - 1, return_inverse=True)
        logits = forward(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=kept).logits
        logits = logits[torch.arange(len(chosen), device=device), place].cpu()
        scores[chosen], masses[chosen] = log_odds(logits, answers.cpu()), mass(logits, answers.cpu())
    require_finite(scores)
    return scores, masses


def summarise_facts(scores: Tensor, masses: Tensor, facts: Sequence[Fact]) -> dict[str, Any]:
    """Summarise the answers.

    Args:
        scores: Log-odds, ``(facts,)``; above 0 means yes.
        masses: P(yes) + P(no), ``(facts,)``.
        facts: What was asked.

    Returns:
        ``accuracy``: the mean of the share right of the true and of the false ones, so that saying one word to everything
        gives .5; best 1. ``accuracy_interval``: 95 %, Wilson, of the share right. ``auroc``: how often a true one outscores
        a false one, chance .5, best 1. ``yes``: the share answered yes. ``mass`` and ``log_odds``: means.

    Raises:
        ConfigurationError: The facts are not of both answers.
    """
    labels = _labels(facts)
    if labels.all() or not labels.any():
        raise ConfigurationError([f"side effects: got {len(facts)} facts of one answer. Expected both yes and no."])
    said = scores > 0
    right = said == labels
    return {
        "accuracy": (rate(right[labels]) + rate(right[~labels])) / 2,
        "accuracy_interval": list(wilson_interval(int(right.sum()), len(right))),
        "auroc": auroc(scores, labels),
        "yes": rate(said),
        "mass": float(masses.double().mean()),
        "log_odds": float(scores.double().mean()),
    }


def factual(
    forward: Forward,
    tokenizer: PreTrainedTokenizerBase,
    phrasing: Phrasing,
    answer_ids: Sequence[int] | Tensor,
    facts: Sequence[Fact],
    batch_size: int,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Ask the facts and summarise the answers: :func:`fact_scores`, then :func:`summarise_facts`."""
    return summarise_facts(*fact_scores(forward, tokenizer, phrasing, answer_ids, facts, batch_size, device), facts)


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
        module: With its model loaded, which is left in the mode it was in. Of a sharded one every process must call this.
        tokenizer: The model's.
        phrasing: How the detection question is put and answered, settled.
        answer_ids: Tokens of yes and no after the answer prefix, ``(2,)``.
        contexts: Held out, for the perplexity.
        n_texts: How many of them.
        batch_size: Texts or questions at a time.
        n_facts: How many questions of fact, from the first on; even, so that half of them are true.

    Returns:
        ``perplexity``: ``off`` and ``on`` (see :func:`perplexity`) and ``change``, relative: .1 is a tenth more.
        ``factual``: ``off`` and ``on`` (see :func:`summarise_facts`), and how many facts are right only with the adapter
        off (``lost``) or on (``gained``). ``facts`` and ``texts``: how many.

    Raises:
        ConfigurationError: There is nothing to measure on.
        RunError: A number is not finite.
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
    predicted: dict[str, dict[str, Any]] = {}
    answered: dict[str, dict[str, Any]] = {}
    right: dict[str, Tensor] = {}
    for name, adapter in (("off", False), ("on", True)):
        with prefill_mode(module.model, adapter):
            predicted[name] = perplexity(module, tokenizer, texts, batch_size, device)
            scores, masses = fact_scores(module, tokenizer, phrasing, answer_ids, facts, batch_size, device)
        answered[name] = summarise_facts(scores, masses, facts)
        right[name] = (scores > 0) == _labels(facts)
    change = predicted["on"]["perplexity"] / predicted["off"]["perplexity"] - 1
    flips = {"lost": int((right["off"] & ~right["on"]).sum()), "gained": int((right["on"] & ~right["off"]).sum())}
    return {
        "perplexity": {**predicted, "change": change},
        "factual": {**answered, **flips},
        "facts": len(facts),
        "texts": len(texts),
    }


def table(result: dict[str, Any]) -> Table:
    """Lay the result of :func:`side_effects` out as a table that fits 80 columns."""
    words, facts = result["perplexity"], result["factual"]
    made = Table(
        title="Side effects: nothing steered, adapter off and on",
        caption=f"{result['texts']} texts, {words['on']['tokens']} tokens; {result['facts']} facts: right only with the "
        f"adapter off {facts['lost']}, only with it on {facts['gained']}",
        padding=(0, 1),
    )
    made.add_column("measure", no_wrap=True)
    for column in ("off", "on", "difference"):
        made.add_column(column, justify="right", no_wrap=True)
    off, on = words["off"]["perplexity"], words["on"]["perplexity"]
    made.add_row("perplexity of contexts", f"{off:.2f}", f"{on:.2f}", f"{100 * words['change']:+.1f} %")
    for key, said in ROWS.items():
        values = words if key == "nats" else facts
        off, on = values["off"][key], values["on"][key]
        made.add_row(said, f"{off:.3f}", f"{on:.3f}", f"{on - off:+.3f}")
    return made


def _labels(facts: Sequence[Fact]) -> Tensor:
    """True where the answer is yes, ``(facts,)``."""
    return torch.tensor([fact.answer == "yes" for fact in facts])


def _tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts in which the chat template has put all special tokens."""
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def _by_length(rows: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    """Deal rows out to batches of like length, which need little padding; yields their numbers."""
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
