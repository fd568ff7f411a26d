"""What is decided about an architecture before weights are loaded: refusals with their reasons, and what is chosen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from introspection_lit.models.architecture import find_decoder_layers, usable_positions
from introspection_lit.models.architectures import Architecture, examine, reach
from introspection_lit.models.base_model import BaseModel, Lora, nf4_on_cpu_problems
from introspection_lit.models.decoder_shape import decoder_shape
from introspection_lit.models.loading import load_config
from introspection_lit.models.lora_targets import USUAL, default_targets
from introspection_lit.steering.bands import band_problem, resolve_bands
from introspection_lit.tools.architectures.recipes import tiny_config, tiny_model
from introspection_lit.tools.architectures.table import folder_of
from introspection_lit.utils.errors import ConfigurationError

Examine = Callable[..., Architecture]


@pytest.fixture
def examined(tmp_path: Path) -> Examine:
    """Decides about a tiny model of a type; ``more`` replaces parts of its configuration."""

    def decide(kind: str, attention: Any = "sdpa", lora: Lora | None = Lora(), **more: Any) -> Architecture:
        base = folder_of(kind, tmp_path)
        path = tmp_path / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | more))
        base = BaseModel(base.name_or_path, attention=attention)
        return examine(base, load_config(base), lora)

    return decide


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("bert", "an encoder"),
        ("jamba", "a second pass of several tokens ignores"),
        ("mamba2", "no past_key_values, or ignores them"),
        ("rwkv", "no past_key_values, or ignores them"),
        ("openai-gpt", "no past_key_values, or ignores them"),
        ("recurrent_gemma", "keeps its recurrent states in the modules"),
        ("deepseek_v4", "several residual streams"),
        ("longcat_flash", "two attentions"),
        ("hrm_text", "several times"),
        ("minimax", "a class of its own"),
    ],
)
def test_what_cannot_work_is_refused_with_its_reason(examined: Examine, kind: str, reason: str) -> None:
    """And with what works instead."""
    (problem,) = examined(kind).problems
    assert reason in problem
    assert problem.startswith("base.name_or_path: ")
    assert "docs/models.md lists those that work" in problem


@pytest.mark.parametrize(("kind", "value"), [("gemma3_text", True), ("gemma4_text", "all"), ("gemma", True)])
def test_a_model_that_reads_both_ways_is_refused(examined: Examine, kind: str, value: bool | str) -> None:
    """By its configuration: the architecture itself is fine."""
    assert not examined(kind).problems
    (problem,) = examined(kind, use_bidirectional_attention=value).problems
    assert "not causal" in problem


def test_images_may_be_read_both_ways(examined: Examine) -> None:
    """Gemma 4's default: the text is causal."""
    assert not examined("gemma4_text", use_bidirectional_attention="vision").problems


def test_attention_that_an_architecture_lacks_is_replaced(examined: Examine) -> None:
    """The default one with a note; one that was asked for is an error that names those that work."""
    found = examined("gemma2")
    assert (found.attention, found.problems) == ("eager", [])
    assert "Gemma2ForCausalLM has no sdpa; eager is used" in found.notes[0]
    assert examined("qwen2").attention == "sdpa"
    (problem,) = examined("gptj", attention="flash_attention_2").problems if not _flash("gptj") else ("Expected eager",)
    assert "Expected eager" in problem


def _flash(kind: str) -> bool:
    with torch.device("meta"):
        return bool(getattr(tiny_model(kind), "_supports_flash_attn", False))


@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        ("llama", USUAL),
        ("gemma3n_text", USUAL),
        ("gpt2", ["c_attn"]),
        ("phi3", ["o_proj", "qkv_proj"]),
        ("deepseek_v3", ["kv_a_proj_with_mqa", "o_proj", "q_a_proj", "q_b_proj"]),
        ("qwen3_next", ["in_proj_ba", "in_proj_qkvz", "k_proj", "o_proj", "out_proj", "q_proj", "v_proj"]),
        ("granitemoehybrid", ["in_proj", "k_proj", "o_proj", "q_proj", "v_proj"]),
    ],
)
def test_targets_are_those_of_the_architecture(examined: Examine, kind: str, targets: list[str]) -> None:
    """The usual four, PEFT's own, or what mixes tokens; not what unfolds latents, nor what kernels take past LoRA."""
    assert sorted(examined(kind).targets) == sorted(targets)


def test_targets_that_a_model_lacks_are_an_error(examined: Examine) -> None:
    """Which names those that it has."""
    (problem,) = examined("gpt2", lora=Lora(target_modules=["q_proj", "v_proj"])).problems
    assert "where PEFT cannot put adapters on GPT2LMHeadModel" in problem
    assert "such as c_attn" in problem
    assert not examined("gpt2", lora=Lora(target_modules=["c_proj"])).problems


def test_all_problems_come_at_once(examined: Examine) -> None:
    """Attention and targets: neither waits for the other."""
    found = examined("bloom", attention="flash_attention_2", lora=Lora(target_modules=["nosuch"]))
    assert [problem.partition(":")[0] for problem in found.problems] == ["base.attention", "model.lora.target_modules"]


