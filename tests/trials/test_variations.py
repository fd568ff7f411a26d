"""Test sets that vary one thing: sign, positions, odd texts, swapped answers, questions about the world."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from project_paths import CONFIG
from transformers import AutoModelForCausalLM

from introspection_lit.cli import attach
from introspection_lit.contexts.context import BUILTIN, exchange, fingerprint
from introspection_lit.contexts.loading import load_contexts
from introspection_lit.contexts.odd_text import ODD
from introspection_lit.contexts.splits import mix_by_kind, odd_contexts, split_contexts
from introspection_lit.evaluation.metrics import summarise
from introspection_lit.evaluation.trial_table import PLAIN_SETS, USUAL_SETS
from introspection_lit.models.architecture import find_decoder_layers
from introspection_lit.models.base_model import Lora
from introspection_lit.models.loading import add_lora
from introspection_lit.steering.prefill import steered_cache
from introspection_lit.steering.vector_bank import RANDOM_SPLITS, VectorBank, random_unit_vectors
from introspection_lit.tasks.questions import FALSE_QUESTIONS, QUESTION, TRUE_QUESTIONS
from introspection_lit.tasks.scoring import log_odds
from introspection_lit.training.experiment_setup import prepare
from introspection_lit.training.options import TEST_KINDS, VALIDATION_KINDS
from introspection_lit.trials.grid import CLEAR_NO, CLEAR_YES
from introspection_lit.trials.interventions import steered_positions
from introspection_lit.trials.split import Split
from introspection_lit.trials.test_sets import SOURCES
from introspection_lit.trials.trial import Trial
from introspection_lit.utils.errors import ConfigurationError

SETS = "{seen: 40, heldout: 40, flipped: 40, scattered: 40, vanishing: 40, odd: 40, swapped: 40, factual: 40}"
LAYERS, HIDDEN = 6, 32


def prepared(tiny: Path, *options: str) -> dict[str, Split]:
    """The splits of a configuration, checked; no model is loaded."""
    cli = attach(["--config", CONFIG, "--model.base.name_or_path", str(tiny), "--trainer.logger", "false", *options])
    return prepare(cli.datamodule.run).splits


@pytest.fixture(scope="module")
def splits(tiny: Path) -> dict[str, Split]:
    """All variations, and the sets that they vary."""
    return prepared(tiny, "--data.test_trials", SETS)


@pytest.fixture(scope="module")
def bank() -> VectorBank:
    """Random directions for the tiny model."""
    directions = {split: random_unit_vectors(4, HIDDEN, 0, split) for split in RANDOM_SPLITS}
    names = {split: [f"{split}-{number}" for number in range(4)] for split in RANDOM_SPLITS}
    return VectorBank(directions, names, torch.linspace(3.0, 8.0, LAYERS), {})


def test_flipped_adds_minus_what_seen_adds(splits: dict[str, Split], bank: VectorBank) -> None:
    """Trial by trial, at every layer and token; nothing else of the batch differs."""
    trials = [splits["seen"].plan.trial(number) for number in range(12)]
    plain = splits["seen"].collate(trials, bank)
    flipped = splits["flipped"].collate([trial._replace(split="flipped") for trial in trials], bank)
    for layer in range(LAYERS):
        added = plain.intervention.addition(layer)
        assert torch.equal(flipped.intervention.addition(layer), -added)
    assert plain.intervention.scale.gt(0).any(1).tolist() == plain.labels.tolist()
    for name in ("context_ids", "context_mask", "question_ids", "labels", "inputs", "answer_ids"):
        assert torch.equal(getattr(plain, name), getattr(flipped, name)), name
    assert splits["flipped"].contexts == splits["seen"].contexts


def test_vanishing_is_held_out_steering_that_changes_the_last_bits_alone(
    splits: dict[str, Split], bank: VectorBank
) -> None:
    """Its trials are those of ``heldout`` at 1e-6, and no set that counts detections has them among its own."""
    trials = [[splits[name].plan.trial(number) for number in range(40)] for name in ("vanishing", "heldout")]
    assert [trial.strength for trial in trials[0]] == pytest.approx([1e-6 * trial.steered for trial in trials[0]])
    assert splits["vanishing"].contexts == splits["heldout"].contexts
    assert splits["vanishing"].source.vectors == splits["heldout"].source.vectors
    assert "vanishing" not in (*PLAIN_SETS, *USUAL_SETS)
    batch = splits["vanishing"].collate(trials[0], bank)
    assert (batch.intervention.scale.sum(dim=1) > 0).tolist() == batch.labels.tolist()
    assert (batch.intervention.scale <= 1e-6 * bank.residual_norms).all()


def test_scattered_steers_its_share_of_the_tokens(splits: dict[str, Split], bank: VectorBank) -> None:
    """round(share x tokens) of each row, never padding; the same again; other tokens in another trial or seed."""
    split = splits["scattered"]
    trials = [split.plan.trial(number) for number in range(20)]
    batch = split.collate(trials, bank)
    positions, mask = batch.intervention.positions, batch.context_mask.bool()
    assert batch.cache_of is None
    assert mask.sum(1).unique().numel() > 1  # so there is padding
    assert not (positions & ~mask).any()
    assert positions.sum(1).tolist() == [max(1, round(0.5 * int(tokens))) for tokens in mask.sum(1)]
    assert torch.equal(positions, split.collate(trials, bank).intervention.positions)
    third = replace(split, source=replace(split.source, positions=0.3), _encoded={}, _lengths=[])
    drawn = third.collate(trials, bank).intervention.positions
    assert drawn.sum(1).tolist() == [max(1, round(0.3 * int(tokens))) for tokens in mask.sum(1)]
    other = replace(split, seed=1, _encoded={}, _lengths=[]).collate(trials, bank).intervention.positions
    assert not torch.equal(other, positions)
    # Which batch a trial is in, and how far it is padded, does not matter.
    for row in (1, 7):
        alone = split.collate([trials[row]], bank).intervention.positions[0]
        assert torch.equal(alone, positions[row, -len(alone) :])


def test_scattered_trials_of_one_context_have_tokens_and_caches_of_their_own(
    splits: dict[str, Split], bank: VectorBank
) -> None:
    """Even where context, direction, band and strength are the same; clean ones share a cache, as nothing is added."""
    steered = splits["scattered"].plan.trial(1)
    trials = [steered, steered._replace(number=3), steered._replace(number=5)]
    batch = splits["scattered"].collate(trials, bank)
    assert len(batch.context_ids) == 3
    assert len({tuple(row) for row in batch.intervention.positions.tolist()}) == 3
    clean = splits["scattered"].plan.trial(0)
    shared = splits["scattered"].collate([clean, clean._replace(number=2)], bank)
    assert len(shared.context_ids) == 1
    everywhere = splits["heldout"].collate(trials, bank)
    assert len(everywhere.context_ids) == 1


def test_scattered_cache_equals_plain_transformers_with_hooks_at_those_tokens(
    splits: dict[str, Split], bank: VectorBank, tiny: Path
) -> None:
    """Every key and value, against an unpadded run of the base model that adds the direction token by token."""
    split = splits["scattered"]
    trials = [split.plan.trial(number) for number in (1, 3, 4)]
    batch = split.collate(trials, bank)
    base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    peft = add_lora(AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32), Lora()).eval()
    cache = steered_cache(peft, peft, find_decoder_layers(peft), batch.context_ids, batch.context_mask, batch.intervention)
    for row, trial in enumerate(trials):
        tokens = split.encoded(trial.context, trial.question).context_ids
        chosen = batch.intervention.positions[row, -len(tokens) :].nonzero()[:, 0].tolist()
        assert 0 < len(chosen) < len(tokens)
        handles = []
        if trial.steered:
            first, last = trial.band
            width = min(last, LAYERS - 2) - first + 1
            for layer in range(first, last + 1):
                length = trial.strength * float(bank.residual_norms[layer]) / width**0.5

                def add(_, __, output, length=length, trial=trial, chosen=chosen):
                    hidden = (output[0] if isinstance(output, tuple) else output).clone()
                    for place in chosen:
                        hidden[0, place] += length * bank.directions["heldout"][trial.vector]
                    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

                handles.append(base.model.layers[layer].register_forward_hook(add))
        with torch.no_grad():
            alone = base(torch.tensor([tokens]), use_cache=True).past_key_values
        for handle in handles:
            handle.remove()
        for ours, theirs in zip(cache.layers, alone.layers, strict=True):
            torch.testing.assert_close(ours.keys[row, :, -len(tokens) :], theirs.keys[0], atol=2e-4, rtol=1e-4)
            torch.testing.assert_close(ours.values[row, :, -len(tokens) :], theirs.values[0], atol=2e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def dealt() -> SimpleNamespace:
    """The built-in contexts by split, and the odd ones, for three seeds."""
    contexts = load_contexts(BUILTIN)
    parts = [split_contexts(contexts, seed, VALIDATION_KINDS, TEST_KINDS) for seed in range(3)]
    return SimpleNamespace(parts=parts, odd=[odd_contexts(part["heldout"], seed) for seed, part in enumerate(parts)])


def test_odd_contexts_are_clean_texts_made_odd(dealt: SimpleNamespace) -> None:
    """Every way is there, most contexts in each; none equals a context as it was, and none has been trained on."""
    for part, odd in zip(dealt.parts, dealt.odd, strict=True):
        ways = Counter(context.kind for context in odd)
        assert set(ways) == {f"odd: {how}" for how in ODD}
        assert min(ways.values()) > 0.7 * len(part["heldout"])
        everything = {context.key for contexts in part.values() for context in contexts}
        assert not everything & {context.key for context in odd}
        trained = {fingerprint(context.user) for name in ("train", "validation") for context in part[name]}
        assert not trained & {fingerprint(context.user) for context in odd}
        assert len({context.key for context in odd}) == len(odd)


def test_odd_contexts_are_the_same_again_and_others_with_another_seed(dealt: SimpleNamespace) -> None:
    """A function of context and seed; roles stay as they are."""
    heldout = dealt.parts[0]["heldout"]
    assert odd_contexts(heldout, 0) == dealt.odd[0]
    assert odd_contexts(heldout[5:6], 0) == [c for c in dealt.odd[0] if c in odd_contexts(heldout[5:6], 0)]
    assert odd_contexts(heldout, 1) != dealt.odd[0]
    assert all([turn.role for turn in context.turns] == ["user", "assistant"] for context in dealt.odd[0])


def test_a_text_that_cannot_be_made_odd_is_left_out() -> None:
    """Numbers have no letters: only punctuation can be repeated."""
    assert {context.kind for context in odd_contexts([exchange("sums", "1 2", "3 4")], 0)} <= {"odd: repeated punctuation"}


def test_odd_set_asks_the_question_of_the_training(splits: dict[str, Split], bank: VectorBank) -> None:
    """Only the contexts differ from ``heldout``; its kinds say in what way."""
    odd = splits["odd"]
    assert odd.questions == splits["train"].questions
    assert {context.kind for context in odd.contexts} <= {f"odd: {how}" for how in ODD}
    row = odd.describe(odd.plan.trial(1), bank)
    assert (row["vectors"], row["role"]) == ("heldout", "detection")


def test_swapped_asks_for_the_other_word(splits: dict[str, Split], bank: VectorBank) -> None:
    """Answer tokens change places, and the question says so: the first word that it names means "steered"."""
    plain, swapped = splits["heldout"], splits["swapped"]
    assert swapped.answer_ids == plain.answer_ids[::-1]
    assert swapped.phrasing == replace(plain.phrasing, answers=("no", "yes"))
    assert len(swapped.questions) == 1
    asked = swapped.questions[0]
    assert asked.split("?")[0] == QUESTION.split("?")[0]
    explanation = asked.split("?")[1]
    assert explanation.index("no if so") < explanation.index("yes if not")
    text = swapped.tokenizer.decode(swapped.encoded(0, 0).question_ids)
    assert asked in text
    assert text.endswith(plain.phrasing.answer_prefix)
    trial = swapped.plan.trial(1)
    assert swapped.collate([trial], bank).answer_ids.tolist() == [list(swapped.answer_ids)]
    assert swapped.collate([trial], bank).labels.tolist() == [True]


def test_a_model_that_always_says_the_same_word_gets_minus_its_log_odds(splits: dict[str, Split], bank: VectorBank) -> None:
    """Its TPR under the swapped code is what it did not say under the plain one: such a model cannot pass both."""
    logits = torch.zeros(40, 900)
    logits[:, splits["heldout"].answer_ids[0]] = 3.0  # always yes
    scores = {}
    for name in ("heldout", "swapped"):
        batch = splits[name].collate([splits[name].plan.trial(number) for number in range(40)], bank)
        scores[name] = log_odds(logits, batch.answer_ids)
        inputs = torch.arange(40)
        summary = summarise(scores[name], batch.labels, torch.ones(40), inputs, 0.0)
        assert (summary["tpr"], summary["fpr"]) == ((1.0, 1.0) if name == "heldout" else (0.0, 0.0))
    assert torch.equal(scores["swapped"], -scores["heldout"])


def test_swapped_in_words_of_the_experiments_own(tiny: Path) -> None:
    """``{yes}`` and ``{no}`` change places in questions of the user's own, too."""
    options = ["--data.questions", '["Steered? Say {yes} or else {no}."]', "--data.test_trials", "{heldout: 8, swapped: 8}"]
    splits = prepared(tiny, *options)
    assert splits["heldout"].questions == ["Steered? Say yes or else no."]
    assert splits["swapped"].questions == ["Steered? Say no or else yes."]


