"""Trials whose caches are changed besides steering: pure functions, pairs that share their change, and their tensors."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from project_paths import CONFIG
from tiny_models import CHATML, NO_SYSTEM, train_tokenizer

from introspection_lit.cli import attach
from introspection_lit.contexts.context import exchange
from introspection_lit.contexts.conversations import YES_NO, Phrasing
from introspection_lit.contexts.odd_text import exchanged_words
from introspection_lit.contexts.variants import SYSTEM_PROMPTS, add_variants, edited
from introspection_lit.steering.change_names import BENIGN, CHANGES, DROPS
from introspection_lit.steering.vector_bank import RANDOM_SPLITS, VectorBank, random_unit_vectors
from introspection_lit.tasks.questionnaire import STEERING, PairKinds
from introspection_lit.training.experiment_setup import prepare
from introspection_lit.trials.changed_plans import BenignPlan, DeployedPlan, benign_plan_of
from introspection_lit.trials.changed_rows import LONGER, partner_of
from introspection_lit.trials.leaks import training_record
from introspection_lit.trials.manifest import distinct_pairs
from introspection_lit.trials.plans import TrialPlan
from introspection_lit.trials.split import Split
from introspection_lit.trials.trial import Trial
from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.seeds import generator

TASKS = "{detection: {questions: 2}, factual: {}, reading: {}, comparison: {pairs: 4}, plain_text: {questions: 0.5}}"
DRAWN = {"seed": 3, "split": "train", "contexts": 12, "questions": 2, "vectors": 7, "bands": ((0, 1), (2, 3))}


def splits_of(tiny: Path, contexts: list[str], *options: str) -> dict[str, Split]:
    """The splits of a configuration; no model is loaded."""
    words = ["--config", CONFIG, "--model.base.name_or_path", str(tiny), "--trainer.logger", "false"]
    return prepare(attach([*words, *contexts, *options]).datamodule.run).splits


@pytest.fixture(scope="module")
def tested(tiny: Path, some_contexts: list[str]) -> dict[str, Split]:
    """Splits with both test sets, and every change."""
    turn = 2 * (1 + len(CHANGES))
    sizes = f"{{heldout: 8, deployed: {5 * turn}, deployed_newkinds: {turn}}}"
    return splits_of(tiny, some_contexts, "--data.test_trials", sizes)


@pytest.fixture(scope="module")
def trained(tiny: Path, some_contexts: list[str]) -> dict[str, Split]:
    """Splits with several tasks, half of whose pairs have benign changes."""
    benign = ["--data.benign", f"[{', '.join(BENIGN)}]", "--data.benign_share", "0.5", "--data.test_trials", "{heldout: 8}"]
    sizes = ["--data.batch_size", "16", "--data.eval_batch_size", "16", "--data.validation_trials", "128"]
    return splits_of(tiny, some_contexts, "--data.tasks", TASKS, *benign, *sizes)


def bank() -> VectorBank:
    """Random directions for a tiny model."""
    directions = {split: random_unit_vectors(4, 32, 0, split) for split in RANDOM_SPLITS}
    names = {split: [f"{split}-{number}" for number in range(4)] for split in RANDOM_SPLITS}
    return VectorBank(directions | {"concept": torch.eye(3, 32)}, names | {"concept": list("abc")}, torch.ones(6), {})


def deployed_plan(**changes) -> DeployedPlan:
    """A plan with every change."""
    values = DRAWN | {"split": "deployed", "strengths": (0.5, 0.5), "changes": ("", *CHANGES)} | changes
    return DeployedPlan(**values)


def test_every_change_in_turn_over_the_same_contexts_and_interventions() -> None:
    """Asked in any order; a turn of pairs differs in the change alone, a pair in the intervention alone."""
    plan, n = deployed_plan(variants=(("edited", 24),)), len(CHANGES) + 1
    trials = [plan.trial(number) for number in range(2 * n * 12)]
    assert [plan.trial(number) for number in reversed(range(2 * n * 12))] == trials[::-1]
    for turn in range(12):
        rows = trials[2 * n * turn : 2 * n * (turn + 1)]
        assert [trial.change for trial in rows[::2]] == ["", *CHANGES]
        for clean, steered in zip(rows[::2], rows[1::2], strict=True):
            assert (clean.steered, steered.steered) == (False, True)
            assert (clean.change, clean.context, clean.question) == (steered.change, steered.context, steered.question)
            assert (clean.strength, steered.strength) == (0.0, 0.5)
            assert clean.context == rows[0].context + 24 * (clean.change == "edited")
        assert len({(t.vector, t.band) for t in rows[1::2]}) == 1
    assert sorted(trials[2 * n * turn].context for turn in range(12)) == list(range(12))  # each context once
    assert len({trial.band for trial in trials}) == 3


def test_batches_hold_each_pair_once_and_mostly_one_change() -> None:
    """In every batch of a pool; pairs stay together."""
    plan, n = deployed_plan(), len(CHANGES) + 1
    batches = [plan.batch(number, 24, list(range(12)), n) for number in range(n)]
    assert sorted(trial.number for batch in batches for trial in batch) == list(range(24 * n))
    assert [{trial.change for trial in batch} for batch in batches] == [{change} for change in ("", *CHANGES)]
    for batch in batches:
        assert [trial.number % 2 for trial in batch] == [0, 1] * 12
    parts = [trial for part in range(4) for trial in plan.batch(2, 24, list(range(12)), n, (part, 4))]
    assert parts == batches[2]


def test_benign_changes_have_their_share_and_change_nothing_else() -> None:
    """As the plan without them but for the change, which both trials of a pair share."""
    values = DRAWN | {"strengths": (0.1, 1.0)}
    plain = TrialPlan(**values)
    plan = BenignPlan(**values, changes=("int8", "evicted"), share=0.25)
    trials = [plan.trial(number) for number in range(2000)]
    assert [trial._replace(change="") for trial in trials] == [plain.trial(number) for number in range(2000)]
    assert all(clean.change == steered.change for clean, steered in zip(trials[::2], trials[1::2], strict=True))
    counts = Counter(trial.change for trial in trials[::2])
    assert counts[""] / 1000 == pytest.approx(0.75, abs=0.05)
    assert counts["int8"] == pytest.approx(counts["evicted"], rel=0.35)
    kinds = PairKinds(3, "train", (STEERING, "halves"))
    some = BenignPlan(**values, changes=("int8",), share=1.0, kinds_of=kinds)
    for pair in range(40):
        assert some.trial(2 * pair).change == ("int8" if kinds.of(pair) == STEERING else "")
    assert benign_plan_of(plain) is None
    assert benign_plan_of(plan) is plan
    with pytest.raises(ConfigurationError, match=r"data\.benign: a manifest lists trials without changes"):
        next(distinct_pairs(plan, 1))


def test_test_sets_run_through_all_changes_and_describe_them(tested: dict[str, Split]) -> None:
    """Over held-out contexts and directions; other texts stand where their trials point."""
    for name, of in (("deployed", "heldout"), ("deployed_newkinds", None)):
        split = tested[name]
        base = split.plan.contexts
        if of:
            assert {context.key for context in split.contexts[:base]} <= {c.key for c in tested[of].contexts}
        assert split.source.vectors == "heldout"
        assert len(split.contexts) == 3 * base
        seen = Counter()
        for number in range(0, split.total or 0, 2):
            trial = split.plan.trial(number)
            own = split.contexts[trial.context % base]
            row = json.loads(json.dumps(split.describe(trial, bank())))
            assert row.get("change", "") == trial.change
            context = split.contexts[trial.context]
            if trial.change == "system_prompt":
                assert context.turns[0].content in SYSTEM_PROMPTS
                assert context.turns[1:] == own.turns
            elif trial.change == "edited":
                assert context.key != own.key
                assert sorted("".join(t.content for t in context.turns)) == sorted("".join(t.content for t in own.turns))
            else:
                assert context is own
            seen[trial.change] += 1
        assert set(seen) == {"", *CHANGES}
        assert max(seen.values()) - min(seen.values()) <= 1


def test_tensors_of_changed_trials(tested: dict[str, Split]) -> None:
    """Labels stay; the seed of the noise is the pair's; the other conversation of a spliced one is written with it."""
    split, n = tested["deployed"], len(CHANGES) + 1
    trials = [split.plan.trial(number) for number in range(4 * n)]
    batch = split.collate(trials, bank())
    assert batch.labels.tolist() == [False, True] * 2 * n
    assert batch.changes is not None
    assert batch.cache_of is None or batch.cache_of.tolist() == list(range(len(trials)))
    assert [change.name for change in batch.changes[: len(trials)]] == [trial.change for trial in trials]
    assert all(change.name == "" for change in batch.changes[len(trials) :])
    assert len(trials) < len(batch.changes) <= len(trials) + 4  # two pairs are spliced; a partner may be in the batch
    noisy = [row for row, trial in enumerate(trials) if trial.change == "noise_20"]
    seeds = [batch.changes[row].seed for row in noisy]
    assert seeds[0] == seeds[1] != seeds[2] == seeds[3]
    for row, trial in enumerate(trials):
        other = batch.changes[row].other
        assert (other >= 0) == (trial.change == "spliced")
        if other < 0:
            continue
        assert batch.contexts[other] != trial.context
        assert torch.equal(batch.intervention.scale[other], batch.intervention.scale[row])
        assert batch.context_mask[other].sum() >= min(
            batch.context_mask[row].sum(), max(split.lengths()[: split.plan.contexts])
        )
    # Each change of an input is an input of its own; clean and steered have the same.
    inputs = batch.inputs.tolist()
    assert len(set(inputs)) == 2 * n
    assert inputs[::2] == inputs[1::2]


