"""Less work in the prefill, the same caches: against the plain prefill, on every family and in NF4."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from tiny_models import SIZES
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Cache, MistralConfig, PreTrainedModel, PreTrainedTokenizerFast

from introspection_lit.models.architecture import find_decoder_layers
from introspection_lit.models.base_model import Lora
from introspection_lit.models.loading import add_lora
from introspection_lit.steering.clean_caches import CleanCaches, make_reader, model_state
from introspection_lit.steering.intervention import Intervention
from introspection_lit.steering.prefill import pad, steered_cache
from introspection_lit.steering.shared_prefill import Schedule, schedule, shared_cache

LAYERS = 6
TOKENS = [list(range(10, 22)), list(range(40, 45)), list(range(60, 68)), list(range(30, 37)), list(range(80, 84))]
BANDS = [(0, 1), (2, 3), (3, 4), (1, 4)]
# Context and band of each row; None: clean. Twins, rows without a twin, the same steered twice, one context three times.
ROWS = [(0, None), (0, (2, 3)), (1, (0, 1)), (2, None), (2, (3, 4)), (2, (1, 4)), (3, None), (4, (2, 3)), (4, (2, 3))]


def batch_of(
    model: nn.Module, rows: list, per_layer: bool = False, some: bool = False
) -> tuple[Tensor, Tensor, Intervention]:
    """Ids, mask and intervention of rows: everywhere, or at every second token only."""
    ids, mask = pad([TOKENS[context] for context, _ in rows], 0, "left")
    drawn = torch.Generator().manual_seed(5)
    shape = (len(rows), LAYERS if per_layer else 1, model.config.hidden_size)
    direction = nn.functional.normalize(torch.randn(shape, generator=drawn), dim=-1)
    scale = torch.zeros(len(rows), LAYERS)
    for row, (_, band) in enumerate(rows):
        if band:
            scale[row, band[0] : band[1] + 1] = 3.0
    positions = mask.bool()
    if some:
        positions = positions & (torch.arange(mask.shape[1]) % 2 == 0)
    return ids, mask, Intervention(direction, scale, positions)


def assert_same(ours: Cache, plain: Cache, mask: Tensor, tolerance: float = 2e-5) -> None:
    """Keys and values agree wherever there is a token."""
    for layer, expected in zip(ours.layers, plain.layers, strict=True):
        for name in ("keys", "values"):
            mine, theirs = getattr(layer, name), getattr(expected, name)
            assert mine.shape == theirs.shape
            tokens = mask[:, None, :, None].bool()
            torch.testing.assert_close(mine * tokens, theirs * tokens, atol=tolerance, rtol=1e-4)


def kept_of(model: nn.Module, layers: list[nn.Module], gib: float = 1.0, group: int = 2) -> CleanCaches:
    """Kept caches of all contexts, none read yet."""
    return CleanCaches(TOKENS, [first for first, _ in BANDS], gib, group)


def filled(kept: CleanCaches, model: nn.Module, layers: list[nn.Module], contexts: list[int]) -> CleanCaches:
    """The same, with some contexts read."""
    kept.prepare(contexts, model_state(model, layers), make_reader(model, model, layers, kept.layers))
    return kept


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("keep", ["nothing", "some", "all"])
def test_caches_are_those_of_the_plain_prefill(family_model: PreTrainedModel, share: bool, keep: str) -> None:
    """Whatever is shared and kept, in one batch with all sorts of neighbours."""
    model = add_lora(family_model, Lora()).train()
    layers = find_decoder_layers(model)
    ids, mask, intervention = batch_of(model, ROWS)
    plain = steered_cache(model, model, layers, ids, mask, intervention)
    kept = {"nothing": None, "some": filled(kept_of(model, layers), model, layers, [2]), "all": None}[keep]
    if keep == "all":
        kept = filled(kept_of(model, layers), model, layers, list(range(len(TOKENS))))
    contexts = [context for context, _ in ROWS]
    ours = shared_cache(model, model, layers, ids, mask, intervention, contexts, kept, share)
    assert_same(ours, plain, mask)
    assert model.training
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)


@pytest.mark.parametrize(("per_layer", "some"), [(True, False), (False, True)])
def test_other_interventions(family_model: PreTrainedModel, per_layer: bool, some: bool) -> None:
    """A direction for each layer, and steering of some tokens only."""
    model = add_lora(family_model, Lora())
    layers = find_decoder_layers(model)
    ids, mask, intervention = batch_of(model, ROWS, per_layer, some)
    plain = steered_cache(model, model, layers, ids, mask, intervention)
    kept = filled(kept_of(model, layers), model, layers, [0, 2, 4])
    assert_same(shared_cache(model, model, layers, ids, mask, intervention, [c for c, _ in ROWS], kept), plain, mask)


@pytest.mark.parametrize(
    "rows", [[(0, None), (3, None)], [(1, (3, 4))], [(0, (2, 3)), (3, (3, 4))], [(2, (5, 5)), (2, None)]]
)
@pytest.mark.parametrize("always", [True, False])
def test_batches_of_one_sort(family_model: PreTrainedModel, rows: list, always: bool) -> None:
    """All clean and kept, so that nothing need run; nobody who begins at layer 0; steering that reaches no cache."""
    model = add_lora(family_model, Lora())
    layers = find_decoder_layers(model)
    ids, mask, intervention = batch_of(model, rows)
    plain = steered_cache(model, model, layers, ids, mask, intervention)
    contexts = [context for context, _ in rows]
    for kept in (None, filled(kept_of(model, layers), model, layers, contexts)):
        ours = shared_cache(model, model, layers, ids, mask, intervention, contexts, kept, always=always)
        assert_same(ours, plain, mask)


def test_adapter_that_writes_can_share_layers(family_model: PreTrainedModel) -> None:
    """With the adapter on in the prefill, rows of the same batch still share what lies below the steering."""
    model = add_lora(family_model, Lora())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter += 0.1 * torch.randn_like(parameter)
    layers = find_decoder_layers(model)
    ids, mask, intervention = batch_of(model, ROWS)
    plain = steered_cache(model, model, layers, ids, mask, intervention, adapter=True)
    assert_same(
        shared_cache(model, model, layers, ids, mask, intervention, [c for c, _ in ROWS], adapter=True), plain, mask
    )


def test_schedule_of_pairs() -> None:
    """The clean row of a pair runs, its twin joins above its first steered layer."""
    assert schedule([6, 2], [7, 7], set(), 6, share=True) == Schedule([0, 3], [0, 0], [0, 1])
    assert schedule([6, 2], [7, 7], set(), 6, share=False) == Schedule([0, 0], [0, 1], [0, 1])
    # Kept: the clean row does not run at all, and the other has to open the pass.
    assert schedule([6, 2], [7, 7], {7}, 6, share=True) == Schedule([6, 0], [-1, 1], [1])
    assert schedule([6, 2, 0], [7, 7, 7], {7}, 6, share=True) == Schedule([6, 3, 0], [-1, -1, 2], [2, 1])
    # Two that are steered alike: one runs through the layers below for both.
    assert schedule([3, 3, 1], [4, 4, 4], set(), 6, share=True) == Schedule([0, 4, 2], [0, 0, 0], [0, 2, 1])


def test_every_schedule_can_run() -> None:
    """In random batches, donors start at layer 0 and are clean as far as they are used; some row starts at layer 0."""
    drawn = random.Random(0)
    for _ in range(500):
        size, n_layers = drawn.randint(1, 12), drawn.randint(2, 7)
        first = [drawn.randint(0, n_layers) for _ in range(size)]
        contexts = [drawn.randint(0, 4) for _ in range(size)]
        kept = set(drawn.sample(range(5), drawn.randint(0, 5)))
        always, share = drawn.random() < 0.5, drawn.random() < 0.7
        plan = schedule(first, contexts, kept, n_layers, share, always)
        for row, (start, donor) in enumerate(zip(plan.starts, plan.donors, strict=True)):
            assert (row in plan.run) == (start < n_layers)
            assert start <= first[row] + 1 or first[row] >= n_layers - 1
            if donor == row:
                assert start == 0
            elif donor < 0:
                assert contexts[row] in kept
            else:
                assert contexts[donor] == contexts[row]
                assert plan.starts[donor] == 0
                assert first[donor] >= min(first[row], n_layers - 1)
        if plan.run:
            assert plan.active(0) >= 1
        else:
            assert not always
            assert all(layer >= n_layers - 1 for layer in first)
        assert [plan.starts[row] for row in plan.run] == sorted(plan.starts[row] for row in plan.run)


def test_what_is_kept_does_not_depend_on_what_came_before(family_model: PreTrainedModel) -> None:
    """Asked for in another order, or after more: the same bits, so that a resumed run goes on with the same numbers."""
    model = add_lora(family_model, Lora())
    layers = find_decoder_layers(model)
    one = filled(kept_of(model, layers), model, layers, [3])
    other = filled(filled(filled(kept_of(model, layers), model, layers, [0]), model, layers, [1, 2]), model, layers, [3, 4])
    assert 3 in one.entries
    assert len(other.entries) == len(TOKENS)
    for context, entry in one.entries.items():
        assert torch.equal(entry.cache[0], other.entries[context].cache[0])
        assert torch.equal(entry.hidden, other.entries[context].hidden)


def test_nothing_stale_is_used(family_model: PreTrainedModel) -> None:
    """A weight that changed in place, an adapter merged into the base, somebody's own hook, autocast: all is read again."""
    model = add_lora(family_model, Lora())
    layers = find_decoder_layers(model)
    kept, everything = kept_of(model, layers), list(range(len(TOKENS)))
    ids, mask, intervention = batch_of(model, ROWS)
    contexts = [context for context, _ in ROWS]

    def matches() -> None:
        filled(kept, model, layers, everything)
        ours = shared_cache(model, model, layers, ids, mask, intervention, contexts, kept)
        assert_same(ours, steered_cache(model, model, layers, ids, mask, intervention), mask)

    matches()
    before = kept.entries[0].cache[0].clone()
    norm = next(parameter for name, parameter in model.named_parameters() if "layernorm" in name)
    with torch.no_grad():
        norm.add_(0.5)
    matches()
    changed = kept.entries[0].cache[0]
    assert not torch.equal(changed, before)
    filled(kept, model, layers, everything)
    assert kept.entries[0].cache[0] is changed  # nothing has changed since: kept
    handle = layers[0].register_forward_hook(lambda _, __, output: output * 1.1)
    filled(kept, model, layers, everything)
    assert not torch.equal(kept.entries[0].cache[0], changed)
    handle.remove()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        filled(kept, model, layers, everything)
        assert not torch.equal(kept.entries[0].cache[0].float(), changed.float())
    matches()
    assert torch.equal(kept.entries[0].cache[0], changed)


