"""Progress where output is no terminal: a line now and then, with what is left, and each validation's AUROC."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar
from project_paths import CONFIG

from introspection_lit.cli import main
from introspection_lit.training.callbacks import progress_lines
from introspection_lit.training.callbacks.monitors import TrialsPerSecond
from introspection_lit.training.callbacks.progress_lines import ProgressLines, progress_bar


def test_a_run_says_how_far_it_is(
    tiny: Path,
    some_contexts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every batch of training, validation, test and prediction here; nothing without a progress bar."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("introspection_lit.cli.progress_bar", lambda: ProgressLines(0.0))
    always = ["--config", CONFIG, "--model.base.name_or_path", str(tiny), *some_contexts, "--trainer.max_epochs", "1"]
    cli = main(["fit", *always, "--test_after_fit", "true", "--data.test_trials", "{heldout: 8, concept: 8}"])
    said = capsys.readouterr().out
    steps = cli.trainer.global_step
    assert [int(place) for place in re.findall(r"^epoch 1: batch (\d+) of", said, re.MULTILINE)] == [*range(1, steps + 1)]
    assert re.search(rf"^epoch 1: batch {steps} of {steps}, less than a minute left, train/loss \d", said, re.MULTILINE)
    assert re.search(r"^validation: batch 1 of \d+,", said, re.MULTILINE)
    auroc = cli.model.summaries["validation"]["auroc"]
    assert f"step {steps}: validation/auroc {auroc:.3f}\n" in said
    places = re.findall(r"^test: batch (\d+) of (\d+),", said, re.MULTILINE)
    assert places[-1][0] == places[-1][1] == str(len(places)) == str(sum(cli.trainer.num_test_batches))
    main(["predict", *always])
    assert re.search(r"^prediction: batch 1 of \d+,", capsys.readouterr().out, re.MULTILINE)
    main(["validate", *always, "--trainer.enable_progress_bar", "false"])
    assert "batch" not in capsys.readouterr().out


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        """The time in seconds."""
        return self.now


def test_lines_are_few_and_say_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    """One a minute, from one process; of an epoch resumed in its middle, what is left of it, at the speed since then."""
    clock = Clock()
    bar = ProgressLines(60.0, clock)
    trainer: Any = SimpleNamespace(
        num_training_batches=1000,
        max_epochs=5,
        current_epoch=1,
        is_global_zero=True,
        progress_bar_metrics={"train/loss": 0.5},
    )
    module: Any = None
    bar.setup(trainer, module, "fit")
    bar.on_train_start(trainer, module)  # a resumed epoch does not start
    for batch in range(700, 880):  # a second each
        clock.now += 1
        bar.on_train_batch_end(trainer, module, None, None, batch)
    assert capsys.readouterr().out.splitlines() == [
        "epoch 2: batch 760 of 1000, about 4 min left, train/loss 0.500",
        "epoch 2: batch 820 of 1000, about 3 min left, train/loss 0.500",
        "epoch 2: batch 880 of 1000, about 2 min left, train/loss 0.500",
    ]
    trainer.is_global_zero = False
    bar.setup(trainer, module, "fit")
    clock.now += 100
    bar.on_train_batch_end(trainer, module, None, None, 880)
    assert not capsys.readouterr().out


def test_the_speed_of_a_resumed_run_leaves_out_its_set_up() -> None:
    """Also where the epoch is resumed in its middle, and does not start."""
    logged: dict[str, float] = {}
    module: Any = SimpleNamespace(log=lambda name, rate, **_: logged.update({name: rate}))
    trainer, batch = SimpleNamespace(world_size=2), SimpleNamespace(trials=range(8))
    monitor: Any = TrialsPerSecond()
    monitor.since -= 1000  # an earlier life: loading, contexts, kept caches
    monitor.on_train_start(trainer, module)
    monitor.on_train_batch_end(trainer, module, None, batch, 3)
    assert logged["train/trials_per_second"] > 1


def test_terminals_and_notebooks_have_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing else has one, nor one of Lightning's own beside the lines."""
    for terminal, notebook, kind in (
        (True, False, RichProgressBar),
        (False, True, RichProgressBar),
        (False, False, ProgressLines),
    ):
        console = SimpleNamespace(is_terminal=terminal, is_jupyter=notebook)
        monkeypatch.setattr(progress_lines.rich, "get_console", lambda console=console: console)
        made = progress_bar()
        assert type(made) is kind
    trainer = Trainer(logger=False, accelerator="cpu", enable_checkpointing=False, callbacks=[made])
    assert trainer.progress_bar_callback is made
