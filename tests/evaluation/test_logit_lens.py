"""The logit lens: its last layer is the model's answer, and it leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from introspection_lit.contexts.context import BUILTIN
from introspection_lit.contexts.conversations import Phrasing
from introspection_lit.contexts.loading import load_contexts
from introspection_lit.evaluation.logit_lens import log_odds_by_layer
from introspection_lit.models.architecture import find_decoder_layers, find_head
from introspection_lit.models.base_model import Lora
from introspection_lit.models.loading import add_lora
from introspection_lit.steering.caches import fork
from introspection_lit.steering.prefill import position_ids, steered_cache
from introspection_lit.steering.vector_bank import RANDOM_SPLITS, VectorBank, random_unit_vectors
from introspection_lit.tasks.scoring import log_odds
from introspection_lit.training.module import IntrospectionModule
from introspection_lit.trials.batch import TrialBatch
from introspection_lit.trials.plans import TrialPlan
from introspection_lit.trials.split import Split
from introspection_lit.trials.test_sets import Source

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}


def asked(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, contexts: int = 6) -> tuple:
    """A module with an adapter that does something, and a batch of eight trials with its cache."""
    layers, hidden = model.config.num_hidden_layers, model.config.hidden_size
    directions = {split: random_unit_vectors(3, hidden, 0, split) for split in RANDOM_SPLITS}
    names = {split: [str(number) for number in range(3)] for split in RANDOM_SPLITS}
    bank = VectorBank(directions, names, torch.full((layers,), 4.0), {})
    module = IntrospectionModule()
    module.model = add_lora(model, Lora()).eval()
    with torch.no_grad():
        for name, parameter in module.model.named_parameters():
            if "lora_" in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    module.layers = find_decoder_layers(module.model)
    texts = load_contexts(BUILTIN)[::150][:contexts]
    questions = ["Did it?", "Is ice made of water, or rather of stone?"]
    plan = TrialPlan(0, "heldout", len(texts), 2, 3, ((0, 2),), (1.0, 2.0))
    source = Source("heldout", "heldout")
    split = Split(
        "heldout", plan, texts, questions, tokenizer, Phrasing(), (5, 6), "relative", source, share_question_prefix=True
    )
    batch = split.collate([plan.trial(number) for number in range(8)], bank)
    batch.cache = steered_cache(
        module.model, module.model, module.layers, batch.context_ids, batch.context_mask, batch.intervention
    )
    return module, batch


def scores_of(module: IntrospectionModule, batch: TrialBatch) -> torch.Tensor:
    """What the model says itself."""
    with torch.no_grad():
        return log_odds(module.answer_logits(batch), batch.answer_ids)


def test_last_layer_is_the_models_answer(family_model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """For every family and NF4, in a padded batch; layers below say something else, and the cache can be asked again."""
    module, batch = asked(family_model, tokenizer)
    assert batch.question_mask.sum(1).unique().numel() > 1
    before = scores_of(module, batch)
    found = log_odds_by_layer(module, batch)
    assert found.shape == (6, 8)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    torch.testing.assert_close(found[-1], before, atol=1e-4, rtol=0)
    assert (found[:-1] - before).abs().max() > 0.01
    assert torch.equal(scores_of(module, batch), before)


def test_each_layer_equals_hidden_states_of_plain_transformers(
    family_model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    """The norm and the head on the states that transformers itself gives out (layer i's output is state i + 1)."""
    module, batch = asked(family_model, tokenizer)
    found = log_odds_by_layer(module, batch)
    mask = torch.cat([batch.context_mask, batch.question_mask], dim=1)
    with torch.no_grad():
        outputs = module.model(
            input_ids=batch.question_ids,
            attention_mask=mask,
            position_ids=position_ids(mask)[:, batch.context_mask.shape[1] :],
            past_key_values=fork(batch.cache),
            output_hidden_states=True,
        )
        norm, head = find_head(module.model)
        for layer in range(5):  # the last state is normed already
            states = outputs.hidden_states[layer + 1][torch.arange(8), batch.question_mask.sum(1) - 1]
            expected = log_odds(head(norm(states)), batch.answer_ids)
            torch.testing.assert_close(found[layer], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("config", [Gemma2Config, GraniteConfig, CohereConfig], ids=lambda config: config.__name__)
def test_models_that_scale_or_cap_their_logits(config: type, tokenizer: PreTrainedTokenizerFast) -> None:
    """What comes after the head belongs to the answer, or such a model is refused."""
    torch.manual_seed(0)
    special = {"final_logit_softcapping": 2.0, "logits_scaling": 8.0, "logit_scale": 0.0625}
    known = {name: value for name, value in special.items() if hasattr(config(), name)}
    model = AutoModelForCausalLM.from_config(config(**SIZES, vocab_size=len(tokenizer), **known)).eval()
    model.requires_grad_(False)
    module, batch = asked(model, tokenizer)
    try:
        found = log_odds_by_layer(module, batch)
    except ValueError:
        return
    torch.testing.assert_close(found[-1], scores_of(module, batch), atol=1e-4, rtol=0)


def test_rows_that_share_a_cache(family_model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Clean trials of one context share a cache and the beginning of their questions: as soon as contexts come again."""
    module, batch = asked(family_model, tokenizer, contexts=2)
    assert batch.cache_of is not None
    assert batch.question_prefix_ids is not None
    torch.testing.assert_close(log_odds_by_layer(module, batch)[-1], scores_of(module, batch), atol=1e-4, rtol=0)


def test_hooks_are_gone_afterwards(
    family_model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a normal end, and after an exception inside the model."""
    module, batch = asked(family_model, tokenizer)
    log_odds_by_layer(module, batch)
    assert not any(layer._forward_hooks for layer in module.layers)

    def broken(_: TrialBatch) -> None:
        assert all(layer._forward_hooks for layer in module.layers)
        raise RuntimeError("boom")

    monkeypatch.setattr(module, "answer_logits", broken)
    with pytest.raises(RuntimeError, match="boom"):
        log_odds_by_layer(module, batch)
    assert not any(layer._forward_hooks for layer in module.layers)


def test_a_model_without_a_known_norm_is_refused(tiny: Path) -> None:
    """By name, before anything runs."""
    model = AutoModelForCausalLM.from_pretrained(tiny)
    norm, head = find_head(add_lora(model, Lora()))
    assert norm is model.model.norm
    assert head is model.lm_head
    model.model.last_norm = model.model._modules.pop("norm")
    with pytest.raises(ValueError, match="Qwen2ForCausalLM were not found"):
        find_head(model)
