"""What another pass writes or measures, against passes over each context, or each half, alone."""

from __future__ import annotations

import pytest
import torch
from small_caches import CONTEXTS, Model, cached, nothing_added
from transformers import DynamicCache, PreTrainedModel

from introspection_lit.steering.cache_changes import CacheChange, change_caches
from introspection_lit.steering.rewritten_caches import chunked_cache, received_attention


@pytest.fixture
def small(family_model: PreTrainedModel) -> Model:
    """One of each family, in float32."""
    return cached(family_model)


def test_heavy_hitters_are_the_most_attended_to_and_the_most_recent(small: Model) -> None:
    """Against a loop over the weights that the model itself returns for each context alone."""
    nothing = nothing_added(small, CONTEXTS)
    before = small.model.get_base_model().config._attn_implementation
    received = received_attention(small.model, small.layers, small.ids, small.mask, nothing)
    assert small.model.get_base_model().config._attn_implementation == before
    names = [CacheChange("heavy_hitters")] * len(CONTEXTS)
    changed = change_caches(small.cache, small.mask, names, attention=dict(enumerate(received)))
    width = small.mask.shape[1]
    small.model.get_base_model().set_attn_implementation("eager")
    for row, tokens in enumerate(CONTEXTS):
        with torch.no_grad():
            weights = small.model(input_ids=torch.tensor([tokens]), output_attentions=True).attentions
        count = len(tokens) - max(0, len(tokens) - 4) // 2
        assert changed.mask[row].tolist() == [0] * (width - count) + [1] * count
        recent = list(range(len(tokens) - count // 2, len(tokens)))
        for number, (layer, ours) in enumerate(zip(small.cache.layers, changed.cache.layers, strict=True)):
            own = layer.keys[row, :, width - len(tokens) :]
            queries = weights[number][0].shape[0] // len(own)
            for head, keys in enumerate(own):
                sums = weights[number][0, head * queries : (head + 1) * queries].sum(dim=(0, 1)).tolist()
                older = sorted(range(len(tokens) - count // 2), key=lambda token: -sums[token])
                expected = sorted(older[: count - len(recent)]) + recent
                kept = [int((keys == key).all(dim=-1).nonzero()[0]) for key in ours.keys[row, head, width - count :]]
                assert kept == expected


def test_halves_read_apart_know_nothing_of_each_other(small: Model) -> None:
    """As two passes write them, each at its own positions; and what was read before is the same whatever follows."""
    changed = chunked_cache(small.model, small.layers, small.ids, small.mask, nothing_added(small, CONTEXTS))
    width = small.mask.shape[1]
    for row, tokens in enumerate(CONTEXTS):
        half = len(tokens) // 2
        for part, first in ((tokens[:half], 0), (tokens[half:], half)):
            alone = DynamicCache(config=small.model.get_base_model().config)
            places = torch.arange(first, first + len(part))[None]
            with torch.no_grad():
                small.model(input_ids=torch.tensor([part]), position_ids=places, past_key_values=alone)
            columns = slice(width - len(tokens) + first, width - len(tokens) + first + len(part))
            for number, (layer, expected) in enumerate(zip(changed.layers, alone.layers, strict=True)):
                for name in ("keys", "values"):
                    found, wanted = getattr(layer, name)[row, :, columns], getattr(expected, name)[0]
                    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
                    whole = getattr(small.cache.layers[number], name)[row, :, columns]
                    same = torch.allclose(whole, wanted, atol=1e-4)
                    assert same or (first and number), "a prefix is the same numbers whatever follows it"
                    assert not same or not first or not number
