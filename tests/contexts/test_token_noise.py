"""``data.validation_noise``: copies of validation contexts with random tokens in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from project_paths import CONFIG
from splits import splits_of, trials_of
from transformers import PreTrainedTokenizerFast

from introspection_lit.cli import attach
from introspection_lit.contexts.context import Context, Message
from introspection_lit.contexts.loading import load_contexts
from introspection_lit.contexts.token_noise import KIND, noisy_contexts
from introspection_lit.training.experiment_setup import prepare

GIVEN = ["--data.validation_noise", "0.5"]


def contexts(count: int) -> list[Context]:
    """Built-in contexts of every kind, each after a system prompt."""
    chosen = load_contexts("builtin")[:: len(load_contexts("builtin")) // count][:count]
    return [Context(c.kind, (Message("system", "Be brief."), *c.turns)) for c in chosen]


def kept_tokens(tokenizer: PreTrainedTokenizerFast, before: str, after: str) -> float:
    """Share of the distinct tokens of a text that are in another."""
    first, second = ({*tokenizer(text)["input_ids"]} for text in (before, after))
    return len(first & second) / len(first)


def test_copies_have_from_hardly_any_to_all_of_their_tokens_exchanged(tokenizer: PreTrainedTokenizerFast) -> None:
    """Every level occurs about as often, text is never the same, and what no tokenizer would write is not in it."""
    given = contexts(300)
    copies = noisy_contexts(tokenizer, given, 0.5, 3)
    assert [c.kind for c in copies] == [KIND] * len(given)
    kept = []
    for context, copy in zip(given, copies, strict=True):
        assert [turn.role for turn in copy.turns] == [turn.role for turn in context.turns]
        assert copy.turns[0] == context.turns[0]  # the system prompt
        assert copy.turns[1] != context.turns[1]
        text = "".join(turn.content for turn in copy.turns)
        assert "\ufffd" not in text
        assert not {*tokenizer(text)["input_ids"]} & {*tokenizer.get_added_vocab().values()}
        kept.append(kept_tokens(tokenizer, context.turns[2].content, copy.turns[2].content))
    thirds, _ = np.histogram(kept, bins=[0, 1 / 3, 2 / 3, 1.01])
    assert thirds.min() > len(given) / 5  # equal parts would be a third each


def test_random_tokens_are_from_all_of_the_vocabulary(tokenizer: PreTrainedTokenizerFast) -> None:
    """A text of one repeated word becomes a text of most tokens that there are."""
    ids = []
    for copy in noisy_contexts(tokenizer, [Context("a", (Message("user", "word " * 400),))] * 12, 0.5, 0):
        ids += [i for i in tokenizer(copy.turns[0].content)["input_ids"] if tokenizer.decode(i).strip() != "word"]
    assert len({*ids}) > len(tokenizer) / 2


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.25, 10), (0.5, 30), (0.75, 90)])
def test_the_share_counts_copies_among_all(tokenizer: PreTrainedTokenizerFast, share: float, expected: int) -> None:
    """Of 30 contexts; copies of the same context differ, and a larger share has those of a smaller one."""
    given = contexts(30)
    copies = noisy_contexts(tokenizer, given, share, 3)
    assert len({copy.key for copy in copies}) == len(copies) == expected
    assert noisy_contexts(tokenizer, given, 0.8, 3)[:expected] == copies
    assert expected == 0 or noisy_contexts(tokenizer, given, share, 4) != copies


@pytest.mark.parametrize(
    "options",
    [[], ["--data.tasks", "{detection: {questions: 2}, comparison: {pairs: 4}}", "--data.validation_trials", "64"]],
    ids=["detection", "tasks"],
)
def test_validation_alone_draws_from_copies_clean_and_steered_alike(
    tiny: Path, some_contexts: list[str], options: list[str]
) -> None:
    """Half of its trials, half of these steered; other splits and norms stay."""
    words = ["--config", CONFIG, "--model.base.name_or_path", str(tiny), "--trainer.logger", "false", *some_contexts]
    ours, usual = (prepare(attach([*words, *options, *given]).datamodule.run) for given in (GIVEN, []))
    assert ours.norm_contexts == usual.norm_contexts
    for name, split in usual.splits.items():
        with_copies = ours.splits[name].contexts
        assert [c for c in with_copies if c.kind != KIND] == list(split.contexts)
        assert any(c.kind == KIND for c in with_copies) == (name == "validation")
    validation = ours.splits["validation"]
    drawn = Counter((validation.contexts[t.context].kind == KIND, t.steered) for t in trials_of(validation, 2000))
    assert {*drawn} == {(copied, steered) for copied in (True, False) for steered in (True, False)}
    if not options:  # tasks have contexts of their own, and ask steered caches more
        assert drawn[True, True] == drawn[True, False]
        assert abs(drawn[True, True] - 500) < 70


def test_copies_that_are_too_long_are_left_out(tiny: Path, some_contexts: list[str]) -> None:
    """As contexts are."""
    split = splits_of(tiny, some_contexts, *GIVEN, "--data.max_context_tokens", "100")["validation"]
    lengths = [len(split.encoded(number, 0).context_ids) for number in range(len(split.contexts))]
    assert max(lengths) <= 100


def test_a_training_records_it(tiny: Path, some_contexts: list[str]) -> None:
    """In the options that a checkpoint and an adapter are described by."""
    words = ["--config", CONFIG, "--model.base.name_or_path", str(tiny), "--trainer.logger", "false", *some_contexts]
    ours, usual = (attach([*words, *given]).datamodule.run for given in (GIVEN, []))
    assert ours.options.describe()["data.validation_noise"] == 0.5
    assert "data.validation_noise" not in usual.options.describe()


@pytest.mark.parametrize("given", ["-0.1", "1", "2"])
def test_shares_that_are_none_are_refused(refused: Callable[..., str], given: str) -> None:
    """Some contexts must stay."""
    printed = " ".join(refused("--data.validation_noise", given).split())
    assert f"data.validation_noise: got {float(given)}. Expected a share from 0 to below 1." in printed
