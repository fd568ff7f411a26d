"""``data.both_signs``: training subtracts directions as often as it adds them; nothing else of a trial changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from project_paths import CONFIG
from splits import splits_of, trials_of

from introspection_lit.cli import attach, main
from introspection_lit.evaluation.controls import TRAINED_SIGN
from introspection_lit.steering.vector_bank import VectorBank
from introspection_lit.tasks.questionnaire import CONCEPTS
from introspection_lit.training.experiment_setup import prepare
from introspection_lit.training.model_card import beginning
from introspection_lit.trials.changed_plans import subtracts
from introspection_lit.trials.curriculum import Curriculum
from introspection_lit.trials.interventions import clean_trial, make_intervention
from introspection_lit.trials.manifest import distinct_pairs
from introspection_lit.trials.plans import TrialPlan
from introspection_lit.trials.replay import format_trial
from introspection_lit.trials.shown import shown_trial
from introspection_lit.trials.test_sets import SOURCES
from introspection_lit.utils.errors import ConfigurationError

GIVEN = ["--data.both_signs", "true"]
TASKS = (
    "{detection: {questions: 2}, factual: {}, reading: {}, comparison: {pairs: 4}, identification: {pairs: 4}, "
    "plain_text: {questions: 0.5}}"
)


def plan(both_signs: bool) -> TrialPlan:
    """Of two bands."""
    return TrialPlan(3, "train", 12, 2, 7, ((0, 1), (2, 3)), (0.1, 1.0), both_signs=both_signs)


def test_half_of_the_steered_trials_subtract_and_all_else_is_as_without() -> None:
    """By a coin (4 standard deviations of 1,000), for every direction; clean trials and other fields are the same."""
    ours, usual = ([plan(both).trial(number) for number in range(2000)] for both in (True, False))
    assert [trial._replace(opposite=False) for trial in ours] == usual
    steered = [trial for trial in ours if trial.steered]
    assert sum(trial.opposite for trial in steered) == pytest.approx(500, abs=64)
    assert not any(trial.opposite for trial in ours if not trial.steered)
    assert {(trial.vector, trial.opposite) for trial in steered} == {(v, o) for v in range(7) for o in (True, False)}


def test_what_is_added_has_the_other_sign() -> None:
    """Against the trial that adds it: minus the direction, the same length at the same layers; ``flipped`` turns it."""
    norms = torch.arange(1.0, 5.0)
    rows = torch.nn.functional.normalize(torch.randn(7, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    bank = VectorBank({"train": rows}, {"train": [f"random-{n}" for n in range(7)]}, norms, {}, {})
    added = plan(False).trial(1)
    mask = torch.ones(2, 3, dtype=torch.long)
    for name, sign in (("train", 1.0), ("flipped", -1.0)):
        pair = [added, added._replace(opposite=True)]
        made = make_intervention(pair, mask, bank, SOURCES[name], "relative", lambda _: [], 0)
        assert torch.equal(made.direction[0, 0], sign * rows[added.vector])
        assert torch.equal(made.direction[1], -made.direction[0])
        assert torch.equal(made.scale[1], made.scale[0])
        assert made.scale[0].any()


def test_trials_that_differ_in_sign_have_caches_of_their_own(tiny: Path, some_contexts: list[str]) -> None:
    """And the clean cache of either is that of the clean trial."""
    run = prepare(attach(["--config", CONFIG, "--model.base.name_or_path", str(tiny), "--trainer.logger", "false",
                          *some_contexts, *GIVEN]).datamodule.run)  # fmt: skip
    split = run.splits["train"]
    trial = next(trial for trial in trials_of(split, 64) if trial.opposite)
    keys = {split._cache_key(each) for each in (trial, trial._replace(opposite=False))}
    assert len(keys) == 2
    assert clean_trial(trial) == clean_trial(trial._replace(opposite=False))


def test_only_training_has_them(tiny: Path, some_contexts: list[str]) -> None:
    """Validation and tests add their directions, as ever."""
    ours, usual = splits_of(tiny, some_contexts, *GIVEN), splits_of(tiny, some_contexts)
    for name, split in usual.items():
        assert (trials_of(ours[name], 40) == trials_of(split, 40)) == (name != "train"), name
        assert subtracts(ours[name].plan) == (name == "train")


def test_with_tasks_both_caches_of_a_pair_have_the_sign_and_concepts_are_added(
    tiny: Path, some_contexts: list[str]
) -> None:
    """Less of bread is not bread; in which half a direction is stronger must not show in its sign."""
    sizes = ["--data.batch_size", "16", "--data.eval_batch_size", "16", "--data.validation_trials", "128"]
    options = ["--data.tasks", TASKS, "--data.long", "{share: 0.3, tokens: [48, 200]}", "--data.benign", "[int8]", *sizes]
    split = splits_of(tiny, some_contexts, *options, *GIVEN)["train"]
    assert subtracts(split.plan)
    assert split.questionnaire is not None
    signs: dict[str, set[bool]] = {}
    for trial in trials_of(split, 2000):
        pair = trial.number // (2 * split.questionnaire.each)
        signs.setdefault(split.questionnaire.kinds.of(pair), set()).add(trial.opposite)
        if trial.parts and not trial.divided:
            other = split.plan.trial(trial.number ^ split.questionnaire.each)
            assert other.opposite == trial.opposite
    assert signs.pop(CONCEPTS) == {False}
    assert len(signs) == 2
    assert all(found == {True, False} for found in signs.values())


def test_trials_say_so(tiny: Path, some_contexts: list[str]) -> None:
    """As shown, in messages, and in the rows of predictions; those that add a direction are written as ever."""
    run = prepare(attach(["--config", CONFIG, "--model.base.name_or_path", str(tiny), "--trainer.logger", "false",
                          *some_contexts, *GIVEN]).datamodule.run)  # fmt: skip
    split = run.splits["train"]
    trial = next(trial for trial in trials_of(split, 64) if trial.opposite)
    assert f"strength {trial.strength:.3g}, subtracted; context" in str(shown_trial(split, trial))
    assert ", subtracted" not in str(shown_trial(split, trial._replace(opposite=False)))
    row = trial.as_row() | {"context_key": "k", "kind": "list", "question_text": "Was it?", "vectors": "train"}
    assert format_trial(row | {"vector_name": "random-1"}).endswith(f"strength {trial.strength:.6g}, subtracted)")
    without = trial._replace(opposite=False).as_row()
    assert "opposite" not in without
    assert format_trial(row | without | {"vector_name": "random-1", "opposite": False}).endswith(f"{trial.strength:.6g})")


def test_a_training_records_it(
    tiny: Path,
    some_contexts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the adapter's description and card, beside the control that it trained on; resuming without is refused."""
    monkeypatch.chdir(tmp_path)
    words = [
        "--config",
        CONFIG,
        "--model.base.name_or_path",
        str(tiny),
        *some_contexts,
        "--data.test_trials",
        "{flipped: 8}",
    ]
    tested = ["--test_after_fit", "true", "--evidence.enabled", "true"]
    folder = Path(main(["fit", *words, *GIVEN, *tested]).trainer.log_dir)
    described = json.loads((folder / "adapter" / "introspection.json").read_text())
    assert described["options"]["data.both_signs"] is True
    assert "(relative), added or subtracted." in (folder / "adapter" / "README.md").read_text()
    (control,) = json.loads((folder / "results.json").read_text())["evidence"]["controls"]
    assert (control["name"], control["what"]) == ("flipped", TRAINED_SIGN)
    capsys.readouterr()
    bank = ["--data.bank", str(folder / "vectors.safetensors")]
    with pytest.raises(SystemExit):
        main(["fit", *words, *bank, "--ckpt_path", str(folder / "checkpoints" / "last.ckpt")])
    assert "trained on other contexts, vectors, questions, bands or strengths" in capsys.readouterr().err


