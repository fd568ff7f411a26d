"""Numbers that are none, put where they hurt: which trial is blamed, what is kept, and what a replay shows."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from bank_example import random_bank
from lightning.pytorch import Callback, LightningModule, Trainer
from manifest_example import manifest_of, training_split
from poison import Poison
from project_paths import CONFIG
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer
from two_processes import environment_of_processes

from introspection_lit.cli import IntrospectionCLI, main
from introspection_lit.training.callbacks.finite_numbers import SMALLEST_SCALE
from introspection_lit.trials.manifest_plan import Manifest, ManifestPlan
from introspection_lit.trials.replay import chosen_trials
from introspection_lit.utils.errors import ConfigurationError

QUICK = ["--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false"]
RUN = Path("lightning_logs/default/version_0")
# Ten times what float16 can hold, at the first steered layer.
OVERFLOW = ["--model.base.dtype", "float16", "--data.strengths", "[1e5, 2e5]"]


@pytest.fixture
def run(
    tiny: Path, some_contexts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., IntrospectionCLI]:
    """Runs a subcommand on the tiny model in an empty folder."""
    monkeypatch.chdir(tmp_path)
    always = ["--config", CONFIG, "--model.base.name_or_path", str(tiny), *QUICK, *some_contexts]

    def command(subcommand: str, *options: str) -> IntrospectionCLI:
        return main([subcommand, *always, *options])

    return command


@pytest.fixture(autouse=True)
def unpoisoned() -> Iterator[None]:
    """Nothing is remembered from test to test."""
    yield
    Poison.hits.clear()
    Poison.weights.clear()


def poison(**options: Any) -> list[str]:
    """The options that put the callback into a run."""
    words = ["--trainer.callbacks+=poison.Poison"]
    for name, value in options.items():
        words += [f"--trainer.callbacks.init_args.{name}", str(value).lower() if isinstance(value, bool) else str(value)]
    return words


class Squares(Callback):
    """Remembers the norm of the gradients of each step, element by element."""

    seen: ClassVar[list[float]] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Before they are clipped."""
        gradients = [weight.grad for weight in pl_module.parameters() if weight.grad is not None]
        self.seen.append(sum(float((gradient.double() ** 2).sum()) for gradient in gradients) ** 0.5)


def test_the_norm_of_the_gradients_is_logged_before_they_are_clipped(run: Callable[..., IntrospectionCLI]) -> None:
    """Of all batches of a step together; a share of steps above the limit can be read from the curve."""
    Squares.seen.clear()
    add = "--trainer.callbacks+=test_finite_numbers.Squares"
    run("fit", *ACCUMULATED, add, "--trainer.gradient_clip_val", "1e-6", "--trainer.log_every_n_steps", "1")
    curve = EventAccumulator(str(RUN)).Reload().Scalars("train/gradient_norm")
    assert len(Squares.seen) == 2
    assert min(Squares.seen) > 1e-4
    assert [event.value for event in curve] == pytest.approx(Squares.seen, rel=1e-5)


def stopped(command: Callable[..., Any], capsys: pytest.CaptureFixture[str], *options: str, code: int = 1) -> str:
    """What a run says as it ends in an error of ours."""
    with pytest.raises(SystemExit) as stop:
        command(*options)
    error = capsys.readouterr().err
    assert stop.value.code == code, error
    return error[error.index("error: ") :]


def blamed(error: str, trial: dict[str, Any]) -> None:
    """A message names a trial, and everything that defines it."""
    label = "steered" if trial["steered"] else "clean"
    assert f"first {trial['split']}:{trial['number']}, {label} (context {trial['context_key']!r}" in error.replace(
        "First", "first"
    )
    assert f"of kind {trial['kind']!r}, question {trial['question_text']!r}" in error
    if trial["steered"]:
        assert f"vector {trial['vector_name']!r}" in error
        assert f"band {trial['band']}, strength {trial['strength']:.6g}" in error


# The first batch of the second step of two, a step being three batches of four trials.
ACCUMULATED = ["--trainer.accumulate_grad_batches", "3", "--data.trials_per_epoch", "24"]


