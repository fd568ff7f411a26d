"""The cache reader: a small supervised network that reads all keys and values of a cache and says whether it is steered.

It is trained from outside on the adapter's own training trials, and is not linear: what it finds is there to be found. It
is no upper bound either, since a better network might find more.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import Cache

from introspection_lit.steering.caches import row_tensors

READER = "cache reader"
# Of each layer's keys and values together; of a token; of the cache.
WIDTH_OF_LAYER, WIDTH_OF_TOKEN, WIDTH_OF_CACHE = 16, 128, 64
LEARNING_RATE, WEIGHT_DECAY, WARMUP = 1e-3, 1e-2, 0.1
# What makes one step of training: the layers' keys and values, the tokens that count, and the labels.
Batch = tuple[list[Tensor], Tensor, Tensor]


def layer_states(cache: Cache, mask: Tensor) -> list[Tensor]:
    """Keys and values of each layer that keeps both, by token.

    Args:
        cache: After the prefill; keys and values ``(batch, heads, tokens, width)``. A sliding window keeps the last tokens
            alone; states of recurrent layers are left out.
        mask: 1 at tokens, ``(batch, context)``, padded left.

    Returns:
        Of each layer ``(batch, context, features)`` float32, 0 at positions that it does not keep.
    """
    states = []
    for layer in cache.layers:
        kept = row_tensors(layer)
        if {"keys", "values"} <= set(kept):
            both = torch.cat([kept[name].float().transpose(1, 2).flatten(2) for name in ("keys", "values")], dim=-1)
            states.append(nn.functional.pad(both, (0, 0, mask.shape[1] - both.shape[1], 0)))
    return states


def tokens_to_read(mask: Tensor) -> Tensor:
    """True at all tokens but the first, which is the same in every context, ``(batch, context)``."""
    return mask.bool() & (mask.cumsum(dim=1) > 1)


class CacheReader(nn.Module):
    """Log-odds of "steered" from a cache: each layer's part of a token, the token, then all tokens.

    Args:
        states: From :func:`layer_states`, of a first batch: its means and standard deviations set the scale of the input.
        tokens: From :func:`tokens_to_read`.
    """

    def __init__(self, states: list[Tensor], tokens: Tensor) -> None:
        super().__init__()
        for number, part in enumerate(states):
            deviation, mean = torch.std_mean(part[tokens], dim=0, correction=0)
            self.register_buffer(f"mean{number}", mean)
            self.register_buffer(f"scale{number}", (deviation + 1e-6).reciprocal())
        self.layers = nn.ModuleList(nn.Linear(part.shape[-1], WIDTH_OF_LAYER) for part in states)
        self.token = nn.Sequential(
            nn.GELU(), nn.Linear(WIDTH_OF_LAYER * len(states), WIDTH_OF_TOKEN), nn.GELU(), nn.LayerNorm(WIDTH_OF_TOKEN)
        )
        self.attention = nn.Linear(WIDTH_OF_TOKEN, 1)
        self.answer = nn.Sequential(nn.Linear(2 * WIDTH_OF_TOKEN, WIDTH_OF_CACHE), nn.GELU(), nn.Linear(WIDTH_OF_CACHE, 1))

    def forward(self, states: list[Tensor], tokens: Tensor) -> Tensor:
        """Log-odds, ``(batch,)``; arguments as of the class. A cache without a token to read is judged by nothing."""
        parts = [
            layer((part - getattr(self, f"mean{number}")) * getattr(self, f"scale{number}"))
            for number, (layer, part) in enumerate(zip(self.layers, states, strict=True))
        ]
        read = self.token(torch.cat(parts, dim=-1))
        counted = tokens[..., None].float()
        attention = self.attention(read).masked_fill(~tokens[..., None], -1e9).softmax(dim=1) * counted
        mean = (read * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)
        answer: Tensor = self.answer(torch.cat([mean, (attention * read).sum(dim=1)], dim=-1))
        return answer.squeeze(-1)


def fit_reader(batch_of: Callable[[int], Batch], steps: int, seed: int) -> CacheReader:
    """Train a reader, each batch once; the learning rate rises, then falls linearly to 0.

    Args:
        batch_of: Makes a batch: states and tokens as of :class:`CacheReader`, and labels, ``(batch,)``.
        steps: Number of batches.
        seed: Of the reader's weights; the caller's random numbers are left as they were.
    """
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(seed)
        first = batch_of(0)
        reader = CacheReader(*first[:2]).to(first[1].device, torch.float32)  # whatever the default of the run is
        optimiser = torch.optim.AdamW(reader.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        rise = max(1, round(WARMUP * steps))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: min((step + 1) / rise, (steps - step) / max(steps - rise, 1))
        )
        for step in range(steps):
            states, tokens, labels = batch_of(step) if step else first
            with torch.autocast(tokens.device.type, enabled=False):
                loss = nn.functional.binary_cross_entropy_with_logits(reader(states, tokens), labels.float())
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    return reader.eval()


def reader_scores(reader: CacheReader, cache: Cache, mask: Tensor) -> NDArray[np.float64]:
    """Log-odds of "steered" of each row of a cache, ``(rows,)``; NaN where it holds NaN or infinity."""
    with torch.no_grad(), torch.autocast(mask.device.type, enabled=False):
        return reader(layer_states(cache, mask), tokens_to_read(mask)).double().cpu().numpy()
