"""Micro-batches: what fits, and that steps do not depend on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from project_paths import CONFIG

from introspection_lit.cli import IntrospectionCLI, attach, main
from introspection_lit.models.memory_estimate import estimate
from introspection_lit.training import batch_size
from introspection_lit.training.batch_size import fits, largest_part, longest, step_load, step_problems


@pytest.fixture
def run(
    tiny: Path, some_contexts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., IntrospectionCLI]:
    """Trains the tiny model in an empty folder."""
    monkeypatch.chdir(tmp_path)
    words = ["fit", "--config", CONFIG, "--model.base.name_or_path", str(tiny), *some_contexts, *NO_DROPOUT]
    return lambda *options: main([*words, *options])


NO_DROPOUT = ["--model.lora.dropout", "0.0", "--trainer.max_epochs", "1"]


def adapter_of(cli: IntrospectionCLI) -> dict[str, torch.Tensor]:
    """The adapter at the end of a run."""
    return torch.load(Path(cli.trainer.log_dir) / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize(
    ("share", "most", "expected"), [(16, 99, 16), (16, 15, 8), (12, 5, 4), (6, 5, 2), (6, 1, 0), (3, 9, 0)]
)
def test_part_is_the_largest_even_one_that_fits(share: int, most: int, expected: int) -> None:
    """Parts divide the share, so that every step is whole, and are even, so that half of each is steered."""
    assert largest_part(share, lambda size: size <= most) == expected
    assert largest_part(4 * share, lambda size: size <= 4 * most, pair=8) == 4 * expected  # four questions for each cache


@pytest.mark.slow
def test_less_memory_means_smaller_batches_in_the_same_steps(
    run: Callable[..., IntrospectionCLI], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for 2 or 4 trials instead of 12, as many are accumulated, and the same is learned."""
    whole = run("--data.batch_size", "12")
    adapters = [adapter_of(whole)]
    for most, accumulated in ((12, 1), (5, 3), (2, 6)):
        monkeypatch.setattr(batch_size, "_largest_by_estimate", lambda _, most=most: most)
        cli = run("--data.batch_size", "auto", "--data.effective_batch", "12")
        assert (cli.datamodule.run.batch_size, cli.trainer.accumulate_grad_batches) == (12 // accumulated, accumulated)
        assert cli.trainer.global_step == whole.trainer.global_step
        adapters.append(adapter_of(cli))
    adapters.append(adapter_of(run("--data.batch_size", "6", "--data.effective_batch", "12")))
    for adapter in adapters[1:]:
        for name, tensor in adapter.items():
            torch.testing.assert_close(tensor, adapters[0][name], atol=2e-4, rtol=0)


def test_second_fit_has_the_same_steps(run: Callable[..., IntrospectionCLI], monkeypatch: pytest.MonkeyPatch) -> None:
    """Another trainer, or a validation before: the data module is set up already, and sizes are settled all the same."""
    monkeypatch.setattr(batch_size, "_largest_by_estimate", lambda _: 4)
    cli = run("--data.batch_size", "auto")
    assert (cli.datamodule.run.batch_size, cli.trainer.accumulate_grad_batches) == (4, 4)
    again = cli.instantiate_trainer(max_epochs=1, logger=False)
    again.fit(cli.model, datamodule=cli.datamodule)
    assert (cli.datamodule.run.batch_size, again.accumulate_grad_batches) == (4, 4)


def test_only_a_fit_is_refused_for_its_steps(
    tiny: Path, some_contexts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test of the same configuration makes no steps."""
    monkeypatch.chdir(tmp_path)
    words = ["--config", CONFIG, "--model.base.name_or_path", str(tiny), *some_contexts, "--data.effective_batch", "6"]
    with pytest.raises(SystemExit):
        main(["fit", *words])
    main(["test", *words, "--data.test_trials", "{heldout: 4}"])


def test_nothing_fits(
    run: Callable[..., IntrospectionCLI], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message says what two trials need and what to change."""
    monkeypatch.setattr(batch_size, "free_memory", lambda _: 1000)
    with pytest.raises(SystemExit):
        run("--data.batch_size", "auto")
    said = capsys.readouterr().err
    assert "not even two trials fit" in said
    assert "model.recompute true" in said


def test_formula_and_what_is_free_decide_on_the_cpu(
    run: Callable[..., IntrospectionCLI], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Free memory for six trials, by the formula: batches of 4, a quarter of 16."""
    cli = run("--data.batch_size", "auto")
    data, module = cli.datamodule.run, cli.model
    assert data.batch_size == 16
    shape, load = step_load(data, 6)
    parts = estimate(shape, module.base, module.lora, load)
    monkeypatch.setattr(batch_size, "free_memory", lambda _: (parts.device - parts.weights) / batch_size.USABLE + 10_000)
    assert run("--data.batch_size", "auto").datamodule.run.batch_size == 4


@pytest.fixture
def ready(tiny: Path, some_contexts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> IntrospectionCLI:
    """Everything set up, nothing trained."""
    monkeypatch.chdir(tmp_path)
    words = ["--config", CONFIG, "--model.base.name_or_path", str(tiny), *some_contexts]
    cli = attach([*words, "--model.lora.dropout", "0.5"])
    cli.datamodule.setup("fit")
    return cli


def test_trying_leaves_no_trace(ready: IntrospectionCLI) -> None:
    """Adapter, gradients and randomness are as before, whether it fitted or not."""
    before = {name: parameter.clone() for name, parameter in ready.model.named_parameters()}
    state = torch.get_rng_state()
    assert fits(ready.datamodule.run, 6)

    def too_much(batch: object) -> None:
        raise torch.OutOfMemoryError

    ready.model.answer_logits = too_much
    assert not fits(ready.datamodule.run, 6)
    assert torch.equal(torch.get_rng_state(), state)
    for name, parameter in ready.model.named_parameters():
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])


def test_trial_batch_is_the_worst_case(ready: IntrospectionCLI) -> None:
    """Each trial has a cache of its own, all are steered, and the longest contexts are there."""
    batch = longest(ready.datamodule.run, 6)
    lengths = sorted(ready.datamodule.splits["train"].lengths())
    assert batch.context_mask.sum(1).tolist() == lengths[:-7:-1]
    assert batch.cache_of is None
    assert all(trial.steered for trial in batch.trials)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((7, None, 1, 1), "data.batch_size: got 7"),
        ((0, None, 1, 1), "data.batch_size: got 0"),
        ((8, 12, 1, 1), "data.effective_batch: got 12. Expected a multiple of 8"),
        ((4, 12, 2, 1), "Expected a multiple of 2 processes times 4"),
        (("auto", 6, 2, 1), "Expected a multiple of 2 processes times an even number"),
        (("auto", 16, 1, 2), "leave trainer.accumulate_grad_batches at 1"),
        ((4, 0, 1, 1), "data.effective_batch: got 0"),
    ],
)
def test_sizes_that_cannot_work(given: tuple, message: str) -> None:
    """Odd batches, steps that cannot be shared evenly, two ways of saying the same thing."""
    assert message in step_problems(*given)[0]


def test_sizes_that_work() -> None:
    """Nothing to complain about."""
    for given in ((16, None, 3, 4), (4, 16, 2, 1), ("auto", None, 2, 3), ("auto", 64, 8, 1)):
        assert step_problems(*given) == []
