"""The cache reader: what it reads of a cache, and that it learns what a linear probe of the means cannot."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor

from introspection_lit.evaluation.cache_reader import (
    CacheReader,
    fit_reader,
    layer_states,
    reader_scores,
    tokens_to_read,
)
from introspection_lit.evaluation.observers import cache_features
from introspection_lit.evaluation.statistics import auroc

HEADS, LAYERS, WIDTH, SIZE = 2, 3, 13, 8  # twelve tokens after the first
MASK = (torch.arange(WIDTH) >= torch.tensor([0, 7, 4, 11])[:, None]).long()


def cache_of(random: torch.Generator, rows: int = 4, kept: int = WIDTH) -> SimpleNamespace:
    """A cache of random keys and values whose last layer keeps the last tokens alone."""
    parts = [
        [torch.randn(rows, HEADS, kept if layer == LAYERS - 1 else WIDTH, SIZE, generator=random) for _ in "kv"]
        for layer in range(LAYERS)
    ]
    return SimpleNamespace(layers=[SimpleNamespace(keys=keys, values=values) for keys, values in parts])


def steered_by_sign(number: int, rows: int = 32) -> tuple[SimpleNamespace, Tensor, Tensor]:
    """Caches of which every second has a direction added to half of its tokens and taken from the other half."""
    random = torch.Generator().manual_seed(number)
    cache, mask = cache_of(random, rows), torch.ones(rows, WIDTH, dtype=torch.long)
    labels = torch.arange(rows) % 2 == 1
    signs = torch.ones(rows, 1, WIDTH, 1)
    for row in range(rows):
        signs[row, 0, 1 + torch.randperm(WIDTH - 1, generator=random)[: WIDTH // 2]] = -1.0
    for layer in cache.layers:
        layer.values = layer.values + 2 * labels[:, None, None, None] * signs * torch.eye(SIZE)[0]
    return cache, mask, labels


def test_every_kept_token_is_read_with_keys_before_values() -> None:
    """A loop over rows, tokens and heads; 0 where a window has forgotten."""
    cache = cache_of(torch.Generator().manual_seed(0), kept=5)
    states = layer_states(cache, MASK)
    assert [part.shape for part in states] == [(4, WIDTH, 2 * HEADS * SIZE)] * LAYERS
    for part, layer in zip(states, cache.layers, strict=True):
        kept = layer.keys.shape[2]
        assert not part[:, : WIDTH - kept].any()
        for row, place, head in np.ndindex(4, kept, HEADS):
            of_head = part[row, WIDTH - kept + place].reshape(2, HEADS, SIZE)[:, head]
            torch.testing.assert_close(of_head[0], layer.keys[row, head, place])
            torch.testing.assert_close(of_head[1], layer.values[row, head, place])


def test_layers_without_keys_are_left_out() -> None:
    """Recurrent ones, and those that share another layer's."""
    cache = cache_of(torch.Generator().manual_seed(0))
    cache.layers[1] = SimpleNamespace(recurrent_states={0: torch.ones(4, 2, 2)})
    assert len(layer_states(cache, MASK)) == LAYERS - 1


def test_padding_and_the_first_token_do_not_count() -> None:
    """Whatever stands there; and a row alone has the score that it has in a batch."""
    cache, spoiled = (cache_of(torch.Generator().manual_seed(0)) for _ in range(2))
    for layer in spoiled.layers:
        hidden = ~tokens_to_read(MASK)[:, None, :, None]
        layer.keys, layer.values = layer.keys.masked_fill(hidden, 1e6), layer.values.masked_fill(hidden, -1e6)
    torch.manual_seed(0)
    reader = CacheReader(layer_states(cache, MASK), tokens_to_read(MASK))
    scores = reader_scores(reader, cache, MASK)
    np.testing.assert_allclose(scores, reader_scores(reader, spoiled, MASK), atol=1e-5)
    alone = SimpleNamespace(layers=[SimpleNamespace(keys=one.keys[1:2], values=one.values[1:2]) for one in cache.layers])
    np.testing.assert_allclose(scores[1:2], reader_scores(reader, alone, MASK[1:2]), atol=1e-5)
    assert len(set(scores)) == 4


def test_it_finds_what_a_linear_probe_of_the_means_does_not() -> None:
    """A direction with either sign leaves the mean as it is."""

    def batch_of(number: int) -> tuple[list[Tensor], Tensor, Tensor]:
        cache, mask, labels = steered_by_sign(number)
        return layer_states(cache, mask), tokens_to_read(mask), labels

    before = torch.random.get_rng_state()
    with torch.inference_mode():  # as in a test
        reader = fit_reader(batch_of, 80, seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)
    trained, (cache, mask, labels) = [steered_by_sign(number) for number in range(80)], steered_by_sign(1000, 200)
    assert auroc(reader_scores(reader, cache, mask), labels) > 0.95
    means = [cache_features(*part[:2], [""] * 32).means for part in trained]
    probe = LogisticRegression(max_iter=1000).fit(np.concatenate(means), np.concatenate([part[2] for part in trained]))
    assert roc_auc_score(labels, probe.decision_function(cache_features(cache, mask, [""] * 200).means)) < 0.65


def test_the_same_seed_gives_the_same_reader() -> None:
    """And another seed another one."""

    def scores(seed: int) -> np.ndarray:
        cache, mask, labels = steered_by_sign(0)
        batch = layer_states(cache, mask), tokens_to_read(mask), labels
        return reader_scores(fit_reader(lambda _: batch, 3, seed), cache, mask)

    np.testing.assert_array_equal(scores(0), scores(0))
    assert not np.allclose(scores(0), scores(1))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_cache_has_no_score(value: float) -> None:
    """NaN, as of the other observers; its neighbours have theirs."""
    cache, mask, labels = steered_by_sign(0)
    reader = fit_reader(lambda _: (layer_states(cache, mask), tokens_to_read(mask), labels), 2, 0)
    cache.layers[0].keys[3, 0, 5, 0] = value
    assert np.isnan(reader_scores(reader, cache, mask)).tolist() == [row == 3 for row in range(32)]
