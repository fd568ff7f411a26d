"""Float16: what cannot train is refused, what is advised instead trains, and tests run as they did."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from project_paths import CONFIG
from run_scripts import script

from introspection_lit.cli import IntrospectionCLI, main

QUICK = ["--trainer.enable_progress_bar", "false", "--data.test_trials", '{"heldout": 8}']


@pytest.fixture
def run(
    tiny: Path, some_contexts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., IntrospectionCLI]:
    """Runs a subcommand on the tiny model in an empty folder."""
    monkeypatch.chdir(tmp_path)
    always = ["--config", CONFIG, "--model.base.name_or_path", str(tiny), *some_contexts, *QUICK]
    return lambda subcommand, *options: main([subcommand, *always, *options])


def test_it_cannot_train() -> None:
    """Why: AdamW's eps is 0 in float16. The first step of a weight whose gradient is 0 is NaN."""
    weight = torch.nn.Parameter(torch.ones(2, dtype=torch.float16))
    weight.grad = torch.tensor([1.0, 0.0], dtype=torch.float16)
    torch.optim.AdamW([weight], lr=1e-9, foreach=True).step()
    assert weight.isnan().any()


@pytest.mark.parametrize(
    "options",
    [
        ["--model.base.dtype", "float16"],
        pytest.param(["--model.base.dtype", "bfloat16", "--trainer.precision", "bf16-true"], marks=pytest.mark.slow),
        pytest.param(["--trainer.precision", "bf16-mixed"], marks=pytest.mark.slow),
    ],
    ids=["float16 and 32-true", "bf16-true", "bf16-mixed"],
)
def test_what_is_advised_trains(options: list[str], run: Callable[..., IntrospectionCLI]) -> None:
    """The adapter moves, and all of its numbers are finite."""
    trained = [p for name, p in run("fit", *options).model.named_parameters() if "lora_B" in name]
    assert all(bool(parameter.isfinite().all()) for parameter in trained)
    assert sum(float(parameter.detach().abs().sum()) for parameter in trained) > 0


@pytest.mark.parametrize("subcommand", ["validate", "test", pytest.param("predict", marks=pytest.mark.slow)])
def test_tests_run_in_it(subcommand: str, run: Callable[..., IntrospectionCLI]) -> None:
    """Nothing is trained there."""
    model = run(subcommand, "--trainer.precision", "16-true").model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}


def test_a_benchmark_of_training_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """It would measure steps after which all is NaN."""
    with pytest.raises(SystemExit):
        script("benchmark").main(["--model", "random:tiny", "--precision", "16-true", "--quantization", "none"])
    assert "which cannot train" in capsys.readouterr().err