def test_swapped_needs_a_question_that_names_the_answers(tiny: Path) -> None:
    """Else the same question would be asked with the labels the other way round, and its test refused as a leak."""
    options = ["--data.questions", '["Steered? Say yes or no."]', "--data.test_trials", "{heldout: 8, swapped: 8}"]
    with pytest.raises(ConfigurationError, match="swapped"):
        prepared(tiny, *options)


def test_factual_asks_about_the_world(splits: dict[str, Split], bank: VectorBank) -> None:
    """Two questions whose answer is yes and two whose answer is no, each as often; steered half of the time."""
    factual = splits["factual"]
    rows = [factual.describe(factual.plan.trial(number), bank) for number in range(40)]
    texts = {
        text.replace("{yes}", "yes").replace("{no}", "no"): role
        for questions, role in ((TRUE_QUESTIONS, CLEAR_YES), (FALSE_QUESTIONS, CLEAR_NO))
        for text in questions
    }
    assert {row["question_text"]: row["role"] for row in rows} == texts
    assert set(Counter(row["question_text"] for row in rows if row["steered"]).values()) == {5}
    assert set(Counter(row["question_text"] for row in rows if not row["steered"]).values()) == {5}
    assert factual.answer_ids == splits["heldout"].answer_ids
    for text in texts:
        assert text in {factual.question_text(factual.plan.trial(number)) for number in range(40)}


