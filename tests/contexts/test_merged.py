"""``data.merged``: training and validation contexts that are two of a kind in one exchange, and so as long as both."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import pytest
import torch
from project_paths import CONFIG
from splits import splits_of, trials_of

from introspection_lit.cli import attach
from introspection_lit.contexts.context import Context, Message, exchange
from introspection_lit.contexts.splits import USES_OF_MERGED, merged_contexts
from introspection_lit.steering.vector_bank import VectorBank
from introspection_lit.tasks.wording import Wording
from introspection_lit.training import changed_caches
from introspection_lit.training.experiment_setup import prepare
from introspection_lit.training.options import DataOptions
from introspection_lit.trials import leaks
from introspection_lit.trials.plans import TrialPlan
from introspection_lit.trials.split import Split
from introspection_lit.utils.errors import ConfigurationError

GIVEN = ["--data.merged", "0.4"]


def single(kind: str, number: int) -> Context:
    """A context whose texts name it."""
    return exchange(kind, f"{kind} asks {number}", f"{kind} says {number}")


def lengths(split: Split, contexts: Sequence[Context]) -> list[int]:
    """Tokens of some contexts of a split."""
    return [len(split.encoded(split.contexts.index(context), 0).context_ids) for context in contexts]


def test_both_are_of_a_kind_and_in_the_same_order_in_message_and_reply() -> None:
    """Every context of even kinds is used equally often, never with itself."""
    given = [single(kind, number) for kind in ("a", "b") for number in range(8)]
    made = merged_contexts(given, 3, "train")
    used = Counter[str]()
    for context in made:
        user, reply = (turn.content.split("\n\n") for turn in context.turns)
        assert [text.replace("asks", "says") for text in user] == reply
        assert len({*user}) == 2
        assert {text[0] for text in user} == {context.kind}
        used.update(user)
    assert used == {context.user: USES_OF_MERGED for context in given}
    assert [turn.role for turn in made[0].turns] == ["user", "assistant"]
    assert merged_contexts(given, 3, "train") == made
    assert merged_contexts(given, 4, "train") != made
    assert merged_contexts(given, 3, "validation") != made


def test_other_conversations_are_left_out() -> None:
    """Of several exchanges, or with a system message or a question of their own; a single one of its kind has no other."""
    several = Context("a", (*single("a", 0).turns, *single("a", 1).turns))
    told = Context("a", (Message("system", "Be brief."), *single("a", 2).turns))
    asking = Context("a", single("a", 3).turns, (Message("user", "Was it?"),))
    assert merged_contexts([several, told, asking, single("a", 4), single("b", 5)], 0, "train") == []


@pytest.mark.parametrize(
    "options",
    [[], ["--data.tasks", "{detection: {questions: 2}, comparison: {pairs: 4}}", "--data.validation_trials", "64"]],
    ids=["detection", "tasks"],
)
def test_training_and_validation_alone_have_them(tiny: Path, options: list[str]) -> None:
    """Their share, longer than the others; contexts, tests and norms stay; no message of a test is in one."""
    words = ["--config", CONFIG, "--model.base.name_or_path", str(tiny), "--trainer.logger", "false"]
    words += ["--data.max_context_tokens", "400", *options]
    ours, usual = (prepare(attach([*words, *given]).datamodule.run) for given in (GIVEN, []))
    assert ours.norm_contexts == usual.norm_contexts
    tested = {c.user for name, split in usual.splits.items() if name not in ("train", "validation") for c in split.contexts}
    for name, split in usual.splits.items():
        found, before = ours.splits[name], list(split.contexts)
        added = [context for context in found.contexts if context not in before]
        assert [context for context in found.contexts if context in before] == before
        if name not in ("train", "validation"):
            assert added == []
            continue
        assert len(added) == pytest.approx(0.4 * len(found.contexts), abs=1)
        assert not {message for context in added for message in context.user.split("\n\n")} & tested
        assert {context.kind for context in added} <= {context.kind for context in before}
        assert sorted(lengths(found, added))[len(added) // 2] > 1.5 * sorted(lengths(found, before))[len(before) // 2]


def test_those_that_are_too_long_are_left_out(tiny: Path) -> None:
    """As contexts are."""
    split = splits_of(tiny, [], *GIVEN, "--data.max_context_tokens", "150")["train"]
    assert max(lengths(split, split.contexts)) <= 150


def test_none_at_all_is_refused(tiny: Path, tmp_path: Path) -> None:
    """Contexts that fill more than half of the longest each."""
    texts = [" ".join(f"word{number}" for number in range(start, start + 20)) for start in range(100, 700, 20)]
    rows = [json.dumps({"user": text, "assistant": "Yes."}) for text in texts]
    (tmp_path / "contexts.jsonl").write_text("\n".join(rows))
    own = ["--data.contexts", str(tmp_path / "contexts.jsonl"), "--data.test_trials", "{seen: 4}"]
    longest = max(lengths(train := splits_of(tiny, own)["train"], train.contexts))
    with pytest.raises(ConfigurationError, match=r"data.merged: got 0.4, but no two train contexts .* Raise it"):
        splits_of(tiny, own, *GIVEN, "--data.max_context_tokens", str(longest))


def test_a_training_records_it(tiny: Path, some_contexts: list[str]) -> None:
    """In the options that a checkpoint and an adapter are described by."""
    words = ["--config", CONFIG, "--model.base.name_or_path", str(tiny), "--trainer.logger", "false", *some_contexts]
    ours, usual = (attach([*words, *given]).datamodule.run for given in (GIVEN, []))
    assert ours.options.describe()["data.merged"] == 0.4
    assert "data.merged" not in usual.options.describe()


LATE = ["--data.curriculum", "{strengths: [0.3, 2.0], trials: 40, merged_after: true}"]
BENIGN = ["--data.benign", "[int8, system_prompt]", "--data.benign_share", "0.5"]
SEVERAL = ["--data.tasks", "{detection: {questions: 2}}", "--data.batch_size", "16", "--data.eval_batch_size", "16"]


@pytest.mark.parametrize(
    "options",
    [[], ["--data.long", "{share: 0.3, tokens: [48, 200]}"], BENIGN, SEVERAL],
    ids=["detection", "long", "benign", "tasks"],
)
def test_with_merged_after_training_begins_without_them(tiny: Path, options: list[str]) -> None:
    """The first 40 trials have none, later ones their share; all else of the trials, and validation, is as without it."""
    options = ["--data.max_context_tokens", "400", "--data.strengths", "[0.3, 2.0]", *options]
    never, usual, ours = (splits_of(tiny, [], *options, *more) for more in ([], GIVEN, [*GIVEN, *LATE]))
    single = {context.turns for context in never["train"].contexts}
    assert ours["train"].contexts == usual["train"].contexts
    trials, others = trials_of(ours["train"], 400), trials_of(usual["train"], 400)
    merged, as_usual = (
        [usual["train"].contexts[trial.context].turns not in single for trial in drawn] for drawn in (trials, others)
    )
    assert not any(merged[:40])
    assert any(as_usual[:40])
    assert 0.2 < sum(merged[40:]) / 360 < 0.6
    for trial, other in zip(trials[:40], others[:40], strict=True):
        assert trial._replace(context=0) == other._replace(context=0)
    assert trials[40:] == others[40:]
    assert trials_of(ours["validation"], 32) == trials_of(usual["validation"], 32)


def test_contexts_without_a_variant_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A benign change that is another text leaves some contexts out: of the first ones as many fewer are drawn from."""
    given = [single("a", number) for number in range(12)]
    monkeypatch.setattr(changed_caches, "_with_variants", lambda _, contexts, *_rest: (contexts[1:6:2], [], ()))
    plan = TrialPlan(0, "train", 12, 1, 5, ((0, 1),), (0.3, 2.0), single=4)
    options = DataOptions(benign=["system_prompt"])
    plan, contexts, _ = changed_caches.with_benign_changes(options, plan, given, cast("Wording", None), None, 0)
    assert contexts == [given[1], given[3], given[5]]
    assert (plan.contexts, plan.single) == (3, 2)


