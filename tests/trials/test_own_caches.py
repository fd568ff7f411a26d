"""Caches that are steered in halves, lines or with concepts: what is added where, and what is asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from project_paths import CONFIG
from transformers import PreTrainedModel

from introspection_lit.cli import attach
from introspection_lit.models.architecture import find_decoder_layers
from introspection_lit.models.base_model import Lora
from introspection_lit.models.loading import add_lora
from introspection_lit.steering.extraction import CONCEPTS
from introspection_lit.steering.prefill import steered_cache
from introspection_lit.steering.question_pass import read_answers
from introspection_lit.steering.vector_bank import RANDOM_SPLITS, VectorBank, random_unit_vectors
from introspection_lit.tasks.questionnaire import NOTHING, TASK_OF
from introspection_lit.tasks.task import AnswerWords, TaskOptions
from introspection_lit.tasks.task_questions import TRAINED_PAIRS
from introspection_lit.training.experiment_setup import prepare
from introspection_lit.training.option_checks import option_problems
from introspection_lit.training.options import DataOptions
from introspection_lit.trials.batch import TrialBatch
from introspection_lit.trials.composed_plans import MixedPlan, SeveralQuestionsPlan
from introspection_lit.trials.leaks import training_leak_problems, training_record
from introspection_lit.trials.split import Split
from introspection_lit.trials.trial import Trial
from introspection_lit.utils.errors import ConfigurationError

OWN = "localisation: {pairs: 4}, comparison: {pairs: 2}, identification: {pairs: 2}"
TASKS = f"{{detection: {{questions: 2}}, factual: {{}}, reading: {{}}, {OWN}, plain_text: {{questions: 0.5}}}}"
SETS = "{halves: 16, lines: 16, comparison: 16, identification: 16, naming: 16}"
LAYERS, EACH = 6, 4


def splits_of(tiny: Path, *options: str) -> dict[str, Split]:
    """The splits of a configuration; no model is loaded."""
    sizes = ["--data.batch_size", "16", "--data.eval_batch_size", "16", "--data.validation_trials", "128"]
    words = ["--data.test_trials", SETS, "--data.concepts", f"[{', '.join(CONCEPTS[:12])}]", *sizes, *options]
    cli = attach(["--config", CONFIG, "--model.base.name_or_path", str(tiny), "--trainer.logger", "false", *words])
    return prepare(cli.datamodule.run).splits


@pytest.fixture(scope="module")
def splits(tiny: Path) -> dict[str, Split]:
    """Splits with all tasks."""
    return splits_of(tiny, "--data.tasks", TASKS)


def bank_for(splits: dict[str, Split], hidden: int) -> VectorBank:
    """Random directions for a tiny model, and concepts that differ from layer to layer."""
    directions = {split: random_unit_vectors(4, hidden, 0, split) for split in RANDOM_SPLITS}
    names = {split: [f"{split}-{number}" for number in range(4)] for split in RANDOM_SPLITS}
    for split, of in (("concept", "identification"), ("concept_train", "train")):
        questionnaire = splits[of].questionnaire
        assert questionnaire is not None
        names[split] = list(questionnaire.concepts)
        flat = random_unit_vectors(len(names[split]) * LAYERS, hidden, 0, split)
        directions[split] = flat.reshape(len(names[split]), LAYERS, hidden)
    return VectorBank(directions, names, torch.linspace(3.0, 8.0, LAYERS), {})


def caches(split: Split, count: int) -> list[tuple[str, Trial, Trial]]:
    """The kind and both trials, of the first question, of the first pairs."""
    plan = split.plan
    assert isinstance(plan, SeveralQuestionsPlan)
    each = plan.each
    pairs = [(plan.trial(2 * each * pair), plan.trial(2 * each * pair + each)) for pair in range(count)]
    return [(plan.kinds.of(pair), *trials) for pair, trials in enumerate(pairs)]


def test_every_round_holds_each_kind_as_often_as_asked(splits: dict[str, Split]) -> None:
    """Of 16 pairs; localisation in halves and in lines alike."""
    for start in (0, 16):
        kinds = [kind for kind, _, _ in caches(splits["train"], start + 16)[start:]]
        assert Counter(kinds) == {"steering": 8, "halves": 2, "lines": 2, "unequal": 2, "concepts": 2}


def test_both_caches_of_a_pair_differ_in_what_is_asked_alone(splits: dict[str, Split]) -> None:
    """The same context, band and strength; the other half, line or concept."""
    seen = set()
    for kind, first, second in caches(splits["train"], 320):
        assert first.context == second.context
        if kind == "steering":
            assert (first.steered, second.steered) == (False, True)
            continue
        if kind == "concepts":
            assert first.vector != second.vector
            assert second.vectors == "concept_train"
            seen.add("nothing" if not first.steered else kind)
        else:
            assert first._replace(number=0, parts=()) == second._replace(number=0, parts=())
            assert sorted(first.parts) == sorted(second.parts)
            assert max(first.parts) == 1
            assert first.parts.index(1) != second.parts.index(1)
            weakest = min(first.parts)
            assert 0.2 <= weakest <= 0.6 if kind == "unequal" else weakest == 0
            assert len(first.parts) == (4 if kind == "lines" else 2)
            seen.add(kind)
    assert seen == {"halves", "lines", "unequal", "concepts", "nothing"}


def test_right_answer_names_what_was_done(splits: dict[str, Split]) -> None:
    """Both caches of a pair are asked the same; whoever says one word always is right for half of the halves."""
    for name in ("train", "halves", "lines", "comparison", "identification", "naming"):
        split = splits[name]
        questionnaire = split.questionnaire
        assert questionnaire is not None
        for kind, first, second in caches(split, 48):
            if kind not in TASK_OF:
                continue
            queries = [split.query(trial) for trial in (first, second)]
            assert {query.task for query in queries} == {TASK_OF[kind]}
            assert queries[0]._replace(target=None) == queries[1]._replace(target=None)
            right = [query.meanings[query.target or 0] for query in queries]
            if kind == "concepts":
                expected = [questionnaire.concepts[t.vector] if t.steered else NOTHING for t in (first, second)]
                assert len(set(queries[0].meanings)) == len(queries[0].answers.words) == 10
                assert NOTHING in queries[0].meanings
                listed = list(zip(queries[0].answers.words, queries[0].meanings, strict=True))
                by_name = all(word == concept for word, concept in listed)
                assert all((concept if by_name else f"{word} {concept}") in queries[0].text for word, concept in listed)
                assert not by_name or name != "identification"
            elif kind == "lines":
                expected = [f"line {trial.parts.index(1) + 1}" for trial in (first, second)]
            else:
                expected = [("first half", "second half")[trial.parts.index(1)] for trial in (first, second)]
            assert right == expected


def test_half_of_the_trained_questions_about_concepts_are_answered_by_name(splits: dict[str, Split]) -> None:
    """And all of the test set ``naming``, where each name begins with a token of its own."""
    shares = {}
    for name in ("train", "identification", "naming"):
        questionnaire = splits[name].questionnaire
        assert questionnaire is not None
        words = (*questionnaire.concepts, NOTHING)
        distinct = AnswerWords(words, tuple(range(len(words))))
        split = replace(splits[name], questionnaire=replace(questionnaire, names=distinct))
        queries = [split.query(trial) for kind, trial, _ in caches(split, 640) if kind == "concepts"]
        named = [query for query in queries if query.answers.words == query.meanings]
        shares[name] = len(named) / len(queries)
        for query in named:
            assert query.answers.ids == tuple(distinct.words.index(word) for word in query.answers.words)
    assert shares["naming"] == 1
    assert shares["identification"] == 0
    assert 0.3 < shares["train"] < 0.7


def test_names_that_begin_alike_are_answered_by_a_digit_or_letter(splits: dict[str, Split]) -> None:
    """Two names with one first token could not be told apart."""
    split = splits["naming"]
    questionnaire = split.questionnaire
    assert questionnaire is not None
    words = (*questionnaire.concepts, NOTHING)
    same = replace(questionnaire, names=AnswerWords(words, (7,) * len(words)))
    for _, trial, _ in caches(split, 8):
        answers = replace(split, questionnaire=same).query(trial).answers
        assert set(answers.words) <= {*"1234567890"} or set(answers.words) <= {*"ABCDEFGHIJ"}


def test_words_without_a_partner_are_drawn_in_both_orders(tiny: Path) -> None:
    """Where each cache is asked once, no second question balances the first."""
    tasks = "{detection: {}, localisation: {pairs: 8}}"
    split = splits_of(tiny, "--data.tasks", tasks, "--data.batch_size", "8")["train"]
    orders = Counter(
        split.query(trial).answers.words in TRAINED_PAIRS for kind, trial, _ in caches(split, 200) if kind == "halves"
    )
    assert 0.25 < orders[True] / sum(orders.values()) < 0.75


def test_steering_acts_on_the_named_tokens_alone(splits: dict[str, Split]) -> None:
    """A half of the tokens; the tokens of a line, decoded, are that line."""
    bank = bank_for(splits, 32)
    for name in ("halves", "lines", "comparison"):
        split = splits[name]
        batch = split.collate(split.plan.batch(0, 16, split.lengths(), 1), bank)
        shares = batch.intervention.positions
        assert not shares[batch.context_mask == 0].any()
        caches_seen = dict.fromkeys(batch.cache_of.tolist() if batch.cache_of is not None else range(16))
        trials = {cache: batch.trials[batch.cache_of.tolist().index(cache)] for cache in caches_seen}
        for cache, trial in trials.items():
            row, ids = shares[cache], batch.context_ids[cache]
            length = int(batch.context_mask[cache].sum())
            tokens = row[-length:]
            if name == "lines":
                line = split.contexts[trial.context].user.splitlines()[trial.parts.index(1)]
                assert split.tokenizer.decode(ids[row == 1]).strip() == line
                assert set(row.tolist()) == {0.0, 1.0}
            else:
                first, second = tokens[: length // 2], tokens[length // 2 :]
                assert torch.equal(first, torch.full_like(first, trial.parts[0]))
                assert torch.equal(second, torch.full_like(second, trial.parts[1]))


def test_each_row_equals_the_row_alone(family_model: PreTrainedModel, splits: dict[str, Split]) -> None:
    """On every family, with questions of two, four and ten answers in one batch."""
    bank = bank_for(splits, family_model.config.hidden_size)
    model = add_lora(family_model, Lora()).eval()
    layers = find_decoder_layers(model)

    def asked(batch: TrialBatch) -> torch.Tensor:
        batch.cache = steered_cache(model, model, layers, batch.context_ids, batch.context_mask, batch.intervention)
        return read_answers(model, batch)

    split = splits["train"]
    with torch.no_grad():
        for parameter in (p for name, p in model.named_parameters() if "lora_B" in name):
            torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(0))
        batch = split.collate(split.plan.batch(0, 128, split.lengths(), 1), bank)
        assert {len(query.answers.words) for query in map(split.query, batch.trials)} == {2, 4, 10}
        together = asked(batch)
        rows = {task: row for row, task in enumerate(batch.tasks)}
        for row in rows.values():
            alone = asked(split.collate([batch.trials[row]], bank))[0]
            torch.testing.assert_close(together[row], alone, atol=1e-4, rtol=0)


def test_every_batch_holds_every_kind(splits: dict[str, Split]) -> None:
    """In the shares of the round; and all pairs of a pool, once."""
    split = splits["train"]
    assert isinstance(split.plan, SeveralQuestionsPlan)
    seen = []
    for number in range(4):
        batch = split.plan.batch(number, 2 * EACH * 16, split.lengths(), 4)
        pairs = list(dict.fromkeys(trial.number // (2 * EACH) for trial in batch))
        counts = Counter(split.plan.kinds.of(pair) for pair in pairs)
        assert all(abs(counts[kind] - 2) <= 1 for kind in ("halves", "lines", "unequal", "concepts"))
        seen += pairs
    assert sorted(seen) == list(range(64))


def test_each_task_counts_its_weight_whatever_its_share(splits: dict[str, Split]) -> None:
    """Over whole rounds, the weights of the rows of each task add up to the task's."""
    split = splits["train"]
    batch = split.collate(split.plan.batch(0, 2 * EACH * 16, split.lengths(), 1), bank_for(splits, 32))
    assert batch.weights is not None
    totals: Counter[str] = Counter()
    for task, weight in zip(batch.tasks, batch.weights.tolist(), strict=True):
        totals[task] += weight  # type: ignore[assignment]
    assert totals == pytest.approx(dict.fromkeys(totals, 1.0), abs=1e-5)
    assert set(totals) == {"detection", "factual", "reading", "localisation", "comparison", "identification"}


