"""Resuming: from whatever checkpoint, the run ends with the bits of one that was never stopped."""

from __future__ import annotations

import functools
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from project_paths import CONFIG

from introspection_lit.cli import IntrospectionCLI, main
from introspection_lit.training.callbacks.interruption import SIGNALS
from introspection_lit.training.module import IntrospectionModule

slow = functools.partial(pytest.param, marks=pytest.mark.slow)
# Epochs of eight batches and four steps.
STEPS = ["--data.trials_per_epoch", "32", "--trainer.accumulate_grad_batches", "2", "--trainer.deterministic", "true"]
HALVES = [*STEPS, "--trainer.val_check_interval", "0.5"]
SELDOM = [*STEPS, "--trainer.check_val_every_n_epoch", "2"]
# Half of three steps, in batches: between those of the second one.
ODD = [*HALVES, "--data.trials_per_epoch", "24", "--checkpoint.every_n_train_steps", "1"]
NUMBERED = [*STEPS, "--trainer.max_epochs", "-1", "--trainer.max_steps", "8"]


@pytest.fixture
def fit(
    tiny: Path, some_contexts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., IntrospectionCLI]:
    """Fits the tiny model in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def command(*options: str) -> IntrospectionCLI:
        return main(["fit", "--config", CONFIG, "--model.base.name_or_path", str(tiny), *some_contexts, *options])

    return command


@pytest.fixture(scope="module")
def whole(
    tiny: Path, some_contexts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[list[str]], dict[str, Any]]:
    """What a run with some options ends with if nobody stops it."""
    ends: dict[tuple[str, ...], dict[str, Any]] = {}

    def run(options: list[str]) -> dict[str, Any]:
        if tuple(options) not in ends:
            folder = str(tmp_path_factory.mktemp("whole"))
            words = ["--config", CONFIG, "--model.base.name_or_path", str(tiny), *some_contexts, *options]
            ends[tuple(options)] = end(main(["fit", *words, "--trainer.logger.init_args.save_dir", folder]))
        return ends[tuple(options)]

    return run


def end(cli: IntrospectionCLI) -> dict[str, Any]:
    """The weights and the optimiser after the last step, the step, and which step was the best."""
    saver = cli.trainer.checkpoint_callback
    checkpoint = torch.load(saver.last_model_path, weights_only=True)
    kept = {key: checkpoint[key] for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch")}
    best = torch.load(saver.best_model_path, weights_only=True)
    return kept | {"best": best["global_step"], "threshold": best["introspection"]["threshold"]}


def assert_same(first: Any, second: Any) -> None:
    """Nested values are equal, tensors bit by bit."""
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        first, second = list(first.values()), list(second.values())
    if isinstance(first, list | tuple):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    else:
        assert first == second


def signal_at(monkeypatch: pytest.MonkeyPatch, hook: str, number: int, *signals: signal.Signals) -> None:
    """Let the process get signals when it comes to a hook for the ``number``-th time."""
    original, calls = getattr(IntrospectionModule, hook), [0]

    def hooked(self: IntrospectionModule, *args: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            for each in signals:
                os.kill(os.getpid(), each)
        return original(self, *args, **options)

    monkeypatch.setattr(IntrospectionModule, hook, hooked)


def stopped(fit: Callable[..., IntrospectionCLI], options: list[str], status: int) -> tuple[Path, int]:
    """Fit until a signal ends it: the checkpoint that it leaves, and its step."""
    with pytest.raises(SystemExit) as left:
        fit(*options)
    assert left.value.code == status
    path = Path("lightning_logs/default/version_0/checkpoints/last.ckpt")
    return path, torch.load(path, weights_only=True)["global_step"]


@pytest.mark.parametrize(
    ("sent", "options", "hook", "number", "step"),
    [
        slow(signal.SIGINT, STEPS, "training_step", 3, 2, id="between the batches of a step"),
        slow(signal.SIGTERM, STEPS, "training_step", 8, 4, id="last step of an epoch, before its validation"),
        slow(signal.SIGTERM, STEPS, "validation_step", 1, 4, id="validation at the end of an epoch"),
        slow(signal.SIGTERM, STEPS, "on_train_epoch_end", 1, 5, id="end of an epoch"),
        slow(signal.SIGTERM, HALVES, "training_step", 12, 6, id="before a validation in the middle of an epoch"),
        pytest.param(signal.SIGINT, HALVES, "validation_step", 6, 6, id="validation in the middle of an epoch"),
        slow(signal.SIGTERM, HALVES, "on_validation_epoch_end", 1, 3, id="end of that validation"),
        slow(signal.SIGINT, ODD, "validation_step", 1, 1, id="validation after half of the steps, rounded down"),
        slow(signal.SIGTERM, SELDOM, "training_step", 7, 4, id="last step of an epoch without a validation"),
        slow(signal.SIGTERM, NUMBERED, "training_step", 9, 5, id="steps counted instead of epochs"),
    ],
)
def test_a_stopped_run_goes_on_as_if_nothing_had_been(
    fit: Callable[..., IntrospectionCLI],
    whole: Callable[[list[str]], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    sent: signal.Signals,
    options: list[str],
    hook: str,
    number: int,
    step: int,
) -> None:
    """SIGTERM and Ctrl-C finish the step and leave a checkpoint, from which the rest follows bit by bit."""
    before = [signal.getsignal(each) for each in SIGNALS]
    with monkeypatch.context() as patched:
        signal_at(patched, hook, number, sent)
        path, reached = stopped(fit, options, 128 + sent)
    assert reached == step
    said = capsys.readouterr().err
    assert f"stopped by {sent.name} after step {step}; go on with --ckpt_path" in said
    assert str(path) in said
    assert [signal.getsignal(each) for each in SIGNALS] == before
    assert_same(end(fit(*options, "--ckpt_path", str(path))), whole(options))


@pytest.mark.slow
def test_every_checkpoint_of_a_run_is_exact(
    fit: Callable[..., IntrospectionCLI], whole: Callable[[list[str]], dict[str, Any]]
) -> None:
    """Those that are written every so many steps, too: in the middle of an epoch, and before a validation."""
    often = ["--checkpoint.every_n_train_steps", "1", "--checkpoint.save_top_k", "-1"]
    options = [*HALVES, *often, "--checkpoint.monitor", "null"]
    saved = fit(*options).trainer.checkpoint_callback.dirpath
    paths = sorted(Path(saved).glob("best-step*.ckpt"), key=lambda path: int(path.stem.split("step")[1].split("-")[0]))
    wanted = torch.load(Path(saved) / "last.ckpt", weights_only=True)
    assert len(paths) >= 8
    for path in paths[1:5]:
        again = torch.load(fit(*options, "--ckpt_path", str(path)).trainer.checkpoint_callback.last_model_path)
        assert_same(again["state_dict"], wanted["state_dict"])
        assert_same(again["optimizer_states"], wanted["optimizer_states"])


@pytest.mark.slow
def test_the_last_checkpoint_so_often_and_the_best_as_ever(
    fit: Callable[..., IntrospectionCLI], whole: Callable[[list[str]], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After every step the last one is saved, also before there is a validation; the best is the one of a validation."""
    often = ["--checkpoint.every_n_train_steps", "1"]
    with monkeypatch.context() as patched:
        signal_at(patched, "training_step", 6, signal.SIGINT, signal.SIGINT)  # nothing is saved by the second one
        path, reached = stopped(fit, [*STEPS, *often], 130)
    assert reached == 2
    assert_same(end(fit(*STEPS, *often, "--ckpt_path", str(path))), whole(STEPS))


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["lightning_logs", ".//lightning_logs"])
def test_a_signal_leaves_a_checkpoint_whatever_is_saved_else(
    fit: Callable[..., IntrospectionCLI],
    whole: Callable[[list[str]], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    folder: str,
) -> None:
    """No last checkpoint was asked for; going on in the same folder, however it is called, there is one and no other."""
    here = ["--trainer.logger.init_args.version", "version_0", "--trainer.logger.init_args.save_dir", folder]
    with monkeypatch.context() as patched:
        signal_at(patched, "training_step", 3, signal.SIGTERM)
        path, reached = stopped(fit, [*STEPS, *here, "--checkpoint.save_last", "false"], 143)
    assert reached == 2
    resumed = fit(*STEPS, *here, "--ckpt_path", str(path.resolve()))
    assert_same(end(resumed), whole(STEPS))
    assert [file.name for file in path.parent.glob("last*")] == ["last.ckpt"]


def test_a_signal_after_the_last_step_ends_the_test_after_it(
    fit: Callable[..., IntrospectionCLI], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left to be finished but the fit itself."""
    signal_at(monkeypatch, "on_train_epoch_end", 2, signal.SIGTERM)
    _, reached = stopped(fit, [*STEPS, "--test_after_fit", "true"], 143)
    assert reached == 8
    assert not list(Path().rglob("results.json"))


@pytest.mark.slow
def test_the_best_so_far_is_known_however_often_is_saved(
    fit: Callable[..., IntrospectionCLI], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run goes on with other checkpoints than it began with: Lightning would not find the state of the older ones."""
    with monkeypatch.context() as patched:
        signal_at(patched, "training_step", 11, signal.SIGTERM)
        path, _ = stopped(fit, STEPS, 143)
    before = torch.load(path, weights_only=True)["callbacks"]
    (state,) = (state for state in before.values() if state.get("best_model_path"))
    resumed = fit(
        *STEPS, "--checkpoint.every_n_train_steps", "1", "--checkpoint.save_top_k", "-1", "--ckpt_path", str(path)
    )
    assert Path(state["best_model_path"]).name in {
        Path(known).name for known in resumed.trainer.checkpoint_callback.best_k_models
    }


@pytest.mark.slow
def test_validations_come_after_the_same_steps_in_whatever_batches(fit: Callable[..., IntrospectionCLI]) -> None:
    """Half of three steps is one step, not one and a half."""
    whole_steps = [*ODD, "--trainer.accumulate_grad_batches", "1", "--data.batch_size", "8"]
    for options in (ODD, whole_steps):
        saver = fit(*options, "--checkpoint.save_top_k", "-1").trainer.checkpoint_callback
        steps = [torch.load(saved, weights_only=True)["global_step"] for saved in saver.best_k_models]
        assert sorted(steps) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("option", "advice"),
    [
        (("--checkpoint.train_time_interval", "0:01:00"), "checkpoint.every_n_train_steps"),
        (("--checkpoint.save_on_exception", "true"), "checkpoint.every_n_train_steps"),
        (("--trainer.val_check_interval", "00:00:10:00"), "Expected batches, or a part of an epoch"),
    ],
)
def test_what_cannot_be_exact_is_refused(
    fit: Callable[..., IntrospectionCLI], capsys: pytest.CaptureFixture[str], option: tuple[str, str], advice: str
) -> None:
    """They would save or validate between the batches of a step."""
    with pytest.raises(SystemExit) as left:
        fit(*option)
    assert left.value.code == 2
    assert advice in capsys.readouterr().err


def test_the_signal_of_slurm_leaves_a_checkpoint_that_is_exact(
    fit: Callable[..., IntrospectionCLI], whole: Callable[[list[str]], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning would save in the middle of the step, into the working folder, where the next run of any kind finds it."""
    for name, value in {"JOB_ID": "7", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with monkeypatch.context() as patched:
        signal_at(patched, "training_step", 3, signal.SIGUSR1)
        path, reached = stopped(fit, STEPS, 138)
    assert reached == 2
    assert not list(Path().glob("*.ckpt"))
    assert_same(end(fit(*STEPS, "--ckpt_path", str(path))), whole(STEPS))


def test_a_second_signal_does_not_wait(fit: Callable[..., IntrospectionCLI], monkeypatch: pytest.MonkeyPatch) -> None:
    """No checkpoint is left; who sends two is in a hurry."""
    signal_at(monkeypatch, "training_step", 2, signal.SIGINT, signal.SIGINT)
    with pytest.raises(SystemExit) as left:
        fit(*STEPS)
    assert left.value.code == 130
    assert not list(Path().rglob("*.ckpt"))


@pytest.mark.parametrize(("command", "hook"), [("test", "test_step"), ("validate", "validation_step")])
def test_a_signal_ends_what_trains_nothing(
    command: str, hook: str, tiny: Path, some_contexts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning obeys SIGTERM in fit only."""
    monkeypatch.chdir(tmp_path)
    signal_at(monkeypatch, hook, 1, signal.SIGTERM)
    with pytest.raises(SystemExit) as left:
        main([command, "--config", CONFIG, "--model.base.name_or_path", str(tiny), *some_contexts])
    assert left.value.code == 143
    assert not list(Path().rglob("results.json"))


def test_the_middle_of_an_epoch_is_not_cut_otherwise(
    fit: Callable[..., IntrospectionCLI], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Batches of another size: what is done of the epoch would be other trials."""
    with monkeypatch.context() as patched:
        signal_at(patched, "training_step", 3, signal.SIGTERM)
        path, _ = stopped(fit, STEPS, 143)
    with pytest.raises(SystemExit):
        fit(*STEPS, "--data.batch_size", "8", "--ckpt_path", str(path))
    assert "the middle of an epoch" in capsys.readouterr().err


@pytest.mark.slow
def test_the_folder_that_is_resumed_from_stays_as_it_was(fit: Callable[..., IntrospectionCLI]) -> None:
    """A resumed run has copies of the best checkpoints; a better one replaces them, not those of the older run."""
    first = fit(*STEPS, "--checkpoint.save_top_k", "1", "--checkpoint.monitor", "step", "--checkpoint.mode", "max")
    folder = Path(first.trainer.checkpoint_callback.dirpath)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    more = ["--trainer.max_epochs", "3", "--checkpoint.monitor", "step", "--checkpoint.mode", "max"]
    second = fit(*STEPS, *more, "--ckpt_path", str(folder / "last.ckpt"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    own = Path(second.trainer.checkpoint_callback.dirpath)
    assert sorted(path.name for path in own.iterdir()) == ["best-step12.ckpt", "last.ckpt"]


def test_a_resumed_runs_own_configuration_tests_its_end(
    fit: Callable[..., IntrospectionCLI], capsys: pytest.CaptureFixture[str]
) -> None:
    """With its adapter or its checkpoint, as any run's; given both, only that is refused."""
    first = fit(*STEPS)
    start = Path(first.trainer.checkpoint_callback.dirpath) / "last.ckpt"
    folder = Path(fit(*STEPS, "--trainer.max_epochs", "3", "--ckpt_path", str(start)).trainer.log_dir)
    config = ["test", "--config", str(folder / "config.yaml"), "--data.test_trials", "{seen: 4}"]
    adapter, last = ["--model.adapter", str(folder / "adapter")], ["--ckpt_path", str(folder / "checkpoints" / "last.ckpt")]
    for given in (adapter, last):
        tested = json.loads((Path(main([*config, *given]).trainer.log_dir) / "results.json").read_text())
        expected = [given[1] if given is each else None for each in (adapter, last)]
        assert [tested["adapter"], tested["checkpoint"]] == expected
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([*config, *adapter, *last])
    printed = " ".join(capsys.readouterr().err.split())
    assert "1 problem: - model.adapter: given together with ckpt_path. Each brings an adapter: give one of them." in printed


def rates(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float, float]]:
    """Will hold the step, the learning rate and the weight decay of each training batch."""
    original, seen = IntrospectionModule.training_step, list[tuple[int, float, float]]()

    def noted(self: IntrospectionModule, *args: Any) -> torch.Tensor:
        (group,) = self.trainer.optimizers[0].param_groups
        seen.append((self.trainer.global_step, group["lr"], group["weight_decay"]))
        return original(self, *args)

    monkeypatch.setattr(IntrospectionModule, "training_step", noted)
    return seen


CHANGES = {
    "learning rate": (["--model.learning_rate", "0.003"], "learning_rate 0.003 (in the checkpoint 0.01)"),
    "weight decay": (["--model.weight_decay", "0.5"], "weight_decay 0.5 (in the checkpoint 0)"),
    "warm-up": (["--model.warmup", "0.7"], "rate of the next step"),
    "length": (["--trainer.max_epochs", "3"], "rate of the next step"),
    "nothing": ([], ""),
}


@pytest.mark.parametrize(("options", "told"), [pytest.param(*case, id=name) for name, case in CHANGES.items()])
def test_the_command_line_wins_over_the_optimiser(
    fit: Callable[..., IntrospectionCLI],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    options: list[str],
    told: str,
) -> None:
    """A resumed run has the rates of a run that has had these options from the start, from the first step on."""
    with monkeypatch.context() as patched:
        wanted = rates(patched)
        fit(*STEPS, *options)
    first = fit(*STEPS, "--checkpoint.save_top_k", "-1").trainer.checkpoint_callback
    (path,) = (path for path in first.best_k_models if path.endswith("step4.ckpt"))
    caplog.clear()
    with monkeypatch.context() as patched:
        seen = rates(patched)
        resumed = fit(*STEPS, *options, "--ckpt_path", path)
    assert seen == [each for each in wanted if each[0] >= 4]
    assert len(seen) >= 8
    notes = [record.getMessage() for record in caplog.records if "going on with" in record.getMessage()]
    assert told in "".join(notes)
    assert bool(notes) == bool(options)
    saved = torch.load(resumed.trainer.checkpoint_callback.last_model_path, weights_only=True)
    (group,) = saved["optimizer_states"][0]["param_groups"]
    assert (group["initial_lr"], group["weight_decay"]) == (resumed.model.learning_rate, resumed.model.weight_decay)
    assert saved["lr_schedulers"][0]["base_lrs"] == [resumed.model.learning_rate]