def test_variations_use_contexts_and_vectors_that_were_not_trained_on(splits: dict[str, Split]) -> None:
    """All but ``flipped``, which is about the training's directions."""
    trained = {fingerprint(c.user) for name in ("train", "validation") for c in splits[name].contexts}
    for name in ("flipped", "scattered", "odd", "swapped", "factual"):
        assert not trained & {fingerprint(context.user) for context in splits[name].contexts}
        assert (SOURCES[name].vectors == "train") == (name == "flipped")


def test_mixed_takes_six_of_a_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """More if kinds are few; no context comes twice, also where two splits are the same contexts."""
    first = [exchange(f"kind {k}", f"{k} {n}", "x") for k in range(3) for n in range(9)]
    second = [exchange(f"kind {k}", f"{k} {n}", "x") for k in range(3, 5) for n in range(4)]
    assert len(mix_by_kind([first, second])) == len(first) + len(second)
    monkeypatch.setattr("introspection_lit.contexts.splits.MIXED", 0)
    made = mix_by_kind([first, second])
    assert Counter(context.kind for context in made) == {f"kind {k}": 6 if k < 3 else 4 for k in range(5)}
    again = mix_by_kind([second, second])  # as with data.test_contexts
    assert len({context.key for context in again}) == len(again)


def test_scattered_share_of_one_token() -> None:
    """At least one token is steered: a steered trial without any would be a clean one."""
    mask = torch.tensor([[0, 0, 1, 1, 1]])
    trials = [Trial("scattered", number, 0, 0, True) for number in range(30)]
    drawn = [steered_positions([trial], mask, 0.01, list, 0)[0] for trial in trials]
    assert all(positions.sum() == 1 for positions in drawn)
    assert {int(positions.nonzero()[0]) for positions in drawn} == {2, 3, 4}
