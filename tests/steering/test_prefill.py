"""The protocol itself: steer, remove, ask. On four families of tiny models and one in NF4, all computing in float32.

Every test runs with the plain prefill and with each of the savings that may take its place.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from introspection_lit.models.architecture import find_decoder_layers
from introspection_lit.models.base_model import Lora
from introspection_lit.models.loading import add_lora
from introspection_lit.steering import prefill
from introspection_lit.steering.caches import fork
from introspection_lit.steering.clean_caches import CleanCaches, make_reader, model_state
from introspection_lit.steering.extraction import record_outputs
from introspection_lit.steering.intervention import Intervention, steer
from introspection_lit.steering.prefill import pad, position_ids, prefill_mode, steered_cache
from introspection_lit.steering.shared_prefill import shared_cache

CONTEXTS = [list(range(10, 22)), list(range(40, 45)), list(range(60, 68))]
QUESTIONS = [[100, 101, 102], [110, 111, 112, 113, 114], [120, 121]]
LAYERS = 6


def saving(keep: bool) -> Any:
    """A prefill that shares the layers below the steering and, if asked to, keeps clean contexts."""

    def write(
        forward: Any, model: Any, layers: list, ids: Tensor, mask: Tensor, intervention: Intervention, adapter: bool = False
    ) -> Cache:
        rows = [tuple(row[kept.bool()].tolist()) for row, kept in zip(ids, mask, strict=True)]
        tokens = list(dict.fromkeys(rows))
        numbers = [tokens.index(row) for row in rows]
        kept = CleanCaches(tokens, range(LAYERS), 1.0, 2) if keep and not adapter else None
        if kept is not None:
            kept.prepare(numbers, model_state(model, layers), make_reader(forward, model, layers, kept.layers))
        return shared_cache(forward, model, layers, ids, mask, intervention, numbers, kept, adapter=adapter)

    return write


@pytest.fixture(params=["plain", "shared layers", "kept caches"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts one of the ways to fill a cache in the place of the plain one."""
    ways = {"plain": prefill.steered_cache, "shared layers": saving(keep=False), "kept caches": saving(keep=True)}
    monkeypatch.setattr(sys.modules[__name__], "steered_cache", ways[request.param])


def intervention_of(
    model: nn.Module, mask: Tensor, scales: list[dict[int, float]], per_layer: bool = False
) -> Intervention:
    """An intervention with a random unit direction for each row and the given length at the given layers."""
    random = torch.Generator().manual_seed(7)
    shape = (len(scales), LAYERS if per_layer else 1, model.config.hidden_size)
    direction = torch.nn.functional.normalize(torch.randn(shape, generator=random), dim=-1)
    scale = torch.zeros(len(scales), LAYERS)
    for row, lengths in enumerate(scales):
        for layer, length in lengths.items():
            scale[row, layer] = length
    return Intervention(direction, scale, mask.bool())


def two_pass(model: PreTrainedModel, contexts: list[list[int]], questions: list[list[int]], scales: list[dict[int, float]]):
    """Prefill and question pass of a padded batch; logits at the answer position ``(batch, vocabulary)`` and cache."""
    peft = add_lora(model, Lora()) if not hasattr(model, "get_base_model") else model
    ids, mask = pad(contexts, 0, "left")
    question_ids, question_mask = pad(questions, 0, "right")
    intervention = intervention_of(peft, mask, scales)
    cache = steered_cache(peft, peft, find_decoder_layers(peft), ids, mask, intervention)
    whole = torch.cat([mask, question_mask], dim=1)
    with torch.no_grad():
        logits = peft(
            input_ids=question_ids,
            attention_mask=whole,
            position_ids=position_ids(whole)[:, mask.shape[1] :],
            past_key_values=fork(cache),
        ).logits
    return logits[torch.arange(len(questions)), question_mask.sum(1) - 1], cache, peft


def test_padding_does_not_shift_positions() -> None:
    """Models with rotary positions would not notice a shift of a whole row; others would."""
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    assert position_ids(mask)[0, 2:].tolist() == [0, 1, 2, 3]
    assert position_ids(mask)[1, :4].tolist() == [0, 1, 2, 3]


def test_two_passes_equal_one_pass(family_model: PreTrainedModel) -> None:
    """An unsteered prefill followed by the question gives what plain transformers gives for the whole conversation."""
    with torch.no_grad():
        whole = family_model(torch.tensor([CONTEXTS[0] + QUESTIONS[0]])).logits[:, -1]
    logits, _, _ = two_pass(family_model, CONTEXTS[:1], QUESTIONS[:1], [{}])
    torch.testing.assert_close(logits, whole, atol=1e-4, rtol=0)


