"""What happens to KV caches without steering: compressed, evicted, shifted (benign), scaled, noised, spliced (tampering).

A change is a pure function of the keys and values of one conversation and a seed; caches are never changed in place. Which
changes there are, and which of them are harmless, is :data:`~introspection_lit.steering.change_names.CHANGES`; some change
what the model reads, or beside what, and not its cache (``contexts/variants.py``, ``trials/changed_rows.py``,
:mod:`~introspection_lit.steering.rewritten_caches`, :mod:`~introspection_lit.steering.other_adapter`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import Cache

from introspection_lit.steering.caches import fork, row_tensors
from introspection_lit.utils.errors import RunError

# First tokens that are always kept (attention sinks, Xiao et al. 2024).
SINKS = 4
# Tokens (of keys) or channels (of values) that share a scale in int4 and int2.
GROUP = 32
SCALED = 1.5
LARGEST_E4M3 = 448.0


class Row(NamedTuple):
    """The cache of one conversation, without padding.

    Attributes:
        keys: ``(layers, heads, tokens, head)``.
        values: The same.
    """

    keys: Tensor
    values: Tensor


class Aids(NamedTuple):
    """What some changes need besides the cache.

    Attributes:
        seed: Of the noise.
        frequencies: The model's rotary frequencies, ``(rotated channels / 2,)``, for ``shifted``.
        other: The cache of another conversation, for ``spliced``.
        attention: What each token received from all later ones, ``(layers, heads, tokens)``, for ``heavy_hitters``.
    """

    seed: int = 0
    frequencies: Tensor | None = None
    other: Row | None = None
    attention: Tensor | None = None


class ChangedRow(NamedTuple):
    """A changed cache.

    Attributes:
        keys: ``(layers, heads, tokens, head)``.
        values: The same.
        kept: True where the cache may be read, ``(tokens,)``.
        next_position: Position of the token that comes next.
    """

    keys: Tensor
    values: Tensor
    kept: Tensor
    next_position: int


def _whole(keys: Tensor, values: Tensor) -> ChangedRow:
    """A cache of which nothing is dropped."""
    tokens = keys.shape[-2]
    return ChangedRow(keys, values, torch.ones(tokens, dtype=torch.bool, device=keys.device), tokens)


def _by_value(change: Callable[[Tensor], Tensor]) -> Callable[[Row, Aids], ChangedRow]:
    """A change of keys and values alike."""
    return lambda row, _: _whole(change(row.keys), change(row.values))


def bf16(tensor: Tensor) -> Tensor:
    """Round to bfloat16."""
    return tensor.to(torch.bfloat16).to(tensor.dtype)


def fp8(tensor: Tensor) -> Tensor:
    """Round to 8-bit floats of the format e4m3, which end at 448."""
    return tensor.clamp(-LARGEST_E4M3, LARGEST_E4M3).to(torch.float8_e4m3fn).to(tensor.dtype)


def int8(tensor: Tensor) -> Tensor:
    """Round to 255 steps, symmetric about 0, with a scale for each token and head, ``(..., head)``."""
    scale = (tensor.abs().amax(dim=-1, keepdim=True) / 127).clamp(min=1e-12)
    return (tensor / scale).round() * scale


def grouped(tensor: Tensor, bits: int, dim: int) -> Tensor:
    """Round to ``2 ** bits`` steps between the lowest and the highest of each group.

    Args:
        tensor: Keys or values, ``(..., tokens, head)``.
        bits: Of each number.
        dim: The groups are :data:`GROUP` neighbours along this dimension; the last one may be smaller.
    """
    parts = []
    for part in torch.split(tensor, GROUP, dim=dim):
        low, high = part.amin(dim=dim, keepdim=True), part.amax(dim=dim, keepdim=True)
        scale = ((high - low) / (2**bits - 1)).clamp(min=1e-12)
        parts.append(((part - low) / scale).round() * scale + low)
    return torch.cat(parts, dim=dim)


def _asymmetric(bits: int) -> Callable[[Row, Aids], ChangedRow]:
    """The arithmetic of KIVI (Liu et al. 2024), but for all tokens: KIVI leaves the most recent ones whole."""
    return lambda row, _: _whole(grouped(row.keys, bits, -2), grouped(row.values, bits, -1))


def dropped(tokens: int) -> tuple[int, int]:
    """The tokens that ``evicted`` and ``shifted`` drop, (first, one after the last): the older half after the sinks."""
    first = min(SINKS, tokens)
    return first, first + (tokens - first) // 2


def _evicted(row: Row, aids: Aids) -> ChangedRow:
    changed = _whole(row.keys, row.values)
    changed.kept[slice(*dropped(len(changed.kept)))] = False
    return changed


def _window(row: Row, aids: Aids) -> ChangedRow:
    changed = _whole(row.keys, row.values)
    changed.kept[: len(changed.kept) // 2] = False
    return changed


def _kept_by_head(row: Row, kept: Tensor) -> ChangedRow:
    """Other tokens in each head, as many, ``(layers, heads, kept)``; they take the last columns, in order.

    Keys carry their positions in themselves.
    """
    tokens, count = row.keys.shape[-2], kept.shape[-1]
    columns = kept.sort(dim=-1).values[..., None]
    changed = _whole(row.keys.clone(), row.values.clone())
    for own, tensor in ((row.keys, changed.keys), (row.values, changed.values)):
        tensor[..., tokens - count :, :] = own.gather(-2, columns.expand(*columns.shape[:-1], own.shape[-1]))
    changed.kept[: tokens - count] = False
    return changed


def kept_count(tokens: int) -> int:
    """How many tokens are kept where some are dropped, as many as by ``evicted``."""
    first, end = dropped(tokens)
    return tokens - (end - first)


def _low_key_norm(row: Row, aids: Aids) -> ChangedRow:
    """Devoto et al. 2024, a proxy for heavy hitters: low norms go with high attention. Here in every layer."""
    norms = row.keys.norm(dim=-1)
    return _kept_by_head(row, norms.topk(kept_count(norms.shape[-1]), dim=-1, largest=False).indices)


def _heavy_hitters(row: Row, aids: Aids) -> ChangedRow:
    """H2O (Zhang et al. 2023): half of what is kept are the most recent tokens, half those that received most attention."""
    assert aids.attention is not None, "heavy_hitters needs the attention that the tokens received"
    count = kept_count(aids.attention.shape[-1])
    received = aids.attention.clone()
    received[..., received.shape[-1] - count // 2 :] = torch.inf
    return _kept_by_head(row, received.topk(count, dim=-1).indices)


def rotated(keys: Tensor, by: int, frequencies: Tensor) -> Tensor:
    """Move keys to positions that are ``by`` later (or, below 0, earlier) by a rotary embedding.

    Args:
        keys: Rotated keys, ``(..., head)``; channel i is paired with channel i + half of the rotated ones.
        by: How many positions.
        frequencies: ``(rotated channels / 2,)``; the channels after these are left alone.
    """
    half = len(frequencies)
    angles = by * frequencies.to(keys.device, torch.float32)
    first, second = keys[..., :half].float(), keys[..., half : 2 * half].float()
    turned = [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()]
    return torch.cat([*(part.to(keys.dtype) for part in turned), keys[..., 2 * half :]], dim=-1)


def _shifted(row: Row, aids: Aids) -> ChangedRow:
    """The context shift of llama.cpp: a full cache drops its older half after the first tokens and closes up."""
    assert aids.frequencies is not None, "shifted needs the model's rotary frequencies"
    kept = _evicted(row, aids).kept
    first, end = dropped(len(kept))
    late = rotated(row.keys[..., end:, :], first - end, aids.frequencies)
    return ChangedRow(torch.cat([row.keys[..., :end, :], late], dim=-2), row.values, kept, len(kept) - (end - first))


def _noise(share: float) -> Callable[[Row, Aids], ChangedRow]:
    """Normal noise, a share of the root mean square of each layer's keys, and of its values."""

    def change(row: Row, aids: Aids) -> ChangedRow:
        drawn = torch.randn(2, *row.keys.shape, generator=torch.Generator().manual_seed(aids.seed))
        noise = drawn.to(row.keys.device)
        tensors = []
        for number, tensor in enumerate(row):
            size = tensor.float().square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
            tensors.append(tensor + (share * size * noise[number]).to(tensor.dtype))
        return _whole(*tensors)

    return change