@pytest.mark.parametrize(
    ("what", "once", "message"),
    [
        ("scores", True, "the loss is nan. 1 of the step's 12 trials gave no finite score"),
        ("elsewhere", True, "the loss is nan. 1 of the step's 12 trials gave no finite score"),
        ("gradient", False, "the loss is finite, but its gradient is not. Alone, 1 of the step's 12 trials"),
        (
            "gradient",
            True,
            "the loss is finite, but its gradient is not. It is the gradient of the step's 12 trials together",
        ),
    ],
)
def test_the_trial_of_a_broken_step_is_named(
    what: str, once: bool, message: str, run: Callable[..., IntrospectionCLI], capsys: pytest.CaptureFixture[str]
) -> None:
    """By its scores, or by its gradient alone if that shows it again; the weights of before the step are kept, unharmed."""
    error = stopped(run, capsys, "fit", *ACCUMULATED, *poison(call=5, row=3, what=what, once=once))
    assert "error: the run has stopped. 1 problem" in error
    assert f"diverged after 1 steps, in epoch 0: {message}" in error
    assert re.search(r"\(batch [12] of 3 of the step\)", error)
    if message.endswith("together"):
        assert "(batch 1 of 3 of the step)" in error
    else:
        blamed(error, Poison.hits[0])
        assert "(batch 2 of 3 of the step)" in error
    kept = torch.load(RUN / "checkpoints" / "diverged.ckpt", weights_only=True)
    assert set(kept["state_dict"]) == set(Poison.weights)
    assert all(torch.equal(tensor, Poison.weights[name]) for name, tensor in kept["state_dict"].items())
    assert not list((RUN / "checkpoints").glob("last*.ckpt"))
    assert not (RUN / "results.json").exists()