def test_every_part_of_a_step_makes_the_same_passes(splits: dict[str, Split]) -> None:
    """A part with nothing but caches of its own has a reference that counts nothing, and the weights of a step stay."""
    split, bank = replace(splits["train"], same_passes=True), bank_for(splits, 32)
    lengths, size = split.lengths(), 2 * EACH * 16
    whole = split.collate(split.plan.batch(0, size, lengths, 1), bank)
    parts = [split.collate(split.plan.batch(0, size, lengths, 1, (part, 16)), bank) for part in range(16)]
    assert any(not set(part.tasks) & {"factual", "reading"} for part in parts)
    for part in parts:
        assert part.references is not None
        assert part.texts is not None
        if not set(part.tasks) & {"factual", "reading"}:
            assert len(part.references.cache_of) == 1
            assert (part.references.place == -1).all()
    assert whole.weights is not None
    assert whole.texts is not None
    together = torch.cat([part.weights for part in parts if part.weights is not None])
    torch.testing.assert_close(together / 16, whole.weights)
    texts = sum(float(part.texts.weights.sum()) for part in parts if part.texts is not None)
    assert texts / 16 == pytest.approx(float(whole.texts.weights.sum()))
    # One process makes the passes that it needs.
    alone = [splits["train"].collate(part.trials, bank) for part in parts]
    assert [part.texts is None for part in alone] == [not part.texts.weights.any() for part in parts if part.texts]
    assert [part.references is None for part in alone] == [
        not (part.references.place >= 0).any() for part in parts if part.references
    ]