def _spliced(row: Row, aids: Aids) -> ChangedRow:
    """The positions of the second half from another conversation, as far as that goes."""
    assert aids.other is not None, "spliced needs another conversation"
    tokens = row.keys.shape[-2]
    half, end = tokens // 2, min(tokens, aids.other.keys.shape[-2])
    parts = zip(row, aids.other, strict=True)
    return _whole(
        *(torch.cat([a[..., :half, :], b[..., half:end, :], a[..., max(half, end) :, :]], dim=-2) for a, b in parts)
    )


OF_CACHES: dict[str, Callable[[Row, Aids], ChangedRow]] = {
    "bf16": _by_value(bf16),
    "fp8": _by_value(fp8),
    "int8": _by_value(int8),
    "int4": _asymmetric(4),
    "int2": _asymmetric(2),
    "evicted": _evicted,
    "low_key_norm": _low_key_norm,
    "heavy_hitters": _heavy_hitters,
    "window": _window,
    "shifted": _shifted,
    "keys_scaled": lambda row, _: _whole(SCALED * row.keys, row.values),
    "values_scaled": lambda row, _: _whole(row.keys, SCALED * row.values),
    "noise_5": _noise(0.05),
    "noise_20": _noise(0.2),
    "spliced": _spliced,
}


class CacheChange(NamedTuple):
    """The change of one cache of a batch.

    Attributes:
        name: A key of :data:`~introspection_lit.steering.change_names.CHANGES`; empty: none.
        seed: Of its noise.
        other: Another cache of the batch, which is not changed itself, for ``spliced``; -1: none.
    """

    name: str = ""
    seed: int = 0
    other: int = -1


