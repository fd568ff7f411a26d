"""The question pass: reads KV caches with a question appended, and predicts the answer. Nothing is steered here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import Cache

from introspection_lit.steering.activation_checkpointing import recompute_layers
from introspection_lit.steering.caches import fork, select_rows
from introspection_lit.steering.intervention import Intervention, steer
from introspection_lit.steering.prefill import Forward, no_logits, position_ids
from introspection_lit.utils.cache_option import cache_option

# A further pass over all weights must save so many padded tokens, and so large a share of them.
LEAST_SAVED, LEAST_SHARE_SAVED = 128, 0.1


class QuestionBatch(Protocol):
    """Caches and the questions that are put to them; a row is one question put to one cache.

    Batches of changed caches also have ``cache_mask``, 1 where a cache may be read, ``(caches, context)``, and
    ``next_positions``, the position of the first question token after each cache, ``(caches,)``.

    Attributes:
        cache: The KV caches of the contexts, without gradient; None before the prefill.
        context_mask: 1 at tokens, 0 at (left) padding, ``(caches, context)``.
        cache_of: The cache that each row reads, ``(rows,)``; None: row ``i`` reads cache ``i``.
        question_prefix_ids: Tokens that all questions begin with, ``(prefix,)``: read once for each cache. None: not split.
        question_ids: Right-padded, without this prefix, ``(rows, question)``.
        question_mask: 1 at tokens, 0 at padding, ``(rows, question)``.
    """

    cache: Cache | None
    context_mask: Tensor
    cache_of: Tensor | None
    question_prefix_ids: Tensor | None
    question_ids: Tensor
    question_mask: Tensor


class SteeredQuestions(QuestionBatch, Protocol):
    """The same with the contexts as tokens, and what is added to them.

    Attributes:
        context_ids: Left-padded tokens, ``(caches, context)``.
        intervention: What is added to the residual stream of each cache.
    """

    context_ids: Tensor
    intervention: Intervention


def read_answers(
    forward: Forward, batch: QuestionBatch, layers: Sequence[nn.Module] = (), recompute: bool = False, **options: Any
) -> Tensor:
    """Read the caches with the questions, and predict the answers. Steering hooks must be off.

    Args:
        forward: What to call; the model itself or the wrapper around it. The adapter must be on.
        batch: With its cache, which stays as it is.
        layers: The model's decoder layers; needed for ``recompute`` only.
        recompute: Keep only each decoder layer's input for the backward pass, and run the layer again there (see
            :func:`~introspection_lit.steering.activation_checkpointing.recompute_layers`). No effect without gradients.
        options: ``head`` and ``group`` of :func:`read_positions`.

    Returns:
        Logits at the answer position, which is the last token of each question, ``(rows, vocabulary)``.
    """
    return read_positions(forward, batch, answer_positions(batch)[:, None], layers, recompute, **options)[:, 0]


def answer_positions(batch: QuestionBatch) -> Tensor:
    """The last token of each question, where its answer is predicted, ``(rows,)``."""
    return batch.question_mask.sum(dim=1) - 1


def read_positions(
    forward: Forward,
    batch: QuestionBatch,
    positions: Tensor,
    layers: Sequence[nn.Module] = (),
    recompute: bool = False,
    head: nn.Module | None = None,
    group: bool = False,
) -> Tensor:
    """Predict the tokens after some positions of each question, ``(rows, positions)``; otherwise as :func:`read_answers`.

    Args:
        forward: As there.
        batch: As there.
        positions: Of each row the same number.
        layers: As there.
        recompute: As there.
        head: The model's language-model head, to run it at these positions alone. None: it runs at every position at which
            any row needs it.
        group: Read questions of very different lengths in several passes (:func:`length_groups`), with less padding. Not
            where several processes must run the same passes.

    Returns:
        Logits, ``(rows, positions, vocabulary)``.
    """
    assert batch.cache is not None, "the prefill has not run"
    changed: Tensor | None = getattr(batch, "cache_mask", None)
    starts: Tensor | None = getattr(batch, "next_positions", None)
    cache, context_mask = fork(batch.cache), batch.context_mask if changed is None else changed
    if batch.question_prefix_ids is not None:
        prefix = batch.question_prefix_ids.expand(len(context_mask), -1)
        context_mask = torch.cat([context_mask, torch.ones_like(prefix)], dim=1)
        forward(
            input_ids=prefix,
            attention_mask=context_mask,
            position_ids=_last_positions(context_mask, prefix.shape[1], starts),
            **{cache_option(forward): cache},
            use_cache=True,
            logits_to_keep=no_logits(prefix),
        )
        starts = None if starts is None else starts + prefix.shape[1]
    groups = length_groups(batch.question_mask.sum(dim=1).tolist()) if group else []
    with recompute_layers(layers) if recompute and torch.is_grad_enabled() else nullcontext():
        if len(groups) < 2:
            return _read_rows(forward, batch, cache, context_mask, starts, positions, head)
        rows = [torch.tensor(each, device=positions.device) for each in groups]
        logits = [_read_rows(forward, batch, fork(cache), context_mask, starts, positions, head, each) for each in rows]
    return torch.cat(logits)[torch.cat(rows).argsort()]


def _read_rows(
    forward: Forward,
    batch: QuestionBatch,
    cache: Cache,
    context_mask: Tensor,
    starts: Tensor | None,
    positions: Tensor,
    head: nn.Module | None,
    rows: Tensor | None = None,
) -> Tensor:
    """Read the questions of some rows, or of all, in one pass; the cache is used up."""
    question_ids, question_mask, cache_of = batch.question_ids, batch.question_mask, batch.cache_of
    if rows is not None:
        width = int(question_mask[rows].sum(dim=1).max())
        question_ids, question_mask = question_ids[rows, :width], question_mask[rows, :width]
        positions, cache_of = positions[rows], rows if cache_of is None else cache_of[rows]
    if cache_of is not None:
        select_rows(cache, cache_of)
        context_mask = context_mask[cache_of]
        starts = None if starts is None else starts[cache_of]
    mask = torch.cat([context_mask, question_mask], dim=1)
    kept, place = torch.unique(positions, return_inverse=True)
    picked: list[bool] = []
    with _at_places(head, place, picked) if head is not None and len(kept) > place.shape[1] else nullcontext():
        outputs = forward(
            input_ids=question_ids,
            attention_mask=mask,
            position_ids=_last_positions(mask, question_mask.shape[1], starts),
            **{cache_option(forward): cache},
            use_cache=True,
            logits_to_keep=kept,
        )
    logits: Tensor = outputs.logits
    return logits if picked else logits[torch.arange(len(place), device=place.device)[:, None], place]


@contextmanager
def _at_places(head: nn.Module, place: Tensor, picked: list[bool]) -> Iterator[None]:
    """Let the head see of each row only some positions, ``(rows, positions)``; ``picked`` gets an entry when it did."""

    def pick(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        picked.append(True)
        return args[0][torch.arange(len(place), device=place.device)[:, None], place], *args[1:]

    handle = head.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()


def length_groups(lengths: Sequence[int]) -> list[list[int]]:
    """Sort rows into groups that are padded to their own longest row, as long as each further group saves enough tokens.

    Args:
        lengths: Of each row, in tokens.

    Returns:
        The numbers of the rows of each group.
    """

    def divide(rows: list[int]) -> list[list[int]]:
        width = lengths[rows[-1]]
        saved = [count * (width - lengths[rows[count - 1]]) for count in range(1, len(rows))]
        most = max(saved, default=0)
        if most < max(LEAST_SAVED, LEAST_SHARE_SAVED * len(rows) * width):
            return [rows]
        count = saved.index(most) + 1
        return [*divide(rows[:count]), *divide(rows[count:])]

    return divide(sorted(range(len(lengths)), key=lambda row: lengths[row])) if lengths else []


def _last_positions(mask: Tensor, count: int, starts: Tensor | None) -> Tensor:
    """Positions of the last ``count`` tokens, ``(rows, count)``: after those before them, or from ``starts`` on."""
    if starts is None:
        return position_ids(mask)[:, -count:]
    return starts[:, None] + position_ids(mask[:, -count:])


def read_in_one_pass(forward: Forward, layers: Sequence[nn.Module], batch: SteeredQuestions) -> Tensor:
    """Read conversations and their questions in one pass, as an exported adapter is used: steered at the context alone.

    Args:
        forward: What to call; the adapter decides by itself from which token on it acts.
        layers: The model's decoder layers.
        batch: Needs no cache.

    Returns:
        Logits at the answer position, ``(rows, vocabulary)``.
    """
    caches = torch.arange(len(batch.question_ids)) if batch.cache_of is None else batch.cache_of.cpu()
    question_ids, question_mask = batch.question_ids, batch.question_mask
    if batch.question_prefix_ids is not None:
        prefix = batch.question_prefix_ids.expand(len(question_ids), -1)
        question_ids = torch.cat([prefix, question_ids], dim=1)
        question_mask = torch.cat([torch.ones_like(prefix), question_mask], dim=1)
    mask = torch.cat([batch.context_mask[caches], question_mask], dim=1)
    intervention = batch.intervention.select(caches.tolist())
    intervention.positions = nn.functional.pad(intervention.positions, (0, question_ids.shape[1]))
    answers = batch.context_mask.shape[1] + question_mask.sum(dim=1) - 1
    kept, place = torch.unique(answers, return_inverse=True)
    with steer(layers, intervention):
        outputs = forward(
            input_ids=torch.cat([batch.context_ids[caches], question_ids], dim=1),
            attention_mask=mask,
            position_ids=position_ids(mask),
            use_cache=False,
            logits_to_keep=kept,
        )
    logits: Tensor = outputs.logits[torch.arange(len(place), device=place.device), place]
    return logits


def read_texts(forward: Forward, ids: Tensor, mask: Tensor) -> Tensor:
    """Predict every next token of left-padded texts, without steering or cache.

    Args:
        forward: What to call.
        ids: ``(texts, seq)``.
        mask: 1 at tokens, 0 at padding, ``(texts, seq)``.

    Returns:
        Logits, ``(texts, seq, vocabulary)``; arbitrary at padding.
    """
    outputs = forward(input_ids=ids, attention_mask=mask, position_ids=position_ids(mask), use_cache=False)
    logits: Tensor = outputs.logits
    return logits