def test_visible_signals_are_in_the_text_and_nowhere_else(tiny: Path) -> None:
    """The control steers nothing: the text of each context says what is right; tests are as ever."""
    splits = splits_of(tiny, "--data.tasks", TASKS, "--data.control", "visible")
    for name in ("train", "validation"):
        split = splits[name]
        for _, first, second in caches(split, 32):
            clean, signal = (split.contexts[trial.context].user for trial in (first, second))
            assert clean.replace("No signal was added", "A signal was added") == signal != clean
            assert (first.strength, second.strength) == (0, 0)
            detection = [split.query(trial).target for trial in (first, second)]
            assert detection == [1, 0]
        bank = bank_for(splits | {"train": splits["identification"]}, 32)
        batch = split.collate(split.plan.batch(0, 16, split.lengths(), 1), bank)
        assert not batch.intervention.scale.any()
        assert batch.labels.tolist().count(True) == 8
    assert all(trial.strength for _, trial, _ in caches(splits["halves"], 8))


def test_contexts_without_room_for_a_signal_are_left_out_of_the_plan(tiny: Path) -> None:
    """Each pair has one context without and with its signal, however many contexts are too long for it."""
    contexts = ["--data.contexts", "builtin", "--data.validation_kinds=null", "--data.test_kinds=null"]
    tasks = ["--data.tasks", "{detection: {questions: 2}, factual: {}}", "--data.test_trials", "{heldout: 16}"]
    sizes = ["--data.max_context_tokens", "150", "--data.batch_size", "12", "--data.validation_trials", "12"]
    splits = splits_of(tiny, *contexts, *tasks, *sizes, "--data.eval_batch_size", "12", "--data.control", "visible")
    split, all_of_them = (
        splits["train"],
        splits_of(tiny, *contexts, *tasks, *sizes, "--data.eval_batch_size", "12")["train"],
    )
    pairs = len(split.contexts) // 2
    assert split.plan.contexts == pairs < len(all_of_them.contexts)
    seen = set()
    for _, first, second in caches(split, pairs):
        clean, signal = (split.contexts[trial.context].user for trial in (first, second))
        assert clean.replace("No signal was added", "A signal was added") == signal != clean
        seen.add(first.context)
    assert len(seen) == pairs


