"""Deterministic mode: one flag, the same bits twice, and no operation in training that torch refuses on a GPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from callbacks import Operations, Recorder
from project_paths import CONFIG

from introspection_lit.cli import IntrospectionCLI, main

# So many trials for the few contexts that clean caches are kept.
DETERMINISTIC = ["--trainer.deterministic", "true", "--data.trials_per_epoch", "48", "--data.test_trials", "{heldout: 8}"]
DETERMINISTIC += ["--trainer.max_epochs", "1", "--data.validation_kinds", "[csv]"]
# What raises under torch.use_deterministic_algorithms(True) on CUDA (torch 2.13's documentation), as far as it is no layer;
# of cumsum the floating ones. Of the losses it is the one over images (nll_loss2d).
REFUSED = (
    "put",
    "put_",
    "histc",
    "bincount",
    "median",
    "nanmedian",
    "nll_loss2d_forward",
    "nll_loss2d_backward",
    "kthvalue",
)


@pytest.fixture
def run(tiny: Path, few_contexts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Runs a subcommand on the tiny model in an empty folder; torch is as before when the test ends."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    always = ["--config", CONFIG, "--model.base.name_or_path", str(tiny), "--trainer.enable_progress_bar", "false"]
    always += ["--data.contexts", few_contexts]

    def command(subcommand: str, *options: str) -> IntrospectionCLI:
        return main([subcommand, *always, *options])

    yield command
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False


@pytest.mark.slow
def test_the_same_bits_twice(run: Callable[..., IntrospectionCLI]) -> None:
    """Fit and test with layers shared and caches kept: equal adapters and results; with another seed others."""
    ends = []
    for seed in ("0", "0", "1"):
        cli = run("fit", *DETERMINISTIC, "--test_after_fit", "true", "--seed_everything", seed)
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert cli.datamodule.prefill.contexts_kept
        folder = Path(str(cli.trainer.log_dir))
        adapter = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        ends.append((adapter, json.loads((folder / "results.json").read_text())["sets"]))
    (first, results), (second, again), (other, _) = ends
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert results == again
    assert not all(torch.equal(tensor, other[name]) for name, tensor in first.items())


@pytest.mark.parametrize(
    ("loss", "trials", "its_own"),
    [("full", "48", {"nll_loss_forward", "index_put"}), ("pairwise", "12", {"binary_cross_entropy_with_logits"})],
)
def test_no_operation_of_training_is_refused(
    loss: str, trials: str, its_own: set[str], run: Callable[..., IntrospectionCLI]
) -> None:
    """Of what torch names as refused on CUDA, none is asked for; attention has a deterministic way."""
    Recorder.operations = Operations()
    recording = ["--trainer.callbacks+=callbacks.Recorder", "--model.loss", loss]
    run("fit", *DETERMINISTIC, *recording, "--data.trials_per_epoch", trials)
    names = {name for name, _ in Recorder.operations.seen}
    assert {"cumsum", "embedding", "lerp_"} | its_own <= names  # it has seen the whole step
    assert not names & set(REFUSED)
    assert not [dtype for name, dtype in Recorder.operations.seen if name == "cumsum" and dtype and dtype.is_floating_point]
