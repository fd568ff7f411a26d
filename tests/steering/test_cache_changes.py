"""Changes of KV caches, each against an independent reference: masked attention, re-rotated keys, loops over groups."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_caches import CONTEXTS, Model, cached, nothing_added
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from introspection_lit.contexts.variants import VARIANTS
from introspection_lit.models.architecture import rotary_frequencies
from introspection_lit.models.base_model import BaseModel
from introspection_lit.models.loading import load_model
from introspection_lit.models.lora_targets import USUAL
from introspection_lit.steering import other_adapter as others
from introspection_lit.steering.cache_changes import OF_CACHES, Aids, CacheChange, Row, change_caches, dropped, rotated
from introspection_lit.steering.change_names import BENIGN, CHANGES
from introspection_lit.steering.other_adapter import SHARE, other_adapter
from introspection_lit.steering.prefill import fill_cache, pad
from introspection_lit.steering.question_pass import read_answers
from introspection_lit.steering.rewritten_caches import received_attention
from introspection_lit.trials.changed_rows import NEIGHBOURS
from introspection_lit.utils.errors import RunError

QUESTION = [100, 101, 102]
SHAPE = (3, 2, 70, 40)  # layers, heads, tokens, head: neither of the last two is a multiple of a group


def drawn_row(seed: int = 0) -> Row:
    """Keys and values with channels and tokens of very different sizes."""
    random = torch.Generator().manual_seed(seed)
    sizes = torch.randn(SHAPE[-1], generator=random).exp() * torch.randn(SHAPE[-2], 1, generator=random).exp()
    return Row(*(torch.randn(SHAPE, generator=random) * sizes + 0.3 for _ in range(2)))


def test_every_change_has_one_road() -> None:
    """A change of a cache, another text, another batch or another model; the benign ones are named as such."""
    roads = [*OF_CACHES, *VARIANTS, NEIGHBOURS, "other_adapter", "chunks"]
    assert sorted(roads) == sorted(CHANGES)
    assert set(CHANGES) - set(BENIGN) == {
        "keys_scaled", "values_scaled", "noise_5", "noise_20", "spliced", "edited", "other_adapter",
    }  # fmt: skip


def test_bfloat16_is_rounded_once() -> None:
    """The nearest number of 8 significant bits; rounding again changes nothing."""
    row = drawn_row()
    once = OF_CACHES["bf16"](row, Aids())
    twice = OF_CACHES["bf16"](Row(once.keys, once.values), Aids())
    assert torch.equal(once.keys, twice.keys)
    assert torch.equal(once.values, twice.values)
    mantissa, exponent = np.frexp(row.keys.double().numpy())
    expected = np.ldexp(np.rint(mantissa * 2**8) / 2**8, exponent)  # ties to even, as the hardware
    np.testing.assert_array_equal(once.keys.double().numpy(), expected)


def test_e4m3_has_three_bits_after_the_first_and_an_end() -> None:
    """Against all of its 253 finite values, written out from the format's definition."""
    values = sorted(
        {
            sign * (2.0 ** (exponent - 7) * (1 + bits / 8) if exponent else 2.0**-6 * bits / 8)
            for sign in (-1, 1)
            for exponent in range(16)
            for bits in range(8)
            if (exponent, bits) != (15, 7)
        }
    )
    assert max(values) == 448
    row = drawn_row()
    keys = row.keys * 200
    assert (keys.abs() > 448).any()
    made = OF_CACHES["fp8"](Row(keys, row.values), Aids()).keys
    table = torch.tensor(values)
    nearest = (keys[0, 0, :20, :, None] - table).abs().min(dim=-1).values
    torch.testing.assert_close((made[0, 0, :20] - keys[0, 0, :20]).abs(), nearest)
    assert made.isfinite().all()


