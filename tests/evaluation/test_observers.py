"""Outside observers: what they see of a cache, and what they can and cannot learn from it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from transformers import PreTrainedModel

from introspection_lit.evaluation.observers import NORMS, PROBE, TEXT, Features, Observers, cache_features, concatenate
from introspection_lit.models.architecture import find_decoder_layers
from introspection_lit.models.base_model import Lora
from introspection_lit.models.loading import add_lora
from introspection_lit.steering.intervention import Intervention
from introspection_lit.steering.prefill import pad, steered_cache
from introspection_lit.utils.errors import ConfigurationError

CONTEXTS = [list(range(10, 22)), list(range(40, 45)), list(range(60, 68)), [70]]


def cache_of(heads: int = 2, layers: int = 3, rows: int = 4, width: int = 12, size: int = 8) -> SimpleNamespace:
    """A cache of random keys and values."""
    random = torch.Generator().manual_seed(0)
    parts = [[torch.randn(rows, heads, width, size, generator=random) for _ in "kv"] for _ in range(layers)]
    return SimpleNamespace(layers=[SimpleNamespace(keys=keys, values=values) for keys, values in parts])


def test_features_equal_a_loop_over_tokens() -> None:
    """Means and mean norms over the tokens of each row, without padding and without the first token."""
    _, mask = pad(CONTEXTS, 0, "left")
    cache = cache_of()
    found = cache_features(cache, mask, ["a", "b", "c", "d"])
    assert found.means.shape == (4, 3 * 2 * 2 * 8)
    assert found.norms.shape == (4, 3 * 2 * 2)
    assert found.texts == ["a", "b", "c", "d"]
    for row, tokens in enumerate(CONTEXTS[:3]):
        means, norms = [], []
        for layer in cache.layers:
            for states in (layer.keys, layer.values):
                for head in range(2):
                    seen = [states[row, head, 12 - len(tokens) + place].numpy() for place in range(1, len(tokens))]
                    means += list(np.mean(seen, axis=0))
                    norms.append(np.mean([np.linalg.norm(state) for state in seen]))
        np.testing.assert_allclose(found.means[row], means, atol=1e-5)
        np.testing.assert_allclose(found.norms[row], norms, atol=1e-5)
    assert not found.means[3].any()  # a context of one token has nothing else


def test_features_ignore_padding_and_the_first_token() -> None:
    """Whatever stands there."""
    _, mask = pad(CONTEXTS, 0, "left")
    cache, spoiled = cache_of(), cache_of()
    hidden = (mask.cumsum(1) <= 1)[:, None, :, None]
    for layer in spoiled.layers:
        layer.keys = layer.keys.masked_fill(hidden, 1e6)
        layer.values = layer.values.masked_fill(hidden, -1e6)
    before, after = (cache_features(one, mask, [""] * 4) for one in (cache, spoiled))
    np.testing.assert_array_equal(before.means, after.means)
    np.testing.assert_array_equal(before.norms, after.norms)


def test_features_of_a_padded_batch_equal_those_of_each_row_alone(family_model: PreTrainedModel) -> None:
    """On real caches, steered and clean, of every family."""
    peft = add_lora(family_model, Lora()).eval()
    layers, hidden = find_decoder_layers(peft), peft.config.hidden_size
    direction = torch.nn.functional.normalize(torch.randn(4, 1, hidden, generator=torch.Generator().manual_seed(1)), dim=-1)
    scale = torch.zeros(4, len(layers))
    scale[::2, 1:3] = 3.0

    def features(rows: list[int]) -> Features:
        ids, mask = pad([CONTEXTS[row] for row in rows], 0, "left")
        cache = steered_cache(peft, peft, layers, ids, mask, Intervention(direction[rows], scale[rows], mask.bool()))
        return cache_features(cache, mask, [str(row) for row in rows])

    together = features([0, 1, 2, 3])
    alone = concatenate([features([row]) for row in range(4)])
    np.testing.assert_allclose(together.means, alone.means, atol=1e-3, rtol=1e-3)
    np.testing.assert_allclose(together.norms, alone.norms, atol=1e-3, rtol=1e-3)
    assert alone.texts == together.texts == ["0", "1", "2", "3"]


def test_features_of_layers_with_a_sliding_window() -> None:
    """Such layers keep the last tokens only; what they have is averaged."""
    _, mask = pad(CONTEXTS, 0, "left")
    cache, cut = cache_of(), cache_of()
    for layer in cut.layers[:1]:
        layer.keys, layer.values = layer.keys[:, :, -5:], layer.values[:, :, -5:]
    found = cache_features(cut, mask, [""] * 4)
    np.testing.assert_allclose(found.means[:, 32:], cache_features(cache, mask, [""] * 4).means[:, 32:], atol=1e-5)
    np.testing.assert_allclose(found.means[0, :8], cache.layers[0].keys[0, 0, -5:].mean(0), atol=1e-5)


@pytest.mark.parametrize("setting", ["autocast", "bfloat16 by default", "bfloat16 cache"])
def test_features_are_float32_under_every_precision(setting: str) -> None:
    """Under bf16-mixed and bf16-true as well: numpy knows no bfloat16."""
    _, mask = pad(CONTEXTS, 0, "left")
    cache = cache_of()
    expected = cache_features(cache, mask, [""] * 4)
    if setting == "bfloat16 cache":
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys.bfloat16(), layer.values.bfloat16()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if setting == "bfloat16 by default" else before)
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled=setting == "autocast"):
            found = cache_features(cache, mask, [""] * 4)
    finally:
        torch.set_default_dtype(before)
    assert found.means.dtype == found.norms.dtype == np.float32
    tolerance = 1e-2 if setting == "bfloat16 cache" else 1e-5
    np.testing.assert_allclose(found.means, expected.means, atol=tolerance)


def trials(n: int, contexts: int, planted: float, seed: int = 0, size: int = 60) -> SimpleNamespace:
    """Pairs of clean and steered trials of one context each; what is planted is in the means of the steered ones."""
    random = np.random.default_rng(seed)
    pairs = np.repeat(np.arange(n // 2) % contexts, 2)
    labels = np.arange(n) % 2 == 1
    offsets = np.random.default_rng(99).standard_normal((1000, size))
    means = random.standard_normal((n, size)) * 0.5 + offsets[pairs + contexts * 0] + planted * labels[:, None]
    means *= np.random.default_rng(98).uniform(0.01, 100, size)  # heads of very different size
    norms = random.standard_normal((n, 6))
    texts = [f"This is context number {pair * 37 % 101}, about {'tea' if pair % 3 else 'rain'}." for pair in pairs]
    return SimpleNamespace(
        features=Features(means.astype(np.float32), norms.astype(np.float32), texts), labels=labels, groups=list(pairs)
    )


def test_probe_finds_what_is_planted_and_the_floors_do_not() -> None:
    """Fitted on some contexts and asked about others; clean and steered share their texts, so the reader is at chance."""
    fitted, asked = trials(160, 80, 1.5), trials(200, 100, 1.5, seed=1)
    observers = Observers(fitted.features, fitted.labels, fitted.groups)
    assert observers.trials == 160
    scores = observers.scores(asked.features)
    assert set(scores) == {PROBE, NORMS, TEXT}
    assert all(values.shape == (200,) and np.isfinite(values).all() for values in scores.values())
    assert roc_auc_score(asked.labels, scores[PROBE]) > 0.95
    assert ((scores[PROBE] > 0) == asked.labels).mean() > 0.85  # log-odds: 0 is even
    assert roc_auc_score(asked.labels, scores[TEXT]) == pytest.approx(0.5, abs=1e-9)
    assert 0.35 < roc_auc_score(asked.labels, scores[NORMS]) < 0.65
    again = Observers(fitted.features, fitted.labels, fitted.groups).scores(asked.features)
    assert all(np.array_equal(again[name], scores[name]) for name in scores)


def test_probe_is_at_chance_where_there_is_nothing() -> None:
    """Even with more features than trials."""
    fitted, asked = trials(64, 32, 0.0, size=400), trials(200, 100, 0.0, seed=1, size=400)
    scores = Observers(fitted.features, fitted.labels, fitted.groups).scores(asked.features)
    assert 0.35 < roc_auc_score(asked.labels, scores[PROBE]) < 0.65


def test_scores_of_a_trial_do_not_depend_on_its_batch() -> None:
    """One by one as together."""
    fitted, asked = trials(64, 32, 1.0), trials(12, 6, 1.0, seed=1)
    observers = Observers(fitted.features, fitted.labels, fitted.groups)
    together = observers.scores(asked.features)
    for row in range(12):
        f = asked.features
        alone = observers.scores(Features(f.means[[row]], f.norms[[row]], [f.texts[row]]))
        assert all(alone[name][0] == pytest.approx(together[name][row], abs=1e-4) for name in together)


def test_one_context_is_refused() -> None:
    """There is nothing to set the penalty by."""
    fitted = trials(32, 1, 2.0)
    with pytest.raises(ConfigurationError, match="32 trials of 1 contexts, 16 of them steered"):
        Observers(fitted.features, fitted.labels, fitted.groups)


@pytest.mark.parametrize("contexts", [*(pytest.param(n, marks=pytest.mark.slow) for n in (16, 5, 3)), 2])
def test_few_contexts_do_not_matter(contexts: int) -> None:
    """32 trials are the fewest that are allowed, and a user may have a handful of conversations, or one."""
    fitted = trials(32, contexts, 2.0)
    scores = Observers(fitted.features, fitted.labels, fitted.groups).scores(trials(40, 20, 2.0, seed=1).features)
    assert all(np.isfinite(values).all() for values in scores.values())


@pytest.mark.slow
def test_a_coin_for_labels_with_few_contexts_does_not_matter() -> None:
    """With ``data.control random_labels`` a fold may hold one class only."""
    for seed in range(3):
        fitted = trials(32, 2, 0.0)
        labels = np.random.default_rng(seed).integers(2, size=32).astype(bool)
        scores = Observers(fitted.features, labels, fitted.groups).scores(fitted.features)
        assert all(np.isfinite(values).all() for values in scores.values())
