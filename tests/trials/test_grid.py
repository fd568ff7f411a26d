"""Grids: every combination once, and shared caches that change nothing."""

from __future__ import annotations

from collections import Counter
from itertools import product
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from introspection_lit.contexts.context import BUILTIN
from introspection_lit.contexts.conversations import Phrasing
from introspection_lit.contexts.loading import load_contexts
from introspection_lit.models.architecture import find_decoder_layers
from introspection_lit.models.base_model import Lora
from introspection_lit.models.loading import add_lora
from introspection_lit.steering.prefill import steered_cache
from introspection_lit.steering.vector_bank import RANDOM_SPLITS, VectorBank, random_unit_vectors
from introspection_lit.tools.baseline import AnswerScore, average_directions, compare_directions
from introspection_lit.training.module import IntrospectionModule
from introspection_lit.trials.grid import Grid, GridPlan
from introspection_lit.trials.split import Split
from introspection_lit.trials.test_sets import Source


def test_every_combination_comes_once() -> None:
    """Contexts, questions, clean and each vector in each band at each strength; then from the beginning."""
    plan = GridPlan("grid/none/heldout", 3, 2, 4, ((0, 1), (2, 4)), (0.5, 1.0, 2.0))
    trials = [plan.trial(number) for number in range(plan.total)]
    steered = Counter((t.context, t.question, t.vector, t.band, t.strength) for t in trials if t.steered)
    assert set(steered) == set(product(range(3), range(2), range(4), ((0, 1), (2, 4)), (0.5, 1.0, 2.0)))
    assert set(steered.values()) == {1}
    assert Counter((t.context, t.question) for t in trials if not t.steered) == Counter(product(range(3), range(2)))
    assert plan.trial(plan.total)[2:] == trials[0][2:]
    assert plan.strengths == (0.5, 2.0)


def test_shared_caches_and_leads_change_no_score(
    family_model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Questions asked of one cache, a long text before them read once: the scores of each trial on its own."""
    hidden, layers = family_model.config.hidden_size, family_model.config.num_hidden_layers
    directions = {split: random_unit_vectors(3, hidden, 0, split) for split in RANDOM_SPLITS}
    names = {split: [f"{split}-{i}" for i in range(3)] for split in RANDOM_SPLITS}
    bank = VectorBank(directions, names, torch.full((layers,), 4.0), {})
    module = IntrospectionModule()
    module.model = add_lora(family_model, Lora()).eval()
    module.layers = find_decoder_layers(module.model)
    contexts = load_contexts(BUILTIN)[::500]
    questions = ["Did it?", "Is ice made of water or of stone?", "Is it?"]
    phrasing = Phrasing(info="Some words about how bread is made, as a text before the question.")
    plan = GridPlan("grid/x/heldout", len(contexts), len(questions), 3, ((0, 2), (2, 4)), (2.0,))
    source, ids = Source("heldout", "all"), (5, 6)
    asked = (contexts, questions, tokenizer, phrasing, ids)
    split = Split("grid/x/heldout", plan, *asked, "relative", source, share_question_prefix=True)

    def scores(numbers: range) -> torch.Tensor:
        batch = split.collate([plan.trial(number) for number in numbers], bank)
        batch.cache = steered_cache(
            module.model, module.model, module.layers, batch.context_ids, batch.context_mask, batch.intervention
        )
        with torch.no_grad():
            return module.answer_logits(batch)

    together = scores(range(20))
    batch = split.collate([plan.trial(number) for number in range(20)], bank)
    assert batch.cache_of is not None
    assert batch.question_prefix_ids is not None
    assert len(batch.context_ids) == 7
    assert len(batch.question_prefix_ids) > 10
    for number in range(20):
        torch.testing.assert_close(together[number], scores(range(number, number + 1))[0], atol=2e-4, rtol=1e-4)
    assert not torch.allclose(together[0], together[3], atol=1e-3)  # clean and steered differ


def row(steered: bool, context: int, log_odds: float, mass: float, vector: str | None = None) -> dict:
    """A row of predictions."""
    named = {"split": "grid/none/concept", "role": "detection", "question_text": "Did it?", "vectors": "concept"}
    return named | {
        "steered": steered,
        "context": context,
        "log_odds": log_odds,
        "mass": mass,
        "band": [2, 4] if steered else [-1, -1],
        "strength": 1.0 if steered else 0.0,
        "vector_name": vector,
    }


def test_comparison_by_hand() -> None:
    """Two contexts, one direction: probabilities, shifts and AUROC worked out by hand."""
    rows = [
        row(False, 0, 0.0, 0.5),
        row(False, 1, 0.0, 1.0),
        row(True, 0, 0.0, 0.5, "bread"),
        row(True, 1, 1.0, 1.0, "bread"),
    ]
    (bread,) = compare_directions(rows)
    assert (bread["vector"], bread["band"], bread["n"]) == ("bread", [2, 4], 2)
    assert bread["p_yes_clean"] == pytest.approx((0.25 + 0.5) / 2)
    assert bread["p_yes_steered"] == pytest.approx((0.25 + 0.7310586) / 2)
    assert bread["p_no_shift"] == pytest.approx((0.2689414 - 0.5) / 2)
    assert bread["log_odds_shift"] == pytest.approx(0.5)
    assert bread["auroc"] == pytest.approx(0.75)  # one tie, one win, against either
    cats = [row(True, 0, -1.0, 0.5, "cats"), row(True, 1, -1.0, 1.0, "cats")]
    (mean,) = average_directions(compare_directions([*rows, *cats]))
    assert (mean["directions"], mean["auroc_lowest"], mean["auroc_highest"]) == (2, 0.0, 0.75)
    assert mean["log_odds_shift"] == pytest.approx(-0.25)


def test_probabilities_of_extreme_scores() -> None:
    """No overflow; the two probabilities add up to the mass."""
    for log_odds in (-1e4, -3.0, 0.0, 3.0, 1e4):
        answer = AnswerScore(log_odds, 0.8)
        assert answer.p_yes + answer.p_no == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (Grid(strengths=[0.0]), "data.grid.strengths"),
        (Grid(strengths=[]), "data.grid.strengths"),
        (Grid(contexts=0), "Expected at least one context"),
        (Grid(vectors=["bread"]), "'bread' is none of"),
        (Grid(info=[]), "Expected at least one context"),
    ],
)
def test_bad_grids(grid: Grid, message: str) -> None:
    """Each fault is named."""
    assert message in "\n".join(grid.problems())
    assert Grid().problems() == []