def test_row_of_a_mixed_padded_batch_equals_the_row_alone(family_model: PreTrainedModel) -> None:
    """Neither padding nor neighbours with other interventions change a row's logits."""
    scales: list[dict[int, float]] = [{1: 3.0, 2: 3.0}, {}, {3: 5.0}]
    ids, mask = pad(CONTEXTS, 0, "left")
    directions = intervention_of(family_model, mask, scales)
    together, _, peft = two_pass(family_model, CONTEXTS, QUESTIONS, scales)
    for row in range(3):
        alone_ids, alone_mask = pad(CONTEXTS[row : row + 1], 0, "left")
        mine = Intervention(directions.direction[[row]], directions.scale[[row]], alone_mask.bool())
        cache = steered_cache(peft, peft, find_decoder_layers(peft), alone_ids, alone_mask, mine)
        with torch.no_grad():
            alone = peft(input_ids=torch.tensor([QUESTIONS[row]]), past_key_values=cache).logits[0, -1]
        torch.testing.assert_close(together[row], alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("first", [0, 2, 4])
def test_steering_reaches_the_cache_above_its_first_layer_only(family_model: PreTrainedModel, first: int) -> None:
    """Adding to the output of layer ``first`` leaves keys and values of layers up to it alone, and changes all above."""
    _, clean, peft = two_pass(family_model, CONTEXTS[:1], QUESTIONS[:1], [{}])
    _, steered, _ = two_pass(peft, CONTEXTS[:1], QUESTIONS[:1], [{first: 4.0}])
    for layer in range(LAYERS):
        for name in ("keys", "values"):
            same = torch.equal(getattr(clean.layers[layer], name), getattr(steered.layers[layer], name))
            assert same == (layer <= first), (layer, name)


def test_last_layer_alone_changes_nothing(family_model: PreTrainedModel) -> None:
    """Why that band is refused: the steered trial is the clean one."""
    clean, _, peft = two_pass(family_model, CONTEXTS[:1], QUESTIONS[:1], [{}])
    steered, _, _ = two_pass(peft, CONTEXTS[:1], QUESTIONS[:1], [{LAYERS - 1: 50.0}])
    assert torch.equal(clean, steered)


def test_zero_strength_is_clean_to_the_bit(family_model: PreTrainedModel) -> None:
    """A clean row in a batch whose other rows are steered gets exactly the cache of a batch with no steering."""
    _, clean, peft = two_pass(family_model, CONTEXTS, QUESTIONS, [{}, {}, {}])
    _, mixed, _ = two_pass(peft, CONTEXTS, QUESTIONS, [{1: 3.0}, {}, {2: 3.0}])
    for before, after in zip(clean.layers, mixed.layers, strict=True):
        assert torch.equal(before.keys[1], after.keys[1])
        assert torch.equal(before.values[1], after.values[1])


@pytest.mark.parametrize("per_layer", [False, True])
def test_each_row_gets_its_own_direction_and_padding_none(family_model: PreTrainedModel, per_layer: bool) -> None:
    """What is added to a layer's output is the row's length times the row's direction, at its tokens and nowhere else."""
    ids, mask = pad(CONTEXTS, 0, "left")
    intervention = intervention_of(family_model, mask, [{2: 3.0}, {2: 0.5}, {}], per_layer)
    layers = find_decoder_layers(family_model)
    arguments = {"input_ids": ids, "attention_mask": mask, "position_ids": position_ids(mask)}
    with torch.no_grad(), record_outputs(layers) as clean:
        family_model(**arguments)
    with torch.no_grad(), steer(layers, intervention), record_outputs(layers) as steered:
        family_model(**arguments)
    added = steered[2] - clean[2]
    for row, length in enumerate((3.0, 0.5, 0.0)):
        for position in range(mask.shape[1]):
            expected = length * intervention.direction[row, 2 if per_layer else 0] * mask[row, position]
            torch.testing.assert_close(added[row, position], expected, atol=1e-5, rtol=0)


def test_hooks_are_gone_after_an_exception(family_model: PreTrainedModel) -> None:
    """An exception inside the block leaves no hook behind, and neither does a normal end."""
    layers = find_decoder_layers(family_model)
    ids, mask = pad(CONTEXTS, 0, "left")
    with pytest.raises(RuntimeError, match="boom"), steer(layers, intervention_of(family_model, mask, [{1: 1.0}] * 3)):
        assert layers[1]._forward_hooks
        raise RuntimeError("boom")
    assert not any(layer._forward_hooks for layer in layers)


def test_forked_cache_can_be_asked_twice(family_model: PreTrainedModel) -> None:
    """A forward pass grows the cache it is given; a fork keeps the original as it was."""
    _, cache, peft = two_pass(family_model, CONTEXTS[:1], QUESTIONS[:1], [{}])
    question = torch.tensor([QUESTIONS[0]])
    with torch.no_grad():
        first = peft(input_ids=question, past_key_values=fork(cache)).logits
        again = peft(input_ids=question, past_key_values=fork(cache)).logits
        assert cache.get_seq_length() == len(CONTEXTS[0])
        spoiled = peft(input_ids=question, past_key_values=cache).logits
        assert cache.get_seq_length() == len(CONTEXTS[0]) + len(QUESTIONS[0])
    assert torch.equal(first, again)
    assert torch.equal(first, spoiled)


def test_writing_mode_restores_what_it_found(family_model: PreTrainedModel) -> None:
    """Eval and adapter off inside; training mode, adapter and its gradients back afterwards, even after an exception."""
    peft = add_lora(family_model, Lora()).train()
    with pytest.raises(RuntimeError, match="boom"), prefill_mode(peft, adapter=False):
        assert not any(module.training for module in peft.modules())
        assert not torch.is_grad_enabled()
        raise RuntimeError("boom")
    assert all(module.training for module in peft.modules())
    assert torch.is_grad_enabled()
    assert all(parameter.requires_grad for name, parameter in peft.named_parameters() if "lora_" in name)


def test_writing_mode_leaves_what_was_off_before(family_model: PreTrainedModel) -> None:
    """A module in eval mode stays in it, an adapter that was off or not trained stays so; the others are on again."""
    peft = add_lora(family_model, Lora()).train()
    first, *others = [module for module in peft.modules() if isinstance(module, BaseTunerLayer)]
    first.enable_adapters(False)
    first.eval()
    others[0].requires_grad_(False)  # as an adapter that was loaded for inference
    trained = [parameter.requires_grad for parameter in peft.parameters()]
    with prefill_mode(peft, adapter=False):
        assert all(layer.disable_adapters for layer in (first, *others))
    assert first.disable_adapters
    assert not first.training
    assert not any(layer.disable_adapters for layer in others)
    assert all(layer.training for layer in others)
    assert [parameter.requires_grad for parameter in peft.parameters()] == trained
    with prefill_mode(peft, adapter=True):
        assert not any(layer.training or layer.disable_adapters for layer in others)


def trained_a_little(peft) -> None:
    """Move every adapter weight, as training would."""
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                parameter += 0.1 * torch.randn_like(parameter)


@pytest.mark.parametrize("adapter", [False, True])
def test_training_changes_the_cache_only_if_the_adapter_writes_it(family_model: PreTrainedModel, adapter: bool) -> None:
    """Adapter off in prefill: caches before and after training are bit-identical. On: they differ."""
    peft = add_lora(family_model, Lora(dropout=0.5)).train()
    layers = find_decoder_layers(peft)
    ids, mask = pad(CONTEXTS, 0, "left")
    intervention = intervention_of(peft, mask, [{1: 2.0}, {}, {2: 2.0}])
    before = steered_cache(peft, peft, layers, ids, mask, intervention, adapter)
    trained_a_little(peft)
    after = steered_cache(peft, peft, layers, ids, mask, intervention, adapter)
    same = all(torch.equal(a.keys, b.keys) for a, b in zip(before.layers, after.layers, strict=True))
    assert same == (not adapter)


def test_gradient_comes_from_the_question_pass_alone(family_model: PreTrainedModel) -> None:
    """The cache carries no gradient, and LoRA's gradient is that of the question given a constant cache."""
    peft = add_lora(family_model, Lora(dropout=0.0)).train()
    trained_a_little(peft)
    ids, mask = pad(CONTEXTS, 0, "left")
    cache = steered_cache(peft, peft, find_decoder_layers(peft), ids, mask, intervention_of(peft, mask, [{1: 2.0}] * 3))
    assert not any(layer.keys.requires_grad or layer.values.requires_grad for layer in cache.layers)
    question_ids, question_mask = pad([QUESTIONS[0]] * 3, 0, "right")
    whole = torch.cat([mask, question_mask], dim=1)

    def gradients(past) -> dict[str, Tensor]:
        peft.zero_grad()
        positions = position_ids(whole)[:, mask.shape[1] :]
        logits = peft(
            input_ids=question_ids, attention_mask=whole, position_ids=positions, past_key_values=fork(past)
        ).logits
        logits[:, -1].logsumexp(-1).sum().backward()
        return {name: p.grad.clone() for name, p in peft.named_parameters() if p.grad is not None}

    found = gradients(cache)
    assert found
    assert all("lora_" in name for name in found)
    constant = fork(cache)
    for layer in constant.layers:
        layer.keys, layer.values = layer.keys.detach().clone(), layer.values.detach().clone()
    for name, gradient in gradients(constant).items():
        assert torch.equal(gradient, found[name])
    # Every layer's queries get gradient.
    assert all(any(f"layers.{layer}." in name and found[name].abs().sum() > 0 for name in found) for layer in range(LAYERS))