def test_neighbours_make_a_batch_wider_and_nothing_else(tested: dict[str, Split]) -> None:
    """Padding on the left, four times as wide as the longest context."""
    split = tested["deployed"]
    number = 2 * (1 + list(CHANGES).index("neighbours"))
    trials = [split.plan.trial(number), split.plan.trial(number + 1)]
    plain = split.collate([trial._replace(change="") for trial in trials], bank())
    wide = split.collate(trials, bank())
    width = plain.context_ids.shape[1]
    assert plain.changes is None
    assert wide.context_ids.shape == (2, LONGER * width)
    for name in ("context_ids", "context_mask"):
        assert torch.equal(getattr(wide, name)[:, -width:], getattr(plain, name))
    assert not wide.context_mask[:, :-width].any()
    assert torch.equal(wide.intervention.positions[:, -width:], plain.intervention.positions)
    assert not wide.intervention.positions[:, :-width].any()


def test_the_partner_is_at_least_as_long_and_the_pairs_own() -> None:
    """Among the next longer ones; of the longest context, among the longest others."""
    lengths = list(range(10, 40))
    for context in range(30):
        trials = [Trial("deployed", number, context, 0, bool(number % 2)) for number in (6, 7)]
        partners = {partner_of(trial, 3, lengths, 0).context for trial in trials}
        assert len(partners) == 1
        (other,) = partners
        assert other != context
        assert lengths[other] >= lengths[context] or context == 29
    assert len({partner_of(Trial("deployed", 0, 3, 0, False), pair, lengths, 0).context for pair in range(40)}) > 3


