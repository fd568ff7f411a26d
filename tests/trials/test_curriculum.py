"""The curriculum over strengths: a function of the trial's number that ends with the usual trials, in training alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from project_paths import CONFIG
from splits import splits_of, trials_of

from introspection_lit.cli import IntrospectionCLI, attach, main
from introspection_lit.models.base_model import MAX_COUNT
from introspection_lit.training.datamodule import IntrospectionDataModule
from introspection_lit.training.experiment_setup import prepare
from introspection_lit.training.outside_observers import training_split
from introspection_lit.trials.batch import TrialBatch
from introspection_lit.trials.changed_plans import curriculum_of
from introspection_lit.trials.curriculum import Curriculum
from introspection_lit.trials.manifest import distinct_pairs
from introspection_lit.trials.plans import TrialPlan
from introspection_lit.trials.trial import Trial
from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.seeds import generator

EASY, HARD, MOVES = (2.0, 8.0), (0.02, 1.0), 4000
TASKS = "{detection: {questions: 2}, factual: {}, reading: {}, comparison: {pairs: 4}, plain_text: {questions: 0.5}}"
GIVEN = ["--data.curriculum", "{strengths: [5.0, 9.0], trials: 20}"]


def plan(curriculum: Curriculum | None) -> TrialPlan:
    """Of weak doses."""
    return TrialPlan(3, "train", 12, 2, 7, ((0, 1), (2, 3)), HARD, curriculum)


def strengths_of(curriculum: Curriculum | None, first: int, end: int) -> np.ndarray:
    """Of the steered trials from number ``first`` to the one before ``end``."""
    return np.array([plan(curriculum).trial(number).strength for number in range(first | 1, end, 2)])


def test_without_a_curriculum_strengths_are_as_ever() -> None:
    """Digit by digit what the formula of before the option gives: a band, then a log-uniform number, of one stream."""
    for number in range(1, 400, 2):
        random = generator(3, "trial", "train", number)
        band = ((0, 1), (2, 3))[int(random.integers(2))]
        strength = float(np.exp(random.uniform(math.log(HARD[0]), math.log(HARD[1]))))
        trial = plan(None).trial(number)
        assert (trial.band, trial.strength) == (band, strength)


def test_strengths_move_from_one_range_to_the_other() -> None:
    """Log-uniform in the first at the beginning, in ``data.strengths`` at the end, the mean falling in between."""
    moving = Curriculum(EASY, MOVES)
    early, late = strengths_of(moving, 0, 40), strengths_of(moving, MOVES, 2 * MOVES)
    assert (early > EASY[0] * 0.9).all()  # the range has moved by a hundredth
    assert (early <= EASY[1]).all()
    assert ((late >= HARD[0]) & (late <= HARD[1])).all()
    means = [np.log(strengths_of(moving, first, first + 800)).mean() for first in range(0, MOVES + 800, 800)]
    assert all(first > second for first, second in pairwise(means))
    middle = np.log(strengths_of(moving, MOVES // 2 - 400, MOVES // 2 + 400))
    assert middle.mean() == pytest.approx(np.log([*EASY, *HARD]).mean(), abs=0.15)  # geometric means of the ends


def test_the_ends_move_evenly_on_a_log_scale() -> None:
    """Each by one factor from trial to trial, from the first range, until they stay."""
    moving = Curriculum(EASY, 10)
    ends = np.array([moving.range_at(number, HARD) for number in range(12)])
    assert ends[0] == pytest.approx(EASY)
    steps = ends[1:] / ends[:-1]
    assert steps[:10] == pytest.approx(np.tile([(h / e) ** 0.1 for e, h in zip(EASY, HARD, strict=True)], (10, 1)))
    assert moving.range_at(10, HARD) == moving.range_at(10**9, HARD) == HARD


def test_all_else_of_a_trial_and_all_later_trials_are_as_without() -> None:
    """The strength alone differs, and only before the end; a trial asked for on its own is the same one."""
    ours, usual = plan(Curriculum(EASY, 100)), plan(None)
    for number in reversed(range(150)):
        given, without = ours.trial(number), usual.trial(number)
        assert given._replace(strength=without.strength) == without
        assert (given.strength == without.strength) == (number >= 100 or not given.steered)


def test_only_training_has_it(tiny: Path, some_contexts: list[str]) -> None:
    """Validation and tests are as ever, and so is what the outside observers are fitted on."""
    ours, usual = splits_of(tiny, some_contexts, *GIVEN), splits_of(tiny, some_contexts)
    for name, split in usual.items():
        assert (trials_of(ours[name], 40) == trials_of(split, 40)) == (name != "train"), name
    run = type("Run", (), {"splits": ours})
    assert trials_of(training_split(run), 40) == trials_of(usual["train"], 40)  # type: ignore[arg-type]


def test_with_tasks_trials_are_counted_as_in_an_epoch(tiny: Path, some_contexts: list[str]) -> None:
    """Questions, not caches; the plan may be made of others, and the observers' plan has none, whatever it is made of."""
    sizes = ["--data.batch_size", "16", "--data.eval_batch_size", "16", "--data.validation_trials", "128"]
    options = ["--data.tasks", TASKS, "--data.long", "{share: 0.3, tokens: [48, 200]}", "--data.benign", "[int8]", *sizes]
    ours, usual = (
        splits_of(tiny, some_contexts, *options, *more)["train"]
        for more in (["--data.curriculum", "{strengths: [5.0, 9.0], trials: 320}"], [])
    )
    assert ours.questionnaire is not None
    assert ours.questionnaire.each == 4
    differing = [a.number for a, b in zip(trials_of(ours, 400), trials_of(usual, 400), strict=True) if a != b]
    assert 300 < max(differing) < 320
    found = curriculum_of(ours.plan)
    assert found is not None
    assert found.trials == 80
    run = type("Run", (), {"splits": {"train": ours}})
    assert trials_of(training_split(run), 100) == trials_of(usual.single_question(), 100)  # type: ignore[arg-type]


