"""A prefill that shares the layers below the steering between rows with the same context.

Below its first steered layer, a steered context has the same activations as the clean one. So for each context of a batch
only one row, the donor, runs through the lower layers; the others start where their own steering starts. A clean context
that is stored (:mod:`introspection_lit.steering.clean_caches`) does not run at all. The result equals that of
:func:`~introspection_lit.steering.prefill.steered_cache` except for rounding, because batch sizes differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from introspection_lit.steering.caches import fill_layer, row_tensors, set_row_tensors
from introspection_lit.steering.clean_caches import CleanCaches, LoadedCaches
from introspection_lit.steering.intervention import Intervention
from introspection_lit.steering.prefill import Forward, fill_cache, prefill_mode
from introspection_lit.steering.residual import residual, with_residual

if TYPE_CHECKING:
    from peft import PeftModel


class Schedule(NamedTuple):
    """Which rows of a batch run, from which layer on, and where their lower layers come from.

    Attributes:
        starts: First layer that each row runs through; the number of layers if it does not run.
        donors: The row whose lower layers each row takes: itself if it starts at layer 0, -1 for the stored cache.
        run: The rows that run, sorted by their first layer.
    """

    starts: list[int]
    donors: list[int]
    run: list[int]

    def active(self, layer: int) -> int:
        """Number of rows active at a layer; they are a prefix of ``run``."""
        return sum(self.starts[row] <= layer for row in self.run)


def schedule(
    first: Sequence[int], contexts: Sequence[int], stored: set[int], n_layers: int, share: bool, always: bool = False
) -> Schedule:
    """Decide at which layer each row starts.

    Args:
        first: First steered layer of each row; ``n_layers`` for clean rows.
        contexts: Index of each row's context.
        stored: Indices of the contexts whose clean caches are stored.
        n_layers: Number of decoder layers.
        share: Rows may take the layers below their first steered layer from a donor.
        always: Run at least one row even if none is needed: with several processes, all must take part in a forward pass.
    """
    # An addition at the output of the last layer does not reach the cache: such a row counts as clean.
    reach = [n_layers if layer >= n_layers - 1 else layer for layer in first]
    latest: dict[int, int] = {}  # of each context, the row that is clean up to the highest layer
    for row, context in enumerate(contexts):
        if context not in latest or reach[row] > reach[latest[context]]:
            latest[context] = row
    starts, donors = [], []
    for row, context in enumerate(contexts):
        donor = -1 if context in stored else latest[context]
        shares = donor != row and (share or (donor < 0 and reach[row] == n_layers))
        starts.append(min(reach[row] + 1, n_layers) if shares else 0)
        donors.append(donor if shares else row)
    running = [row for row, start in enumerate(starts) if start < n_layers]
    if (running or always) and 0 not in starts:  # at least one row must start at layer 0
        first_row = min(running, key=lambda row: starts[row]) if running else 0
        starts[first_row], donors[first_row] = 0, first_row
    run = sorted((row for row, start in enumerate(starts) if start < n_layers), key=lambda row: starts[row])
    return Schedule(starts, donors, run)


def shared_cache(
    forward: Forward,
    model: PeftModel,
    layers: Sequence[nn.Module],
    context_ids: Tensor,
    context_mask: Tensor,
    intervention: Intervention,
    contexts: Sequence[int],
    clean_caches: CleanCaches | None = None,
    share: bool = True,
    adapter: bool = False,
    always: bool = False,
) -> Cache:
    """Steered caches of a batch, as :func:`~introspection_lit.steering.prefill.steered_cache` makes them, with less work.

    Args:
        forward: The model, or its DDP or FSDP wrapper.
        model: The model with its adapter.
        layers: Its decoder layers.
        context_ids: Left-padded tokens, ``(batch, context)``.
        context_mask: 1 at tokens, 0 at padding, ``(batch, context)``.
        intervention: What to add to each row.
        contexts: Index of each row's context.
        clean_caches: The store of clean caches, after :meth:`~CleanCaches.prepare` for ``contexts``.
        share: Rows with the same context share the layers below the steering.
        adapter: Leave the adapter on while the cache is written; only without ``clean_caches``.
        always: Run at least one row (see :func:`schedule`).

    Returns:
        A cache of ``context`` positions without gradient; values at padding are arbitrary.
    """
    assert not (adapter and clean_caches), "caches written with the adapter change: they cannot be stored"
    stored = clean_caches.stored(contexts) if clean_caches is not None else set()
    plan = schedule(intervention.first, contexts, stored, len(layers), share, always)
    needed = sorted({contexts[row] for row, donor in enumerate(plan.donors) if donor < 0})
    loaded = None
    if clean_caches is not None and needed:
        loaded = clean_caches.load(needed, context_ids.shape[1], context_ids.device)
    cache = DynamicCache(config=model.get_base_model().config)
    sources = cache_sources(plan, contexts, loaded, len(layers), context_ids.device)
    if plan.run:
        rows = torch.tensor(plan.run, device=context_ids.device)
        hooks = StaggeredHooks(plan, contexts, intervention.select(plan.run), loaded)
        with prefill_mode(model, adapter), hooks.on(layers):
            fill_cache(forward, cache, context_ids[rows], context_mask[rows])
    return assemble_cache(cache, sources, loaded)


class StaggeredHooks:
    """Hooks that steer the running rows and add each row to the forward pass at its first layer.

    Args:
        plan: First layer and donor of each row.
        contexts: Index of each row's context.
        intervention: The intervention of the rows in ``plan.run``, in that order.
        loaded: Stored clean caches, if any row needs them.
    """

    def __init__(
        self, plan: Schedule, contexts: Sequence[int], intervention: Intervention, loaded: LoadedCaches | None
    ) -> None:
        self.plan, self.contexts, self.intervention, self.loaded = plan, contexts, intervention, loaded
        self.place = {row: place for place, row in enumerate(plan.run)}

    @contextmanager
    def on(self, layers: Sequence[nn.Module]) -> Iterator[None]:
        """Install the hooks inside the block; they are always removed at the end."""
        handles = []
        try:
            for number, layer in enumerate(layers):
                active, next_active = self.plan.active(number), self.plan.active(number + 1)
                if active < len(self.plan.run):
                    handles.append(layer.register_forward_pre_hook(self._select_rows(active), with_kwargs=True))
                if next_active > active or self.intervention.acts_at(number, active):
                    handles.append(layer.register_forward_hook(self._add_rows_and_steer(number, active, next_active)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _select_rows(self, active: int) -> Any:
        """A pre-hook that cuts the arguments of all layers (masks, positions) to the active rows."""

        def select(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(select(part) for part in value)
            has_rows = isinstance(value, Tensor) and value.dim() > 1 and len(value) == len(self.plan.run)
            return value[:active] if has_rows else value

        def hook(module: nn.Module, args: Any, options: dict[str, Any]) -> Any:
            return select(args), {name: select(value) for name, value in options.items()}

        return hook

    def _add_rows_and_steer(self, layer: int, active: int, next_active: int) -> Any:
        """A hook that appends the rows that start at the next layer, and then steers all rows."""
        new_rows = self.plan.run[active:next_active]

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            hidden = residual(module, output)
            if new_rows:
                hidden = torch.cat([hidden, self._donor_hidden(new_rows, layer, hidden)])
            hidden = hidden + self.intervention.addition(layer, next_active).to(hidden)
            return with_residual(module, output, hidden)

        return hook

    def _donor_hidden(self, rows: list[int], layer: int, hidden: Tensor) -> Tensor:
        """The clean residual stream of rows after a layer, from their donors, ``(rows, seq, hidden)``."""
        parts = []
        for row in rows:
            donor = self.plan.donors[row]
            if donor < 0:
                assert self.loaded is not None
                parts.append(self.loaded.hidden(self.contexts[row], layer).to(hidden))
            else:
                parts.append(hidden[self.place[donor]])
        return torch.stack(parts)


def cache_sources(
    plan: Schedule, contexts: Sequence[int], loaded: LoadedCaches | None, n_layers: int, device: torch.device
) -> list[tuple[int, Tensor | None]]:
    """For each layer, the index of every row's keys and values.

    It is computed before the forward pass: copying indices to a GPU afterwards would wait for the pass to end.

    Args:
        plan: First layer and donor of each row.
        contexts: Index of each row's context.
        loaded: Stored clean caches, if any row needs them.
        n_layers: Number of decoder layers.
        device: The model's device.

    Returns:
        For each layer the number of active rows, and for every row of the batch an index ``(batch,)`` into the active rows
        followed by the loaded contexts. None if the active rows are the batch, in order.
    """
    place = {row: number for number, row in enumerate(plan.run)}
    index: dict[int, Tensor | None] = {}  # by the number of active rows
    sources = []
    for layer in range(n_layers):
        active = plan.active(layer)
        if active not in index:
            rows = [
                place[row]
                if start <= layer
                else (active + loaded.order[contexts[row]] if loaded is not None and donor < 0 else place[donor])
                for row, (start, donor) in enumerate(zip(plan.starts, plan.donors, strict=True))
            ]
            index[active] = None if rows == list(range(active)) else torch.tensor(rows, device=device)
        sources.append((active, index[active]))
    return sources


def assemble_cache(cache: Cache, sources: Sequence[tuple[int, Tensor | None]], loaded: LoadedCaches | None) -> Cache:
    """Give every row of the batch its keys, values and states: its own where it ran, its donor's elsewhere.

    Args:
        cache: Cache of the rows that ran, with fewer rows in lower layers; filled in place.
        sources: The index of each layer (see :func:`cache_sources`).
        loaded: Stored clean caches, if any row needs them.
    """
    for number, (active, rows) in enumerate(sources):
        layer = cache.layers[number]
        if rows is None:
            continue
        stored = loaded.tensors(number) if loaded is not None else {}
        if not active:
            fill_layer(layer, {name: tensor[rows] for name, tensor in stored.items()})
            continue
        own = row_tensors(layer)
        if loaded is not None:
            own = {name: torch.cat([tensor, stored[name]]) for name, tensor in own.items()}
        set_row_tensors(layer, {name: tensor[rows] for name, tensor in own.items()})
    return cache
