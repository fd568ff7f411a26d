"""A store of the KV caches of clean contexts in host memory: without the adapter in the prefill they never change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from introspection_lit.steering.caches import row_tensors, tokens_dim
from introspection_lit.steering.extraction import record_outputs
from introspection_lit.steering.prefill import Forward, fill_cache, pad, prefill_mode

if TYPE_CHECKING:
    from peft import PeftModel


GIB = 2**30


class Group(NamedTuple):
    """Tensors of a cache that have one shape, and are stored as one: of most models, all keys and values.

    Attributes:
        slots: Layer and name of each (see :func:`~introspection_lit.steering.caches.row_tensors`).
        tokens: The dimension of the tokens, behind that of the slots; None: these are states.
    """

    slots: list[tuple[int, str]]
    tokens: int | None


class Entry(NamedTuple):
    """The stored tensors of one context, in host memory.

    Attributes:
        cache: Of each group, such as keys and values ``(slots, heads, context, head)``.
        hidden: The residual stream after the layers at which steering may start, ``(those layers, context, hidden)``.
    """

    cache: tuple[Tensor, ...]
    hidden: Tensor

    @property
    def nbytes(self) -> int:
        """Host memory in bytes; torch rounds pinned memory up to a power of two."""
        sizes = ((tensor.nbytes, tensor.is_pinned()) for tensor in (*self.cache, self.hidden))
        return sum(1 << (size - 1).bit_length() if pinned and size else size for size, pinned in sizes)


class LoadedCaches(NamedTuple):
    """Stored contexts on the model's device, padded on the left.

    Attributes:
        order: Row of each context.
        cache: Of each group, such as keys and values ``(contexts, slots, heads, seq, head)``.
        residual: Residual streams, ``(contexts, stored layers, seq, hidden)``.
        layers: Layer numbers of the stored residual streams.
        slots: Group and slot of each tensor, by layer and name.
    """

    order: dict[int, int]
    cache: list[Tensor]
    residual: Tensor
    layers: list[int]
    slots: dict[int, dict[str, tuple[int, int]]]

    def tensors(self, layer: int) -> dict[str, Tensor]:
        """What a layer of the caches has, by name, ``(contexts, ...)``."""
        return {name: self.cache[group][:, slot] for name, (group, slot) in self.slots.get(layer, {}).items()}

    def hidden(self, context: int, layer: int) -> Tensor:
        """The residual stream of a context after a layer, ``(seq, hidden)``."""
        return self.residual[self.order[context], self.layers.index(layer)]


Read = Callable[[Tensor, Tensor], tuple[DynamicCache, list[Tensor]]]


class CleanCaches:
    """The clean contexts of a split, of which as many as fit are stored.

    Contexts are computed in fixed groups of similar length, so that a cache depends on the split alone and not on earlier
    batches: a resumed run gets the same numbers. If not all contexts fit, the shortest are stored.

    Args:
        tokens: Tokens of every context of the split.
        layers: Layers at which steering may start.
        gib: Limit of host memory, in GiB.
        group: Number of contexts computed at once.
    """

    def __init__(self, tokens: Sequence[Sequence[int]], layers: Sequence[int], gib: float, group: int) -> None:
        self.tokens, self.layers, self.gib = tokens, sorted(set(layers)), gib
        by_length = sorted(range(len(tokens)), key=lambda context: (len(tokens[context]), context))
        self.groups = [by_length[start : start + group] for start in range(0, len(by_length), group)]
        self.group_of = {context: number for number, members in enumerate(self.groups) for context in members}
        self.entries: dict[int, Entry] = {}
        self.kinds: list[Group] = []  # of the tensors of each context's cache
        self.truncated = False  # a sliding window dropped tokens: nothing is stored
        self.fitting: int | None = None  # number of groups that fit in memory; None until measured
        self.model_state: tuple[object, ...] | None = None

    def prepare(self, contexts: Sequence[int], state: tuple[object, ...], read: Read, everything: bool = False) -> None:
        """Compute and store the contexts that are missing.

        Args:
            contexts: Indices of the contexts that a batch needs.
            state: What caches depend on (see :func:`model_state`); if it has changed, all stored caches are dropped.
            read: Computes a group from left-padded ids and mask, ``(group, context)`` each; returns a cache and the
                residual streams after ``layers`` (see :func:`make_reader`).
            everything: Compute all contexts, on every process in the same order: for FSDP, where all must take part.
        """
        if state != self.model_state:
            self.entries, self.fitting, self.model_state = {}, None, state
        if self.fitting is None:
            # Start with the longest: if sliding-window attention truncates any cache, it is here, and none is stored.
            longest = len(self.groups) - 1
            self._read_group(longest, read)
            self.fitting = self._room(longest)
            if longest >= self.fitting:
                self.entries = {}
        groups = range(len(self.groups)) if everything else sorted({self.group_of[context] for context in contexts})
        for number in groups:
            if number < self.fitting and self.groups[number][0] not in self.entries:
                self._read_group(number, read)

    def _read_group(self, number: int, read: Read) -> None:
        members = self.groups[number]
        ids, mask = pad([self.tokens[context] for context in members], 0, "left")
        cache, hidden = read(ids, mask)
        self.kinds, stacked = group_tensors(cache)
        widths = {tensor.shape[kind.tokens + 1] for kind, tensor in zip(self.kinds, stacked, strict=True) if kind.tokens}
        if widths != {ids.shape[1]}:
            self.truncated = True  # sliding-window layers drop positions: not stored
            return
        residual = torch.stack(hidden, dim=1) if hidden else None
        for row, context in enumerate(members):
            length = len(self.tokens[context])
            # A copy without padding takes no more memory than the context needs.
            own = [
                tensor[row] if kind.tokens is None else tensor[row].narrow(kind.tokens, ids.shape[1] - length, length)
                for kind, tensor in zip(self.kinds, stacked, strict=True)
            ]
            stream = stacked[0].new_empty(0) if residual is None else residual[row, :, -length:]
            *parts, stream = (part.to("cpu", copy=True).contiguous() for part in (*own, stream))
            if stacked[0].device.type == "cuda":
                *parts, stream = (part.pin_memory() for part in (*parts, stream))
            self.entries[context] = Entry(tuple(parts), stream)

    def _room(self, group: int) -> int:
        """Number of groups that fit, estimated from the memory of a stored group."""
        stored = [context for context in self.groups[group] if context in self.entries]
        if not stored:
            return 0
        entry, length = self.entries[stored[0]], len(self.tokens[stored[0]])
        # Pinned memory is rounded up, at worst to twice the size.
        size = sum(part.nbytes for part in entry.cache) + entry.hidden.nbytes
        per_token = (2 if entry.cache[0].is_pinned() else 1) * size / length
        left, room = self.gib * GIB, 0
        for members in self.groups:
            left -= per_token * sum(len(self.tokens[context]) for context in members)
            if left < 0:
                break
            room += 1
        return room

    @property
    def nbytes(self) -> int:
        """Host memory in use, in bytes."""
        return sum(entry.nbytes for entry in self.entries.values())

    def stored(self, contexts: Sequence[int]) -> set[int]:
        """The subset of contexts that is stored."""
        return {context for context in contexts if context in self.entries}

    def load(self, contexts: Sequence[int], width: int, device: torch.device) -> LoadedCaches:
        """Copy stored contexts to a device.

        Args:
            contexts: Their indices.
            width: Number of positions after padding on the left.
            device: The model's device.
        """
        first = self.entries[contexts[0]]
        cache = []
        for kind, part in zip(self.kinds, first.cache, strict=True):
            sizes = [width if dim == kind.tokens else size for dim, size in enumerate(part.shape)]
            cache.append(torch.zeros(len(contexts), *sizes, dtype=part.dtype, device=device))
        shape = (len(contexts), len(self.layers), width, first.hidden.shape[-1])
        residual = torch.zeros(shape, dtype=first.hidden.dtype, device=device)
        for place, context in enumerate(contexts):
            entry, length = self.entries[context], len(self.tokens[context])
            for kind, batch, part in zip(self.kinds, cache, entry.cache, strict=True):
                own = batch[place] if kind.tokens is None else batch[place].narrow(kind.tokens, width - length, length)
                own.copy_(part.to(device, non_blocking=True))
            if self.layers:
                residual[place, :, width - length :] = entry.hidden.to(device, non_blocking=True)
        slots: dict[int, dict[str, tuple[int, int]]] = {}
        for number, kind in enumerate(self.kinds):
            for slot, (layer, name) in enumerate(kind.slots):
                slots.setdefault(layer, {})[name] = (number, slot)
        order = {context: place for place, context in enumerate(contexts)}
        return LoadedCaches(order, cache, residual, self.layers, slots)


def group_tensors(cache: Cache) -> tuple[list[Group], list[Tensor]]:
    """Stack the tensors of a cache that have the same shape.

    Returns:
        The groups, and the tensors of each, ``(rows, slots, ...)``.
    """
    found: dict[tuple[object, ...], list[tuple[int, str, Tensor]]] = {}
    for number, layer in enumerate(cache.layers):
        for name, tensor in row_tensors(layer).items():
            found.setdefault((tokens_dim(name), tensor.shape, tensor.dtype), []).append((number, name, tensor))
    groups, stacked = [], []
    for parts in found.values():
        groups.append(Group([(number, name) for number, name, _ in parts], tokens_dim(parts[0][1])))
        stacked.append(torch.stack([tensor for _, _, tensor in parts], dim=1))
    return groups, stacked


def make_reader(forward: Forward, model: PeftModel, layers: Sequence[nn.Module], at: Sequence[int]) -> Read:
    """Make the function that computes clean contexts: keys, values, and the residual stream after some layers.

    Args:
        forward: The model, or its DDP or FSDP wrapper.
        model: The model with its adapter, which is off here.
        layers: Its decoder layers.
        at: Numbers of the layers whose output is returned.
    """
    device = next(model.parameters()).device

    def read(ids: Tensor, mask: Tensor) -> tuple[DynamicCache, list[Tensor]]:
        ids, mask = ids.to(device), mask.to(device)
        cache = DynamicCache(config=model.get_base_model().config)
        with prefill_mode(model, adapter=False), record_outputs([layers[number] for number in at]) as hidden:
            fill_cache(forward, cache, ids, mask)
        return cache, hidden

    return read


def model_state(model: PeftModel, layers: Sequence[nn.Module], sharded: bool = False) -> tuple[object, ...]:
    """What the caches of clean contexts depend on and what can change during a run; compared to drop outdated caches.

    Weights are identified by address and by torch's version counter, hooks by their number; then come the attention
    implementation and autocast.

    Args:
        model: The model with its adapter.
        layers: Its decoder layers.
        sharded: With FSDP, where weights move: only their number is compared.
    """
    device = next(model.parameters()).device.type
    frozen = [parameter for name, parameter in model.named_parameters() if "lora_" not in name]
    weights: tuple[object, ...] = (len(frozen),)
    if not sharded:
        weights = tuple((parameter.data_ptr(), parameter._version) for parameter in frozen)
    hooks = tuple((len(layer._forward_hooks), len(layer._forward_pre_hooks)) for layer in layers)
    attention = model.get_base_model().config._attn_implementation
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return id(model), weights, hooks, attention, autocast, device
