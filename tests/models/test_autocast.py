"""Linear layers that keep their casts compute what torch's own do, with the same gradients, and never an outdated cast."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from introspection_lit.models.autocast import CastOnce, cast_once
from introspection_lit.models.base_model import BaseModel, Lora
from introspection_lit.models.loading import add_lora, load_model

BFLOAT16 = {"device_type": "cpu", "dtype": torch.bfloat16}


class ThreeReaders(nn.Module):
    """Three layers that read the same input, the last one trained."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 8, bias=number == 0) for number in range(3))
        self.requires_grad_(False)
        self.layers[2].requires_grad_(True)

    def forward(self, input: Tensor) -> Tensor:
        """``(rows, 16)`` to ``(rows, 24)``."""
        return torch.cat([layer(input) for layer in self.layers], dim=-1)


@pytest.fixture
def pair() -> tuple[ThreeReaders, ThreeReaders]:
    """The same weights, without and with layers that keep their casts."""
    torch.manual_seed(0)
    usual = ThreeReaders()
    keeping = deepcopy(usual)
    cast_once(keeping)
    assert all(type(layer) is CastOnce for layer in keeping.layers)
    return usual, keeping


def results(module: nn.Module, input: Tensor) -> list[Tensor]:
    """The output, and the gradients of the input and of what is trained."""
    input = input.clone().requires_grad_()
    with torch.autocast(**BFLOAT16):
        output = module(input)
    output.float().square().sum().backward()
    grads = [parameter.grad for parameter in module.parameters() if parameter.requires_grad]
    module.zero_grad()
    assert input.grad is not None
    return [output.detach(), input.grad, *(grad for grad in grads if grad is not None)]


def test_outputs_and_gradients_are_those_of_torch(pair: tuple[ThreeReaders, ThreeReaders]) -> None:
    """Outputs and the weight's gradient bit for bit; the input's, which is added up in bfloat16, to its rounding."""
    for seed in range(3):
        input = torch.randn(5, 16, generator=torch.Generator().manual_seed(seed))
        usual, keeping = (results(module, input) for module in pair)
        assert torch.equal(keeping[0], usual[0])
        assert torch.equal(keeping[2], usual[2])
        torch.testing.assert_close(keeping[1], usual[1], atol=0.05, rtol=2**-7)


def test_without_autocast_nothing_differs(pair: tuple[ThreeReaders, ThreeReaders]) -> None:
    """Float32 products, also after a pass under autocast."""
    input = torch.randn(5, 16)
    results(pair[1], input)
    assert torch.equal(pair[1](input), pair[0](input))
    assert pair[1](input).dtype == torch.float32


@pytest.mark.parametrize(
    "change",
    [
        lambda module: module.layers[0].weight.mul_(2),
        lambda module: setattr(module.layers[0], "weight", nn.Parameter(torch.ones(8, 16), requires_grad=False)),
        lambda module: module.layers[2].weight.add_(1),
    ],
    ids=["in place", "another tensor", "trained"],
)
def test_a_changed_weight_is_cast_again(
    pair: tuple[ThreeReaders, ThreeReaders], change: Callable[[nn.Module], object]
) -> None:
    """As an optimiser, a loaded adapter or a user may change it."""
    input = torch.randn(5, 16)
    results(pair[1], input)
    for module in pair:
        with torch.no_grad():
            change(module)
    assert torch.equal(results(pair[1], input)[0], results(pair[0], input)[0])


def test_a_changed_input_is_cast_again(pair: tuple[ThreeReaders, ThreeReaders]) -> None:
    """Steering may write into it between two layers."""

    def write(module: nn.Module, args: tuple[Tensor]) -> None:
        args[0].mul_(3)

    for module in pair:
        module.layers[1].register_forward_pre_hook(write)
    input = torch.randn(5, 16)
    with torch.no_grad(), torch.autocast(**BFLOAT16):
        assert torch.equal(pair[1](input.clone()), pair[0](input.clone()))
    with torch.inference_mode(), torch.autocast(**BFLOAT16):
        assert torch.equal(pair[1](input.clone()), pair[0](input.clone()))


def test_training_after_validation(pair: tuple[ThreeReaders, ThreeReaders]) -> None:
    """A cast that is made in inference mode can be used in a backward pass."""
    input = torch.randn(5, 16)
    with torch.inference_mode(), torch.autocast(**BFLOAT16):
        pair[1](input)
    assert torch.equal(results(pair[1], input)[0], results(pair[0], input)[0])


def test_casts_are_made_once(monkeypatch: pytest.MonkeyPatch, pair: tuple[ThreeReaders, ThreeReaders]) -> None:
    """Of two passes: one cast of each frozen weight, and one of each input."""
    counted: list[tuple[int, ...]] = []
    usual = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *args: counted.append(tuple(self.shape)) or usual(self, *args))
    inputs = torch.randn(2, 5, 16).unbind()
    with torch.autocast(**BFLOAT16):
        for input in (*inputs, inputs[0]):
            pair[1](input)
    assert sorted(counted) == [(5, 16), (5, 16), (8, 16), (8, 16)]


def test_a_model_and_its_adapter(tiny: Path) -> None:
    """The scores of a model are those that it gives with torch's own layers, bit for bit."""
    model = add_lora(load_model(BaseModel(str(tiny))), Lora()).eval()
    ids = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
        with torch.autocast(**BFLOAT16):
            usual = model(input_ids=ids).logits
            cast_once(model)
            kept = [model(input_ids=ids).logits for _ in range(2)]
    assert sum(isinstance(module, CastOnce) for module in model.modules()) > 6 * 7
    assert all(torch.equal(each, usual) for each in kept)
