"""The plan of a detection curve: every clean input once, every band and strength as often, each trial in one batch."""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import product

import pytest

from introspection_lit.trials.loaders import EpochSampler
from introspection_lit.trials.plans import OncePlan
from introspection_lit.trials.trial import Trial

BANDS, DOSES = ((0, 1), (2, 3), (1, 4)), (0.1, 0.2, 0.4, 0.8)
CELLS = set(product(BANDS, DOSES))


def plan(**changes) -> OncePlan:
    """A plan of 7 contexts, 2 questions, 5 vectors, 12 cells and 200 trials."""
    options = {"contexts": 7, "questions": 2, "vectors": 5, "bands": BANDS, "strengths": (0.1, 0.8), "total": 200}
    changes = {"steps": DOSES} | changes
    return OncePlan(**({"seed": 3, "split": "doses"} | options | changes))


def trials_of(made: OncePlan) -> list[Trial]:
    """All trials of a plan, in order."""
    return [made.trial(number) for number in range(made.total)]


def spread(counts: Counter, cells) -> int:
    """By how much the commonest cell is ahead of the rarest."""
    return max(counts[cell] for cell in cells) - min(counts[cell] for cell in cells)


@pytest.mark.parametrize(
    ("contexts", "questions", "total"), [(7, 2, 200), (7, 1, 15), (40, 3, 60), (9, 4, 36), (1, 1, 2), (5, 2, 21), (3, 1, 3)]
)
def test_each_clean_input_comes_once_and_at_most_half_are_clean(contexts: int, questions: int, total: int) -> None:
    """As many distinct inputs as there can be: contexts times questions, or half of the trials."""
    trials = trials_of(plan(contexts=contexts, questions=questions, total=total))
    clean = [trial for trial in trials if not trial.steered]
    assert len(trials) == total
    assert [trial.number for trial in trials] == list(range(total))
    assert len(clean) == min(contexts * questions, total // 2)
    assert set(Counter((trial.context, trial.question) for trial in clean).values()) == {1}
    assert all(0 <= trial.context < contexts and 0 <= trial.question < questions for trial in trials)
    assert all((trial.vector, trial.band, trial.strength) == (-1, (-1, -1), 0.0) for trial in clean)
    if len(clean) <= contexts:  # no context twice before all have come
        assert len({trial.context for trial in clean}) == len(clean)


@pytest.mark.parametrize(("contexts", "questions", "total"), [(7, 2, 200), (40, 3, 60), (7, 1, 15), (1, 1, 2)])
def test_steered_trials_have_the_inputs_of_the_clean_ones(contexts: int, questions: int, total: int) -> None:
    """Text says nothing about the label: no input is steered that is not clean elsewhere, and each as often up to one."""
    trials = trials_of(plan(contexts=contexts, questions=questions, total=total))
    clean = {(trial.context, trial.question) for trial in trials if not trial.steered}
    steered = Counter((trial.context, trial.question) for trial in trials if trial.steered)
    assert set(steered) <= clean
    assert spread(steered, clean) <= 1


@pytest.mark.parametrize("total", [16, 26, 38, 200, 201, 514])
def test_bands_strengths_and_vectors_come_as_often_up_to_one(total: int) -> None:
    """Over all steered trials, and whatever their number."""
    steered = [trial for trial in trials_of(plan(total=total)) if trial.steered]
    assert spread(Counter((trial.band, trial.strength) for trial in steered), CELLS) <= 1
    assert spread(Counter(trial.vector for trial in steered), range(5)) <= 1


def test_a_band_named_twice_comes_twice_as_often() -> None:
    """As the option says of bands."""
    doubled = plan(bands=((0, 1), (2, 3), (0, 1)), total=14 + 12 * 5)
    assert Counter(trial.band for trial in trials_of(doubled) if trial.steered) == {(0, 1): 40, (2, 3): 20}


def test_cells_do_not_go_with_contexts_or_vectors() -> None:
    """Even where their numbers divide each other, no context has doses of its own: a kind must not have one dose only."""
    trials = [t for t in trials_of(plan(contexts=12, questions=1, vectors=12, total=12 + 12 * 40)) if t.steered]
    for name in ("context", "vector"):
        found = {(getattr(trial, name), trial.band, trial.strength) for trial in trials}
        assert len(found) > 0.8 * 12 * 12, name


def test_a_trial_is_a_function_of_seed_split_and_number() -> None:
    """In any order, and again; another seed or split is another stream."""
    numbers = list(range(200))
    first = {number: plan().trial(number) for number in numbers}
    random.Random(0).shuffle(numbers)
    assert {number: plan().trial(number) for number in numbers} == first
    for change in ({"seed": 4}, {"split": "doses_concept"}):
        other = {number: plan(**change).trial(number) for number in numbers}
        assert [t.context for t in first.values()] != [other[number].context for number in first]
        assert [t.strength for t in first.values()] != [other[number].strength for number in first]


def test_beyond_the_last_trial_it_starts_again_under_a_number_that_says_so() -> None:
    """What fills up a batch is told from the trials by its number."""
    first, again = plan().trial(3), plan().trial(203)
    assert again.number == 203
    assert again._replace(number=3) == first


@pytest.mark.parametrize("size", [2, 6, 32, 64, 256])
@pytest.mark.parametrize(("total", "equal"), [(200, False), (201, True), (14, False)])
def test_batches_hold_each_trial_once(size: int, total: int, equal: bool) -> None:
    """Whatever their size and the lengths; only rows with a number that is too high come on top."""
    made = plan(total=total)
    lengths = [5] * 7 if equal else [7, 300, 1, 40, 40, 2, 90]
    count = math.ceil(total / size)
    rows = [trial for number in range(count) for trial in made.batch(number, size, lengths, count)]
    assert len(rows) == count * size
    real = [trial for trial in rows if trial.number < total]
    assert sorted(trial.number for trial in real) == list(range(total))
    assert all(trial == made.trial(trial.number) for trial in rows)
    padded = [lengths[trial.context] for trial in real]
    assert padded == sorted(padded)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_the_trials(world: int) -> None:
    """Each trial is in one batch of one process; all processes have as many batches."""
    made, lengths = plan(total=202), [3, 9, 4, 4, 8, 1, 2]
    batches = math.ceil(202 / 16)
    dealt = [number for rank in range(world) for number in EpochSampler(batches, rank, world, lambda: 0)]
    assert len(dealt) % world == 0
    rows = [trial for number in dealt for trial in made.batch(number, 16, lengths, batches)]
    assert sorted(trial.number for trial in rows if trial.number < 202) == list(range(202))


@pytest.mark.parametrize(("contexts", "total", "clean"), [(7, 200, 14), (100, 200, 150), (100, 38, 28), (1, 2, 1)])
def test_without_steps_strengths_are_drawn_and_three_quarters_may_be_clean(contexts: int, total: int, clean: int) -> None:
    """Log-uniformly, each trial of its own; bands and vectors come as often, and inputs are those of clean trials."""
    trials = trials_of(plan(contexts=contexts, total=total, steps=()))
    steered = [trial for trial in trials if trial.steered]
    inputs = [(trial.context, trial.question) for trial in trials if not trial.steered]
    assert len(inputs) == len(set(inputs)) == clean
    assert {(trial.context, trial.question) for trial in steered} <= set(inputs)
    assert all(0.1 <= trial.strength <= 0.8 for trial in steered)
    assert len({trial.strength for trial in steered}) == len(steered)
    assert spread(Counter(trial.band for trial in steered), BANDS) <= 1
    assert spread(Counter(trial.vector for trial in steered), range(5)) <= 1


def test_drawn_strengths_are_log_uniform() -> None:
    """Half of those between .01 and 1 are below .1."""
    trials = trials_of(plan(steps=(), strengths=(0.01, 1.0), total=2014))
    low = [trial.strength < 0.1 for trial in trials if trial.steered]
    assert abs(sum(low) / len(low) - 0.5) < 0.05
