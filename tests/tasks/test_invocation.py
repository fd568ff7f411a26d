"""The tokens that switch an exported adapter on: with them plain PEFT equals the protocol in one pass, on every family."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tiny_models import FAMILIES
from transformers import AutoModelForCausalLM

from introspection_lit.contexts.context import BUILTIN, Context, Message
from introspection_lit.contexts.conversations import Phrasing, encode
from introspection_lit.contexts.loading import load_contexts
from introspection_lit.models.architecture import find_decoder_layers
from introspection_lit.models.base_model import BaseModel, Lora
from introspection_lit.models.loading import add_lora, load_model, load_tokenizer
from introspection_lit.steering.intervention import Intervention, steer
from introspection_lit.steering.prefill import pad, position_ids, steered_cache
from introspection_lit.tasks.invocation import invocation_tokens
from introspection_lit.tasks.questions import QUESTION, builtin_questions
from introspection_lit.tasks.task import with_lead_in
from introspection_lit.utils.errors import ConfigurationError

PHRASING, LEAD_IN = Phrasing(), "Introspection query:"
ASKED = builtin_questions([QUESTION], PHRASING.answers)[0]


def some(n: int) -> list[Context]:
    """A few built-in contexts of different lengths."""
    return [context for context in load_contexts(BUILTIN) if context.turns[0].role != "system"][::97][:n]


def after(contexts: list[Context], *questions: str) -> list[tuple[Context, str | None]]:
    """Each question after each context."""
    return [(context, question) for context in contexts for question in questions]


@pytest.fixture(
    params=[pytest.param("qwen2"), *(pytest.param(f, marks=pytest.mark.thorough) for f in FAMILIES if f != "qwen2")]
)
def exported(request: pytest.FixtureRequest, tiny_folder: Callable[[str], Path], tmp_path: Path) -> tuple[Any, ...]:
    """A family's model with an adapter that acts, its tokenizer, and a plain PEFT model of the exported folder."""
    source = tiny_folder(request.param)
    tokenizer = load_tokenizer(BaseModel(str(source)))
    ours = add_lora(load_model(BaseModel(str(source))), Lora()).eval()
    torch.manual_seed(1)
    for name, parameter in ours.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    config = copy.copy(ours.peft_config["default"])
    config.alora_invocation_tokens = invocation_tokens(
        tokenizer, after(some(4), with_lead_in(LEAD_IN, ASKED)), LEAD_IN, PHRASING
    )
    ours.peft_config["default"], kept = config, ours.peft_config["default"]
    ours.save_pretrained(tmp_path / "adapter")
    ours.peft_config["default"] = kept
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32), tmp_path / "adapter"
    )
    return ours, tokenizer, plain.eval()


def protocol(
    model: Any, rows: list[tuple[list[int], list[int]]], scale: torch.Tensor, direction: torch.Tensor
) -> torch.Tensor:
    """Logits at the answers, ``(rows, vocabulary)``: the steered prefill, then the question pass; each row on its own."""
    layers, logits = find_decoder_layers(model), []
    for number, (context, question) in enumerate(rows):
        ids, mask = pad([context], 0, "left")
        added = Intervention(direction[[number]], scale[[number]], mask.bool())
        cache = steered_cache(model, model, layers, ids, mask, added)
        with torch.no_grad():
            logits.append(model(input_ids=torch.tensor([question]), past_key_values=cache).logits[0, -1])
    return torch.stack(logits)


