"""Trials in long conversations: what is steered of them, which lengths the test sets have, and what the options refuse."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from project_paths import CONFIG

from introspection_lit.cli import attach
from introspection_lit.contexts.long_conversations import exchange_spans, exchanges_of, is_joined
from introspection_lit.steering.vector_bank import RANDOM_SPLITS, VectorBank, random_unit_vectors
from introspection_lit.training.experiment_setup import prepare
from introspection_lit.training.long_options import LongOptions
from introspection_lit.training.option_checks import option_problems
from introspection_lit.training.options import DataOptions
from introspection_lit.trials import leaks
from introspection_lit.trials.composed_plans import ExchangesPlan
from introspection_lit.trials.manifest import distinct_pairs
from introspection_lit.trials.split import Split
from introspection_lit.utils.errors import ConfigurationError

# The tiny tokenizer knows few words: a token is little more than a letter.
LONG = "{share: 0.4, tokens: [200, 450], validation_tokens: [200, 900], exchanges: 6, test_tokens: [200, 400, 800], "
LONG += "test_strength: 0.7}"
SETS = "{heldout: 16, long: 60, long_newkinds: 30}"
OPTIONS = ["--data.max_context_tokens", "120"]
LAYERS, HIDDEN = 6, 32


def splits_of(tiny: Path, *options: str) -> dict[str, Split]:
    """The splits of a configuration with the built-in contexts; no model is loaded."""
    words = ["--data.contexts", "builtin", "--data.validation_kinds=null", "--data.test_kinds=null", *OPTIONS, *options]
    cli = attach(["--config", CONFIG, "--model.base.name_or_path", str(tiny), "--trainer.logger", "false", *words])
    return prepare(cli.datamodule.run).splits


@pytest.fixture(scope="module")
def splits(tiny: Path) -> dict[str, Split]:
    """Splits with long conversations."""
    return splits_of(tiny, "--data.long", LONG, "--data.test_trials", SETS)


def bank() -> VectorBank:
    """Random directions for a tiny model."""
    directions = {split: random_unit_vectors(100, HIDDEN, 0, split) for split in RANDOM_SPLITS}
    names = {split: [f"{split}-{number}" for number in range(100)] for split in RANDOM_SPLITS}
    return VectorBank(directions, names, torch.linspace(3.0, 8.0, LAYERS), {})


def test_the_share_of_training_and_validation_is_joined(splits: dict[str, Split]) -> None:
    """And so a share of their trials; other test sets have none."""
    for name in ("train", "validation"):
        split = splits[name]
        drawn = [split.plan.trial(number).context for number in range(0, 2 * len(split.contexts), 2)]
        made = len(split.contexts) - sum(map(is_joined, split.contexts))
        assert sorted(drawn) == list(range(len(split.contexts)))
        assert 0.3 <= 1 - made / len(split.contexts) < 0.41  # a few are single texts
        assert max(split.lengths()) <= (450 if name == "train" else 900)
    assert max(splits["validation"].lengths()) > 450  # the threshold is also set on longer ones
    assert not any(map(is_joined, splits["heldout"].contexts))


def test_test_sets_have_each_length_class_equally_often(splits: dict[str, Split]) -> None:
    """In pairs, at the one strength of the option."""
    for name, pairs in (("long", 30), ("long_newkinds", 15)):
        split = splits[name]
        trials = [split.plan.trial(number) for number in range(2 * pairs)]
        assert len({trial.context for trial in trials}) == pairs
        assert Counter(trial.context % 3 for trial in trials) == dict.fromkeys(range(3), 2 * pairs // 3)
        for place, most in enumerate((200, 400, 800)):
            assert max(split.lengths()[place::3]) <= most
        assert {round(trial.strength, 9) for trial in trials} == {0.0, 0.7}
        rows = [split.describe(trial, bank()) for trial in trials]
        assert [row["tokens"] for row in rows] == [split.lengths()[trial.context] for trial in trials]
        assert [row["exchanges"] for row in rows] == [exchanges_of(split.contexts[trial.context]) for trial in trials]


def test_all_or_some_exchanges_are_steered_one_after_another(splits: dict[str, Split]) -> None:
    """About half of the trials each; the question comes right after them or later; clean trials are not divided."""
    split = splits["train"]
    after, divided = Counter[int](), Counter[bool]()
    for number in range(1, 2400, 2):
        clean, trial = split.plan.trial(number - 1), split.plan.trial(number)
        assert (clean.context, clean.parts, clean.divided) == (trial.context, (), "")
        count = exchanges_of(split.contexts[trial.context])
        if count > 1:
            divided[bool(trial.parts)] += 1
        if trial.parts:
            assert len(trial.parts) == count
            assert trial.divided == "exchanges"
            steered = [place for place, share in enumerate(trial.parts) if share]
            assert steered == list(range(steered[0], steered[-1] + 1))
            assert 0 < len(steered) < count
            after[count - 1 - steered[-1]] += 1
    assert 0.42 < divided[True] / divided.total() < 0.58
    assert {0, 1, 2} <= set(after)


def test_the_tokens_of_the_steered_exchanges_are_steered(splits: dict[str, Split]) -> None:
    """All of them and no others, whatever the padding."""
    split = splits["train"]
    trials = [trial for number in range(1, 400, 2) if (trial := split.plan.trial(number)).parts][:6]
    batch = split.collate([*trials, split.plan.trial(0)], bank())
    for row, trial in enumerate(trials):
        spans = exchange_spans(split.tokenizer, split.contexts[trial.context], split.questions[0], split.phrasing)
        length = int(batch.context_mask[row].sum())
        assert spans[-1][1] == length
        expected = torch.zeros(batch.context_mask.shape[1])
        for (first, end), share in zip(spans, trial.parts, strict=True):
            expected[len(expected) - length + first : len(expected) - length + end] = share
        assert torch.equal(batch.intervention.positions[row].float(), expected)


def test_halves_are_halves_of_a_long_conversation_too(tiny: Path) -> None:
    """Tasks with caches of their own divide the tokens, not the exchanges."""
    tasks = "{detection: {questions: 2}, localisation: {pairs: 4}, comparison: {pairs: 4}}"
    sizes = ["--data.batch_size", "16", "--data.eval_batch_size", "16", "--data.validation_trials", "64"]
    long = "{share: 0.5, tokens: [200, 900], validation_tokens: [200, 900], exchanges: 6}"
    split = splits_of(tiny, "--data.tasks", tasks, "--data.long", long, *sizes, "--data.test_trials", "{heldout: 16}")[
        "train"
    ]
    trials = [split.plan.trial(number) for number in range(0, 1200, 2)]
    kinds = Counter((trial.divided, len(trial.parts) > 0) for trial in trials)
    assert {("", True), ("lines", True), ("exchanges", True), ("", False)} <= set(kinds)
    assert all(len(trial.parts) in (0, 2) for trial in trials if not trial.divided)


def test_texts_of_joined_conversations_are_recorded_and_found_again(splits: dict[str, Split]) -> None:
    """A text that was trained on as a part of a conversation alone is a leak in a test."""
    record = leaks.training_record(splits, bank(), False)
    train, test = splits["train"], splits["heldout"]
    alone = {context.key for context in train.contexts}
    parts = [context for context in train.joined_from if context.key not in alone]
    assert leaks.training_leak_problems(record, {"heldout": test}, bank()) == []
    assert parts, "no text was too long to be a context by itself"
    leaking = Split(**{**vars(test), "contexts": [parts[0]], "_encoded": {}, "_lengths": []})
    (problem,) = leaks.training_leak_problems(record, {"heldout": leaking}, bank())
    assert "1 contexts were trained on" in problem


def test_without_the_option_nothing_is_joined_in_training(tiny: Path) -> None:
    """And old adapters can be tested with long conversations."""
    splits = splits_of(tiny, "--data.test_trials", "{long: 12}", "--data.long", "{share: 0, test_tokens: [200, 400]}")
    assert not any(is_joined(context) for name in ("train", "validation") for context in splits[name].contexts)
    assert len(splits["long"].contexts) == 6


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"share": 1.0}, "Expected a share from 0 to below 1"),
        ({"share": -0.1}, "Expected a share from 0 to below 1"),
        ({"exchanges": 0}, "1 to 256 exchanges"),
        ({"tokens": (10, 100)}, "at least 24"),
        ({"tokens": (200, 100)}, "Expected the fewest and the most"),
        ({"validation_tokens": (100, 10)}, "data.long.validation_tokens: got [100, 10]"),
        ({"test_tokens": []}, "Expected ascending numbers"),
        ({"test_tokens": [64, 64]}, "Expected ascending numbers"),
        ({"test_tokens": [8]}, "the first at least 24"),
        ({"test_strength": 0.0}, "data.long.test_strength: got"),
    ],
)
def test_bad_options_are_refused(changes: dict[str, Any], part: str) -> None:
    """Before a model is loaded."""
    assert any(part in problem for problem in option_problems(DataOptions(long=LongOptions(**changes))))
    assert option_problems(DataOptions(long=LongOptions())) == []


def test_a_manifest_has_no_joined_contexts(splits: dict[str, Split]) -> None:
    """Its lines name single contexts, steered as a whole; the plan of others cannot be written as one."""
    assert DataOptions(long=LongOptions()).trains_long
    assert not DataOptions(long=LongOptions(), manifest="m.jsonl", bank="b.safetensors").trains_long
    plan = splits["train"].plan
    assert isinstance(plan, ExchangesPlan)
    with pytest.raises(ConfigurationError, match=r"data\.long: a manifest lists contexts"):
        next(distinct_pairs(plan, 4))


def test_conversations_longer_than_the_window_are_refused(tiny: Path) -> None:
    """By the lengths of training and of the tests."""
    for name, long in {
        "tokens": "{share: 0.5, tokens: [60, 90000], validation_tokens: [64, 80], test_tokens: [64]}",
        "validation_tokens": "{share: 0.5, tokens: [60, 800], validation_tokens: [60, 90000], test_tokens: [64]}",
        "test_tokens": "{share: 0, test_tokens: [64, 90000]}",
    }.items():
        with pytest.raises(ConfigurationError, match=rf"data\.long\.{name}: 90000"):
            splits_of(tiny, "--data.long", long, "--data.test_trials", SETS)