@pytest.mark.parametrize("control", ["random_labels", "no_steering"])
def test_controls_train_on_clean_and_steered_caches_alone(tiny: Path, control: str) -> None:
    """Where a half or a concept is named, a coin could not say what is right."""
    splits = splits_of(tiny, "--data.tasks", TASKS, "--data.control", control)
    assert {kind for kind, _, _ in caches(splits["train"], 64)} == {"steering"}
    assert {kind for kind, _, _ in caches(splits["halves"], 8)} == {"halves"}


def test_what_was_trained_is_recorded_and_not_tested(splits: dict[str, Split]) -> None:
    """The kinds of pairs and the concepts; a bank that brings a trained concept into a test is refused."""
    bank = bank_for(splits, 32)
    record = training_record(splits, bank, prefill_adapter=False)
    assert sorted(set(record["pairs"])) == ["concepts", "halves", "lines", "steering", "unequal"]
    assert "chat" in record["kinds"]
    assert "apples" in record["concepts"]
    tests = {"identification": splits["identification"]}
    assert training_leak_problems(record, tests, bank) == []
    bank.names["concept"][3] = "apples"
    assert any("the concepts ['apples'] were trained on" in text for text in training_leak_problems(record, tests, bank))


def test_a_bank_with_few_concepts_is_refused(splits: dict[str, Split], tiny: Path, tmp_path: Path) -> None:
    """Before a model is loaded, for a question names nine of them; and one that trains on what it tests."""
    bank = bank_for(splits, 32)
    bank.metadata |= {"base_model": str(tiny), "revision": "", "seed": "0"}
    saved = ["--data.tasks", TASKS, "--data.bank", str(tmp_path / "bank.safetensors")]
    counts = [word for split in RANDOM_SPLITS for word in (f"--data.{split}_vectors", "4")]
    bank.save(tmp_path / "bank.safetensors")
    assert "train" in splits_of(tiny, *saved, *counts)
    whole = bank.names["concept_train"]
    bank.names["concept_train"] = ["bread", *whole[1:]]
    bank.save(tmp_path / "bank.safetensors")
    with pytest.raises(ConfigurationError, match=r"the concepts \['bread'\] are trained on and tested"):
        splits_of(tiny, *saved, *counts)
    bank.names["concept"], bank.directions["concept"] = bank.names["concept"][:5], bank.directions["concept"][:5]
    bank.names["concept_train"] = whole
    bank.save(tmp_path / "bank.safetensors")
    with pytest.raises(ConfigurationError, match="has 5 directions of 'concept'"):
        splits_of(tiny, *saved, *counts)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"tasks": {"localisation": TaskOptions(pairs=16)}}, "have 16 of 16 pairs"),
        ({"tasks": {"comparison": TaskOptions()}, "validation_trials": 60}, "Expected at least 64: 16 pairs of caches"),
        ({"tasks": {"comparison": TaskOptions(pairs=0)}}, "data.tasks.comparison.pairs: got 0"),
        ({"tasks": {"identification": TaskOptions()}, "trained_concepts": ["salt", "pepper"]}, "Expected at least 10"),
        (
            {"tasks": {"identification": TaskOptions()}, "concepts": ["apples", "salt", "war"]},
            "['apples'] are in data.concepts",
        ),
        (
            {"test_trials": {"identification": 8}, "concepts": ["a", "b", "c"]},
            "Expected 10 for the test set identification",
        ),
    ],
)
def test_what_does_not_go_is_refused(changes: dict[str, object], part: str) -> None:
    """Before a model is loaded."""
    if "tasks" in changes:
        changes = changes | {"tasks": {"detection": TaskOptions(questions=2), **changes["tasks"]}}  # type: ignore[dict-item]
    assert any(part in problem for problem in option_problems(DataOptions(**changes)))  # type: ignore[arg-type]


def test_visible_signals_need_tasks(refused: Callable[..., str]) -> None:
    """In a training; an adapter that was trained so can be tested without."""
    assert "data.control: got visible" in refused("--data.control", "visible")


def test_probes_see_clean_and_steered_caches(splits: dict[str, Split]) -> None:
    """The outside observers are fitted on pairs of a clean and a steered cache, whatever the tasks."""
    single = splits["train"].single_question()
    trials = [single.plan.trial(number) for number in range(64)]
    assert [trial.steered for trial in trials] == [False, True] * 32
    assert not any(trial.parts or trial.vectors for trial in trials)
    assert not isinstance(single.plan, MixedPlan)