def test_int8_keeps_within_half_a_step_of_each_tokens_own_scale() -> None:
    """Symmetric, 255 steps, a scale for each token and head."""
    row = drawn_row()
    made = OF_CACHES["int8"](row, Aids())
    for ours, own in ((made.keys, row.keys), (made.values, row.values)):
        step = own.abs().amax(dim=-1, keepdim=True) / 127
        assert ((ours - own).abs() <= step / 2 * 1.001).all()
        assert (ours - own).abs().max() > step.min() / 4  # something was rounded
        steps = ours / step
        torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)
    negated = OF_CACHES["int8"](Row(-row.keys, -row.values), Aids())
    torch.testing.assert_close(negated.keys, -made.keys)
    zeros = Row(torch.zeros(SHAPE), torch.zeros(SHAPE))
    assert torch.equal(OF_CACHES["int8"](zeros, Aids()).keys, zeros.keys)


@pytest.mark.parametrize("bits", [4, 2])
def test_groups_have_scales_of_their_own(bits: int) -> None:
    """Keys by channel over 32 tokens, values by token over 32 channels: against a loop in numpy."""
    row = drawn_row()
    made = OF_CACHES[f"int{bits}"](row, Aids())

    def rounded(group: np.ndarray) -> np.ndarray:
        low, high = group.min(), group.max()
        grid = np.linspace(low, high, 2**bits)
        return grid[np.abs(group[:, None] - grid).argmin(axis=1)]

    keys, values = (tensor[0, 1].numpy().astype(float) for tensor in row)
    for channel in range(SHAPE[3]):
        for start in range(0, SHAPE[2], 32):
            expected = rounded(keys[start : start + 32, channel])
            np.testing.assert_allclose(made.keys[0, 1, start : start + 32, channel], expected, atol=1e-4)
    for token in range(SHAPE[2]):
        for start in range(0, SHAPE[3], 32):
            expected = rounded(values[token, start : start + 32])
            np.testing.assert_allclose(made.values[0, 1, token, start : start + 32], expected, atol=1e-4)


def test_noise_has_the_stated_share_of_each_layer() -> None:
    """Of keys and of values; the same for the same seed, another for another."""
    row = drawn_row()
    row = Row(row.keys * torch.tensor([1.0, 10.0, 100.0])[:, None, None, None], row.values)
    for name, share in (("noise_5", 0.05), ("noise_20", 0.2)):
        made, again, other = (OF_CACHES[name](row, Aids(seed)) for seed in (1, 1, 2))
        assert torch.equal(made.keys, again.keys)
        assert not torch.equal(made.keys, other.keys)
        for ours, own in ((made.keys, row.keys), (made.values, row.values)):
            for layer in range(SHAPE[0]):
                noise = (ours - own)[layer].square().mean().sqrt() / own[layer].square().mean().sqrt()
                assert noise == pytest.approx(share, rel=0.03)
        noise = [(ours - own).flatten() for ours, own in ((made.keys, row.keys), (made.values, row.values))]
        assert abs(np.corrcoef(*noise)[0, 1]) < 0.05


def test_scaling_scales_one_of_the_two() -> None:
    """Keys or values, by 1.5."""
    row = drawn_row()
    keys, values = (OF_CACHES[name](row, Aids()) for name in ("keys_scaled", "values_scaled"))
    assert torch.equal(keys.keys, 1.5 * row.keys)
    assert torch.equal(keys.values, row.values)
    assert torch.equal(values.keys, row.keys)
    assert torch.equal(values.values, 1.5 * row.values)


@pytest.mark.parametrize("tokens", [70, 50, 20])
def test_second_half_comes_from_the_other_conversation(tokens: int) -> None:
    """At the same positions, as far as the other one goes."""
    row, other = drawn_row(), Row(*(tensor[..., :tokens, :] for tensor in drawn_row(1)))
    made = OF_CACHES["spliced"](row, Aids(other=other))
    for ours, own, theirs in zip((made.keys, made.values), row, other, strict=True):
        for position in range(SHAPE[2]):
            source = theirs if 35 <= position < tokens else own
            assert torch.equal(ours[..., position, :], source[..., position, :]), position


