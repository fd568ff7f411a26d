"""FSDP: what is refused before a model is loaded, what is allowed, precision and the wrapper."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import FSDPPrecision
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)
from project_paths import CONFIG
from torch import nn
from torch.torch_version import TorchVersion

from introspection_lit.cli import main
from introspection_lit.models.base_model import BaseModel
from introspection_lit.training.distributed import through_wrapper
from introspection_lit.training.fsdp import ALONE, ShardedPrecision, ShardedStrategy, strategy_problems
from introspection_lit.training.fsdp_shards import dtype_problems

FSDP = ShardedStrategy.strategy_name
# Of the same numbers summed in another order. Seen: losses 4e-7, adapters 5e-6, scores 5e-6.
# With torch 2.6, whose attention over padding differs with the padding: adapters 3e-4.
OLD = torch.__version__ < ALONE
NF4 = ["--model.base.quantization", "nf4"]
PRECISIONS = {
    "float32": ["--model.base.quant_storage", "float32"],
    "bfloat16": ["--model.base.dtype", "bfloat16", "--trainer.precision", "bf16-mixed"],
}


@pytest.mark.parametrize(
    ("version", "world_size", "refused"), [("2.8.0", 1, True), ("2.8.0", 2, False), ("2.9.0", 1, False)]
)
def test_fsdp_of_one_process_with_an_older_torch(
    version: str, world_size: int, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would fail at the first prefill; of several processes it works."""
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    problems = strategy_problems(ShardedStrategy(), BaseModel(), "32-true", world_size)
    assert [("pytorch issue 151223" in problem) for problem in problems] == [True] * refused


SHARDED, NF4_BASE = ShardedStrategy(), {"quantization": "nf4", "dtype": "bfloat16", "quant_storage": "bfloat16"}


@pytest.mark.parametrize(
    ("strategy", "base", "precision", "message"),
    [
        (ModelParallelStrategy(1, 1), NF4_BASE, "bf16-mixed", "bitsandbytes issue 1945, pytorch issue 159333"),
        (ModelParallelStrategy(1, 1), {}, "32-true", "ModelParallelStrategy would shard nothing"),
        (FSDPStrategy(), {}, "32-true", "Expected auto, ddp or introspection_fsdp"),
        (SHARDED, NF4_BASE | {"quant_storage": "uint8"}, "bf16-mixed", "cannot shard uint8"),
        (SHARDED, {"quantization": "int8"}, "bf16-mixed", "cannot shard int8"),
        (SHARDED, NF4_BASE | {"dtype": "float32"}, "bf16-mixed", "'bfloat16' differs from base.dtype 'float32'"),
        (SHARDED, NF4_BASE, "32-true", "would cast the packed NF4 bytes"),
        (SHARDED, {"dtype": "float16"}, "16-mixed", "trainer.precision: got '16-mixed' with FSDP"),
        (SHARDED, NF4_BASE | {"quant_storage": "float16", "dtype": "float16"}, "16-true", "got '16-true' with FSDP"),
        (DDPStrategy(), NF4_BASE, "32-true", "would cast the packed NF4 bytes"),
    ],
)
def test_what_cannot_be_trained_is_refused(strategy: Any, base: dict[str, Any], precision: str, message: str) -> None:
    """Packed bytes that a strategy or a precision would change or cannot shard."""
    (problem,) = strategy_problems(strategy, BaseModel(**base), precision, 2)
    assert message in problem


@pytest.mark.parametrize(
    ("strategy", "base", "precision"),
    [
        (SHARDED, NF4_BASE, "bf16-mixed"),
        (SHARDED, NF4_BASE, "bf16-true"),
        (SHARDED, NF4_BASE | {"dtype": "float32"}, "bf16-true"),  # all of it is cast to bfloat16
        (SHARDED, NF4_BASE | {"dtype": "float32", "quant_storage": "float32"}, "32-true"),
        (SHARDED, {"dtype": "bfloat16"}, "bf16-mixed"),
        (DDPStrategy(), NF4_BASE | {"quant_storage": "uint8"}, "32-true"),
        (DDPStrategy(), {"quantization": "int8"}, "bf16-mixed"),
        (SingleDeviceStrategy(), NF4_BASE, "bf16-mixed"),
    ],
)
def test_what_can_be_trained_is_not(strategy: Any, base: dict[str, Any], precision: str) -> None:
    """The combinations that the documentation names."""
    assert strategy_problems(strategy, BaseModel(**base), precision, 2) == []