def test_training_pairs_share_benign_changes_and_keep_their_labels(trained: dict[str, Split]) -> None:
    """With several tasks: pairs of a clean and a steered cache alone; a record says what was trained with."""
    for name in ("train", "validation"):
        split = trained[name]
        plan = split.plan
        seen = Counter()
        for pair in range(400):
            clean, steered = (plan.trial(number) for number in (8 * pair, 8 * pair + 4))
            assert clean.change == steered.change
            assert clean.context == steered.context
            if plan.kinds.of(pair) != STEERING:  # type: ignore[attr-defined]
                assert not clean.change
            else:
                seen[clean.change] += 1
        assert seen[""] / sum(seen.values()) == pytest.approx(0.5, abs=0.1)
        assert set(seen) == {"", *BENIGN}
        pair = next(p for p in range(400) if plan.trial(8 * p).change == "system_prompt")
        context = split.contexts[plan.trial(8 * pair).context]
        assert context.turns[0].role == "system"
        assert context.turns[0].content in SYSTEM_PROMPTS
    record = training_record(trained, bank(), prefill_adapter=False)
    assert record["benign"] == [0.5, *BENIGN]


def test_references_read_untouched_caches_or_those_with_the_same_tokens(trained: dict[str, Split]) -> None:
    """What was dropped cannot be asked for; everything else is answered as from the untouched clean cache."""
    split = trained["train"]
    seen = Counter()
    for pair in range(400):
        change = split.plan.trial(8 * pair).change
        if change in seen:
            continue
        batch = split.collate([split.plan.trial(number) for number in range(8 * pair, 8 * pair + 8)], bank())
        if batch.references is None:
            continue
        seen[change] += 1
        read = batch.references.cache_of.tolist()
        changes = [entry.name for entry in batch.changes] if batch.changes else [""] * len(batch.contexts)
        assert not batch.intervention.scale[read].any()
        assert {changes[cache] for cache in read} == {change if change in DROPS else ""}, change
        assert len(batch.contexts) == (2 if change in ("", *DROPS) else 3)
        # A text is drawn once for each pair, though there may be two clean caches of its context.
        assert batch.texts is None or len(batch.texts.caches) == 1
    assert set(seen) == {"", *BENIGN}