def test_a_manifest_does_not_take_it(refused: Callable[..., str]) -> None:
    """Its lines name directions, not signs; said when one is written, and before one is trained on."""
    with pytest.raises(ConfigurationError, match=r"data\.both_signs: a manifest lists directions that are added"):
        next(distinct_pairs(plan(True), 4))
    printed = " ".join(refused(*GIVEN, "--data.manifest", "x.jsonl").split())
    assert "Leave data.manifest or data.both_signs out." in printed


def test_the_curriculum_is_said_after_it() -> None:
    """In the model card's one sentence."""
    options = {"data.both_signs": True, "data.curriculum": {"strengths": [0.3, 2.0], "trials": 16}}
    assert beginning(options) == ", added or subtracted, moving there from 0.3 to 2 in the first 16 trials"
    assert beginning({}) == ""
    options["data.curriculum"] |= {"merged_after": True}
    both = ", moving there from 0.3 to 2 in the first 16 trials, merged contexts after the first 16 trials"
    assert beginning(options) == f", added or subtracted{both}"
    same = options | {"data.strengths": [0.3, 2.0]}
    assert beginning(same) == ", added or subtracted, merged contexts after the first 16 trials"


def test_a_curriculum_moves_the_same_strengths() -> None:
    """The sign is drawn after the strength, so it changes none."""
    moving = replace(plan(True), curriculum=Curriculum((2.0, 8.0), 100))
    alone = replace(moving, both_signs=False)
    strengths = np.array([[each.trial(number).strength for number in range(150)] for each in (moving, alone)])
    assert (strengths[0] == strengths[1]).all()
