"""The early loss: the answer in plain words at the question mark, before the answer words are named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from project_paths import CONFIG
from torch.nn import functional

from introspection_lit.cli import attach
from introspection_lit.models.architecture import find_decoder_layers
from introspection_lit.models.base_model import BaseModel, Lora
from introspection_lit.models.loading import add_lora, load_model
from introspection_lit.steering.prefill import steered_cache
from introspection_lit.steering.question_pass import answer_positions, read_answers, read_positions
from introspection_lit.steering.vector_bank import RANDOM_SPLITS, VectorBank, random_unit_vectors
from introspection_lit.tasks.scoring import kl_divergence
from introspection_lit.training.experiment_setup import prepare
from introspection_lit.training.losses import EARLY, batch_loss
from introspection_lit.trials.batch import TrialBatch
from introspection_lit.trials.split import Split

OWN = "localisation: {pairs: 4, early: 0.5}, comparison: {pairs: 2, early: 0.5}, identification: {pairs: 2, early: 0.5}"
TASKS = f"{{detection: {{questions: 2, early: 0.5}}, factual: {{early: 0.25}}, reading: {{}}, {OWN}}}"
EACH, LAYERS = 4, 6


def splits_of(tiny: Path, *options: str) -> dict[str, Split]:
    """The splits of a configuration; no model is loaded."""
    sizes = ["--data.batch_size", "16", "--data.eval_batch_size", "16", "--data.validation_trials", "128"]
    words = ["--data.tasks", TASKS, "--data.test_trials", "{codes: 16}", *sizes, *options]
    cli = attach(["--config", CONFIG, "--model.base.name_or_path", str(tiny), "--trainer.logger", "false", *words])
    return prepare(cli.datamodule.run).splits


@pytest.fixture(scope="module")
def splits(tiny: Path) -> dict[str, Split]:
    """Splits with early losses on all tasks but reading."""
    return splits_of(tiny)


def bank_for(split: Split, hidden: int) -> VectorBank:
    """Random directions for a tiny model."""
    directions = {name: random_unit_vectors(4, hidden, 0, name) for name in RANDOM_SPLITS}
    assert split.questionnaire is not None
    directions["concept_train"] = random_unit_vectors(len(split.questionnaire.concepts), hidden, 0, "concepts")
    names = {name: [f"{name}-{number}" for number in range(len(rows))] for name, rows in directions.items()}
    return VectorBank(directions, names, torch.linspace(3.0, 8.0, LAYERS), {})


def batch_of(split: Split, bank: VectorBank) -> TrialBatch:
    """A batch with all kinds of pairs."""
    return split.collate(split.plan.batch(0, 2 * EACH * 16, split.lengths(), 1), bank)


@pytest.mark.parametrize("info", ["none", "neutral"])
def test_mark_is_the_question_mark(splits: dict[str, Split], tiny: Path, info: str) -> None:
    """Of the question, not of a text before it; what follows it are the answer words."""
    split = splits["train"] if info == "none" else splits_of(tiny, "--data.info", info)["train"]
    for number in range(2 * EACH * 16):
        trial = split.plan.trial(number)
        query, encoded = split.query(trial), split.encoded_trial(trial)
        if not query.early:
            assert query.task == "reading"
            assert encoded.mark == -1
            continue
        until = split.tokenizer.decode(encoded.question_ids[: encoded.mark + 1])
        asked = query.text[: query.asked]
        assert asked.endswith("?")
        assert until.replace(" ", "").endswith(asked.replace(" ", ""))
        assert split.tokenizer.decode(encoded.question_ids[: encoded.mark]).rstrip() != until


def test_plain_words_say_what_was_done(splits: dict[str, Split]) -> None:
    """Yes and no, first and second, the line's number, the concept; whatever the answer words."""
    split = splits["train"]
    batch = batch_of(split, bank_for(split, 32))
    assert batch.early is not None
    seen = set()
    for row, trial in enumerate(batch.trials):
        query, token = split.query(trial), int(batch.early.tokens[row])
        if query.target is None:
            assert token == -1
            continue
        word = split.tokenizer.decode([token]).strip()
        meaning = query.meanings[query.target].split() if query.meanings else [("yes", "no")[query.target]]
        assert meaning[0 if query.task != "localisation" or len(query.meanings) == 2 else 1].startswith(word)
        seen.add(query.task)
    assert seen == {"detection", "localisation", "comparison", "identification"}
    factors = dict(zip(batch.tasks, batch.early.factors.tolist(), strict=True))
    assert (factors["detection"], factors["factual"], factors["reading"]) == (0.5, 0.25, 0)


def test_loss_adds_what_is_predicted_at_the_marks(tiny: Path, splits: dict[str, Split]) -> None:
    """Against logits read row by row; the answers' own loss is as without it."""
    split = splits["train"]
    bank = bank_for(split, 32)
    model = add_lora(load_model(BaseModel(str(tiny))), Lora()).eval()
    layers = find_decoder_layers(model)
    batch = batch_of(split, bank)
    early, references = batch.early, batch.references
    assert early is not None
    assert references is not None
    assert batch.weights is not None
    batch.texts = None
    with torch.no_grad():
        batch.cache = steered_cache(model, model, layers, batch.context_ids, batch.context_mask, batch.intervention)
        both = read_positions(model, batch, torch.stack([answer_positions(batch), early.marks], dim=1))
        torch.testing.assert_close(both[:, 0], read_answers(model, batch))
        random = torch.Generator().manual_seed(0)
        size = (len(references.cache_of), both.shape[-1])
        references.log_probabilities = torch.randn(size, generator=random).log_softmax(-1)
        references.early_log_probabilities = torch.randn(size, generator=random).log_softmax(-1)
        with_early, parts = batch_loss(model, batch, both[:, 0], "full", both[:, 1])
        batch.early = None
        without, _ = batch_loss(model, batch, both[:, 0], "full")
    expected = torch.zeros(())
    for row, query in enumerate(map(split.query, batch.trials)):
        if query.plain >= 0:
            part = functional.cross_entropy(both[row, 1][None], torch.tensor([query.plain]))
        else:
            part = kl_divergence(both[row, 1], references.early_log_probabilities[references.place[row]])
        expected += query.early * batch.weights[row] * part
    torch.testing.assert_close(with_early - without, expected)
    torch.testing.assert_close(parts[EARLY], expected)


def test_only_training_has_it(splits: dict[str, Split]) -> None:
    """Checkpoints are chosen by the answers alone."""
    bank = bank_for(splits["train"], 32)
    assert batch_of(splits["train"], bank).early is not None
    assert batch_of(splits["validation"], bank).early is None
    assert splits["codes"].query(splits["codes"].plan.trial(0)).early == 0