@pytest.mark.parametrize("steered", [False, True], ids=["clean", "steered"])
def test_one_plain_pass_equals_the_protocol(exported: tuple[Any, ...], steered: bool) -> None:
    """Alone, padded on either side, and through generate; the adapter is off before the question and on from its turn."""
    ours, tokenizer, plain = exported
    asked = with_lead_in(LEAD_IN, ASKED)
    encoded = [encode(tokenizer, context, asked, PHRASING) for context in some(3)]
    rows = [(one.context_ids, one.question_ids) for one in encoded]
    layers = find_decoder_layers(plain)
    torch.manual_seed(2)
    direction = torch.nn.functional.normalize(torch.randn(3, 1, ours.config.hidden_size), dim=-1)
    scale = torch.zeros(3, len(layers))
    if steered:
        scale[:, 1:3] = torch.tensor([[3.0], [5.0], [2.0]])
    expected = protocol(ours, rows, scale, direction)
    for side in ("left", "right"):
        ids, mask = pad([context + question for context, question in rows], tokenizer.pad_token_id or 0, side)
        places = torch.zeros_like(mask, dtype=torch.bool)
        for row, (context, question) in enumerate(rows):
            start = ids.shape[1] - len(context) - len(question) if side == "left" else 0
            places[row, start : start + len(context)] = True
        last = ids.shape[1] - 1 if side == "left" else mask.sum(1) - 1
        added = Intervention(direction, scale, places)
        with torch.no_grad(), steer(layers, added):
            logits = plain(input_ids=ids, attention_mask=mask, position_ids=position_ids(mask)).logits
        torch.testing.assert_close(logits[torch.arange(3), last], expected, atol=1e-4, rtol=0)
        if side == "left":  # the one that generate takes
            made = generated(plain, layers, added, ids, mask)
            torch.testing.assert_close(made, expected, atol=1e-4, rtol=0)
    with torch.no_grad():  # the base model alone says something else
        base = ours.get_base_model()
        with ours.disable_adapter():
            without = base(torch.tensor([rows[0][0] + rows[0][1]])).logits[0, -1]
    assert (without - expected[0]).abs().max() > 0.1


def generated(model: Any, layers: list, added: Intervention, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The logits of the first token that ``generate`` makes, steered while it reads its input."""
    with torch.no_grad(), steer(layers, added):
        made = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=1,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    first: torch.Tensor = made.logits[0]
    return first


def test_other_text_is_read_by_the_base_model(exported: tuple[Any, ...]) -> None:
    """Without the lead-in the plain model equals the base to the bit, whatever is asked, and continues text as it does."""
    ours, tokenizer, plain = exported
    ids = torch.tensor([encode(tokenizer, some(1)[0], "What is the capital of France?", PHRASING).context_ids])
    with torch.no_grad(), ours.disable_adapter():
        base = ours(input_ids=ids).logits
    with torch.no_grad():
        assert torch.equal(plain(input_ids=ids).logits, base)
    with ours.disable_adapter():
        expected = ours.generate(input_ids=ids, max_new_tokens=6, do_sample=False)
    assert torch.equal(plain.generate(input_ids=ids, max_new_tokens=6, do_sample=False), expected)


def test_invocation_is_more_than_the_mark_of_a_turn(tiny: Path) -> None:
    """With a lead-in it ends where wordings differ; of a single question it is the question; unlike questions have none."""
    tokenizer = load_tokenizer(BaseModel(str(tiny)))
    tokens = invocation_tokens(tokenizer, after(some(4), with_lead_in(LEAD_IN, ASKED)), LEAD_IN, PHRASING)
    assert tokenizer.decode(tokens) == f"<|im_start|>user\n{LEAD_IN}"
    single = tokenizer.decode(invocation_tokens(tokenizer, after(some(4), ASKED), "", PHRASING))
    assert single == f"<|im_start|>user\n{ASKED}".removesuffix(".")
    alike = [ASKED, ASKED.replace("Answer", "Say")]
    assert tokenizer.decode(invocation_tokens(tokenizer, after(some(4), *alike), "", PHRASING)).endswith(
        ASKED.split(" Answer")[0]
    )
    with pytest.raises(ConfigurationError, match=r"no beginning of their own.*data\.lead_in"):
        invocation_tokens(tokenizer, after(some(4), ASKED, "Is it so?"), "", PHRASING)
    holding = Context("chat", (*some(1)[0].turns, *Context("chat", some(1)[0].turns).turns))
    asking = Context("chat", (holding.turns[0]._replace(content=f"{LEAD_IN} what is it?"), *holding.turns[1:2]))
    with pytest.raises(ConfigurationError, match="a context holds"):
        invocation_tokens(tokenizer, after([asking], with_lead_in(LEAD_IN, ASKED)), LEAD_IN, PHRASING)


def test_conversations_with_questions_of_their_own(tiny: Path) -> None:
    """Beside others they share nothing; alone, one question is the invocation, whatever stands before it."""
    tokenizer = load_tokenizer(BaseModel(str(tiny)))
    own = [
        replace(context, question_turns=(Message("user", "Has anything been added? yes or no?"),)) for context in some(3)
    ]
    with pytest.raises(ConfigurationError, match="no beginning of their own"):
        invocation_tokens(tokenizer, [(own[0], None), *after(some(2), ASKED)], "", PHRASING)
    alone = tokenizer.decode(invocation_tokens(tokenizer, [(context, None) for context in own], "", PHRASING))
    assert alone.startswith("<|im_start|>user\nHas anything been added? yes or no?")
