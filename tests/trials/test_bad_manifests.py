"""Damaged manifests by the hundred: the trials that were written, or an error of ours; also while training reads them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from bank_example import random_bank
from damage import REFUSED, damaged_bytes, mutated, odd
from hypothesis import event, example, given
from hypothesis import strategies as st
from manifest_example import BANDS, CONTEXTS, QUESTIONS, manifest_of, training_split
from transformers import PreTrainedTokenizerFast

from introspection_lit.models.base_identity import BaseIdentity
from introspection_lit.models.base_model import BaseModel
from introspection_lit.trials import manifest_plan
from introspection_lit.trials.manifest import manifest_settings, setting_problems
from introspection_lit.trials.manifest_plan import STRIDE, Manifest, ManifestPlan
from introspection_lit.trials.split import Split
from introspection_lit.utils.errors import ConfigurationError, RunError

pytestmark = pytest.mark.thorough

DECIDING = ("band", "strength", "context", "vector", "question")


BANK = random_bank(6)
MODEL = BaseIdentity(BaseModel("m"))


@pytest.fixture(scope="module")
def train(tokenizer: PreTrainedTokenizerFast) -> Split:
    """A training split."""
    return training_split(tokenizer, 6, 6)


def take(path: Path, split: Split) -> ManifestPlan:
    """What set-up makes of a manifest.

    Raises:
        ConfigurationError: It is refused.
    """
    manifest = Manifest(path)
    wrong = MODEL.problems("data.manifest: it", manifest.header, "Make it again")
    wrong += setting_problems(manifest.header, manifest_settings(split, BANK, 0))
    plan = ManifestPlan(manifest, split, BANK, 0)
    if problems := wrong or plan.problems():
        raise ConfigurationError(problems)
    return plan


@pytest.fixture(scope="module")
def lines(train: Split, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The lines of a good manifest; the header has no seal, so that what is changed on purpose is read at all."""
    text = manifest_of(tmp_path_factory.mktemp("good") / "m", train, BANK, 12).read_text()
    header, *rows = (json.loads(line) for line in text.splitlines())
    header.pop("sha256", None)
    return [header, *rows]


def agrees(plan: ManifestPlan, text: bytes) -> None:
    """Every trial is what its line says, read by another parser and rule by rule, in pairs, and none twice."""
    rows = [json.loads(line) for line in text.decode("utf-8-sig").splitlines()[1:]]
    assert len(rows) == plan.manifest.total
    steered = set()
    for number, row in enumerate(rows):
        trial = plan.trial(number)
        assert (trial.number, trial.steered) == (number, bool(number % 2)) == (row["number"], row["steered"])
        assert CONTEXTS[trial.context].key == row["context"]
        assert QUESTIONS[trial.question] == row["question"]
        assert trial[2:4] == plan.trial(number - number % 2)[2:4]
        if trial.steered:
            assert BANK.names["train"][trial.vector] == row["vector"]
            assert trial.band in BANDS
            assert [type(layer) for layer in trial.band] == [int, int]
            assert list(trial.band) == row["band"]
            assert 0.5 <= trial.strength == row["strength"] <= 2
            steered.add(trial[2:])
    assert len(steered) == len(rows) // 2


