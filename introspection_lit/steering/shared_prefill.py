"""The prefill without work that another row has done already.

Below its first steered layer, a steered context equals the clean one to the last bit that the hardware lets two equal
computations share. So of all rows of a batch with the same context only one runs through the lower layers; each of the
others joins where its own steering begins. And a clean context that has been kept (:mod:`introspection_lit.kept_caches`)
does not run at all. What comes out is the cache of the plain prefill, :func:`~introspection_lit.prefill.steered_cache`, but
for rounding: the same numbers are added up in batches of another size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from introspection_lit.steering.clean_caches import CleanCaches, Lent
from introspection_lit.steering.intervention import Intervention
from introspection_lit.steering.prefill import Forward, fill_cache, prefill_mode

if TYPE_CHECKING:
    from peft import PeftModel


class Schedule(NamedTuple):
    """Which rows of a batch run, from which layer on, and who lends them what lies below.

    Attributes:
        starts: The layer from which each row runs; the number of layers if it does not run.
        lenders: The row whose lower layers each row takes; itself if it runs from layer 0, -1 if they are kept ones.
        run: The rows that run, those that start lowest first.
    """

    starts: list[int]
    lenders: list[int]
    run: list[int]

    def active(self, layer: int) -> int:
        """How many of ``run`` run through a layer: always the first so many."""
        return sum(self.starts[row] <= layer for row in self.run)


def schedule(
    first: Sequence[int], contexts: Sequence[int], kept: set[int], n_layers: int, share: bool, always: bool = False
) -> Schedule:
    """Decide which rows run from where.

    Args:
        first: The first steered layer of each row; ``n_layers`` if it is clean.
        contexts: The number of each row's context.
        kept: Numbers of the contexts whose clean caches are kept.
        n_layers: Decoder layers of the model.
        share: Rows may take the layers below their first steered one from others.
        always: At least one row must run, whether needed or not: a process that stays away from a forward pass would leave
            the others waiting.
    """
    # What is added to the output of the last layer reaches no cache.
    reach = [n_layers if layer >= n_layers - 1 else layer for layer in first]
    leads: dict[int, int] = {}
    for row, context in enumerate(contexts):
        if context not in leads or reach[row] > reach[leads[context]]:
            leads[context] = row
    starts, lenders = [], []
    for row, context in enumerate(contexts):
        lead = -1 if context in kept else leads[context]
        borrows = lead != row and (share or (lead < 0 and reach[row] == n_layers))
        starts.append(min(reach[row] + 1, n_layers) if borrows else 0)
        lenders.append(lead if borrows else row)
    running = [row for row, start in enumerate(starts) if start < n_layers]
    if (running or always) and 0 not in starts:  # the pass has to begin with somebody
        opener = min(running, key=lambda row: starts[row]) if running else 0
        starts[opener], lenders[opener] = 0, opener
    run = sorted((row for row, start in enumerate(starts) if start < n_layers), key=lambda row: starts[row])
    return Schedule(starts, lenders, run)


def shared_cache(
    forward: Forward,
    model: PeftModel,
    layers: Sequence[nn.Module],
    context_ids: Tensor,
    context_mask: Tensor,
    intervention: Intervention,
    contexts: Sequence[int],
    kept: CleanCaches | None = None,
    share: bool = True,
    adapter: bool = False,
    always: bool = False,
) -> Cache:
    """Steered caches of a batch, as :func:`~introspection_lit.steering.prefill.steered_cache` makes them, with less work.

    Args:
        forward: What to call; the model itself or the wrapper around it.
        model: The model with its adapter.
        layers: Its decoder layers.
        context_ids: Left-padded tokens, ``(batch, context)``.
        context_mask: 1 at tokens, 0 at padding, ``(batch, context)``.
        intervention: What to add, row by row.
        contexts: The number of each row's context.
        kept: Clean caches that are kept; those of ``contexts`` must be there if they are ever to be.
        share: Rows with the same context share the layers below the steering.
        adapter: Leave the adapter on while the cache is written; nothing may be kept then.
        always: Run at least one row (see :func:`schedule`).

    Returns:
        A cache of ``context`` positions without gradient; what is at padding is any number.
    """
    assert not (adapter and kept), "caches written with the adapter change: they cannot be kept"
    have = kept.held(contexts) if kept is not None else set()
    plan = schedule(intervention.first, contexts, have, len(layers), share, always)
    borrowed = sorted({contexts[row] for row, lender in enumerate(plan.lenders) if lender < 0})
    lent = kept.lend(borrowed, context_ids.shape[1], context_ids.device) if kept is not None and borrowed else None
    cache = DynamicCache(config=model.get_base_model().config)
    origins = sources(plan, contexts, lent, len(layers), context_ids.device)
    if plan.run:
        rows = torch.tensor(plan.run, device=context_ids.device)
        joining = Joining(plan, contexts, intervention.select(plan.run), lent)
        with prefill_mode(model, adapter), joining.on(layers):
            fill_cache(forward, cache, context_ids[rows], context_mask[rows])
    return assembled(cache, origins, lent)


class Joining:
    """Hooks that steer the rows that run, and let each join the pass at its own layer.

    Args:
        plan: Who runs from where.
        contexts: The number of each row's context.
        intervention: What is added, for the rows that run, in their order.
        lent: What is kept of contexts, if anything is borrowed.
    """

    def __init__(self, plan: Schedule, contexts: Sequence[int], intervention: Intervention, lent: Lent | None) -> None:
        self.plan, self.contexts, self.intervention, self.lent = plan, contexts, intervention, lent
        self.place = {row: place for place, row in enumerate(plan.run)}

    @contextmanager
    def on(self, layers: Sequence[nn.Module]) -> Iterator[None]:
        """Hang the hooks while the block runs; they are gone afterwards, whatever happens inside."""
        handles = []
        try:
            for number, layer in enumerate(layers):
                now, then = self.plan.active(number), self.plan.active(number + 1)
                if now < len(self.plan.run):
                    handles.append(layer.register_forward_pre_hook(self._narrowing(now), with_kwargs=True))
                if then > now or self.intervention.acts_at(number, now):
                    handles.append(layer.register_forward_hook(self._steering(number, now, then)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _narrowing(self, now: int) -> Any:
        """Of what the model hands to every layer (masks, positions), pass on the part of the rows that are there."""

        def narrow(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(narrow(part) for part in value)
            whole = isinstance(value, Tensor) and value.dim() > 1 and len(value) == len(self.plan.run)
            return value[:now] if whole else value

        def hook(module: nn.Module, args: Any, options: dict[str, Any]) -> Any:
            return narrow(args), {name: narrow(value) for name, value in options.items()}

        return hook

    def _steering(self, layer: int, now: int, then: int) -> Any:
        newcomers = self.plan.run[now:then]

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            if newcomers:
                hidden = torch.cat([hidden, self._lower(newcomers, layer, hidden)])
            hidden = hidden + self.intervention.addition(layer, then).to(hidden)
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return hook

    def _lower(self, newcomers: list[int], layer: int, hidden: Tensor) -> Tensor:
        """The residual stream of newcomers after a layer, not steered yet, ``(newcomers, seq, hidden)``."""
        parts = []
        for row in newcomers:
            lender = self.plan.lenders[row]
            if lender < 0:
                assert self.lent is not None
                parts.append(self.lent.hidden(self.contexts[row], layer).to(hidden))
            else:
                parts.append(hidden[self.place[lender]])
        return torch.stack(parts)


def sources(
    plan: Schedule, contexts: Sequence[int], lent: Lent | None, n_layers: int, device: torch.device
) -> list[tuple[int, Tensor | None]]:
    """Say for each layer where every row's keys and values come from.

    Made before the pass: a GPU would have to be waited for afterwards.

    Args:
        plan: Who runs from where.
        contexts: The number of each row's context.
        lent: What is kept of contexts, if anything is borrowed.
        n_layers: Decoder layers of the model.
        device: The model's.

    Returns:
        For each layer how many rows run through it, and for every row of the batch its place, ``(batch,)``: among those
        that ran, and after them among the contexts that are lent. None if these are the rows as they are.
    """
    place = {row: number for number, row in enumerate(plan.run)}
    known: dict[int, Tensor | None] = {}
    found = []
    for layer in range(n_layers):
        active = plan.active(layer)
        if active not in known:
            rows = [
                place[row]
                if start <= layer
                else (active + lent.order[contexts[row]] if lent is not None and lender < 0 else place[lender])
                for row, (start, lender) in enumerate(zip(plan.starts, plan.lenders, strict=True))
            ]
            known[active] = None if rows == list(range(active)) else torch.tensor(rows, device=device)
        found.append((active, known[active]))
    return found


def assembled(cache: Cache, origins: Sequence[tuple[int, Tensor | None]], lent: Lent | None) -> Cache:
    """Give every row of the batch its keys and values: of its own pass where it ran, of its lender where not.

    Args:
        cache: Of the rows that ran, fewer in lower layers; filled in place.
        origins: Where they come from (see :func:`sources`).
        lent: What is kept of contexts, if anything is borrowed.
    """
    for number, (active, rows) in enumerate(origins):
        layer = cache.layers[number]
        if rows is None:
            continue
        if not active:
            assert lent is not None
            cache.update(lent.keys(number)[rows], lent.values(number)[rows], number)
        elif lent is None:
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]
        else:
            layer.keys = torch.cat([layer.keys, lent.keys(number)])[rows]
            layer.values = torch.cat([layer.values, lent.values(number)])[rows]
    return cache