def test_deepspeed_is_refused() -> None:
    """It has no idea of packed weights; its constructor needs the package, which is not installed here."""
    strategy = DeepSpeedStrategy.__new__(DeepSpeedStrategy)
    assert "DeepSpeedStrategy would shard nothing" in strategy_problems(strategy, BaseModel(), "32-true", 2)[0]


def test_refused_before_a_model_is_loaded(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the command line: exit status 2, and what to do instead."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ShardedStrategy, "setup_environment", lambda _: None)  # no process group in this process
    monkeypatch.setattr("introspection_lit.training.module.load_model", lambda *_: pytest.fail("a model was loaded"))
    words = ["--model.base.name_or_path", str(tiny), "--model.base.quantization", "nf4", "--trainer.strategy", FSDP]
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", CONFIG, *words, "--model.base.quant_storage", "uint8"])
    assert stop.value.code == 2
    assert "base.quant_storage: FSDP cannot shard uint8. Use bfloat16" in capsys.readouterr().err


def test_precision_is_that_of_one_process() -> None:
    """Nothing is cast on its way between processes; autocast is for the device in use."""
    strategy = ShardedStrategy()
    strategy.parallel_devices = [torch.device("cpu")]
    strategy.cluster_environment = SimpleNamespace(local_rank=lambda: 0)  # type: ignore[assignment]
    strategy.precision_plugin = FSDPPrecision("bf16-mixed")  # what the trainer gives it
    precision, batch = strategy.precision_plugin, {"direction": torch.ones(2, dtype=torch.float16)}
    assert isinstance(precision, ShardedPrecision)
    assert (precision.precision, strategy.mixed_precision_config) == ("bf16-mixed", None)
    with precision.forward_context():
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16
        assert torch.is_autocast_enabled("cpu")
        assert not torch.is_autocast_enabled("cuda")
    assert precision.convert_input(batch) is batch
    linear = nn.Linear(2, 2, dtype=torch.bfloat16)
    strategy.precision_plugin = FSDPPrecision("32-true")
    assert strategy.precision_plugin.convert_module(linear).weight.dtype == torch.bfloat16
    strategy.precision_plugin = FSDPPrecision("bf16-true")
    assert strategy.precision_plugin.convert_module(nn.Linear(2, 2)).weight.dtype == torch.bfloat16


def test_units_of_several_dtypes_are_named() -> None:
    """FSDP itself would only say that a tensor is not uniform."""
    mixed, inner = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).bfloat16()), nn.Linear(2, 2)
    (problem,) = dtype_problems(nn.Sequential(mixed, inner), {mixed, inner})
    assert "Sequential has bfloat16, float32" in problem
    assert dtype_problems(nn.Sequential(mixed, inner), {*mixed, inner}) == []


def test_through_wrapper() -> None:
    """What is run is inside the wrapper's forward, can call the module's own, and may fail without leaving traces."""

    class Module(nn.Module):
        def forward(self, x: int = 0) -> int:
            return x + 1

    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module, self.inside = module, False

        def forward(self, *inputs: Any) -> None:
            self.inside = True
            self.module(*inputs)
            self.inside = False

    module = Module()
    wrapper = Wrapper(module)
    trainer: Any = SimpleNamespace(strategy=SHARDED, model=wrapper, lightning_module=module)
    assert through_wrapper(trainer, lambda: (wrapper.inside, module(1))) == (True, 2)
    with pytest.raises(KeyError, match="nothing"):
        through_wrapper(trainer, lambda: {}["nothing"])
    assert (wrapper.inside, module(5)) == (False, 6)