def test_a_resumed_run_goes_on_with_the_same_strengths_only(
    tiny: Path,
    some_contexts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From the middle of an epoch, in which the range still moves, to the same bits; another curriculum is other data."""
    monkeypatch.chdir(tmp_path)
    seen: dict[str, list[Trial]] = {}
    transferred = IntrospectionDataModule.on_after_batch_transfer

    def fit(name: str, *options: str) -> IntrospectionCLI:
        seen[name] = []

        def listen(self: IntrospectionDataModule, batch: TrialBatch, index: int) -> TrialBatch:
            seen[name] += batch.trials if batch.split == "train" else []
            return transferred(self, batch, index)

        monkeypatch.setattr(IntrospectionDataModule, "on_after_batch_transfer", listen)
        words = [
            "--config",
            CONFIG,
            "--model.base.name_or_path",
            str(tiny),
            *some_contexts,
            "--checkpoint.save_top_k",
            "-1",
        ]
        sizes = ["--data.trials_per_epoch", "16", "--trainer.val_check_interval", "0.5", "--data.test_trials", "{seen: 4}"]
        return main(["fit", *words, *sizes, "--trainer.logger.init_args.name", name, *options])

    whole = fit("whole", *GIVEN)
    folder = Path(whole.trainer.log_dir)
    middle = folder / "checkpoints" / "best-step2.ckpt"  # of four steps in an epoch
    bank = ["--data.bank", str(folder / "vectors.safetensors"), "--ckpt_path", str(middle)]
    resumed = fit("resumed", *GIVEN, *bank)
    assert len(seen["whole"]) == 32
    assert seen["resumed"] == seen["whole"][8:]
    ends = [
        torch.load(Path(made.trainer.log_dir) / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for made in (whole, resumed)
    ]
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())
    assert "moving there from 5 to 9 in the first 20 trials" in (folder / "adapter" / "README.md").read_text()
    capsys.readouterr()
    for other in ([], ["--data.curriculum", "{strengths: [5.0, 9.0], trials: 21}"]):
        with pytest.raises(SystemExit):
            fit("other", *other, *bank)
        assert "trained on other contexts, vectors, questions, bands or strengths" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("curriculum", "more", "said"),
    [
        ("{strengths: [0.0, 2.0], trials: 8}", [], "data.curriculum.strengths: got [0.0, 2.0]. Expected [lowest, highest]"),
        ("{strengths: [3.0, 2.0], trials: 8}", [], "data.curriculum.strengths: got [3.0, 2.0]. Expected [lowest, highest]"),
        ("{strengths: [.nan, 2.0], trials: 8}", [], "data.curriculum.strengths: got [nan, 2.0]. Expected [lowest,"),
        ("{strengths: [1.0, 2.0], trials: 0}", [], f"data.curriculum.trials: got 0. Expected how many trials the strengths "
         f"move for, 1 to {MAX_COUNT}."),
        ("{strengths: [1.0, 2.0], trials: 8}", ["--data.manifest", "x.jsonl"],
         "data.curriculum: a manifest lists trials with their strengths. Leave data.manifest or data.curriculum out."),
        ("{strengths: [1.0, 2.0]}", [], "trials"),
        ("{strengths: [1.0], trials: 8}", [], "data.curriculum"),
    ],
)  # fmt: skip
def test_options_that_cannot_work(refused: Callable[..., str], curriculum: str, more: list[str], said: str) -> None:
    """Each named, with what was given and what to do, before the model is loaded."""
    printed = " ".join(refused("--data.curriculum", curriculum, *more).split())
    assert said in printed, printed


def test_a_manifest_does_not_take_it() -> None:
    """Its lines are checked against ``data.strengths``."""
    with pytest.raises(ConfigurationError, match=r"data\.curriculum: a manifest's strengths are all in data\.strengths"):
        next(distinct_pairs(plan(Curriculum(EASY, 100)), 4))


@pytest.mark.filterwarnings("error:data.curriculum.trials")
def test_a_training_that_ends_before_is_told(tiny: Path, some_contexts: list[str]) -> None:
    """Of two epochs of twelve trials; one that reaches the strengths is not."""
    words = ["--config", CONFIG, "--model.base.name_or_path", str(tiny), "--trainer.logger", "false", *some_contexts]

    def prepared(trials: int) -> None:
        run = attach([*words, "--data.curriculum", f"{{strengths: [5, 9], trials: {trials}}}"]).datamodule.run
        run.trainer.state.fn = "fit"
        prepare(run)

    prepared(24)
    with pytest.raises(UserWarning, match=r"data.curriculum.trials: got 25; the training ends after 24, before"):
        prepared(25)