def test_without_benign_changes_everything_stays(tiny: Path, some_contexts: list[str]) -> None:
    """No plan, no field of a row, no field of a batch, no line in the record."""
    options = ["--data.test_trials", "{heldout: 8}"]
    usual = splits_of(tiny, some_contexts, *options)
    none = splits_of(tiny, some_contexts, *options, "--data.benign", "[int8]", "--data.benign_share", "0")
    for splits in (usual, none):
        split = splits["train"]
        assert type(split.plan) is TrialPlan
        batch = split.collate(split.plan.batch(0, 4, split.lengths(), 1), bank())
        assert (batch.changes, batch.cache_mask, batch.next_positions) == (None, None, None)
        assert "change" not in split.describe(batch.trials[0], bank())
        assert "benign" not in training_record(splits, bank(), prefill_adapter=False)


def test_words_are_exchanged_and_none_is_lost() -> None:
    """A quarter of them, two at least; a single word stays."""
    text = "One two, three four.\nFive six seven eight nine ten eleven twelve!"
    made = exchanged_words(text, generator(0, "words"))
    before, after = ([word.strip(",.!") for word in line.split()] for line in (text, made))
    assert sorted(before) == sorted(after)
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 3
    assert made.count("\n") == 1
    assert exchanged_words("Alone.", generator(0, "words")) == "Alone."
    two = edited(exchange("chat", "Good morning", "Hello there"), 0)
    assert [turn.content for turn in two.turns] == ["morning Good", "there Hello"]


def test_a_template_without_system_prompts_is_said() -> None:
    """Where a change needs one; other changes do not."""
    contexts = [exchange("chat", "What is bread made of?", "Flour and water.")]
    phrasing = Phrasing("", YES_NO, "The answer is")
    for template, fails in ((CHATML, False), (NO_SYSTEM, True)):
        arguments = (train_tokenizer(template), contexts)
        if fails:
            with pytest.raises(ConfigurationError, match="system_prompt cannot be used"):
                add_variants(*arguments, ["system_prompt"], 0, "Well?", phrasing)
        else:
            kept, made = add_variants(*arguments, ["system_prompt", "edited"], 0, "Well?", phrasing)
            assert kept == contexts
            assert [len(variants) for variants in made.values()] == [1, 1]
        assert add_variants(*arguments, ["edited"], 0, "Well?", phrasing)[0] == contexts
