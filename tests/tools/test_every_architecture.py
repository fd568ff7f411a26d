"""Every architecture that ``AutoModelForCausalLM`` maps: it works as an independent calculation says, or is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from project_paths import ROOT, listed_models
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from introspection_lit.models.base_model import BaseModel
from introspection_lit.models.decoder_shape import decoder_shape
from introspection_lit.models.memory_estimate import cache_bytes, weight_bytes
from introspection_lit.steering.caches import row_tensors
from introspection_lit.tools.architectures.measure import RIGHT, measured
from introspection_lit.tools.architectures.recipes import model_types, tiny_config
from introspection_lit.tools.architectures.table import case_of, decide, measure, page, wrong

PAGE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
LISTED = listed_models()
SAMPLE = ["llama", "gpt2", "lfm2", "mpt"]
SAME_RELEASE = pytest.mark.skipif(
    f"transformers {transformers.__version__}" not in PAGE, reason="docs/models.md is of another release of transformers"
)


@SAME_RELEASE
@pytest.mark.thorough
def test_the_list_is_up_to_date() -> None:
    """Otherwise run ``python scripts/list_models.py``."""
    assert page([decide(kind) for kind in model_types()], transformers.__version__) == PAGE


def test_some_of_the_list_is_up_to_date() -> None:
    """A few types, one of each section that is decided by the code."""
    for kind in ("llama", "qwen3_next", "gpt2", "jamba", "mamba2", "bert"):
        verdict = decide(kind)
        assert (kind in LISTED) == (not verdict.reason), verdict.reason
        if verdict.reason:
            assert f"| `{kind}` | {verdict.name} | {verdict.reason} |" in PAGE


@SAME_RELEASE
@pytest.mark.parametrize(
    "kind", [kind if kind in SAMPLE else pytest.param(kind, marks=pytest.mark.thorough) for kind in LISTED]
)
def test_what_is_listed_is_right(kind: str, tmp_path: Path) -> None:
    """Rows of a mixed batch, asked twice, shared and kept caches, gradients with the layers run once and twice."""
    assert wrong(measure(kind, tmp_path)) == {}


@SAME_RELEASE
@pytest.mark.parametrize(
    "kind",
    [kind if kind in ("llama", "deepseek_v3") else pytest.param(kind, marks=pytest.mark.thorough) for kind in LISTED],
)
def test_memory_is_that_of_the_weights_and_the_cache(kind: str) -> None:
    """The estimate for a tiny model, and the bytes that are there: experts, fused or not, latents, states."""
    config = tiny_config(kind)
    model = AutoModelForCausalLM.from_config(config)
    base, shape = BaseModel(), decoder_shape(config)
    assert weight_bytes(shape, base) == sum(weight.nbytes for weight in model.parameters())
    for tokens in (9, 40):  # within a sliding window, and beyond it
        ids = torch.arange(tokens)[None] + 5
        cache = transformers.DynamicCache(config=model.config)
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache)
        tensors = [tensor for layer in cache.layers for tensor in row_tensors(layer).values()]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        assert cache_bytes(shape, base, tokens) == pytest.approx(sum(storages.values()), rel=0.02), tokens


def test_most_of_those_that_cache_are_right() -> None:
    """At least 85 % of the decoders that take ``past_key_values``."""
    refused = PAGE.partition(" are refused")[2].partition(" were not measured")[0]
    reasons = [line for line in refused.splitlines() if line.startswith("| `")]
    caching = [line for line in reasons if "an encoder" not in line and "no past_key_values" not in line]
    assert len(LISTED) / (len(LISTED) + len(caching)) > 0.85
    assert set(LISTED) <= MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys()


@pytest.mark.parametrize("damage", ["steering", "adapter", "cache"])
def test_the_oracle_notices(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A negative control: steering elsewhere, an adapter that reads otherwise, or a shallow fork is far off."""
    case, _ = case_of("lfm2", tmp_path)
    if damage == "cache":  # what a fork was before it copied the states
        import copy

        def shallow(cache: transformers.Cache) -> transformers.Cache:
            forked = copy.copy(cache)
            forked.layers = [copy.copy(layer) for layer in cache.layers]
            return forked

        monkeypatch.setattr("introspection_lit.steering.question_pass.fork", shallow)
    else:
        own = case.expected

        def changed(row: int, steered: bool = True) -> torch.Tensor:
            if damage == "steering":
                return own(row, steered=False)
            if torch.is_grad_enabled():
                return own(row, steered)
            with case.model.disable_adapter():
                return own(row, steered)

        monkeypatch.setattr(case, "expected", changed)
    results = measured(case, ["plain"], recompute=False)
    noticed = results["plain, grid"]  # where the start of the questions is read from the caches themselves
    assert isinstance(noticed, float)
    assert noticed > 100 * RIGHT