def test_it_is_recorded_and_other_training_data(
    tiny: Path, some_contexts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the options and the record of training, where a curriculum without it looks as it did before it existed."""
    monkeypatch.setattr(leaks, "direction_keys", lambda *_: [])
    words = ["--config", CONFIG, "--model.base.name_or_path", str(tiny), "--trainer.logger", "false", *some_contexts]
    for late, said in ((True, {"merged_after": True}), (False, {})):
        given = f"{{strengths: [0.3, 2.0], trials: 40, merged_after: {str(late).lower()}}}"
        run = attach([*words, *GIVEN, "--data.curriculum", given]).datamodule.run
        record = leaks.training_record(prepare(run).splits, VectorBank({}, {}, torch.ones(0), {}), prefill_adapter=False)
        assert run.options.describe()["data.curriculum"] == {"strengths": (0.3, 2.0), "trials": 40, **said}
        assert record["curriculum"] == [0.3, 2.0, 40, *said]


def test_without_merged_contexts_it_is_refused(refused: Callable[..., str]) -> None:
    """There is nothing to come after."""
    printed = " ".join(refused(*LATE).split())
    expected = "Expected a share in data.merged, such as 0.3. Give it, or leave merged_after out."
    assert f"data.curriculum.merged_after: got true and no merged contexts. {expected}" in printed


@pytest.mark.parametrize("given", ["-0.1", "1", "2"])
def test_shares_that_are_none_are_refused(refused: Callable[..., str], given: str) -> None:
    """Some contexts must stay."""
    printed = " ".join(refused("--data.merged", given).split())
    assert f"data.merged: got {float(given)}. Expected a share from 0 to below 1." in printed
