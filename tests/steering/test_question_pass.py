"""The savings of the question pass: groups of rows by length, and the head at the positions that are needed alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache, PreTrainedModel

from introspection_lit.steering.prefill import fill_cache, pad
from introspection_lit.steering.question_pass import LEAST_SAVED, length_groups, read_positions

LENGTHS = [7, 90, 8, 9, 85, 6, 10]


@given(st.lists(st.integers(1, 300), max_size=80))
def test_groups_hold_every_row_once_and_each_further_one_saves(lengths: list[int]) -> None:
    """Padding never grows, and every pass more than the first saves at least as many tokens as it must."""
    groups = length_groups(lengths)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    widths = [max(lengths[row] for row in group) for group in groups]
    assert widths == sorted(widths)
    tokens = sum(width * len(group) for width, group in zip(widths, groups, strict=True))
    assert tokens <= len(lengths) * max(lengths, default=0) - LEAST_SAVED * max(len(groups) - 1, 0)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([27] * 16, [list(range(16))]),
        ([40] * 24 + [67] * 8, [list(range(24)), list(range(24, 32))]),
        ([67, *[40] * 3], [[1, 2, 3, 0]]),  # 81 tokens are not worth a pass
        ([10] * 40 + [40] * 40 + [300] * 2, [list(range(40)), list(range(40, 80)), [80, 81]]),
        ([], []),
    ],
)
def test_groups(lengths: list[int], expected: list[list[int]]) -> None:
    """One where lengths are alike; else one for each length that is frequent enough."""
    assert length_groups(lengths) == expected


class Counting:
    """A model's forward, that counts passes, tokens and positions of the head."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.passes, self.tokens, self.heads = model, 0, 0, 0
        model.get_output_embeddings().register_forward_hook(self.count)

    def count(self, module: torch.nn.Module, args: Any, output: torch.Tensor) -> None:
        """Count the positions that the head sees."""
        self.heads += output.shape[:-1].numel()

    def __call__(self, **inputs: Any) -> Any:
        """Run the model."""
        self.passes, self.tokens = self.passes + 1, self.tokens + inputs["input_ids"].numel()
        return self.model(**inputs)


@pytest.mark.parametrize("shared", [False, True], ids=["own caches", "shared caches"])
@pytest.mark.parametrize("prefix", [0, 3])
def test_savings_change_no_logits_and_no_gradients(family_model: PreTrainedModel, shared: bool, prefix: int) -> None:
    """On every family: two positions of each row, against the plain pass and against each row alone; fewer tokens run."""
    numbers = torch.Generator().manual_seed(0)
    questions = [torch.randint(3, 60, (length,), generator=numbers).tolist() for length in LENGTHS]
    caches = 3 if shared else len(questions)
    contexts = [torch.randint(3, 60, (length,), generator=numbers).tolist() for length in range(4, 4 + caches)]
    ids, mask = pad(contexts, 0, "left")
    question_ids, question_mask = pad(questions, 0, "right")
    batch: Any = SimpleNamespace(
        cache=DynamicCache(config=family_model.config),
        context_mask=mask,
        cache_of=torch.tensor([0, 2, 1, 0, 1, 2, 0]) if shared else None,
        question_prefix_ids=torch.arange(5, 5 + prefix) if prefix else None,
        question_ids=question_ids,
        question_mask=question_mask,
    )
    with torch.no_grad():
        fill_cache(family_model, batch.cache, ids, mask)
    answers = question_mask.sum(dim=1) - 1
    positions = torch.stack([answers, answers // 2], dim=1)
    forward, head = Counting(family_model), family_model.get_output_embeddings()
    trained = family_model.get_input_embeddings().weight.requires_grad_()

    def outcome(**options: Any) -> tuple[torch.Tensor, torch.Tensor, tuple[int, int, int]]:
        forward.passes = forward.tokens = forward.heads = 0
        logits = read_positions(forward, batch, positions, **options)
        (gradient,) = torch.autograd.grad(logits.log_softmax(dim=-1)[..., 3].sum(), trained)
        return logits.detach(), gradient, (forward.passes, forward.tokens, forward.heads)

    plain, gradient, (passes, tokens, _) = outcome()
    saved, saved_gradient, (passes_saved, tokens_saved, heads) = outcome(head=head, group=True)
    torch.testing.assert_close(saved, plain, atol=1e-4, rtol=0)
    torch.testing.assert_close(saved_gradient, gradient, atol=1e-4, rtol=1e-3)
    assert (passes_saved, heads) == (passes + 1, positions.numel())
    assert tokens_saved < 0.6 * tokens
    assert batch.cache.get_seq_length() == ids.shape[1]


def test_a_head_that_is_not_called(family_model: PreTrainedModel) -> None:
    """Where a model computes its logits without calling the head, the rows' positions are picked afterwards."""
    question_ids, question_mask = pad([[5, 6, 7, 8], [9, 10]], 0, "right")
    batch: Any = SimpleNamespace(
        cache=DynamicCache(config=family_model.config),
        context_mask=torch.ones(2, 3, dtype=torch.long),
        cache_of=None,
        question_prefix_ids=None,
        question_ids=question_ids,
        question_mask=question_mask,
    )
    with torch.no_grad():
        fill_cache(family_model, batch.cache, torch.arange(6).reshape(2, 3), batch.context_mask)
        positions = torch.tensor([[3], [1]])
        plain = read_positions(family_model, batch, positions)
        other = read_positions(family_model, batch, positions, head=torch.nn.Linear(2, 2))
    assert torch.equal(plain, other)
