"""Trials are pure functions of (seed, split, i), half of them steered."""

from __future__ import annotations

import random
from collections import Counter
from types import SimpleNamespace

import pytest

from introspection_lit.trials.loaders import EpochSampler, SplitBatches
from introspection_lit.trials.plans import TrialPlan
from introspection_lit.trials.trial import OPTIONAL, Trial


def plan(**changes) -> TrialPlan:
    """A plan of 12 contexts, 2 questions and 7 vectors."""
    options = {"contexts": 12, "questions": 2, "vectors": 7, "bands": ((0, 1), (2, 3)), "strengths": (0.1, 1.0)}
    return TrialPlan(**({"seed": 3, "split": "train"} | options | changes))


def test_same_number_same_trial_in_any_order() -> None:
    """Asking in another order, or for other trials in between, changes nothing."""
    numbers = list(range(200))
    first = {i: plan().trial(i) for i in numbers}
    random.Random(0).shuffle(numbers)
    assert {i: plan().trial(i) for i in numbers} == first
    assert plan().trial(10_000_000) == plan().trial(10_000_000)


@pytest.mark.parametrize("change", [{"seed": 4}, {"split": "heldout"}])
def test_seed_and_split_change_the_trials(change: dict) -> None:
    """Other seeds and splits are other streams."""
    ours, other = ([p.trial(i) for i in range(50)] for p in (plan(), plan(**change)))
    assert [t.strength for t in ours] != [t.strength for t in other]
    assert [t.context for t in ours] != [t.context for t in other]


def test_pairs_differ_by_the_intervention_alone() -> None:
    """Trial 2j is clean, 2j + 1 is steered, and both have the same context and question."""
    for pair in range(60):
        clean, steered = plan().trial(2 * pair), plan().trial(2 * pair + 1)
        assert (clean.steered, steered.steered) == (False, True)
        assert (clean.context, clean.question) == (steered.context, steered.question)
        assert (clean.vector, clean.strength, clean.band) == (-1, 0.0, (-1, -1))
        assert steered.band in ((0, 1), (2, 3))
        assert 0.1 <= steered.strength <= 1.0


def test_everything_is_used_once_a_round() -> None:
    """Contexts and vectors repeat only when all have been used: distinct inputs are as many as there can be."""
    trials = [plan().trial(i) for i in range(2 * 12 * 7)]
    for start in range(0, len(trials), 24):
        assert sorted(t.context for t in trials[start : start + 24 : 2]) == list(range(12))
    assert set(Counter(t.vector for t in trials if t.steered).values()) == {12}


def test_strengths_are_log_uniform() -> None:
    """Half of the strengths between .01 and 1 are below .1."""
    low = [plan(strengths=(0.01, 1.0)).trial(i).strength < 0.1 for i in range(1, 4000, 2)]
    assert abs(sum(low) / len(low) - 0.5) < 0.04


@pytest.mark.parametrize("pool", [1, 4])
def test_batches_hold_each_trial_once_half_steered(pool: int) -> None:
    """Sorting by length inside a pool only changes which batch a trial is in."""
    lengths = [(7 * i) % 12 for i in range(12)]
    batches = [plan().batch(number, 6, lengths, pool) for number in range(8)]
    assert sorted(t.number for batch in batches for t in batch) == list(range(48))
    for batch in batches:
        assert sum(t.steered for t in batch) == 3
    if pool == 4:
        spread = [max(lengths[t.context] for t in b) - min(lengths[t.context] for t in b) for b in batches]
        unsorted = [plan().batch(number, 6, lengths, 1) for number in range(8)]
        wide = [max(lengths[t.context] for t in b) - min(lengths[t.context] for t in b) for b in unsorted]
        assert sum(spread) < sum(wide)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_an_epoch_without_overlap(world: int) -> None:
    """As many batches to each rank, none to two, and the next epoch goes on where this one ended."""
    epochs = []
    for epoch in range(2):
        shares = [list(EpochSampler(7, rank, world, lambda: epoch)) for rank in range(world)]  # noqa: B023
        assert len({len(share) for share in shares}) == 1
        epochs.append(sorted(number for share in shares for number in share))
    numbers = epochs[0] + epochs[1]
    assert numbers == list(range(len(numbers)))
    assert len(EpochSampler(7, 0, world, lambda: 0)) == -(-7 // world)


def test_row_is_plain_json() -> None:
    """A trial's row has every field of the trial; those of :data:`OPTIONAL` where they are special."""
    trial = plan().trial(1)
    assert set(trial.as_row()) == set(Trial._fields) - set(OPTIONAL)
    assert trial._replace(change="int8").as_row()["change"] == "int8"
    assert trial._replace(parts=(1.0, 0.0), vectors="concept_train").as_row()["parts"] == [1.0, 0.0]


@pytest.mark.parametrize(("world", "accumulated", "batch_size"), [(1, 1, 24), (2, 1, 12), (1, 6, 4), (3, 2, 4), (4, 3, 2)])
def test_step_has_the_same_trials_however_it_is_shared(world: int, accumulated: int, batch_size: int) -> None:
    """Processes and accumulated batches share out the 24 trials of a step: none twice, none left, half of each steered."""
    split = SimpleNamespace(plan=plan(), lengths=lambda: list(range(12)), collate=lambda trials, _: trials)
    whole = SplitBatches(split, None, 24, 4)  # type: ignore[arg-type]
    shared = SplitBatches(split, None, batch_size, 4, world * accumulated)  # type: ignore[arg-type]
    dealt = [list(EpochSampler(5 * world * accumulated, rank, world, lambda: 1)) for rank in range(world)]
    for step in range(5):
        numbers = [number for share in dealt for number in share[step * accumulated : (step + 1) * accumulated]]
        batches = [shared[number] for number in numbers]
        assert all(sum(trial.steered for trial in batch) == batch_size // 2 == len(batch) / 2 for batch in batches)
        assert Counter(trial for batch in batches for trial in batch) == Counter(whole[5 + step])
