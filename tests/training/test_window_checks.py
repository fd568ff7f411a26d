"""Sliding windows: a band whose tokens are out of reach where the answer is read is refused, with the numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from project_paths import CONFIG
from tiny_models import SIZES
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from introspection_lit.cli import attach
from introspection_lit.models.architecture import find_decoder_layers
from introspection_lit.models.attention_reach import layer_reaches, tokens_back
from introspection_lit.tools.architectures.oracle import answer
from introspection_lit.tools.architectures.recipes import tiny_model
from introspection_lit.training.window_checks import unread_band

CONTEXT = list(range(10, 22))
KINDS = {
    "mistral": {"sliding_window": 4},
    "gemma2": {"sliding_window": 4},
    "gemma3_text": {"sliding_window": 4, "layer_types": ["full_attention", *["sliding_attention"] * 5]},
    "gemma3n_text": {"sliding_window": 4},
    "gemma4_text": {"sliding_window": 4, "layer_types": ["full_attention", *["sliding_attention"] * 8]},
    "gpt_oss": {"sliding_window": 4, "layer_types": ["full_attention", *["sliding_attention"] * 5]},
    "gpt_neo": {"window_size": 4},
    "cohere2": {"sliding_window": 4},
    "lfm2": {"layer_types": ["full_attention", "conv", "full_attention", "conv", "conv", "conv"]},
    "llama": {},
    "qwen3_next": {},
    "nemotron_h": {},
}


@pytest.mark.parametrize(
    "kind", [k if k in ("mistral", "lfm2") else pytest.param(k, marks=pytest.mark.thorough) for k in KINDS]
)
def test_reach_is_what_the_last_position_shows(kind: str) -> None:
    """The oracle, in one pass: with one token more in the question, steering does not change the answer."""
    model: Any = tiny_model(kind, "eager", **KINDS[kind])
    layers, reaches = find_decoder_layers(model), layer_reaches(model.config)
    added = 3 * torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(1))
    limited = []
    for first in range(len(layers) - 1):
        back = tokens_back(reaches, first)
        limited.append(back is not None)
        if back == 0:
            continue  # no cache is written above: refused by itself
        for more in (0, 1) if back else (0,):
            question = [30 + 7 * number % 60 for number in range((back or 2) + more)]
            with torch.no_grad():
                clean, steered = (answer(model, layers, CONTEXT, question, each) for each in ({}, {first: added}))
            same = float((clean - steered).abs().max()) < 1e-5  # experts of a mixture round by what else they compute
            assert same == bool(more), (first, back, more)
            problem = unread_band(reaches, (first, first), len(question))
            assert (problem is not None) == bool(more)
    whole = ("llama", "qwen3_next", "gemma2")  # these end with a layer that reads everything
    assert any(limited) == (kind not in whole)


def test_gradients_stop_there_too() -> None:
    """No part of the answer depends on what a layer puts out for a context out of reach."""
    model = tiny_model("mistral", sliding_window=4)
    layers, kept = find_decoder_layers(model), {}
    reaches = layer_reaches(model.config)
    assert [tokens_back(reaches, first) for first in range(6)] == [15, 12, 9, 6, 3, 0]

    def keep(module: Any, args: Any, output: torch.Tensor) -> None:
        output.retain_grad()
        kept["output"] = output

    layers[3].register_forward_hook(keep)
    for question, reached in ((6, 1), (7, 0), (3, 4)):
        model(input_ids=torch.tensor([[*CONTEXT, *range(30, 30 + question)]])).logits[0, -1].sum().backward()
        touched = kept["output"].grad[0, : len(CONTEXT)].abs().amax(-1) > 0
        assert touched.tolist() == [False] * (len(CONTEXT) - reached) + [True] * reached


@pytest.fixture
def windowed(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Callable[[int], Path]:
    """Makes a tiny Mistral with a window."""

    def make(window: int) -> Path:
        folder = tmp_path / f"mistral-{window}"
        torch.manual_seed(0)
        config = MistralConfig(**SIZES, vocab_size=len(tokenizer), pad_token_id=0, sliding_window=window)
        MistralForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


def test_unread_bands_reach_the_user(
    windowed: Callable[[int], Path], refused: Callable[..., str], some_contexts: list[str]
) -> None:
    """Of training, tests and a grid, before the model is loaded; with the layer that a band may begin at."""
    base, few = windowed(8), [*some_contexts, "--data.test_trials", "{heldout: 8}"]
    printed = refused("--data.bands", "[[0, 1], late]", *few, base=base)
    assert "data.bands: the layers above 3 look back 14 tokens together" in printed
    assert "nothing that is steered at [3, 4] is read" in printed
    assert "[0, 1]" not in printed
    printed = refused("--data.bands", "[[0, 1]]", "--data.test_bands", "[[3, 3]]", *few, base=base)
    assert "data.test_bands: the layers above 3" in printed
    grid = '{"random_vectors": 1, "bands": [late], "strengths": [1.0], "contexts": 2}'
    assert "data.grid.bands" in refused("--data.grid", grid, *some_contexts, base=base, subcommand="predict")


@pytest.mark.parametrize(("window", "said"), [(40, True), (512, False)])
def test_a_window_that_reaches_a_part_is_said(
    window: int, said: bool, windowed: Callable[[int], Path], some_contexts: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Longer than a question and shorter than all of it: allowed, and said once."""
    words = ["--config", CONFIG, "--model.base.name_or_path", str(windowed(window)), *some_contexts]
    words += ["--data.test_trials", "{heldout: 8}", "--data.bands", "[[4, 4]]", "--trainer.logger", "false"]
    cli = attach(words)
    caplog.set_level("INFO")
    cli.datamodule.setup("predict")
    assert caplog.text.count(f"at [4, 4], the last {window - 1} tokens before an answer can be read") == said
