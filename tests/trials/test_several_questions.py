"""Several questions over one cache: each row equals the row alone; references are the untrained model's answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from project_paths import CONFIG
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from introspection_lit.cli import attach
from introspection_lit.models.architecture import find_decoder_layers
from introspection_lit.models.base_model import Lora
from introspection_lit.models.loading import add_lora
from introspection_lit.steering.prefill import prefill_mode, steered_cache
from introspection_lit.steering.question_pass import read_answers
from introspection_lit.steering.vector_bank import RANDOM_SPLITS, VectorBank, random_unit_vectors
from introspection_lit.tasks.scoring import task_losses
from introspection_lit.tasks.task import TaskOptions
from introspection_lit.training.experiment_setup import prepare
from introspection_lit.training.option_checks import option_problems
from introspection_lit.training.options import DataOptions
from introspection_lit.trials.batch import TrialBatch
from introspection_lit.trials.composed_plans import SeveralQuestionsPlan
from introspection_lit.trials.split import Split

TASKS = "{detection: {questions: 2}, factual: {weight: 2}, reading: {questions: 1}, plain_text: {questions: 0.5}}"
SETS = "{heldout: 8, codes: 16, facts: 16, facts_bare: 16, reading: 16}"
LAYERS, HIDDEN, EACH = 6, 32, 4


@pytest.fixture(scope="module")
def splits(tiny: Path, some_contexts: list[str]) -> dict[str, Split]:
    """The splits of a configuration with several tasks; no model is loaded."""
    sizes = ["--data.batch_size", "16", "--data.eval_batch_size", "16", "--data.validation_trials", "16"]
    options = ["--data.tasks", TASKS, "--data.test_trials", SETS, *sizes, *some_contexts]
    cli = attach(["--config", CONFIG, "--model.base.name_or_path", str(tiny), "--trainer.logger", "false", *options])
    return prepare(cli.datamodule.run).splits


def bank_for(hidden: int) -> VectorBank:
    """Random directions for a tiny model."""
    directions = {split: random_unit_vectors(4, hidden, 0, split) for split in RANDOM_SPLITS}
    names = {split: [f"{split}-{number}" for number in range(4)] for split in RANDOM_SPLITS}
    return VectorBank(directions, names, torch.linspace(3.0, 8.0, LAYERS), {})


@pytest.fixture(scope="module")
def bank() -> VectorBank:
    """Random directions for the usual tiny model."""
    return bank_for(HIDDEN)


def batch_of(splits: dict[str, Split], bank: VectorBank, pairs: int = 2) -> TrialBatch:
    """The first training batch."""
    split = splits["train"]
    return split.collate(split.plan.batch(0, 2 * EACH * pairs, split.lengths(), 2), bank)


def with_cache(model: PreTrainedModel, batch: TrialBatch) -> TrialBatch:
    """The batch with its steered caches."""
    layers = find_decoder_layers(model)
    batch.cache = steered_cache(model, model, layers, batch.context_ids, batch.context_mask, batch.intervention)
    return batch


def alone(model: PreTrainedModel, split: Split, bank: VectorBank, batch: TrialBatch, row: int) -> Tensor:
    """Logits of a row of a batch, asked alone over a cache of its own."""
    single = with_cache(model, split.collate([batch.trials[row]], bank))
    return read_answers(model, single)[0]


def test_each_row_equals_the_row_alone(family_model: PreTrainedModel, splits: dict[str, Split]) -> None:
    """On every family; the rows of a cache share one prefill."""
    bank = bank_for(family_model.config.hidden_size)
    model = add_lora(family_model, Lora()).eval()
    with torch.no_grad():
        for parameter in (p for name, p in model.named_parameters() if "lora_B" in name):
            torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(0))
        batch = with_cache(model, batch_of(splits, bank))
        together = read_answers(model, batch)
        assert len(batch.trials) == 4 * len(batch.context_ids) == 16
        for row in (0, 3, 5, 10, 15):
            torch.testing.assert_close(together[row], alone(model, splits["train"], bank, batch, row), atol=1e-4, rtol=0)


def test_references_are_the_untrained_models_answers(family_model: PreTrainedModel, splits: dict[str, Split]) -> None:
    """Against plain transformers reading the clean conversation in one pass; the same for the clean and the steered row."""
    split, bank = splits["train"], bank_for(family_model.config.hidden_size)
    with torch.no_grad():
        expected = {}
        batch = batch_of(splits, bank)
        references = batch.references
        assert references is not None
        for row, trial in enumerate(batch.trials):
            encoded = split.encoded_trial(trial)
            conversation = torch.tensor([encoded.context_ids + encoded.question_ids])
            expected[row] = family_model(conversation).logits[0, -1].log_softmax(-1)
        model = add_lora(family_model, Lora()).eval()
        with_cache(model, batch)
        asked = batch.select(range(len(references.cache_of)))
        asked.cache_of, asked.question_ids, asked.question_mask = (
            references.cache_of, references.question_ids, references.question_mask
        )  # fmt: skip
        with prefill_mode(model, adapter=False):
            found = read_answers(model, asked).log_softmax(-1)
    place = references.place.tolist()
    assert [number >= 0 for number in place] == [task in ("factual", "reading") for task in batch.tasks]
    assert len(found) == len(place) // 4  # a clean and a steered row share one
    for row, number in enumerate(place):
        if number >= 0:
            torch.testing.assert_close(found[number], expected[row], atol=1e-4, rtol=0)


def test_reference_of_a_steered_trial_alone_is_read_from_a_clean_cache(splits: dict[str, Split], bank: VectorBank) -> None:
    """A single trial brings the clean cache of its context along."""
    split = splits["train"]
    trial = next(split.plan.trial(number) for number in range(16) if split.query(split.plan.trial(number)).target is None)
    number = trial.number + EACH  # the same question over the steered cache
    batch = split.collate([split.plan.trial(number)], bank)
    assert batch.references is not None
    assert batch.labels.tolist() == [True]
    assert len(batch.context_ids) == 2
    assert batch.intervention.last[int(batch.references.cache_of[0])] == -1


def test_loss_is_the_weighted_sum_of_the_tasks_means(splits: dict[str, Split], bank: VectorBank) -> None:
    """And does not depend on how a step is cut into batches."""
    split = splits["train"]
    logits, parts = {}, []
    random = torch.Generator().manual_seed(3)
    vocabulary = len(split.tokenizer)

    def loss_of(batch: TrialBatch) -> Tensor:
        assert batch.references is not None
        assert batch.weights is not None
        keys = [(trial.context, trial.question, trial.steered) for trial in batch.trials]
        for key in keys:
            logits.setdefault(key, torch.randn(vocabulary, generator=random))
        rows = torch.stack([logits[key] for key in keys])
        first = [batch.references.place.tolist().index(number) for number in range(len(batch.references.cache_of))]
        reference = torch.stack([-logits[(keys[row][0], keys[row][1], False)] for row in first]).log_softmax(-1)
        losses = task_losses(rows, batch.answer_ids, batch.targets, reference, batch.references.place)
        by_task = {task: losses[[name == task for name in batch.tasks]].mean() for task in set(batch.tasks)}
        expected = by_task["detection"] + 2 * by_task["factual"] + by_task["reading"]
        torch.testing.assert_close((losses * batch.weights).sum(), expected)
        return expected

    lengths = split.lengths()
    whole = loss_of(split.collate(split.plan.batch(0, 32, lengths, 2), bank))
    for part in range(4):
        parts.append(loss_of(split.collate(split.plan.batch(0, 32, lengths, 2, (part, 4)), bank)))
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_texts_of_parts_weigh_as_much_as_those_of_the_whole(splits: dict[str, Split], bank: VectorBank) -> None:
    """A part without any text reads one that counts nothing, so that all processes make the same passes."""
    split, lengths = replace(splits["train"], same_passes=True), splits["train"].lengths()
    whole = split.collate(split.plan.batch(0, 64, lengths, 2), bank)
    parts = [split.collate(split.plan.batch(0, 64, lengths, 2, (part, 8)), bank) for part in range(8)]
    weights = {}
    for batch, share in [(whole, 1.0), *((part, 1 / 8) for part in parts)]:
        assert batch.texts is not None
        assert len(batch.texts.caches) > 0
        for cache, weight in zip(batch.texts.caches.tolist(), batch.texts.weights.tolist(), strict=True):
            assert batch.intervention.last[cache] == -1  # clean
            weights.setdefault(share, {})[batch.contexts[cache]] = weight * share
    counted = {context: weight for context, weight in weights[1 / 8].items() if weight}
    assert counted.keys() == weights[1.0].keys()
    for context, weight in weights[1.0].items():
        assert counted[context] == pytest.approx(weight)


def test_batches_hold_whole_pairs(splits: dict[str, Split]) -> None:
    """Every question of both caches, each trial once, and the context's number of trials in a row."""
    split = splits["train"]
    assert isinstance(split.plan, SeveralQuestionsPlan)
    batches = [split.plan.batch(number, 16, split.lengths(), 4) for number in range(4)]
    assert sorted(trial.number for batch in batches for trial in batch) == list(range(64))
    for batch in batches:
        for start in range(0, 16, 8):
            pair = batch[start : start + 8]
            assert len({trial.context for trial in pair}) == 1
            assert [trial.steered for trial in pair] == [False] * 4 + [True] * 4
            assert [trial.question for trial in pair] == [0, 1, 2, 3] * 2
            assert len({(trial.vector, trial.band, trial.strength) for trial in pair[4:]}) == 1


