"""Side effects of an adapter, against plain transformers asked one text at a time."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from project_paths import ROOT
from transformers import PreTrainedTokenizerFast

from introspection_lit.contexts.context import BUILTIN, exchange
from introspection_lit.contexts.conversations import Phrasing
from introspection_lit.contexts.loading import load_contexts
from introspection_lit.evaluation import side_effects as se
from introspection_lit.models.base_model import BaseModel, Lora
from introspection_lit.models.loading import add_lora, load_model
from introspection_lit.report.result_files import read_results
from introspection_lit.report.tables import side_effects_table
from introspection_lit.tasks.answer_tokens import find_answer_tokens
from introspection_lit.tasks.questions import FALSE_QUESTIONS, QUESTION, TRUE_QUESTIONS
from introspection_lit.tools.several_seeds import perplexity_change, seed_statistics
from introspection_lit.training.module import IntrospectionModule
from introspection_lit.utils.checksums import write_json
from introspection_lit.utils.errors import ConfigurationError, RunError

FACTS = se.load_facts()
CONTEXTS = load_contexts(BUILTIN)[::40]
TEXTS = ["short", "somewhat longer than that", "The answer is no.\n" * 9, "def f(x):\n    return x", "x"]


@pytest.fixture
def module(tiny: Path) -> IntrospectionModule:
    """A tiny model with a fresh adapter, training."""
    made = IntrospectionModule()
    made.model = add_lora(load_model(BaseModel(str(tiny))), Lora(r=4)).train()
    return made


@pytest.fixture
def asked(tokenizer: PreTrainedTokenizerFast) -> tuple[Phrasing, tuple[int, int]]:
    """The usual phrasing and the tokens of its answers."""
    return find_answer_tokens(tokenizer, [], [QUESTION], Phrasing())


def spoil(module: IntrospectionModule) -> None:
    """Give the adapter random weights."""
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in module.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=random))


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_perplexity_is_the_loss_of_transformers(
    batch_size: int, module: IntrospectionModule, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Each text on its own, without padding, weighted by its tokens but the first; a text of one token has none."""
    spoil(module)
    module.eval()
    losses, counts = [], []
    with torch.no_grad():
        for text in TEXTS[:-1]:
            ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
            losses.append(module.model(input_ids=ids, labels=ids).loss.item())
            counts.append(ids.shape[1] - 1)
        found = se.perplexity(module, tokenizer, TEXTS, batch_size)
    expected = sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)
    assert len(set(counts)) > 2
    assert found["tokens"] == sum(counts)
    assert found["nats"] == pytest.approx(expected, abs=1e-4)
    assert found["perplexity"] == pytest.approx(math.exp(expected), rel=1e-4)


