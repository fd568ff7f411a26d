"""Warnings while a training goes wrong: once of each cause, with the figures, and none in runs that are well."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from project_paths import CONFIG
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from introspection_lit.cli import IntrospectionCLI, main
from introspection_lit.evaluation.statistics import wilson_interval
from introspection_lit.training.callbacks.training_health import FPR, LITTLE, TRAINING_FPR, Watch


@pytest.fixture
def run(
    tiny: Path, some_contexts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., IntrospectionCLI]:
    """Runs a subcommand on the tiny model in an empty folder."""
    monkeypatch.chdir(tmp_path)
    always = ["--config", CONFIG, "--model.base.name_or_path", str(tiny), "--trainer.enable_progress_bar", "false"]

    def command(subcommand: str, *options: str) -> IntrospectionCLI:
        return main([subcommand, *always, *some_contexts, *options])

    return command


def summary(alarms: int, clean: int, tpr: float = 0.9) -> dict[str, Any]:
    """What a split reports, with some false alarms among clean trials."""
    interval = list(wilson_interval(alarms, clean))
    return {"fpr": alarms / clean, "fpr_interval": interval, "tpr": tpr, "threshold": 0.25}


def mass_troubles(start: float, masses: Sequence[float]) -> list[bool]:
    """At which validations the mass gives trouble."""
    watch = Watch()
    watch.start = start
    return [watch.mass_trouble(mass) is not None for mass in masses]


@pytest.mark.parametrize(
    ("start", "masses"),
    [
        (0.769, [1.0, 1.0]),  # SmolLM2-135M, the quickstart
        (0.593, [0.999, 1.0]),
        (0.001, [0.001, 0.002, 0.004, 0.009, 0.03, 0.122, 0.211, 0.303, 0.285, 0.35]),  # a random model, many epochs
        (0.02, [0.001, 0.004]),  # one batch says little
        (0.9, [0.8, 0.5, 0.46]),
        (0.001, [0.0005]),
        (0.0002, [0.0003, 0.00009]),
    ],
)
def test_mass_of_healthy_runs(start: float, masses: list[float]) -> None:
    """Curves of real runs, of untrained models above all, which know nothing of the answers yet."""
    assert not any(mass_troubles(start, masses))


@pytest.mark.parametrize(
    ("start", "masses", "expected"),
    [
        (0.6, [0.013], [True]),  # the pairwise loss, as it was seen in published work
        (0.0, [0.9, 0.95, 0.4, 0.9], [False, False, True, False]),
        (0.0, [0.05, 0.11, 0.09], [False, False, True]),
        (0.2, [0.11, LITTLE - 0.01], [False, True]),
    ],
)
def test_mass_that_collapses(start: float, masses: list[float], expected: list[bool]) -> None:
    """Below half of what it was, the untrained model's included; or little, after it was more."""
    assert mass_troubles(start, masses) == expected
    assert Watch().mass_trouble(0.05) is None
    assert "mass is little" in str(Watch().mass_trouble(0.05, free=True))
    watch = Watch()
    watch.mass_trouble(0.9)
    assert "is 0.013 in this validation and was 0.900 at most before" in str(watch.mass_trouble(0.013))


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ([(1, 48), (0, 48)], [False, False]),  # the quickstart
        ([(40, 240), (0, 240), (3, 240)], [False, False, False]),
        ([(8, 8), (8, 8), (4, 8), (0, 8), (1, 8), (0, 8)], [False] * 6),  # a random model
        ([(0, 8), (5, 8), (6, 8)], [False, False, True]),  # 5 of 8 after none of 8 is chance, one time in 20
        ([(0, 200), (30, 200), (60, 200), (200, 200)], [False, False, True, True]),
        ([(20, 200), (0, 8), (60, 200)], [False, False, True]),  # few trials do not hide what many have shown
    ],
)
def test_false_alarms(rates: list[tuple[int, int]], expected: list[bool]) -> None:
    """Only what chance does not explain, and is a quarter or more."""
    for cause in (FPR, TRAINING_FPR):
        watch = Watch()
        assert [watch.alarm_trouble(cause, summary(*rate)) is not None for rate in rates] == expected


