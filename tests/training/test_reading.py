"""The attention implementation of the question pass: chosen by a rule, used inside its block, and put back."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from introspection_lit.models.base_model import BaseModel, Lora
from introspection_lit.models.loading import add_lora, load_model
from introspection_lit.steering.attention import attention
from introspection_lit.training.reading import question_attention

IDS = torch.arange(24).reshape(2, 12)


@pytest.mark.parametrize("family", ["qwen2", pytest.param("llama", marks=pytest.mark.thorough)])
def test_the_block_computes_what_a_model_loaded_so_does(tiny_folder: Any, family: str) -> None:
    """Bit for bit in bfloat16, where the two implementations differ; afterwards, also after an error, as before."""
    folder = str(tiny_folder(family))
    torch.manual_seed(0)
    switched = add_lora(load_model(BaseModel(folder, dtype="bfloat16")), Lora())
    loaded = add_lora(load_model(BaseModel(folder, dtype="bfloat16", attention="eager")), Lora())
    mask = torch.ones_like(IDS)
    mask[0, :4] = 0

    def logits(model: Any) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = model(input_ids=IDS, attention_mask=mask).logits
        return found

    before = logits(switched)
    with attention([switched], "eager"):
        assert torch.equal(logits(switched), logits(loaded))
    with pytest.raises(RuntimeError, match="on the way"), attention([switched], "eager"):
        raise RuntimeError("on the way")
    assert torch.equal(logits(switched), before)
    assert not torch.equal(before, logits(loaded))


@pytest.mark.parametrize(
    ("asked", "dtype", "mixed", "more", "switched"),
    [
        ("auto", torch.float32, False, {}, False),
        ("auto", torch.float32, True, {}, True),
        ("auto", torch.bfloat16, False, {}, True),
        ("auto", torch.bfloat16, False, {"device": torch.device("cuda")}, False),
        ("auto", torch.float32, True, {"backend": False}, False),  # classes of before cannot be switched
        ("sdpa", torch.float32, True, {}, False),
    ],
)
def test_the_rule(asked: Any, dtype: torch.dtype, mixed: bool, more: dict[str, Any], switched: bool) -> None:
    """Eager in bfloat16 on the CPU, unless the user asks for one; nothing is measured, so a command repeats its numbers."""
    config = SimpleNamespace(_attn_implementation="sdpa")
    inner = type("Inner", (), {"dtype": dtype, "_supports_attention_backend": more.get("backend", True)})()
    model: Any = torch.nn.Module()
    model.config, model.device, model.get_base_model = config, more.get("device", torch.device("cpu")), lambda: inner
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        reading = question_attention(BaseModel(attention=asked), model)
    with reading:
        assert config._attn_implementation == ("eager" if switched else "sdpa")
    assert config._attn_implementation == "sdpa"


def test_loading_knows_only_implementations(tiny: Path) -> None:
    """``auto`` is loaded as ``sdpa``."""
    assert load_model(BaseModel(str(tiny))).config._attn_implementation == "sdpa"