@pytest.mark.parametrize(
    ("kind", "more", "share"),
    [
        ("llama", {}, True),
        ("qwen3_next", {}, True),
        ("deepseek_v3", {}, True),
        ("mpt", {}, False),
        ("bloom", {}, False),
        ("zaya", {}, False),
        ("glm_moe_dsa", {}, True),
        ("glm_moe_dsa", {"indexer_types": ["full", "shared"] * 3}, False),
        ("falcon", {"alibi": False}, True),
        ("falcon", {"alibi": True}, False),
        ("gemma3n_text", {}, False),
        ("gemma4_text", {}, False),
    ],
)
def test_savings_switch_themselves_off(examined: Examine, kind: str, more: dict[str, Any], share: bool) -> None:
    """And say so."""
    found = examined(kind, **more)
    assert (found.problems, found.share) == ([], share)
    assert any("data.reuse.layers is off for this model" in note for note in found.notes) == (not share)


def test_bands_above_the_last_layer_with_a_cache_are_refused() -> None:
    """Steering there changes no key and no value: label noise. Named bands end below it."""
    config = tiny_config("gemma4_text")
    assert (config.num_hidden_layers, reach(config)) == (9, 5)
    assert "reaches no key or value" in (band_problem((6, 7), 9, 5) or "")
    assert "Expected a band inside 0..4" in (band_problem((2, 5), 9, 5) or "")
    assert resolve_bands(["late", "all", [2, 4]], 9, "bands", 5) == ((3, 4), (0, 4), (2, 4))
    with pytest.raises(ConfigurationError, match="at least 4 layers with a cache; it has 3"):
        resolve_bands(["late"], 9, "bands", 2)


@pytest.mark.parametrize(("kind", "expected"), [("llama", 5), ("nemotron_h", 4), ("gemma3n_text", 5), ("lfm2", 5)])
def test_reach_is_what_a_cache_shows(kind: str, expected: int) -> None:
    """Measured: a change at the output of the last layer that reaches changes the cache, one at the next does not."""
    from transformers import DynamicCache

    from introspection_lit.steering.caches import row_tensors
    from introspection_lit.steering.intervention import Intervention, steer

    model = tiny_model(kind)
    layers, ids = find_decoder_layers(model), torch.arange(10, 30)[None]

    def cache_with(layer: int) -> list[torch.Tensor]:
        scale = torch.zeros(1, len(layers))
        if layer >= 0:
            scale[0, layer] = 5.0
        direction = nn.functional.normalize(torch.ones(1, 1, 64), dim=-1)
        cache = DynamicCache(config=model.config)
        with torch.no_grad(), steer(layers, Intervention(direction, scale, torch.ones(1, 20, dtype=torch.bool))):
            model(input_ids=ids, past_key_values=cache)
        return [tensor for part in cache.layers for tensor in row_tensors(part).values()]

    clean = cache_with(-1)
    changed = [
        any(not torch.equal(tensor, other) for tensor, other in zip(clean, cache_with(layer), strict=True))
        for layer in range(len(layers))
    ]
    assert changed == [True] * expected + [False] * (len(layers) - expected)
    assert reach(model.config) == expected


@pytest.mark.parametrize(
    ("rotary", "positions"),
    [
        ({"rope_type": "default", "rope_theta": 1e4}, 256),
        ({"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}, 256),
        ({"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}, 64),
        (
            {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64, "factor": 4.0}
            | dict.fromkeys(("short_factor", "long_factor"), [1.0] * 8),
            64,
        ),
    ],
)
def test_positions_that_depend_on_the_longest_row_end_early(rotary: dict[str, Any], positions: int) -> None:
    """LongRoPE and dynamic NTK at the original length; YaRN does not depend on it."""
    assert usable_positions(tiny_config("llama", rope_parameters=rotary)) == positions


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "mpt", "opt", "falcon", "llama"])
def test_decoder_layers_are_found(kind: str) -> None:
    """Without a path, whatever the list is called."""
    model = tiny_model(kind)
    assert len(find_decoder_layers(model)) == 6
    assert default_targets(find_decoder_layers(model), model.config.model_type)


@pytest.mark.parametrize("kind", ["gemma3n_text", "gpt2", "dbrx", "mpt", "nemotron_h", "falcon"])
def test_sizes_are_read_from_any_configuration(kind: str) -> None:
    """One number, one for each layer, or none: for the check of NF4 on the CPU and the estimate of memory."""
    config = tiny_config(kind)
    assert len(nf4_on_cpu_problems(BaseModel(quantization="nf4"), config, "cpu")) <= 1
    assert decoder_shape(config).intermediate >= 96


def test_a_refusal_reaches_the_user(refused: Callable[..., str], tmp_path: Path, tokenizer: Any) -> None:
    """Through the command line, with other problems in the same message, and before the model is loaded."""
    folder = tmp_path / "model"
    folder_of("jamba", folder)
    tokenizer.save_pretrained(folder)
    printed = refused("--data.bands", "[nosuch]", "--model.learning_rate", "-1", base=folder)
    assert "ignores the state" in printed
    assert "learning_rate -1" in printed


def test_a_late_band_of_shared_layers_reaches_the_user(refused: Callable[..., str], tmp_path: Path, tokenizer: Any) -> None:
    """Gemma 3n: the upper layers read the keys and values of lower ones."""
    folder = tmp_path / "model"
    folder_of("gemma3n_text", folder)
    tokenizer.save_pretrained(folder)
    assert "reaches no key or value" in refused("--data.bands", "[[6, 7]]", base=folder)