@pytest.mark.parametrize("tokens", [1, 3, 4, 5, 6, 71])
def test_what_is_dropped_is_the_older_half_after_the_first_tokens(tokens: int) -> None:
    """In short contexts nothing; of five tokens after the first four, two."""
    first, end = dropped(tokens)
    assert first == min(4, tokens)
    assert end - first == max(0, tokens - 4) // 2


@pytest.fixture
def small(family_model: PreTrainedModel) -> Model:
    """One of each family, in float32."""
    return cached(family_model)


def asked(
    model: Any, changed: Any, context_mask: Tensor, prefix: list[int] | None = None, question: list[int] = QUESTION
) -> Tensor:
    """Logits at the answer, of changed caches."""
    rows = len(context_mask)
    batch = SimpleNamespace(
        cache=changed.cache,
        context_mask=context_mask,
        cache_mask=changed.mask,
        next_positions=changed.next_positions,
        cache_of=None,
        question_prefix_ids=None if prefix is None else torch.tensor(prefix),
        question_ids=torch.tensor([question] * rows),
        question_mask=torch.ones(rows, len(question), dtype=torch.long),
    )
    with torch.no_grad():
        return read_answers(model, batch)


def in_one_pass(model: Any, tokens: list[int], hidden: set[int]) -> Tensor:
    """Logits at the answer of one conversation in which the question cannot see some tokens of the context."""
    ids = torch.tensor([tokens + QUESTION])
    size, context = ids.shape[1], len(tokens)
    allowed = torch.ones(size, size).tril().bool()
    for position in hidden:
        allowed[context:, position] = False
    mask = torch.zeros(1, 1, size, size).masked_fill(~allowed, torch.finfo(torch.float32).min)
    with torch.no_grad():
        places = torch.arange(size)[None]
        return model(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False).logits[0, -1]


