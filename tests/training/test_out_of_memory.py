"""Memory that is not enough: what is said, that the finder of batches recovers, and that what is advised works."""

from __future__ import annotations

import gc
import shlex
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from endurance.footprint import hooks
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.strategies import Strategy
from memory_failures import cuda, host, python
from project_paths import CONFIG
from torch import Tensor, nn

from introspection_lit.cli import IntrospectionCLI, attach, main
from introspection_lit.tools.benchmark import benchmark
from introspection_lit.tools.benchmark.measurement import ONE_AT_A_TIME, PLAIN, Amount, Setting
from introspection_lit.training import batch_size, distributed
from introspection_lit.training.batch_size import fits, largest_part
from introspection_lit.training.callbacks.out_of_memory import HOOKS, explained_memory
from introspection_lit.training.datamodule import IntrospectionDataModule
from introspection_lit.training.distributed import smallest_of_all
from introspection_lit.training.module import IntrospectionModule
from introspection_lit.training.options import Reuse
from introspection_lit.utils.errors import RunError
from introspection_lit.utils.memory_errors import is_out_of_memory


@pytest.fixture(scope="module")
def ready(tiny: Path, few_contexts: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[IntrospectionCLI]:
    """Everything set up once, nothing trained; with dropout. What fails leaves no trace: several tests can use it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("ready"))
        cli = attach([*words(tiny, few_contexts), "--model.lora.dropout", "0.5"])
        cli.datamodule.setup("fit")
        gc.collect()
        gc.freeze()  # half a million objects need not be looked through
        yield cli
        gc.unfreeze()


def words(tiny: Path, few_contexts: str) -> list[str]:
    """A tiny experiment: three steps of four trials in an epoch, a test of eight."""
    contexts = ["--data.contexts", few_contexts, "--data.validation_kinds", "[csv]", "--data.test_trials", "{heldout: 8}"]
    return ["--config", CONFIG, "--model.base.name_or_path", str(tiny), "--trainer.enable_progress_bar", "false", *contexts]


def in_prefill(data: IntrospectionDataModule, action: Callable[[], Any]) -> Any:
    """In the last layer of the prefill, the hooks of steering hung."""

    def hook(module: nn.Module, args: Any) -> None:
        if not torch.is_grad_enabled():
            action()

    return data.run.module.layers[-1].register_forward_pre_hook(hook)


def in_forward(data: IntrospectionDataModule, action: Callable[[], Any]) -> Any:
    """In the last layer of the question pass."""

    def hook(module: nn.Module, args: Any) -> None:
        if torch.is_grad_enabled():
            action()

    return data.run.module.layers[-1].register_forward_pre_hook(hook)


def in_backward(data: IntrospectionDataModule, action: Callable[[], Any]) -> Any:
    """Once the gradients of half of the adapter are there."""
    trained = [parameter for parameter in data.run.module.parameters() if parameter.requires_grad]
    return trained[len(trained) // 2].register_hook(lambda _: action())


@pytest.mark.parametrize(
    ("place", "cause"),
    [
        (in_prefill, host),
        (in_forward, cuda),
        (in_forward, host),
        (in_forward, python),
        (in_backward, cuda),
        (in_backward, host),
    ],
)
def test_a_try_that_fails_leaves_no_trace(ready: IntrospectionCLI, place: Callable, cause: Callable) -> None:
    """Adapter, gradients, randomness, modes, hooks and kept caches are as before; no tensor of the try is left."""
    data, module = ready.datamodule, ready.model
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)  # of a fit before
    kept: Any = object()
    data.run.clean_caches = kept
    before = [(parameter.clone(), parameter.grad) for parameter in trained]
    modes, random = [each.training for each in module.modules()], torch.get_rng_state()
    errors: list[BaseException] = []

    def action() -> None:
        large = torch.zeros(10)  # noqa: F841 - held by the traceback alone
        try:
            cause()
        except BaseException as error:
            errors.append(error)  # somebody keeps it, with its traceback
            raise

    handle = place(data, action)
    gc.collect()
    hung = sum(map(len, hooks(module)))
    there = {id(thing) for thing in gc.get_objects() if issubclass(type(thing), Tensor)}
    assert not fits(data.run, 4)
    assert errors
    gc.collect()
    left = [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor) and id(thing) not in there]
    assert [tuple(tensor.shape) for tensor in left if tensor is not random] == []
    assert sum(map(len, hooks(module))) == hung
    assert [each.training for each in module.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert data.run.clean_caches is kept
    for parameter, (value, gradient) in zip(trained, before, strict=True):
        assert torch.equal(parameter, value)
        assert parameter.grad is gradient
    handle.remove()
    assert fits(data.run, 4)
    data.run.clean_caches = None
    module.zero_grad()


def test_another_error_in_a_try_is_no_lack_of_memory(ready: IntrospectionCLI) -> None:
    """It is raised, and all is as before."""

    def wrong() -> None:
        raise RuntimeError("shape '[2]' is invalid")

    state = torch.get_rng_state()
    with in_forward(ready.datamodule, wrong), pytest.raises(RuntimeError, match="shape"):
        fits(ready.datamodule.run, 4)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in ready.model.parameters())


def together(monkeypatch: pytest.MonkeyPatch, finders: list[Callable[[], int]]) -> list[Any]:
    """Let processes look for a size, threads in their place; what each returns or raises. None waits for more than 20 s."""
    meeting, sizes = threading.Barrier(len(finders), timeout=20), [0] * len(finders)
    rank, found = threading.local(), [None] * len(finders)

    def gather(all_sizes: list[Any], size: int) -> None:
        sizes[rank.number] = size
        meeting.wait()
        all_sizes[:] = sizes

    process = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        get_world_size=lambda: len(finders),
        all_gather_object=gather,
    )
    monkeypatch.setattr(distributed, "dist", process)

    def run(number: int) -> None:
        rank.number = number
        try:
            found[number] = smallest_of_all(finders[number])
        except BaseException as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(finders))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_the_smallest_of_all_processes_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if one finds none at all: then all stop."""
    assert together(monkeypatch, [lambda: 8, lambda: 4, lambda: 16]) == [4, 4, 4]
    assert together(monkeypatch, [lambda: 8, lambda: 0]) == [0, 0]


def test_a_process_that_fails_leaves_none_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """It raises its own error, the others say which it was."""
    own, other = together(monkeypatch, [lambda: [][1], lambda: 4])
    assert isinstance(own, IndexError)
    assert isinstance(other, RunError)
    assert "process 0 has failed" in str(other)


def test_auto_recovers_and_trains(tiny: Path, few_contexts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With memory for six trials, twelve are trained on in two parts, by trying; and the training runs."""
    monkeypatch.chdir(tmp_path)
    answer, tried = IntrospectionModule.answer_logits, []

    def narrow(self: IntrospectionModule, batch: Any) -> Tensor:
        tried.append(len(batch.trials))
        if len(batch.trials) > 7:
            host()
        return answer(self, batch)

    def by_trying(data: IntrospectionDataModule, share: int) -> int:
        return largest_part(share, lambda size: fits(data, size))

    monkeypatch.setattr(IntrospectionModule, "answer_logits", narrow)
    monkeypatch.setattr(batch_size, "_largest", by_trying)
    more = ["--data.batch_size", "auto", "--data.effective_batch", "12", "--data.eval_batch_size", "4"]
    cli = main(["fit", *words(tiny, few_contexts), *more])
    assert (cli.datamodule.run.batch_size, cli.trainer.accumulate_grad_batches) == (6, 2)
    assert tried[:3] == [12, 6, 6]
    assert cli.trainer.global_step == 2


def told(cli: IntrospectionCLI, function: str, **options: Any) -> str:
    """What is said of a run that has no memory."""
    trainer = cli.instantiate_trainer(logger=False, **options)
    run = getattr(trainer, function)
    with pytest.raises(RunError) as stop, explained_memory():
        run(cli.model, datamodule=cli.datamodule)
    assert is_out_of_memory(stop.value.__cause__)  # type: ignore[arg-type]
    return str(stop.value)


@pytest.mark.slow
def test_message_says_where(ready: IntrospectionCLI, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which part of the run, which pass, which batch; with what was tried and what to change."""
    data, module = ready.datamodule, ready.model
    data.run.options = replace(data.options, reuse=Reuse(clean=False))
    calls: list[int] = []

    def third() -> None:
        calls.append(1)
        if len(calls) == 3:
            host()

    with in_forward(data, third):
        said = told(ready, "fit")
    assert "memory was not enough in training, epoch 0, after 2 steps, batch 3 of 3, during the question pass" in said
    assert "can't allocate memory: you tried to allocate 1125899906842624 bytes" in said
    assert "tried: data.batch_size 4, 1 process: steps of 4 trials; 4 trials of train" in said
    for part in ("weights", "activations", "peak", "the machine has", "--data.batch_size 2 --data.effective_batch 4"):
        assert part in said
    assert "no checkpoint has been written yet" in said
    with in_backward(data, cuda):
        assert "during the backward pass" in told(ready, "fit")
    with in_prefill(data, python):
        assert "during reading the contexts (prefill)" in told(ready, "fit")
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "lerp_", host)  # the running means of AdamW
        assert "during the optimiser's step" in told(ready, "fit")
    with monkeypatch.context() as patch:
        patch.setattr(IntrospectionModule, "validation_step", host)
        said = told(ready, "fit", accumulate_grad_batches=1)
        assert "in a validation of training, batch 1 of 2" in said
        assert "--data.eval_batch_size 4" in said
        assert "in validation, batch 1 of 2" in told(ready, "validate")
        patch.setattr(IntrospectionModule, "test_step", host)
        said = told(ready, "test")
        assert "in the test, batch 1 of 1" in said
        assert "optimiser" not in said
        patch.setattr(IntrospectionModule, "predict_step", host)
        assert "in predictions, batch 1 of 1" in told(ready, "predict")
    assert sum(map(len, hooks(module))) == 0


def test_parts_of_a_run_are_told_by_hooks_of_lightning() -> None:
    """Functions that a new version of Lightning has renamed would no longer be recognised."""
    owners = (Callback, LightningDataModule, LightningModule, Strategy, Trainer)
    assert [name for name in HOOKS if not any(hasattr(owner, name) for owner in owners)] == []


def test_message_of_a_model_that_does_not_fit(
    tiny: Path, few_contexts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command line ends with 1; what is said is about the weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("introspection_lit.training.module.load_model", host)
    with pytest.raises(SystemExit) as stop:
        main(["test", *words(tiny, few_contexts)])
    said = capsys.readouterr().err
    assert stop.value.code == 1
    assert "memory was not enough in the test, during loading the model" in said
    assert "--model.base.dtype bfloat16" in said
    assert "activations" not in said


def adapter_of(cli: IntrospectionCLI) -> dict[str, Tensor]:
    """The adapter at the end of a run."""
    return torch.load(Path(cli.trainer.log_dir) / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.slow
def test_advice_followed_as_typed_ends_where_the_run_would_have(
    tiny: Path, few_contexts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Memory is not enough in the second epoch; in smaller parts, the run goes on and learns the same."""
    monkeypatch.chdir(tmp_path)
    command = ["fit", *words(tiny, few_contexts), "--model.lora.dropout", "0.0"]
    whole = main(command)
    step = IntrospectionModule.training_step

    def late(self: IntrospectionModule, batch: Any, batch_idx: int) -> Tensor:
        if len(batch.trials) > 2 and self.current_epoch == 1 and batch_idx == 1:
            host()
        return step(self, batch, batch_idx)

    monkeypatch.setattr(IntrospectionModule, "training_step", late)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 1
    said = capsys.readouterr().err
    assert "the checkpoints so far are good; the last one is" in said
    typed = next(line for line in said.splitlines() if line.strip().startswith("--data.batch_size 2"))
    again = main([*command, *shlex.split(typed)])
    assert again.trainer.global_step == whole.trainer.global_step
    for name, tensor in adapter_of(again).items():
        torch.testing.assert_close(tensor, adapter_of(whole)[name], atol=2e-4, rtol=0)


@pytest.mark.parametrize("cause", [cuda, host])
def test_benchmark_goes_on_without_what_does_not_fit(cause: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """The allocator's error of a CPU counts as a GPU's."""
    ran = []

    def fit(cli: Any, measurement: Any) -> None:
        while measurement.queue:
            if measurement.queue[0].batch > 8:
                cause()
            ran.append(measurement.queue.pop(0))

    monkeypatch.setattr(benchmark, "_fit", fit)
    cli = SimpleNamespace(model=nn.Module(), datamodule=IntrospectionDataModule())
    settings = [Setting(PLAIN, 4), Setting(PLAIN, 16), Setting(ONE_AT_A_TIME, 1), Setting(PLAIN, 8)]
    assert benchmark.measure(cli, settings, Amount(), Reuse())[1] == {Setting(PLAIN, 16)}  # type: ignore[arg-type]
    assert ran == [Setting(PLAIN, 4), Setting(ONE_AT_A_TIME, 1), Setting(PLAIN, 8)]