def test_learning_rate_without_bounds(run: Callable[..., IntrospectionCLI], capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is injected: weights of 1e30, and the adapter that is kept still has no nan in it."""
    error = stopped(run, capsys, "fit", "--model.learning_rate", "1e30")
    assert "training has diverged after 1 steps" in error
    assert "--ckpt_path lightning_logs/default/version_0/checkpoints/diverged.ckpt --data.bank" in error
    kept = torch.load(RUN / "checkpoints" / "diverged.ckpt", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in kept["state_dict"].values())
    assert max(tensor.abs().max() for tensor in kept["state_dict"].values()) > 1e20
    with pytest.raises(SystemExit) as stop:  # and nobody trains on by mistake
        run("fit", "--ckpt_path", str(RUN / "checkpoints" / "diverged.ckpt"))
    assert stop.value.code == 2
    assert "weights alone" in capsys.readouterr().err


@pytest.mark.parametrize(("subcommand", "split"), [("fit", "validation"), ("test", "heldout"), ("predict", "heldout")])
def test_broken_scores_of_other_splits(
    subcommand: str, split: str, run: Callable[..., IntrospectionCLI], capsys: pytest.CaptureFixture[str]
) -> None:
    """Validation in a fit keeps the weights, too; a test or a prediction has its own already."""
    error = stopped(run, capsys, subcommand, *poison(call=1, row=5, split=split))
    assert (
        f"{split}{' after 3 steps' if subcommand == 'fit' else ''}: 1 of {16 if subcommand == 'fit' else 8} trials" in error
    )
    blamed(error, Poison.hits[0])
    assert f"--data.replay {split}:{Poison.hits[0]['number']}\n" in error
    assert (RUN / "checkpoints" / "diverged.ckpt").is_file() == (subcommand == "fit")
    assert not list(RUN.glob("predictions*"))


def test_printed_command_shows_where_it_goes_wrong(
    run: Callable[..., IntrospectionCLI], capsys: pytest.CaptureFixture[str]
) -> None:
    """A strength that overflows float16: the very trial, alone, with the very weights; finite until it is steered."""
    error = stopped(run, capsys, "fit", *OVERFLOW, "--data.control", "random_labels")
    number = int(re.search(r"first train:(\d+), steered", error)[1])
    words = shlex.split(error[error.index("python -m") :].splitlines()[0])
    assert words[:4] == ["python", "-m", "introspection_lit", "predict"]
    cli = main(words[3:])
    first = cli.datamodule.splits["train"].plan.trial(number).band[0]
    rows = (RUN.parent / "version_1" / "predictions.jsonl").read_text().splitlines()
    (row,) = (json.loads(line, parse_constant=pytest.fail) for line in rows)
    blamed(error, row)
    assert (row["log_odds"], row["mass"], row["decision"]) == ("nan", "nan", None)
    shown = capsys.readouterr().out
    assert f"replayed train:{number}, steered" in shown
    assert f"prefill: not finite from what steering makes of the output of layer {first} on" in shown
    assert "float16 ends at 6.55e+04" in shown
    assert "question pass: not finite from the output of layer " in shown


def test_replayed_scores_are_those_of_the_test(
    run: Callable[..., IntrospectionCLI], capsys: pytest.CaptureFixture[str]
) -> None:
    """Trials of several sets, in the order asked for, each alone: what they score among others, and all is finite."""
    run("predict")
    rows = [json.loads(line) for line in (RUN / "predictions.jsonl").read_text().splitlines()]
    wanted = [("newkinds", 11), ("heldout", 4), ("newkinds", 0)]
    cli = run("predict", "--data.replay", f"[{', '.join(f'{split}:{number}' for split, number in wanted)}]")
    lines = (RUN.parent / "version_1" / "predictions.jsonl").read_text().splitlines()
    for line, place in zip(lines, wanted, strict=True):
        alone, among = json.loads(line), next(row for row in rows if (row["split"], row["number"]) == place)
        assert alone.pop("log_odds") == pytest.approx(among.pop("log_odds"), abs=1e-4)
        assert alone.pop("mass") == pytest.approx(among.pop("mass"), abs=1e-6)
        assert alone == among
    shown = capsys.readouterr().out
    assert shown.count("finite after every layer") == 6
    assert shown.count("; gradient: of norm ") == 3
    assert not any(len(layer._forward_hooks) + len(layer._forward_pre_hooks) for layer in cli.model.layers)


def test_replay_finds_a_poisoned_weight(run: Callable[..., IntrospectionCLI], capsys: pytest.CaptureFixture[str]) -> None:
    """In both passes, at its layer; and the other way round for the gradient."""
    breaking = ["--trainer.callbacks+=callbacks.Broken", "--trainer.callbacks.init_args.layer", "3"]
    run("predict", "--data.replay", "seen:0", *breaking)
    shown = capsys.readouterr().out
    assert "prefill: not finite from the output of layer 3 on" in shown
    assert "question pass: not finite from the output of layer 3 on" in shown
    assert "loss: nan; gradient: not finite in 48 of 48 tensors" in shown


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        (
            ["predict", "--data.replay", "[nosuch:1, train:-1, heldout, 'heldout:8', 'train:99999999999999999999']"],
            [
                "'nosuch:1': expected SPLIT:NUMBER with one of the splits train, validation, seen",
                "'train:-1': expected a trial's number, 0 or more.",
                "'heldout': expected a trial's number, 0 or more below 8, which is how many trials heldout has",
                "'heldout:8': expected",
                "'train:99999999999999999999': expected",
            ],
        ),
        (["predict", "--data.replay", "[]"], ["got an empty list"]),
        (["predict", "--data.replay", "seen:1", "--data.grid.contexts", "1"], ["without data.grid"]),
        (["fit", "--data.replay", "seen:1"], ["Expected it with predict alone"]),
    ],
)
def test_replays_that_cannot_be(
    options: list[str], messages: list[str], run: Callable[..., IntrospectionCLI], capsys: pytest.CaptureFixture[str]
) -> None:
    """All that is wrong with them, before the model is loaded."""
    error = stopped(run, capsys, *options, code=2)
    for message in messages:
        assert message in error


def test_replay_of_a_manifest_ends_where_it_ends(tokenizer: Any, tmp_path: Path) -> None:
    """The trial is the file's; one number further there is none."""
    train, bank = training_split(tokenizer), random_bank()
    read = ManifestPlan(Manifest(manifest_of(tmp_path / "m.jsonl", train, bank, 40)), train, bank, 0)
    of_manifest = dataclasses.replace(train, plan=read)
    assert chosen_trials(["train:39", "train:2"], {"train": of_manifest}) == [train.plan.trial(39), train.plan.trial(2)]
    with pytest.raises(ConfigurationError, match="below 40, which is how many"):
        chosen_trials(["train:40"], {"train": of_manifest})
    assert chosen_trials(["train:40"], {"train": train}) == [train.plan.trial(40)]


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*before.*")  # a step that is left out
def test_gradients_that_overflow_float16_are_skipped_steps(
    run: Callable[..., IntrospectionCLI], capsys: pytest.CaptureFixture[str]
) -> None:
    """The scaler leaves them out and the run goes on; a scale that has been halved for ever is an error."""
    scaled = ["--trainer.callbacks+=callbacks.Float16", "--trainer.callbacks.init_args.overflows"]
    steady = ["--model.warmup", "0", "--data.validation_trials", "4"]
    cli = run("fit", *scaled, "2", *steady)
    seen = next(callback for callback in cli.trainer.callbacks if type(callback).__name__ == "Float16")
    assert seen.moved == [False, False, True]
    assert cli.trainer.precision_plugin.scaler.get_scale() == 2.0**14
    few = ["--trainer.callbacks.init_args.scale", str(SMALLEST_SCALE * 2)]
    error = stopped(run, capsys, "fit", *scaled, "3", *few, *steady)
    assert "diverged after" in error
    assert f"even of the loss times {SMALLEST_SCALE / 2:.3g}" in error


def test_model_whose_activations_are_not_finite(
    run: Callable[..., IntrospectionCLI], tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found before anything is trained on its residual norms."""
    model = AutoModelForCausalLM.from_pretrained(tiny)
    model.model.layers[2].mlp.down_proj.weight.data[0, 0] = torch.nan
    model.save_pretrained(tmp_path / "damaged")
    AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path / "damaged")
    error = stopped(run, capsys, "fit", "--model.base.name_or_path", str(tmp_path / "damaged"))
    assert "the model's activations on clean contexts are not finite from layer 2 on" in error


@pytest.mark.parametrize(
    ("options", "reason"),
    [(["--trainer.fast_dev_run", "true"], "checkpoints are switched off"), ([], "No space left on device")],
)
def test_weights_that_cannot_be_kept(
    options: list[str],
    reason: str,
    run: Callable[..., IntrospectionCLI],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What went wrong first is said all the same; there is nothing to replay with."""
    save = Trainer.save_checkpoint

    def full(self: Trainer, path: Path, *args: Any, **more: Any) -> None:
        if Path(path).name != "first.ckpt":  # which is read back before the first step
            raise OSError("No space left on device")
        save(self, path, *args, **more)

    monkeypatch.setattr(Trainer, "save_checkpoint", full)
    error = stopped(run, capsys, "fit", *options, *poison(call=1))
    assert "1 of the step's 4 trials gave no finite score" in error
    assert f"The weights of that moment were not saved: {reason}." in error
    assert "--data.replay" not in error


@pytest.mark.slow
def test_two_processes_tell_one_story(tiny: Path, some_contexts: list[str], tmp_path: Path) -> None:
    """The second has the broken trial: both stop with the same message, the weights are kept, nobody waits for ever."""
    words = [
        "--trainer.strategy",
        "ddp",
        "--trainer.devices",
        "2",
        "--model.base.name_or_path",
        str(tiny),
        *QUICK,
        *some_contexts,
    ]
    words += [*poison(call=2, row=1, process=1), "--data.batch_size", "2"]
    arguments = [sys.executable, "-m", "introspection_lit", "fit", "--config", CONFIG, *words]
    done = subprocess.run(
        arguments, cwd=tmp_path, env=environment_of_processes(), capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 1, done.stderr[-2000:]
    assert re.search(r"1 of the step's 4 trials gave no finite score, first train:\d+, .*\(process 2 of 2\)", done.stderr)
    assert (tmp_path / RUN / "checkpoints" / "diverged.ckpt").is_file()