def hidden_of(name: str, tokens: int) -> set[int]:
    """Positions that a change drops, from their description."""
    if name == "window":
        return set(range(tokens // 2))
    after = tokens - min(4, tokens)
    return set(range(4, 4 + after // 2))


@pytest.mark.parametrize("name", ["evicted", "window"])
def test_dropping_equals_masked_attention_with_positions_kept(small: Model, name: str) -> None:
    """Recomputed in one pass, in which the context sees all of itself and the question not what was dropped."""
    changed = change_caches(small.cache, small.mask, [CacheChange(name)] * len(CONTEXTS))
    logits = asked(small.model, changed, small.mask)
    whole = asked(small.model, change_caches(small.cache, small.mask, [CacheChange()] * len(CONTEXTS)), small.mask)
    assert changed.next_positions.tolist() == [len(tokens) for tokens in CONTEXTS]
    for row, tokens in enumerate(CONTEXTS):
        hidden = hidden_of(name, len(tokens))
        torch.testing.assert_close(logits[row], in_one_pass(small.model, tokens, hidden), atol=1e-3, rtol=1e-3)
        assert torch.allclose(whole[row], logits[row], atol=1e-4) == (not hidden)


def test_a_prefix_of_questions_goes_on_where_the_cache_ends(small: Model) -> None:
    """What is read once for each cache, and what follows, have the positions of the question in one piece."""
    for name in ("evicted", "shifted"):
        frequencies = rotary_frequencies(small.model)
        changed = change_caches(small.cache, small.mask, [CacheChange(name)] * len(CONTEXTS), frequencies)
        apart = asked(small.model, changed, small.mask, prefix=[90, 91])
        together = asked(small.model, changed, small.mask, question=[90, 91, *QUESTION])
        torch.testing.assert_close(apart, together, atol=1e-3, rtol=1e-3)


def test_low_key_norms_are_kept_by_each_head_and_nothing_else_is_read(small: Model) -> None:
    """Against a loop over heads; and reading equals reading a cache of these tokens alone, at the same positions."""
    changed = change_caches(small.cache, small.mask, [CacheChange("low_key_norm")] * len(CONTEXTS))
    width = small.mask.shape[1]
    for row, tokens in enumerate(CONTEXTS):
        count = len(tokens) - max(0, len(tokens) - 4) // 2
        assert changed.mask[row].tolist() == [0] * (width - count) + [1] * count
        for layer, ours in zip(small.cache.layers, changed.cache.layers, strict=True):
            own = layer.keys[row, :, width - len(tokens) :]
            for head in range(own.shape[0]):
                norms, found = own[head].norm(dim=-1).tolist(), ours.keys[row, head, width - count :]
                kept = [int((own[head] == key).all(dim=-1).nonzero()[0]) for key in found]
                left = set(range(len(tokens))) - set(kept)
                assert kept == sorted(set(kept))
                # Models that normalise keys (Qwen3) have norms that are equal but for rounding.
                assert all(norms[one] <= norms[other] + 1e-5 for one in kept for other in left)
                values = layer.values[row, head, width - len(tokens) :]
                assert torch.equal(ours.values[row, head, width - count :], values[kept])
        alone = DynamicCache(config=small.model.get_base_model().config)
        for number, ours in enumerate(changed.cache.layers):
            alone.update(ours.keys[row : row + 1, :, -count:], ours.values[row : row + 1, :, -count:], number)
        places = torch.arange(len(tokens), len(tokens) + len(QUESTION))[None]
        with torch.no_grad():
            read = small.model(input_ids=torch.tensor([QUESTION]), position_ids=places, past_key_values=alone).logits[0, -1]
        torch.testing.assert_close(asked(small.model, changed, small.mask)[row], read, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama", "mistral", "gemma"])
def test_shifted_keys_are_those_of_the_new_positions(tiny_folder: Callable[[str], Path], family: str) -> None:
    """The model's own rotation of its own unrotated keys, at the positions that are left."""
    small = cached(load_model(BaseModel(str(tiny_folder(family)))))
    unrotated: dict[int, Tensor] = {}
    handles = []
    for number, layer in enumerate(small.layers):
        attention: Any = layer.self_attn
        source = attention.k_norm if hasattr(attention, "k_norm") else attention.k_proj

        def record(module: Any, args: Any, output: Tensor, number: int = number) -> None:
            unrotated[number] = output

        handles.append(source.register_forward_hook(record))
    with torch.no_grad():
        fill_cache(small.model, DynamicCache(config=small.model.get_base_model().config), small.ids, small.mask)
    for handle in handles:
        handle.remove()
    decoder: Any = small.model.get_base_model().get_decoder()
    rotation = sys.modules[type(decoder).__module__].apply_rotary_pos_emb
    changed = change_caches(
        small.cache, small.mask, [CacheChange("shifted")] * len(CONTEXTS), rotary_frequencies(small.model)
    )
    width = small.mask.shape[1]
    for row, tokens in enumerate(CONTEXTS):
        hidden = hidden_of("shifted", len(tokens))
        left = [position for position in range(len(tokens)) if position not in hidden]
        assert changed.next_positions[row] == len(left)
        columns = [width - len(tokens) + position for position in left]
        assert changed.mask[row].nonzero()[:, 0].tolist() == columns
        for number, ours in enumerate(changed.cache.layers):
            raw = unrotated[number][row].reshape(width, -1, ours.keys.shape[-1])[columns].transpose(0, 1)[None]
            cosines, sines = decoder.rotary_emb(raw, torch.arange(len(left))[None])
            expected = rotation(raw, raw, cosines, sines)[1][0]
            torch.testing.assert_close(ours.keys[row][:, columns], expected, atol=1e-4, rtol=1e-4)
            assert torch.equal(ours.values[row], small.cache.layers[number].values[row])


def test_rotation_leaves_other_channels_alone_and_comes_back() -> None:
    """With fewer frequencies than half of the channels; there and back again is nowhere."""
    keys, frequencies = drawn_row().keys, torch.tensor([1.0, 0.1, 0.01])
    turned = rotated(keys, 5, frequencies)
    assert torch.equal(turned[..., 6:], keys[..., 6:])
    assert not torch.allclose(turned[..., :6], keys[..., :6])
    torch.testing.assert_close(rotated(turned, -5, frequencies), keys)
    torch.testing.assert_close(turned.norm(dim=-1), keys.norm(dim=-1))


def test_caches_that_are_given_stay_and_rows_do_not_touch_each_other(small: Model) -> None:
    """Every change at once: nothing is changed in place, other rows are the same bits, and a row alone gives the same."""
    before = [(layer.keys.clone(), layer.values.clone()) for layer in small.cache.layers]
    frequencies = rotary_frequencies(small.model)
    received = received_attention(small.model, small.layers, small.ids, small.mask, nothing_added(small, CONTEXTS))
    for name in OF_CACHES:
        change = CacheChange(name, seed=3, other=2 if name == "spliced" else -1)
        changed = change_caches(small.cache, small.mask, [change, *[CacheChange()] * 3], frequencies, {0: received[0]})
        for layer, own, (keys, values) in zip(changed.cache.layers, small.cache.layers, before, strict=True):
            assert torch.equal(own.keys, keys)
            assert torch.equal(own.values, values)
            assert torch.equal(layer.keys[1:], keys[1:])
            assert torch.equal(layer.values[1:], values[1:])
        assert torch.equal(changed.mask[1:], small.mask[1:])
        assert changed.next_positions[1:].tolist() == [len(tokens) for tokens in CONTEXTS[1:]]
        moved = any(
            not torch.equal(getattr(layer, part)[0], getattr(own, part)[0])
            for layer, own in zip(changed.cache.layers, small.cache.layers, strict=True)
            for part in ("keys", "values")
        )
        assert moved or name in ("evicted", "window"), name
        ids, mask = pad([CONTEXTS[0], CONTEXTS[2]], 0, "left")
        pair = DynamicCache(config=small.model.get_base_model().config)
        with torch.no_grad():
            fill_cache(small.model, pair, ids, mask)
        change = change._replace(other=1 if name == "spliced" else -1)
        apart = change_caches(pair, mask, [change, CacheChange()], frequencies, {0: received[0][..., -mask.shape[1] :]})
        if not name.startswith("int"):  # a rounding difference of the prefill can move a number by a whole step
            torch.testing.assert_close(
                asked(small.model, apart, mask)[0], asked(small.model, changed, small.mask)[0], atol=1e-3, rtol=1e-3
            )


def test_layers_that_forget_are_refused(small: Model) -> None:
    """A layer with fewer positions than the context, as a window keeps."""
    changed = change_caches(small.cache, small.mask, [CacheChange()] * 4)
    changed.cache.layers[1].keys = changed.cache.layers[1].keys[:, :, 1:]
    with pytest.raises(RunError, match="all tokens in all layers"):
        change_caches(changed.cache, small.mask, [CacheChange("int8")] * 4)


def test_other_adapter_has_the_stated_norm_and_rank_and_leaves(small: Model) -> None:
    """Of what each module computes, as a matrix; and the same every time."""
    targets = {
        f"{number}.{name}": module
        for number, layer in enumerate(small.layers)
        for name, module in layer.named_modules()
        if name.rpartition(".")[2] in USUAL
    }
    assert len(targets) == 4 * len(small.layers)
    like = small.model.get_input_embeddings().weight.float()

    def matrices() -> dict[str, Tensor]:
        with torch.no_grad():
            return {
                name: (module(torch.eye(module.in_features)) - module(torch.zeros(1, module.in_features))).float()
                for name, module in targets.items()
            }

    own = matrices()
    with other_adapter(small.layers, USUAL, 0, like):
        inside = matrices()
    with other_adapter(small.layers, USUAL, 0, like):
        again = matrices()
    for name, matrix in own.items():
        added = inside[name] - matrix
        assert torch.equal(again[name], inside[name])
        assert float(added.norm() / matrix.norm()) == pytest.approx(SHARE, rel=0.15)
        sizes = torch.linalg.svdvals(added)
        assert (sizes[others.RANK :] < 1e-3 * sizes[0]).all()
    after = matrices()
    assert all(torch.equal(after[name], matrix) for name, matrix in own.items())
