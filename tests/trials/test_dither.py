"""``data.dither``: clean training caches are steered at a negligible strength, so that rounding does not tell them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from project_paths import CONFIG
from splits import splits_of, trials_of

from introspection_lit.cli import main
from introspection_lit.steering.vector_bank import VectorBank
from introspection_lit.training.model_card import beginning
from introspection_lit.trials.interventions import clean_trial, dithered
from introspection_lit.trials.plans import TrialPlan
from introspection_lit.trials.split import Split
from introspection_lit.trials.trial import Trial

STRENGTH = 1e-3
GIVEN = ["--data.dither", str(STRENGTH)]
CHOICES = "comparison: {pairs: 4}, identification: {pairs: 4}"
TASKS = f"{{detection: {{questions: 2}}, factual: {{questions: 2}}, {CHOICES}, plain_text: {{}}}}"
SIZES = ["--data.batch_size", "16", "--data.eval_batch_size", "16", "--data.validation_trials", "128"]


def plan() -> TrialPlan:
    """Of two bands."""
    return TrialPlan(3, "train", 12, 2, 7, ((0, 1), (2, 3)), (0.1, 1.0))


def bank_of(split: Split, hidden: int = 8) -> VectorBank:
    """Random directions for every set that trials of a split name, and norms of 1, 2, 3 and so on."""
    random = torch.Generator().manual_seed(0)
    counts = {split.source.vectors: split.plan.vectors, "concept_train": 200}
    rows = {name: torch.nn.functional.normalize(torch.randn(n, hidden, generator=random)) for name, n in counts.items()}
    names = {name: [f"{name}-{number}" for number in range(len(found))] for name, found in rows.items()}
    layers = max(last for _, last in split.plan.bands) + 2  # one more than is steered: each of them reaches the cache
    return VectorBank(rows, names, torch.arange(1.0, layers + 1), {}, {})


def test_clean_trials_draw_band_direction_and_sign_and_steered_ones_stay() -> None:
    """All bands, directions and signs occur; a trial's draw depends on its own number alone; 0 changes nothing."""
    trials = [plan().trial(number) for number in range(2000)]
    made = [dithered(trial, STRENGTH, plan(), 3) for trial in trials]
    for trial, ours in zip(trials, made, strict=True):
        cleaned = ours._replace(vector=-1, band=(-1, -1), strength=0.0, opposite=False)
        assert (ours if trial.steered else cleaned) == trial
        assert dithered(trial, 0.0, plan(), 3) == trial
    clean = [trial for trial in made if not trial.steered]
    assert {trial.strength for trial in clean} == {STRENGTH}
    drawn = {(trial.vector, trial.band, trial.opposite) for trial in clean}
    assert drawn == {(v, b, o) for v in range(7) for b in plan().bands for o in (True, False)}
    assert made[::-1] == [dithered(trial, STRENGTH, plan(), 3) for trial in trials[::-1]]


@pytest.mark.parametrize("options", [[], ["--data.tasks", TASKS, *SIZES]], ids=["detection", "several-tasks"])
def test_every_clean_cache_of_training_gets_it_and_no_other_changes(
    tiny: Path, some_contexts: list[str], options: list[str]
) -> None:
    """Against the batch without: labels, answers and steered caches are equal; clean ones have the strength's length."""
    ours, usual = (splits_of(tiny, some_contexts, *options, *given) for given in (GIVEN, []))
    for name, split in usual.items():
        bank = bank_of(split)
        batches = [each[name].collate(trials_of(split, 64), bank) for each in (ours, usual)]
        with_it, without = (batch.intervention for batch in batches)
        for field in ("labels", "targets", "numbers", "inputs", "context_ids", "question_ids"):
            assert torch.equal(getattr(batches[0], field), getattr(batches[1], field)), field
        steered = without.scale.any(dim=1)
        assert not steered.all()
        assert torch.equal(with_it.scale[steered], without.scale[steered])
        assert torch.equal(with_it.direction[steered], without.direction[steered])
        if name != "train":
            assert not with_it.scale[~steered].any()
            continue
        layers = with_it.scale > 0
        lengths = bank.residual_norms * layers * STRENGTH / layers.sum(dim=1, keepdim=True) ** 0.5
        torch.testing.assert_close(with_it.scale[~steered], lengths[~steered])
        torch.testing.assert_close(with_it.direction[~steered].norm(dim=-1), torch.ones(int((~steered).sum()), 1))


def test_a_control_without_steering_has_nothing_but_dither(tiny: Path, some_contexts: list[str]) -> None:
    """What is called steered is clean there, so both get it."""
    split = splits_of(tiny, some_contexts, *GIVEN, "--data.control", "no_steering")["train"]
    added = [split._added(trial) for trial in trials_of(split, 16)]
    assert {trial.strength for trial in added} == {STRENGTH}


def test_a_clean_trial_is_one_still() -> None:
    """The untouched cache of a dithered trial is that of the trial."""
    trial: Trial = plan().trial(0)
    assert clean_trial(dithered(trial, STRENGTH, plan(), 3)) == trial
    assert dithered(trial, STRENGTH, replace(plan(), vectors=1), 3).vector == 0


def test_a_training_records_it(
    tiny: Path,
    some_contexts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the adapter's description and card; resuming without is refused."""
    monkeypatch.chdir(tmp_path)
    words = ["--config", CONFIG, "--model.base.name_or_path", str(tiny), *some_contexts]
    folder = Path(main(["fit", *words, *GIVEN]).trainer.log_dir)
    described = json.loads((folder / "adapter" / "introspection.json").read_text())
    assert described["options"]["data.dither"] == STRENGTH
    assert described["trained_on"]["dither"] == STRENGTH
    assert "(relative), against clean contexts at 0.001." in (folder / "adapter" / "README.md").read_text()
    capsys.readouterr()
    bank = ["--data.bank", str(folder / "vectors.safetensors")]
    with pytest.raises(SystemExit):
        main(["fit", *words, *bank, "--ckpt_path", str(folder / "checkpoints" / "last.ckpt")])
    assert "trained on other contexts, vectors, questions, bands or strengths" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["-1", "0.02", "1e-9"])
def test_strengths_that_are_no_dither_are_refused(refused: Callable[..., str], given: str) -> None:
    """It must be below every strength that is called steered, and large enough to change anything."""
    printed = " ".join(refused("--data.dither", given, "--data.strengths", "[0.02, 1.0]").split())
    assert (
        f"data.dither: got {float(given)}. Expected 0, or a strength from 1e-06 to below all of data.strengths" in printed
    )


def test_the_card_says_it_after_the_rest() -> None:
    """In its one sentence on strengths."""
    assert beginning({"data.both_signs": True, "data.dither": 0.001}) == (
        ", added or subtracted, against clean contexts at 0.001"
    )