def test_test_sets_ask_for_words_that_training_does_not(splits: dict[str, Split]) -> None:
    """Facts and questions about the text in yes and no; detection in both orders of all words."""

    def words(name: str) -> set[tuple[str, ...]]:
        return {splits[name].query(splits[name].plan.trial(number)).answers.words for number in range(64)}

    assert {pair[::-1] for pair in words("codes")} == words("codes")
    assert words("codes") <= words("train")
    assert words("facts") == words("facts_bare") == words("reading") == {("yes", "no")}
    bare, asked = (splits[name].question_text(splits[name].plan.trial(0)) for name in ("facts_bare", "facts"))
    assert asked.startswith("Introspection query: ")
    assert not bare.startswith("Introspection")
    assert splits["heldout"].question_text(splits["heldout"].plan.trial(0)).startswith("Introspection query: ")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"batch_size": 12}, "data.batch_size: got 12. Expected a multiple of 8"),
        ({"eval_batch_size": 20}, "data.eval_batch_size: got 20. Expected a multiple of 8"),
        ({"batch_size": "auto"}, "data.effective_batch: got none"),
        ({"manifest": "trials.jsonl", "bank": "bank.safetensors"}, "data.manifest: lists single questions"),
        ({"prefill_adapter": True}, "data.prefill_adapter: got true with data.tasks"),
        ({"tasks": {"guessing": TaskOptions()}}, "'guessing' is no task"),
    ],
)
def test_what_does_not_go_with_tasks_is_refused(changes: dict[str, Any], part: str) -> None:
    """Before a model is loaded; the usual sizes go."""
    tasks = {"detection": TaskOptions(questions=2), "factual": TaskOptions(), "reading": TaskOptions()}
    assert any(part in problem for problem in option_problems(DataOptions(**{"tasks": tasks, **changes})))
    assert option_problems(DataOptions(tasks=tasks)) == []


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"test_trials": {"codes": 10}}, "data.test_trials.codes: got 10. Expected a multiple of 4"),
        ({"test_trials": {"facts": 8}, "eval_batch_size": 2}, "data.eval_batch_size: got 2. Expected a multiple of 4"),
    ],
)
def test_pairs_of_test_sets_are_whole(options: dict[str, Any], part: str) -> None:
    """Else a test would end in an error after all its trials; sets with one question have any even number."""
    assert any(part in problem for problem in option_problems(DataOptions(**options)))
    assert option_problems(DataOptions(test_trials={"heldout": 10, "codes": 12})) == []


def test_divergence_has_the_gradient_of_a_cross_entropy(splits: dict[str, Split]) -> None:
    """KL to a reference differs from the cross-entropy with it by a constant."""
    logits = torch.randn(3, 20, generator=torch.Generator().manual_seed(0), requires_grad=True)
    reference = torch.randn(3, 20, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    place = torch.arange(3)
    losses = task_losses(logits, torch.zeros(3, 2, dtype=torch.long), torch.full((3,), -1), reference, place)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    (expected,) = torch.autograd.grad(functional.cross_entropy(logits, reference.exp(), reduction="sum"), logits)
    torch.testing.assert_close(gradient, expected)