@pytest.mark.parametrize("answers", [("yes", "no"), ("no", "yes")])
def test_facts_are_asked_like_the_detection_question(
    answers: tuple[str, str], module: IntrospectionModule, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Chat template, answers and answer prefix, written out by hand; one at a time without padding."""
    spoil(module)
    module.eval()
    phrasing = Phrasing(system="Be brief.", answers=answers, info="Not to be said.")
    phrasing, ids = find_answer_tokens(tokenizer, [], [QUESTION], phrasing)
    said = "Answer yes or no." if answers == ("yes", "no") else "Answer no if so and yes if not."
    facts = FACTS[:12]
    scores, masses = [], []
    with torch.no_grad():
        for fact in facts:
            text = f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{fact.question} {said}<|im_end|>\n"
            text += "<|im_start|>assistant\nThe answer is"
            tokens = tokenizer(text, return_tensors="pt")["input_ids"]
            chances = module.model(input_ids=tokens).logits[0, -1].double().softmax(-1)
            yes, no = (chances[tokenizer(" " + word)["input_ids"]].item() for word in answers)
            scores.append(math.log(yes / no))
            masses.append(yes + no)
        for batch_size in (1, 5, 12):
            found = se.fact_scores(module, tokenizer, phrasing, ids, facts, batch_size)
            # 3e-6 of torch 2.13; attention with padding in torch 2.6 takes a quicker exp, and this model makes much of it
            torch.testing.assert_close(found[0], torch.tensor(scores), atol=2e-3, rtol=1e-3)
            torch.testing.assert_close(found[1], torch.tensor(masses), atol=1e-5, rtol=1e-4)


def fake(tokenizer: PreTrainedTokenizerFast, answer_ids: tuple[int, int], says_yes):
    """A forward that answers by a function of the question at the answer position, and the opposite anywhere else."""

    def forward(input_ids, attention_mask, logits_to_keep, **_):
        logits = torch.zeros(len(input_ids), len(logits_to_keep), len(tokenizer))
        for row, (ids, mask) in enumerate(zip(input_ids, attention_mask.bool(), strict=True)):
            question = tokenizer.decode(ids[mask]).split("user\n")[1].split(" Answer")[0]
            for column, position in enumerate(logits_to_keep.tolist()):
                yes = says_yes(question) == (position == int(mask.sum()) - 1)
                logits[row, column, answer_ids[0 if yes else 1]] = 5.0
        return SimpleNamespace(logits=logits)

    return forward


def answer_facts(*args: Any) -> dict[str, Any]:
    """Ask the facts, the fifth argument of ``fact_scores``, and summarise the answers."""
    return se.summarise_facts(*se.fact_scores(*args), args[4])


def test_saying_yes_to_everything_scores_at_chance(
    tokenizer: PreTrainedTokenizerFast, asked: tuple[Phrasing, tuple[int, int]]
) -> None:
    """Accuracy and AUROC .5 (all ties); a model that knows scores 1, one that has it the wrong way round 0."""
    phrasing, ids = asked
    truth = {fact.question: fact.answer == "yes" for fact in FACTS}
    mass = (math.exp(5) + 1) / (math.exp(5) + len(tokenizer) - 1)
    for says_yes, accuracy, auroc, share in (
        (lambda _: True, 0.5, 0.5, 1.0),
        (lambda _: False, 0.5, 0.5, 0.0),
        (lambda question: truth[question], 1.0, 1.0, 0.5),
        (lambda question: not truth[question], 0.0, 0.0, 0.5),
    ):
        found = answer_facts(fake(tokenizer, ids, says_yes), tokenizer, phrasing, ids, FACTS, 16)
        assert (found["accuracy"], found["auroc"], found["yes"]) == (accuracy, auroc, share)
        assert found["mass"] == pytest.approx(mass, rel=1e-5)
        assert found["log_odds"] == pytest.approx(10 * share - 5)
        low, high = found["accuracy_interval"]
        assert low - 1e-9 <= accuracy <= high + 1e-9
        assert 0 < high - low < 0.2


def test_accuracy_is_balanced(tokenizer: PreTrainedTokenizerFast, asked: tuple[Phrasing, tuple[int, int]]) -> None:
    """One word to everything is at chance also where most answers are that word."""
    phrasing, ids = asked
    facts = [fact for fact in FACTS if fact.answer == "yes"][:9] + [fact for fact in FACTS if fact.answer == "no"][:1]
    assert answer_facts(fake(tokenizer, ids, lambda _: True), tokenizer, phrasing, ids, facts, 4)["accuracy"] == 0.5


def test_fresh_adapter_changes_nothing_and_a_random_one_does(
    module: IntrospectionModule, tokenizer: PreTrainedTokenizerFast, asked: tuple[Phrasing, tuple[int, int]]
) -> None:
    """Exactly nothing; off, the random one is not there either."""
    fresh = se.side_effects(module, tokenizer, *asked, CONTEXTS, n_texts=6, n_facts=40)
    for measure in ("perplexity", "factual"):
        assert fresh[measure]["off"] == fresh[measure]["on"]
    assert fresh["perplexity"]["change"] == 0
    assert (fresh["factual"]["lost"], fresh["factual"]["gained"]) == (0, 0)
    assert (fresh["facts"], fresh["texts"]) == (40, 6)
    spoil(module)
    spoiled = se.side_effects(module, tokenizer, *asked, CONTEXTS, n_texts=6, n_facts=40)
    for measure in ("perplexity", "factual"):
        assert spoiled[measure]["off"] == fresh[measure]["off"]
        assert spoiled[measure]["on"] != fresh[measure]["on"]
    off, on = (spoiled["perplexity"][name]["perplexity"] for name in ("off", "on"))
    assert spoiled["perplexity"]["change"] == pytest.approx((on - off) / off)


def test_lost_and_gained_facts_are_counted(
    module: IntrospectionModule, tokenizer: PreTrainedTokenizerFast, asked: tuple[Phrasing, tuple[int, int]]
) -> None:
    """One by one, from scores asked for without the measure's own switching."""
    spoil(module)
    found = se.side_effects(module, tokenizer, *asked, CONTEXTS, n_texts=1, n_facts=160)["factual"]
    module.eval()
    with torch.no_grad():
        on = se.fact_scores(module, tokenizer, *asked, FACTS, 16)[0]
        with module.model.disable_adapter():
            off = se.fact_scores(module, tokenizer, *asked, FACTS, 16)[0]
    truth = [fact.answer == "yes" for fact in FACTS]
    pairs = Counter(
        ((before > 0) == true, (after > 0) == true)
        for before, after, true in zip(off.tolist(), on.tolist(), truth, strict=True)
    )
    assert (found["lost"], found["gained"]) == (pairs[True, False], pairs[False, True])
    assert found["lost"] > 0
    assert found["gained"] > 0


@pytest.mark.parametrize("training", [True, False])
def test_module_is_left_as_it_was(
    training: bool,
    module: IntrospectionModule,
    tokenizer: PreTrainedTokenizerFast,
    asked: tuple[Phrasing, tuple[int, int]],
) -> None:
    """Mode, adapter on, gradients, weights; also if it fails half-way."""
    spoil(module)
    module.model.train(training)
    ids = torch.tensor([[3, 4, 5]])

    def state():
        modes = {name: part.training for name, part in module.model.named_modules()}
        gradients = {name: weight.requires_grad for name, weight in module.model.named_parameters()}
        with torch.no_grad():
            return modes, gradients, module.model.get_base_model().eval()(input_ids=ids).logits

    def measured(run):
        before = state()
        module.model.train(training)
        run()
        assert all(part.training == training for part in module.model.modules())
        after = state()
        assert after[1] == before[1]
        torch.testing.assert_close(after[2], before[2], rtol=0, atol=0)

    measured(lambda: se.side_effects(module, tokenizer, *asked, CONTEXTS, n_texts=2, n_facts=4))

    def fails():
        with pytest.raises(ConfigurationError):  # contexts of which nothing can be predicted
            se.perplexity(module, tokenizer, ["x"], 4)
        with pytest.raises(RuntimeError, match="out of bounds"):
            se.side_effects(module, tokenizer, asked[0], (10**6, 10**6 + 1), CONTEXTS, n_texts=2, n_facts=4)

    measured(fails)


def test_texts_are_contexts_as_the_model_reads_them(tokenizer: PreTrainedTokenizerFast) -> None:
    """Both messages and the system prompt, no question; taken from all over the list, all of a short one."""
    contexts = [exchange("chat", f"Say {number}.", f"It is {number}.") for number in range(10)]
    phrasing = replace(Phrasing(), system="Be brief.", info="Not to be said.")
    texts = se.context_texts(tokenizer, phrasing, contexts, 5)
    assert texts == [
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
        f"Say {number}.<|im_end|>\n<|im_start|>assistant\nIt is {number}.<|im_end|>\n"
        for number in (0, 2, 4, 6, 8)
    ]
    assert len(se.context_texts(tokenizer, phrasing, contexts, 64)) == 10


def test_facts_are_balanced_and_distinct() -> None:
    """80 true, 80 false, in pairs of one form; ten topics in turns; none of the control questions, none about the model."""
    assert Counter(fact.answer for fact in FACTS) == {"yes": 80, "no": 80}
    assert set(Counter((fact.topic, fact.answer) for fact in FACTS).values()) == {8}
    assert len({fact.topic for fact in FACTS}) == 10
    for start in range(0, 160, 20):
        assert set(Counter(fact.topic for fact in FACTS[start : start + 20]).values()) == {2}
    for true, false in zip(FACTS[::2], FACTS[1::2], strict=True):
        assert (true.answer, false.answer, true.topic) == ("yes", "no", false.topic)
        assert true.question.split()[0] == false.question.split()[0]
    folded = {fact.question.casefold() for fact in FACTS}
    assert len(folded) == 160
    assert not folded & {question.split("?")[0].casefold() + "?" for question in (*TRUE_QUESTIONS, *FALSE_QUESTIONS)}
    for question in folded:
        assert question.index("?") == len(question) - 1
        assert not {"you", "your", "model", "activations"} & set(question.strip("?").split())


@pytest.mark.parametrize("nats", [30.0, 5000.0])
def test_a_ruined_model_has_a_perplexity(
    nats: float, module: IntrospectionModule, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Results that hold it can be read again and shown, and seeds that hold it compared."""

    def ruined(**options: Any) -> Any:
        logits = torch.zeros(*options["input_ids"].shape, len(tokenizer))[:, :-1]
        return SimpleNamespace(logits=logits.scatter(2, options["input_ids"][:, 1:, None], -nats))

    on = se.perplexity(ruined, tokenizer, TEXTS, 4)
    assert on["nats"] == pytest.approx(nats + math.log(len(tokenizer)), rel=1e-3)
    off = {"nats": 0.0, "perplexity": 1.0, "tokens": on["tokens"]}
    results = json.loads((ROOT / "docs/results/smollm2-135m/seed-0.json").read_text())
    results["evidence"]["side_effects"]["perplexity"] = {"off": off, "on": on, "change": on["perplexity"] - 1}
    write_json(tmp_path / "results.json", results)
    read = read_results(tmp_path / "results.json")
    table = side_effects_table(read["evidence"])
    assert table is not None
    assert max(len(cell) for row in table.rows for cell in row) < 60
    changes = {seed: perplexity_change(read["evidence"]["side_effects"]) for seed in range(3)}
    statistics = seed_statistics(changes, highest_is_worst=True)
    assert statistics is not None
    assert math.isfinite(statistics["sd"])


def test_what_cannot_be_measured_is_refused(
    module: IntrospectionModule, tokenizer: PreTrainedTokenizerFast, asked: tuple[Phrasing, tuple[int, int]]
) -> None:
    """An odd number of facts, more than there are, no texts; facts of one answer; scores that are not numbers."""
    for options in ({"n_facts": 3}, {"n_facts": 162}, {"n_facts": 0}, {"n_texts": 0}):
        with pytest.raises(ConfigurationError, match=r"Expected an even number of facts in 2\.\.160"):
            se.side_effects(module, tokenizer, *asked, CONTEXTS, **options)
    with pytest.raises(ConfigurationError, match="0 contexts"):
        se.side_effects(module, tokenizer, *asked, [])
    with pytest.raises(ConfigurationError, match="got 5 facts of one answer"):
        answer_facts(fake(tokenizer, asked[1], lambda _: True), tokenizer, *asked, FACTS[:10:2], 4)
    with torch.no_grad():
        next(weight for name, weight in module.model.named_parameters() if "lora_B" in name).fill_(math.nan)
    with pytest.raises(RunError, match="no finite score"), torch.no_grad():
        se.perplexity(module, tokenizer, TEXTS, 4)
    with pytest.raises(RunError, match="no finite score"):
        se.side_effects(module, tokenizer, *asked, CONTEXTS, n_texts=2, n_facts=4)