@given(spoil=st.data())
def test_manifests_with_something_wrong(
    spoil: st.DataObject, lines: list[dict[str, Any]], train: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fields replaced, left out, doubled; lines swapped, repeated, emptied, broken: the trials it says, or refused."""
    monkeypatch.setattr(manifest_plan, "LONGEST_LINE", 5000)
    made = [json.dumps(line) for line in spoil.draw(mutated(lines))]
    for _ in range(spoil.draw(st.integers(0, 1))):
        place = spoil.draw(st.integers(0, len(made) - 1)) if made else 0
        other = spoil.draw(st.integers(0, len(made) - 1)) if made else 0
        how = spoil.draw(st.sampled_from(("swap", "repeat", "drop", "empty", "broken", "long", "twice")))
        if how == "swap" and made:
            made[place], made[other] = made[other], made[place]
        elif how == "drop" and made:
            del made[place]
        elif how == "twice" and made:
            made[place] = made[place].replace("{", '{"number": 0, ', 1)
        else:
            texts = {"empty": "", "broken": "{", "long": "x" * 6000, "repeat": made[other] if made else ""}
            made.insert(place, texts.get(how, ""))
    end = spoil.draw(st.sampled_from(("\n", "", "\r\n", "\n\n", "\n\x00", "\ntrailing")))
    newline = spoil.draw(st.sampled_from(("\n", "\n", "\r\n", "\r", "\n ")))
    mark, code = spoil.draw(st.sampled_from((("", "utf-8"), ("", "utf-8"), ("\ufeff", "utf-8"), ("", "utf-16"))))
    text = (mark + newline.join(made) + end).encode(code)
    (tmp_path / "m").write_bytes(text)
    try:
        plan = take(tmp_path / "m", train)
    except REFUSED as error:
        event("refused")
        assert len(str(error)) < 20_000  # noqa: PT017 - either way is right
        return
    agrees(plan, text)


@given(
    value=odd, where=st.tuples(st.integers(1, 4), st.sampled_from(("band", "strength", "context", "vector", "question")))
)
@example(value=[False, True], where=(2, "band"))
@example(value=[0.0, 1.0], where=(2, "band"))
@example(value=1.0, where=(1, "strength"))
@example(value=True, where=(2, "strength"))
def test_odd_values(value: Any, where: tuple[int, str], lines: list[dict[str, Any]], train: Split, tmp_path: Path) -> None:
    """A value of another type or out of range in a field that decides a trial."""
    changed = [dict(line) for line in lines]
    changed[where[0]][where[1]] = value
    text = "\n".join(map(json.dumps, changed)).encode()
    (tmp_path / "m").write_bytes(text)
    try:
        plan = take(tmp_path / "m", train)
    except REFUSED:
        event("refused")
        return
    agrees(plan, text)
    assert value is None or type(value) in (str, int, float)


@given(n=odd)
@example(n=True)
@example(n=12.0)
@example(n=13)
def test_header_that_lies(n: Any, lines: list[dict[str, Any]], train: Split, tmp_path: Path) -> None:
    """Only the true number of trials is taken."""
    text = "\n".join(json.dumps(line) for line in [lines[0] | {"n": n}, *lines[1:]])
    (tmp_path / "m").write_text(text)
    if type(n) is int and n == 12:
        take(tmp_path / "m", train)
    else:
        with pytest.raises(ConfigurationError):
            take(tmp_path / "m", train)


@given(content=st.data())
def test_manifests_of_damaged_bytes(content: st.DataObject, train: Split, tmp_path: Path) -> None:
    """With its seal: the trials that were written, whatever happened to the bytes, or refused."""
    good = tmp_path / "good"
    if not good.is_file():
        manifest_of(good, train, BANK, 12)
    (tmp_path / "m").write_bytes(content.draw(damaged_bytes(good.read_bytes())))
    try:
        plan = take(tmp_path / "m", train)
    except REFUSED:
        event("refused")
        return
    assert [plan.trial(number) for number in range(12)] == [train.plan.trial(number) for number in range(12)]


def spoil_line(text: bytes) -> bytes:
    """Another strength in the 1,501st trial, that the manifest may well have: a change that is no error in itself."""
    changed = text.splitlines(keepends=True)
    row = json.loads(changed[1502])
    changed[1502] = json.dumps(row | {"strength": 1.25}).encode() + b"\n"
    return b"".join(changed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], r"changed since they were checked|cut off since"),
        (lambda text: text[:0], "cut off since it was checked"),
        (lambda text: text.replace(b'"steered": true', b'"steered": null'), "have changed since they were checked"),
        (spoil_line, "lines 1026 to 2049 of .* have changed since they were checked"),
        (None, "can no longer be read"),
    ],
)
def test_file_that_changes_while_it_is_read(change: Any, message: str, train: Split, tmp_path: Path) -> None:
    """Somebody cuts or edits the file while training reads it: the run stops, and no other trial is trained on."""
    path = manifest_of(tmp_path / "m", train, BANK, 4 * STRIDE)
    plan = take(path, train)
    first = plan.trial(0)
    plan._pairs, plan._window = {}, 10
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    with pytest.raises(RunError, match=message):
        for number in range(0, 4 * STRIDE, 500):
            assert plan.trial(number) == (first if number == 0 else train.plan.trial(number))


def test_clean_trials_with_an_intervention(lines: list[dict[str, Any]], train: Split, tmp_path: Path) -> None:
    """A clean trial that names a vector contradicts itself; once it went through as clean."""
    for field, value in (("vector", "train-1"), ("band", [0, 1]), ("strength", 1.0)):
        changed = [lines[0], lines[1] | {field: value}, *lines[2:]]
        (tmp_path / "m").write_text("\n".join(map(json.dumps, changed)))
        with pytest.raises(ConfigurationError, match="a clean trial with a vector, a band or a strength"):
            take(tmp_path / "m", train)


def test_field_that_is_there_twice(lines: list[dict[str, Any]], train: Split, tmp_path: Path) -> None:
    """Readers of JSON differ in which of two they take."""
    made = [json.dumps(line) for line in lines]
    made[2] = made[2].replace('"strength": ', '"strength": 1.0, "strength": ')
    (tmp_path / "m").write_text("\n".join(made))
    with pytest.raises(ConfigurationError, match=r"line 3: not JSON \(an object has the field"):
        take(tmp_path / "m", train)


def test_sound_manifests_are_taken(lines: list[dict[str, Any]], train: Split, tmp_path: Path) -> None:
    """Also from an editor that writes other ends of lines, a mark at the beginning, or none at the end."""
    for mark, newline, end in (("", "\n", "\n"), ("\ufeff", "\r\n", "\r\n"), ("", "\n", "")):
        text = (mark + newline.join(map(json.dumps, lines)) + end).encode()
        (tmp_path / "m").write_bytes(text)
        agrees(take(tmp_path / "m", train), text)
    assert math.isclose(take(tmp_path / "m", train).trial(1).strength, lines[2]["strength"])
