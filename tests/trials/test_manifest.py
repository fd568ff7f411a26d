"""Manifests: reproducible, checked line by line, streamed."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest
from bank_example import random_bank
from manifest_example import manifest_of, training_split
from transformers import PreTrainedTokenizerFast

from introspection_lit.steering.vector_bank import VectorBank
from introspection_lit.trials.manifest import SeenTrials, distinct_pairs, manifest_settings, setting_problems
from introspection_lit.trials.manifest_plan import STRIDE, Manifest, ManifestPlan
from introspection_lit.trials.plans import TrialPlan
from introspection_lit.trials.split import Split
from introspection_lit.utils.checksums import CHECKSUM
from introspection_lit.utils.errors import ConfigurationError


@pytest.fixture(scope="module")
def bank() -> VectorBank:
    """Eight directions a split."""
    return random_bank()


@pytest.fixture
def train(tokenizer: PreTrainedTokenizerFast) -> Split:
    """A training split."""
    return training_split(tokenizer)


def test_manifest_holds_the_trials_of_the_plan(train: Split, bank: VectorBank, tmp_path: Path) -> None:
    """Read back, each trial is the one that training would have drawn; beyond the end it starts again."""
    n = 4 * STRIDE
    plan = ManifestPlan(Manifest(manifest_of(tmp_path / "m.jsonl", train, bank, n)), train, bank, 0)
    assert plan.problems() == []
    for number in (0, 1, 2, STRIDE - 1, STRIDE, 2 * STRIDE + 3, n - 1, 5, n - 2):
        assert plan.trial(number) == train.plan.trial(number)
        assert plan.trial(number + n) == plan.trial(number)


@pytest.mark.parametrize(("n", "size", "pool"), [(672, 16, 8), (24, 4, 8), (64, 16, 3), (40, 16, 8)])
def test_a_pass_has_every_trial_once(n: int, size: int, pool: int, train: Split, bank: VectorBank, tmp_path: Path) -> None:
    """However the pools fall; a last batch that is not full is filled with the first trials. Half of each is steered."""
    plan = ManifestPlan(Manifest(manifest_of(tmp_path / "m.jsonl", train, bank, n)), train, bank, 0)
    lengths = [len(train.encoded(i).context_ids) for i in range(len(train.contexts))]
    batches = -(-n // size)
    for turn in range(2):
        numbers = []
        for batch in range(turn * batches, (turn + 1) * batches):
            trials = plan.batch(batch, size, lengths, pool)
            assert len(trials) == size == 2 * sum(trial.steered for trial in trials)
            numbers += [trial.number for trial in trials]
        assert sorted(numbers) == sorted([*range(n), *range(batches * size - n)])
    first, second = ([plan.batch(b, size, lengths, pool) for b in range(t * batches, (t + 1) * batches)] for t in (0, 1))
    assert first != second or batches < 4


def test_same_seed_same_file(train: Split, bank: VectorBank, tmp_path: Path) -> None:
    """Byte by byte; a longer manifest begins with the shorter one."""
    first, again = (manifest_of(tmp_path / name, train, bank, 64).read_bytes() for name in "ab")
    assert first == again
    longer = manifest_of(tmp_path / "c", train, bank, 128).read_bytes()
    assert longer.split(b"\n")[1:65] == first.split(b"\n")[1:65]


def test_repeated_trials_are_left_out(train: Split, bank: VectorBank, tmp_path: Path) -> None:
    """With one strength and one band there are few distinct trials: each comes once, and no more can be had."""
    few = TrialPlan(0, "train", 3, 1, 4, ((0, 1),), (1.0, 1.0))
    pairs = list(distinct_pairs(few, 12))
    assert len({(steered.context, steered.vector) for _, steered in pairs}) == 12
    with pytest.raises(ConfigurationError, match="after 24 nothing new comes"):
        list(distinct_pairs(few, 13))


def test_every_fault_is_found(train: Split, bank: VectorBank, tmp_path: Path) -> None:
    """Leaks, repeats, damage: each line that is not a training trial is named with its number."""
    lines = manifest_of(tmp_path / "good", train, bank, 32).read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    lines[0] = json.dumps({name: value for name, value in rows[0].items() if name != CHECKSUM})  # a change that is meant

    def problems(line: int, **changes: object) -> str:
        changed = [*lines]
        changed[line] = json.dumps(rows[line] | changes)
        (tmp_path / "m").write_text("\n".join(changed) + "\n")
        return "\n".join(ManifestPlan(Manifest(tmp_path / "m"), train, bank, 0).problems())

    assert problems(2) == ""
    assert problems(1, context="beef").count("line") == 1
    assert problems(3, kind=None) == ""
    for odd in ([], {}, 3, None):
        assert "is none of the training split's" in problems(2, context=odd)
        assert "is none of the training split's" in problems(2, vector=odd)
        assert "is none of data.bands" in problems(2, band=odd)
    assert "line 3: the context 'beef' ('" in problems(2, context="beef")
    assert "the vector 'heldout-1' is none of the training split's" in problems(2, vector="heldout-1")
    assert "the question 'Hm?' is none" in problems(2, question="Hm?")
    assert "the band [4, 5] is none of data.bands" in problems(2, band=[4, 5])
    for strength in (9.0, float("nan"), -1.0, "1"):
        assert "is not in data.strengths" in problems(2, strength=strength)
    assert "expected number 1, steered" in problems(2, steered=False)
    assert "expected number 1, steered" in problems(2, number=7)
    assert "context or question is not that of the clean trial" in problems(2, context=rows[5]["context"])
    same = {name: rows[4][name] for name in ("vector", "band", "strength", "context", "question")}
    assert "line 3: its context" in problems(2, **same)
    repeated = [*lines]
    repeated[1:3] = [lines[3].replace('"number": 2', '"number": 0'), lines[4].replace('"number": 3', '"number": 1')]
    (tmp_path / "m").write_text("\n".join(repeated) + "\n")
    assert "line 5: the same steered trial as an earlier one" in str(
        ManifestPlan(Manifest(tmp_path / "m"), train, bank, 0).problems()
    )
    for damaged, message in (
        ([*lines[:5], "{", *lines[6:]], "line 6: not JSON"),
        ([*lines[:5], "[]", *lines[6:]], "line 6: expected an object with the fields"),
        (lines[:20], "it has 19 trials or more, its header says 32: it may be cut off"),
        ([*lines, *lines[1:]], "trials or more, its header says 32"),
    ):
        (tmp_path / "m").write_text("\n".join(damaged) + "\n")
        assert message in "\n".join(ManifestPlan(Manifest(tmp_path / "m"), train, bank, 0).problems())


@pytest.mark.parametrize("first", ["", "{}", "hello", '{"format": "introspection_lit/manifest/1", "n": 3}', '{"n": "4"}'])
def test_other_files_are_refused(first: str, tmp_path: Path) -> None:
    """A file without a manifest's header, or no file at all."""
    (tmp_path / "m").write_text(first + "\n")
    with pytest.raises(ConfigurationError, match=r"is not a manifest|expected pairs"):
        Manifest(tmp_path / "m")
    with pytest.raises(ConfigurationError, match="no such file"):
        Manifest(tmp_path / "none")