def test_windows_of_attention(tokenizer: PreTrainedTokenizerFast) -> None:
    """Layers that see a window only keep less than the longest context: nothing is kept, for all contexts alike."""
    torch.manual_seed(0)
    config = MistralConfig(**SIZES, vocab_size=len(tokenizer), pad_token_id=0, sliding_window=8)
    model = add_lora(AutoModelForCausalLM.from_config(config).eval(), Lora())
    layers = find_decoder_layers(model)
    ids, mask, intervention = batch_of(model, ROWS)
    plain = steered_cache(model, model, layers, ids, mask, intervention)
    assert plain.layers[0].keys.shape[2] < ids.shape[1]
    reads = 0

    def counting(ids: Tensor, mask: Tensor) -> Any:
        nonlocal reads
        reads += 1
        return make_reader(model, model, layers, [])(ids, mask)

    kept = kept_of(model, layers)
    for _ in range(3):
        kept.prepare(list(range(len(TOKENS))), model_state(model, layers), counting)
    assert (reads, kept.entries) == (1, {})
    ours = shared_cache(model, model, layers, ids, mask, intervention, [c for c, _ in ROWS], kept)
    assert_same(ours, plain, mask[:, -plain.layers[0].keys.shape[2] :])


def test_memory_is_bounded(family_model: PreTrainedModel) -> None:
    """The shortest contexts are kept as far as there is room; the others are computed every time, and come out right."""
    model = add_lora(family_model, Lora())
    layers = find_decoder_layers(model)
    everything = list(range(len(TOKENS)))
    whole = filled(kept_of(model, layers), model, layers, everything)
    room = 0.6 * whole.nbytes / 2**30
    some = filled(kept_of(model, layers, gib=room), model, layers, everything)
    assert 0 < some.nbytes <= room * 2**30
    assert max(len(TOKENS[c]) for c in some.entries) <= min(len(TOKENS[c]) for c in everything if c not in some.entries)
    ids, mask, intervention = batch_of(model, ROWS)
    plain = steered_cache(model, model, layers, ids, mask, intervention)
    for kept in (some, filled(kept_of(model, layers, gib=0.0), model, layers, everything)):
        assert_same(shared_cache(model, model, layers, ids, mask, intervention, [c for c, _ in ROWS], kept), plain, mask)
    assert not kept.entries
    kept.prepare(everything, kept.model_state, lambda *_: pytest.fail("read again"))
