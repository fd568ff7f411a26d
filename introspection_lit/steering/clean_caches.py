"""Caches of clean contexts that are computed once and kept: with the adapter off in the prefill they never change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from introspection_lit.steering.extraction import record_outputs
from introspection_lit.steering.prefill import Forward, fill_cache, pad, prefill_mode

if TYPE_CHECKING:
    from peft import PeftModel


GIB = 2**30


class Entry(NamedTuple):
    """What is kept of a context, in host memory.

    Attributes:
        cache: Keys and values, ``(layers, 2, heads, context, head)``.
        hidden: The residual stream after the layers at which steering may begin, ``(those layers, context, hidden)``.
    """

    cache: Tensor
    hidden: Tensor

    @property
    def nbytes(self) -> int:
        """Host memory that it takes: torch rounds pinned memory up to a power of two."""
        sizes = ((tensor.nbytes, tensor.is_pinned()) for tensor in (self.cache, self.hidden))
        return sum(1 << (size - 1).bit_length() if pinned and size else size for size, pinned in sizes)


class Lent(NamedTuple):
    """Kept contexts on the model's device, padded on the left.

    Attributes:
        order: The place of each context.
        cache: ``(contexts, layers, 2, heads, seq, head)``.
        residual: ``(contexts, kept layers, seq, hidden)``.
        layers: The number of each of the kept layers.
    """

    order: dict[int, int]
    cache: Tensor
    residual: Tensor
    layers: list[int]

    def keys(self, layer: int) -> Tensor:
        """``(contexts, heads, seq, head)``."""
        return self.cache[:, layer, 0]

    def values(self, layer: int) -> Tensor:
        """``(contexts, heads, seq, head)``."""
        return self.cache[:, layer, 1]

    def hidden(self, context: int, layer: int) -> Tensor:
        """The residual stream of a context after a layer, ``(seq, hidden)``."""
        return self.residual[self.order[context], self.layers.index(layer)]


Read = Callable[[Tensor, Tensor], tuple[DynamicCache, list[Tensor]]]


class CleanCaches:
    """Clean contexts of a split and what is kept of them.

    A context is read together with its neighbours in length, always the same ones, so that its cache is a function of the
    split alone and not of what came before: a resumed run finds the same numbers. Which contexts are kept, if there is no
    room for all, is decided by length, too.

    Args:
        tokens: The tokens of every context of the split.
        layers: The layers at which steering may begin.
        gib: Most host memory, in GiB.
        group: Contexts read at once.
    """

    def __init__(self, tokens: Sequence[Sequence[int]], layers: Sequence[int], gib: float, group: int) -> None:
        self.tokens, self.layers, self.gib = tokens, sorted(set(layers)), gib
        by_length = sorted(range(len(tokens)), key=lambda context: (len(tokens[context]), context))
        self.groups = [by_length[start : start + group] for start in range(0, len(by_length), group)]
        self.group_of = {context: number for number, members in enumerate(self.groups) for context in members}
        self.entries: dict[int, Entry] = {}
        self.admitted: int | None = None  # groups that there is room for; known once the first has been read
        self.made_with: tuple[object, ...] | None = None

    def prepare(self, contexts: Sequence[int], made_with: tuple[object, ...], read: Read, everything: bool = False) -> None:
        """Read what is not there yet of some contexts.

        Args:
            contexts: Numbers of contexts.
            made_with: All that caches depend on (see :func:`model_state`); if it is not what they were made with, they are
                thrown away.
            read: Reads left-padded ids and mask, ``(group, context)`` each; returns a cache and the residual streams after
                ``layers``.
            everything: Read all contexts: on every process in the same order, for models that no process runs alone.
        """
        if made_with != self.made_with:
            self.entries, self.admitted, self.made_with = {}, None, made_with
        if self.admitted is None:
            # The longest: if a window of attention cuts any context off, it is one of these, and nothing is kept.
            longest = len(self.groups) - 1
            self._read_group(longest, read)
            self.admitted = self._room(longest)
            if longest >= self.admitted:
                self.entries = {}
        wanted = range(len(self.groups)) if everything else sorted({self.group_of[context] for context in contexts})
        for number in wanted:
            if number < self.admitted and self.groups[number][0] not in self.entries:
                self._read_group(number, read)

    def _read_group(self, number: int, read: Read) -> None:
        members = self.groups[number]
        ids, mask = pad([self.tokens[context] for context in members], 0, "left")
        cache, hidden = read(ids, mask)
        if len({layer.keys.shape for layer in cache.layers}) > 1 or cache.layers[0].keys.shape[2] < ids.shape[1]:
            return  # layers that forget what lies outside of a window: not kept
        layers = [torch.stack([layer.keys, layer.values], dim=1) for layer in cache.layers]
        whole, residual = torch.stack(layers, dim=1), torch.stack(hidden, dim=1) if hidden else None
        for row, context in enumerate(members):
            length = len(self.tokens[context])
            # Its own memory, so that a context takes no more than it needs.
            own = whole[row, :, :, :, -length:].to("cpu", copy=True).contiguous()
            stream = own.new_empty(0) if residual is None else residual[row, :, -length:].to("cpu", copy=True).contiguous()
            pin = whole.device.type == "cuda"
            self.entries[context] = Entry(own.pin_memory(), stream.pin_memory()) if pin else Entry(own, stream)

    def _room(self, read: int) -> int:
        """How many groups fit, by what the one that was read takes."""
        there = [context for context in self.groups[read] if context in self.entries]
        if not there:
            return 0
        entry, length = self.entries[there[0]], len(self.tokens[there[0]])
        # Pinned memory is rounded up, at worst to twice what is needed.
        per_token = (2 if entry.cache.is_pinned() else 1) * (entry.cache.nbytes + entry.hidden.nbytes) / length
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

    def held(self, contexts: Sequence[int]) -> set[int]:
        """Those of some contexts that are kept."""
        return {context for context in contexts if context in self.entries}

    def lend(self, contexts: Sequence[int], width: int, device: torch.device) -> Lent:
        """Put kept contexts on a device.

        Args:
            contexts: Their numbers.
            width: Tokens that they are padded to, on the left.
            device: The model's.
        """
        first = self.entries[contexts[0]]
        n_layers, two, heads, _, head = first.cache.shape
        cache = torch.zeros(len(contexts), n_layers, two, heads, width, head, dtype=first.cache.dtype, device=device)
        shape = (len(contexts), len(self.layers), width, first.hidden.shape[-1])
        residual = torch.zeros(shape, dtype=first.hidden.dtype, device=device)
        for place, context in enumerate(contexts):
            entry, length = self.entries[context], len(self.tokens[context])
            cache[place, :, :, :, width - length :] = entry.cache.to(device, non_blocking=True)
            if self.layers:
                residual[place, :, width - length :] = entry.hidden.to(device, non_blocking=True)
        return Lent({context: place for place, context in enumerate(contexts)}, cache, residual, self.layers)


def make_reader(forward: Forward, model: PeftModel, layers: Sequence[nn.Module], at: Sequence[int]) -> Read:
    """Make what reads clean contexts: keys, values, and the residual stream after some layers.

    Args:
        forward: What to call; the model itself or the wrapper around it.
        model: The model with its adapter, which is off while reading.
        layers: Its decoder layers.
        at: The layers whose output is wanted.
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
    """All that the caches of clean contexts depend on and that can change while a program runs.

    Weights are compared by place and by torch's count of changes in place; hooks that somebody else has hung into the model
    by their number; then the arithmetic: attention and autocast.

    Args:
        model: The model with its adapter.
        layers: Its decoder layers.
        sharded: Weights come and go (FSDP): only their number is compared.
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