class ChangedCaches(NamedTuple):
    """Caches of a batch after their changes.

    Attributes:
        cache: Keys and values; those that were given stay as they are.
        mask: 1 where a cache may be read, ``(caches, context)``.
        next_positions: Position of the next token of each cache, ``(caches,)``.
    """

    cache: Cache
    mask: Tensor
    next_positions: Tensor


def change_caches(
    cache: Cache,
    mask: Tensor,
    changes: Sequence[CacheChange],
    frequencies: Tensor | None = None,
    attention: Mapping[int, Tensor] | None = None,
) -> ChangedCaches:
    """Change some caches of a batch; those that are only read otherwise (:data:`OF_CACHES` lacks their change) stay.

    Args:
        cache: Caches of left-padded contexts.
        mask: 1 at tokens, 0 at padding, ``(caches, context)``.
        changes: The change of each cache.
        frequencies: The model's rotary frequencies, for ``shifted``.
        attention: For ``heavy_hitters``: what the tokens of these caches received, ``(layers, heads, context)`` each.

    Raises:
        RunError: The model does not keep all tokens in all layers (a window shorter than a context).
    """
    readable, next_positions = mask.clone(), mask.sum(dim=1)
    if not any(change.name in OF_CACHES for change in changes):
        return ChangedCaches(cache, readable, next_positions)
    layers = [row_tensors(layer) for layer in cache.layers]
    shapes = {tensor.shape for tensors in layers for tensor in tensors.values()}
    width = mask.shape[1]
    if any(set(tensors) != {"keys", "values"} for tensors in layers) or len(shapes) > 1 or next(iter(shapes))[2] != width:
        raise RunError(
            [
                f"data.test_changes, data.benign: the layers' caches have the shapes {sorted(map(tuple, shapes))} for "
                f"{width} tokens, and changes need keys and values of all tokens in all layers. Lower "
                "data.max_context_tokens below the model's window, or leave the changes out."
            ]
        )
    whole = Row(*(torch.stack([getattr(layer, name) for layer in cache.layers]) for name in ("keys", "values")))
    lengths = next_positions.tolist()

    def row_of(number: int) -> Row:
        return Row(*(tensor[:, number, :, width - lengths[number] :] for tensor in whole))

    for number, change in enumerate(changes):
        if change.name not in OF_CACHES:
            continue
        other = row_of(change.other) if change.other >= 0 else None
        assert other is None or changes[change.other].name not in OF_CACHES, "the other conversation is changed, too"
        start = width - lengths[number]
        received = attention[number][..., start:] if attention and number in attention else None
        made = OF_CACHES[change.name](row_of(number), Aids(change.seed, frequencies, other, received))
        # ``whole`` is a copy, of which every row is read before it is written.
        whole.keys[:, number, :, start:], whole.values[:, number, :, start:] = made.keys, made.values
        readable[number, start:] = made.kept.to(mask.dtype)
        next_positions[number] = made.next_position
    return ChangedCaches(with_tensors(cache, whole.keys, whole.values), readable, next_positions)


def with_tensors(cache: Cache, keys: Tensor, values: Tensor) -> Cache:
    """A cache with other keys and values, ``(layers, caches, heads, context, head)``."""
    made = fork(cache)
    for number, layer in enumerate(made.layers):
        layer.keys, layer.values = keys[number], values[number]
    return made
