"""Caches of every kind of layer: forks, selected rows, kept and assembled caches, on tiny models of five architectures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from introspection_lit.models.architecture import find_decoder_layers
from introspection_lit.steering.caches import fork, row_tensors, select_rows
from introspection_lit.steering.extraction import record_outputs
from introspection_lit.steering.intervention import Intervention, steer
from introspection_lit.steering.residual import residual, with_residual
from introspection_lit.tools.architectures.measure import RIGHT, Case, difference, gradient_difference
from introspection_lit.tools.architectures.recipes import tiny_model
from introspection_lit.tools.architectures.table import case_of

# Recurrent, convolution, attention and a state in one layer, latent attention, an index beside the keys.
KINDS = ["qwen3_next", "lfm2", "falcon_h1", "deepseek_v3", "deepseek_v32"]
IDS = torch.arange(10, 40).reshape(2, 15)


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    """A tiny model of each kind, made once."""
    return {}


@pytest.fixture(params=KINDS)
def case(request: pytest.FixtureRequest, cases: dict[str, Case], tmp_path: Path) -> Case:
    """A tiny model with its adapter."""
    if request.param not in cases:
        cases[request.param] = case_of(request.param, tmp_path)[0]
    return cases[request.param]


def filled(case: Case, ids: torch.Tensor = IDS) -> DynamicCache:
    """A cache of some rows."""
    cache = DynamicCache(config=case.model.get_base_model().config)
    with torch.no_grad():
        case.model(input_ids=ids, past_key_values=cache, use_cache=True)
    return cache


def test_a_fork_leaves_the_original_as_it_is(case: Case) -> None:
    """To the last bit: recurrent layers write their states in place."""
    cache, question = filled(case), torch.tensor([[50, 51, 52]] * 2)
    before = [{name: tensor.clone() for name, tensor in row_tensors(layer).items()} for layer in cache.layers]
    for tokens in (question, question[:, :1]):  # a single token may take another way
        with torch.no_grad():
            first, again = (case.model(input_ids=tokens, past_key_values=fork(cache)).logits for _ in range(2))
        assert torch.equal(first, again)
    for layer, tensors in zip(cache.layers, before, strict=True):
        for name, tensor in row_tensors(layer).items():
            assert torch.equal(tensor, tensors[name]), name


def test_rows_are_selected_with_all_that_they_have(case: Case) -> None:
    """Exchanged and repeated; the original keeps its own."""
    cache, question = filled(case), torch.tensor([[50, 51, 52]])
    chosen = fork(cache)
    select_rows(chosen, torch.tensor([1, 0, 1]))
    with torch.no_grad():
        plain = case.model(input_ids=question.expand(2, -1), past_key_values=fork(cache)).logits
        made = case.model(input_ids=question.expand(3, -1), past_key_values=chosen).logits
    assert difference(made, plain[[1, 0, 1]]) < RIGHT
    assert difference(made, plain[[0, 1, 0]]) > 100 * RIGHT  # and the rows differ


@pytest.mark.parametrize("way", ["shared", "kept", "kept alone"])
def test_savings_are_exact(case: Case, way: str) -> None:
    """Layers that rows share, and kept caches of clean contexts: the same tensors as of the plain prefill."""
    (plain, mask), (saved, _) = case.caches("plain"), case.caches(way)
    for number, (layer, other) in enumerate(zip(plain.layers, saved.layers, strict=True)):
        tensors, others = row_tensors(layer), row_tensors(other)
        assert tensors.keys() == others.keys()
        for name, tensor in tensors.items():
            kept = others[name]
            if name in ("keys", "values"):
                tensor, kept = (part * mask[:, None, :, None] for part in (tensor, kept))
            elif name == "indexer_keys":
                tensor, kept = (part * mask[..., None] for part in (tensor, kept))
            torch.testing.assert_close(kept, tensor, atol=1e-4, rtol=1e-4, msg=f"{number} {name}")


def test_gradients_are_those_of_one_pass(case: Case) -> None:
    """With the layers run once and twice: what a layer's state was stays there for the backward pass."""
    expected = case.expected_gradients()
    for recompute in (False, True):
        assert gradient_difference(case.gradients(case.batch("plain"), recompute), expected) < RIGHT


def test_layers_without_a_cache_have_no_tensors() -> None:
    """Those that read the keys and values of others."""
    model = tiny_model("gemma4_text")
    cache = DynamicCache(config=model.config)
    model(input_ids=IDS, past_key_values=cache)
    assert [bool(row_tensors(layer)) for layer in cache.layers] == [True] * 6 + [False] * 3
    select_rows(cache, torch.tensor([1, 1, 0]))
    assert cache.layers[0].keys.shape[0] == 3


@pytest.mark.parametrize("kind", [tuple, list])
def test_the_residual_stream_is_first_of_several(kind: type) -> None:
    """A tuple or a list keeps its kind and its other parts."""
    hidden, layer = torch.zeros(2, 3, 4), nn.Identity()
    output = kind((hidden, "cache"))
    assert residual(layer, output) is hidden
    changed = with_residual(layer, output, hidden + 1)
    assert type(changed) is kind
    assert changed[0].sum() == 24
    assert changed[1] == "cache"


def test_of_several_streams_the_active_one_is_steered() -> None:
    """Gemma 3n: the others stay as the layer left them."""
    model = tiny_model("gemma3n_text")
    layers, direction = find_decoder_layers(model), nn.functional.normalize(torch.ones(2, 1, 64), dim=-1)
    scale = torch.zeros(2, len(layers))
    scale[:, 2] = 3.0
    seen: list[torch.Tensor] = []
    steered = Intervention(direction, scale, torch.ones(2, 15, dtype=torch.bool))
    for intervention in (Intervention(direction, 0 * scale, steered.positions), steered):
        with torch.no_grad(), steer(layers, intervention):
            handle = layers[2].register_forward_hook(lambda *call: seen.append(call[-1]))
            model(input_ids=IDS)
            handle.remove()
    added = seen[1] - seen[0]
    torch.testing.assert_close(added[0], 3.0 * direction.expand(2, 15, 64), atol=1e-4, rtol=0)
    assert not added[1:].any()
    with record_outputs(layers) as outputs:
        model(input_ids=IDS)
    assert {tuple(output.shape) for output in outputs} == {(2, 15, 64)}


def test_unknown_streams_are_an_error() -> None:
    """Instead of a sum that broadcasts by luck."""
    with pytest.raises(ValueError, match="several residual streams"):
        residual(nn.Identity(), torch.zeros(2, 3, 4, 5))
    with pytest.raises(ValueError, match="Expected a residual stream"):
        residual(nn.Identity(), torch.zeros(3, 4))
