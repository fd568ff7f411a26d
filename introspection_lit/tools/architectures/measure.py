"""Holds a tiny model of an architecture to the oracle: caches, questions, savings and gradients."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from introspection_lit.steering.clean_caches import CleanCaches, make_reader, model_state
from introspection_lit.steering.intervention import Intervention
from introspection_lit.steering.prefill import pad, steered_cache
from introspection_lit.steering.question_pass import read_answers
from introspection_lit.steering.shared_prefill import shared_cache
from introspection_lit.tools.architectures.oracle import answer

# Two contexts, each clean and steered: as many caches as the tiny models have heads, so that nothing passes for the other.
CONTEXTS = [list(range(10, 37)), list(range(50, 62))]
ROWS = [0, 0, 1, 1]
PREFIX = [70, 71, 72]
QUESTIONS = [[80, 81, 82, 83], [90, 91], [84, 85, 86, 87, 88], [92], [93, 94], [95, 96, 97], [98, 99], [89, 79, 78]]
CACHE_OF = [0, 0, 1, 1, 2, 2, 3, 3]
STRENGTH = 4.0
# Largest difference from the oracle, as a share of its largest logit.
RIGHT = 1e-4


@dataclass
class Batch:
    """What :class:`~introspection_lit.steering.question_pass.QuestionBatch` asks for."""

    cache: Cache | None
    context_mask: Tensor
    question_ids: Tensor
    question_mask: Tensor
    cache_of: Tensor | None = None
    question_prefix_ids: Tensor | None = None


@dataclass
class Case:
    """A model and what it is asked.

    Attributes:
        model: With an adapter that does something.
        layers: Its decoder layers.
        bands: First and last steered layer of each cache; None: clean.
    """

    model: Any
    layers: Sequence[nn.Module]
    bands: list[tuple[int, int] | None]
    directions: Tensor = field(init=False)

    def __post_init__(self) -> None:
        hidden = self.model.get_base_model().config.get_text_config(decoder=True).hidden_size
        random = torch.Generator().manual_seed(7)
        self.directions = nn.functional.normalize(torch.randn(len(ROWS), hidden, generator=random), dim=-1)

    def intervention(self, mask: Tensor) -> Intervention:
        """What is added to the caches."""
        scale = torch.zeros(len(ROWS), len(self.layers))
        for row, band in enumerate(self.bands):
            if band is not None:
                scale[row, band[0] : band[1] + 1] = STRENGTH
        return Intervention(self.directions[:, None], scale, mask.bool())

    def expected(self, row: int, steered: bool = True) -> Tensor:
        """The oracle's answer to a question, ``(vocabulary,)``."""
        cache = CACHE_OF[row]
        band = self.bands[cache] if steered else None
        layers = range(band[0], band[1] + 1) if band else ()
        added = dict.fromkeys(layers, STRENGTH * self.directions[cache])
        return answer(self.model, self.layers, CONTEXTS[ROWS[cache]], [*PREFIX, *QUESTIONS[row]], added)

    def caches(self, way: str) -> tuple[Cache, Tensor]:
        """The caches, made in a way (``plain``, ``shared`` or ``kept``), and the mask of the contexts."""
        ids, mask = pad([CONTEXTS[row] for row in ROWS], 0, "left")
        model, layers = self.model, self.layers
        if way == "plain":
            return steered_cache(model, model, layers, ids, mask, self.intervention(mask)), mask
        kept = None
        if way.startswith("kept"):
            at = sorted({band[0] for band in self.bands if band}) if way == "kept" else []
            kept = CleanCaches(CONTEXTS, at, 1.0, 2)
            kept.prepare(ROWS, model_state(model, layers), make_reader(model, model, layers, kept.layers))
        share = way != "kept alone"
        return shared_cache(model, model, layers, ids, mask, self.intervention(mask), ROWS, kept, share), mask

    def batch(self, way: str, shared: bool = True) -> Batch:
        """The questions about caches made in a way; ``shared``: the start of the questions is read once for each cache."""
        cache, mask = self.caches(way)
        questions = QUESTIONS if shared else [[*PREFIX, *question] for question in QUESTIONS]
        ids, question_mask = pad(questions, 0, "right")
        batch = Batch(cache, mask, ids, question_mask, torch.tensor(CACHE_OF))
        batch.question_prefix_ids = torch.tensor(PREFIX) if shared else None
        return batch

    def gradients(self, batch: Batch, recompute: bool) -> dict[str, Tensor]:
        """Gradients of a loss of the answers, by name of the adapter's weights."""
        self.model.zero_grad()
        self.loss(read_answers(self.model, batch, self.layers, recompute)).backward()  # type: ignore[no-untyped-call]
        return {name: weight.grad.clone() for name, weight in self.model.named_parameters() if weight.grad is not None}

    def expected_gradients(self) -> dict[str, Tensor]:
        """The oracle's gradients of the same loss."""
        self.model.zero_grad()
        self.loss(torch.stack([self.expected(row) for row in range(len(QUESTIONS))])).backward()  # type: ignore[no-untyped-call]
        return {name: weight.grad.clone() for name, weight in self.model.named_parameters() if weight.grad is not None}

    @staticmethod
    def loss(logits: Tensor) -> Tensor:
        """A loss of the answers ``(rows, vocabulary)``."""
        return nn.functional.cross_entropy(logits, torch.arange(len(logits)) + 5)


def difference(made: Tensor, expected: Tensor) -> float:
    """Largest difference, as a share of the largest value that is expected."""
    return float((made - expected).abs().max() / expected.abs().max().clamp(min=1e-6))


def gradient_difference(made: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest difference of gradients, as a share of the largest of all; infinite if some are missing."""
    if made.keys() != expected.keys():
        return float("inf")
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    return max(float((made[name] - expected[name]).abs().max()) for name in expected) / largest


def measured(case: Case, ways: Sequence[str], recompute: bool = True) -> dict[str, float | str]:
    """Differences from the oracle by what was compared; a text where something was raised."""
    with torch.no_grad():
        expected = torch.stack([case.expected(row) for row in range(len(QUESTIONS))])
        clean = torch.stack([case.expected(row, steered=False) for row in range(len(QUESTIONS))])
    found: dict[str, float | str] = {"effect": difference(clean, expected)}

    def attempt(name: str, compare: Any) -> None:
        try:
            found[name] = compare()
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            found[name] = f"{type(error).__name__}: {str(error)[:150]} ({place.filename.split('/')[-1]}:{place.lineno})"

    def asked_twice(way: str, shared: bool) -> float:
        batch = case.batch(way, shared)
        with torch.no_grad():
            first, again = (read_answers(case.model, batch) for _ in range(2))
        return difference(first, expected) if torch.equal(first, again) else float("inf")

    for way in ways:
        attempt(way, lambda way=way: asked_twice(way, shared=False))
        attempt(f"{way}, grid", lambda way=way: asked_twice(way, shared=True))
    wanted = case.expected_gradients()
    for name, again in (("gradients", False), ("recompute", True)):
        if again <= recompute:
            attempt(name, lambda again=again: gradient_difference(case.gradients(case.batch("plain"), again), wanted))
    return found