def test_other_settings_are_refused(train: Split, bank: VectorBank, tmp_path: Path) -> None:
    """Everything that decides what the trials mean must agree, and each difference is named."""
    manifest = Manifest(manifest_of(tmp_path / "m", train, bank, 8))
    expected = manifest_settings(train, bank, 0)
    assert setting_problems(manifest.header, expected) == []
    for name in expected:
        found = setting_problems(manifest.header, expected | {name: "other"})
        assert len(found) == 1
        assert f"made with {name} " in found[0]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_manifest(train: Split, bank: VectorBank, tmp_path: Path) -> None:
    """Three times as many trials, written, checked and read here and there: the same memory."""

    def peak(n: int) -> int:
        tracemalloc.start()
        path = manifest_of(tmp_path / f"{n}.jsonl", train, bank, n)
        plan = ManifestPlan(Manifest(path), train, bank, 0)
        assert plan.problems() == []
        for number in range(0, n, max(n // 4, 1)):
            plan.trial(number)
        used: int = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(1000)  # what is loaded once; then more than is read ahead
    small, large = peak(10_000), peak(30_000)
    assert large < 1.3 * small


def test_seen_remembers() -> None:
    """A set on disk."""
    with SeenTrials() as seen:
        assert seen.add(1, "a")
        assert seen.add(1, "b")
        assert not seen.add(1, "a")