def test_false_alarms_are_told_with_their_figures() -> None:
    """And a model that says yes to everything is called that; one that is wrong about everything is not."""
    watch = Watch()
    assert watch.alarm_trouble(FPR, {"fpr": float("nan"), "fpr_interval": [0.0, 1.0], "tpr": 1.0, "threshold": 0.0}) is None
    watch.alarm_trouble(FPR, summary(1, 100))
    text = str(watch.alarm_trouble(FPR, summary(90, 100)))
    low, high = wilson_interval(90, 100)[0], wilson_interval(1, 100)[1]
    assert f"is 0.900 at the threshold 0.250 (at least {low:.3f}, with 95 % confidence) and was at most {high:.3f}" in text
    assert "yes to nearly everything" in text
    assert "yes to nearly everything" not in str(watch.alarm_trouble(FPR, summary(90, 100, tpr=0.1)))
    assert "among the training trials" not in text


def test_a_resumed_run_goes_on_with_what_it_knew() -> None:
    """Also with what has been said."""
    watch, again = Watch(), Watch()
    watch.start = 0.5
    watch.mass_trouble(0.9)
    watch.alarm_trouble(FPR, summary(0, 100))
    watch.said.append(FPR)
    again.load_state_dict(watch.state_dict())
    assert again.state_dict() == watch.state_dict()
    watch.said.append("more")
    assert again.said == [FPR]
    assert again.mass_trouble(0.4) is not None
    assert again.alarm_trouble(FPR, summary(50, 100)) is not None


def lean(*epochs: str) -> list[str]:
    """The options for it."""
    callback = ["--trainer.callbacks+=callbacks.Leaning", "--trainer.callbacks.init_args.epochs", f"[{', '.join(epochs)}]"]
    return [*callback, "--trainer.max_epochs", str(len(epochs)), "--trainer.check_val_every_n_epoch", "1"]


@pytest.mark.slow
def test_warnings_of_a_run(run: Callable[..., IntrospectionCLI]) -> None:
    """Yes to everything in the second epoch, and neither answer from the third on: once each, with step and figures."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cli = run("fit", *lean("clean", "steered", "other", "other"), "--trainer.num_sanity_val_steps", "1")
    said = [
        str(warning.message)
        for warning in caught
        if "collapsed" in str(warning.message) or "run away" in str(warning.message)
    ]
    assert len(said) == 2
    alarms, mass = said
    assert alarms.startswith("step 6, epoch 2: false alarms have run away: the FPR among the training trials is 1.000")
    assert "yes to nearly everything" in alarms
    assert mass.startswith("step 9, epoch 2: mass has collapsed: P(yes) + P(no) is 0.000 in this validation and was 1.000")
    events = EventAccumulator(str(cli.trainer.log_dir)).Reload()
    names = ["warnings/false_alarms_in_training", "warnings/mass"]
    written = [
        [event.tensor_proto.string_val[0].decode() for event in events.Tensors(f"{name}/text_summary")] for name in names
    ]
    assert written == [[text] for text in said]
    kept = torch.load(Path(cli.trainer.log_dir) / "checkpoints" / "last.ckpt", weights_only=True)
    assert set(kept["callbacks"]["Watch"]["said"]) == {"mass", "false alarms in training"}


@pytest.mark.slow
def test_no_warning_of_an_untrained_model(run: Callable[..., IntrospectionCLI]) -> None:
    """It has no mass and may say yes to everything: neither its validation nor the first ones of a fit are a reason."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run("validate")
        run("fit", "--trainer.max_epochs", "2", "--trainer.num_sanity_val_steps", "2", "--trainer.logger", "false")
    assert not [warning for warning in caught if "step " in str(warning.message) and "epoch" in str(warning.message)]
