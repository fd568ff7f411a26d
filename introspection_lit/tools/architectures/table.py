"""Which architectures work, as the list in docs/models.md; and the measurement of those that are said to."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from introspection_lit.models.architecture import find_decoder_layers
from introspection_lit.models.architectures import INSTEAD, REFUSED, Architecture, examine
from introspection_lit.models.base_model import BaseModel, Lora
from introspection_lit.models.loading import add_lora, freeze, load_config
from introspection_lit.tools.architectures.measure import RIGHT, Case, measured
from introspection_lit.tools.architectures.recipes import tiny_config

# What no tiny model is made of: wrappers whose text models have types of their own, and models of two kinds of input.
NOT_BUILT = {
    **dict.fromkeys(("gemma3", "gemma3n", "gemma4", "gemma4_unified", "dots3_note"), "multimodal: see its text model"),
    **dict.fromkeys(("emu3", "fuyu", "got_ocr2", "mllama", "phi4_multimodal"), "multimodal"),
    "moss_transcribe_diarize": "multimodal",
    "moshi": "a model of speech and text",
}


class Verdict(NamedTuple):
    """What was decided about a model type.

    Attributes:
        model_type: As in a model's configuration.
        name: The class of the causal language model.
        found: The decision; None where it was not made.
        reason: Why it is refused, or was not measured; empty: it works.
    """

    model_type: str
    name: str
    found: Architecture | None
    reason: str


def folder_of(model_type: str, folder: Path) -> BaseModel:
    """A tiny model's configuration in a folder, as a model that can be named."""
    tiny_config(model_type).save_pretrained(folder)
    save_file({"none": torch.zeros(1)}, folder / "model.safetensors")  # without one, a folder is no model
    return BaseModel(str(folder))


def decide(model_type: str) -> Verdict:
    """Decide about a model type as a run does before it loads anything, from a tiny configuration."""
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
    if reason := REFUSED.get(model_type) or NOT_BUILT.get(model_type):
        return Verdict(model_type, name, None, reason)
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = folder_of(model_type, Path(folder))
        found = examine(base, load_config(base), Lora())
    problem = found.problems[0] if found.problems else ""
    reason = problem.partition("cannot be used: ")[2].partition(f". {INSTEAD}")[0]
    return Verdict(model_type, name, found, reason or problem)


def case_of(model_type: str, folder: Path) -> tuple[Case, Architecture]:
    """A tiny random model with the adapter that it gets by default, and what was decided about it."""
    base = folder_of(model_type, folder)
    config = load_config(base)
    found = examine(base, config, Lora())
    torch.manual_seed(0)
    built = AutoModelForCausalLM.from_config(config, attn_implementation=found.attention)
    model: Any = add_lora(freeze(built), Lora(r=4, dropout=0.0, target_modules=found.targets)).eval()
    for weight_name, weight in model.named_parameters():
        if "lora_B" in weight_name:  # an adapter that does something
            torch.nn.init.normal_(weight, std=0.03)
    last = found.reach - 1
    return Case(model, find_decoder_layers(built), [None, (1, last), None, (min(3, last), last)]), found


def measure(model_type: str, folder: Path) -> dict[str, float | str]:
    """Hold a model type to the oracle, with the savings that are on for it (see :func:`measured`)."""
    case, found = case_of(model_type, folder)
    results = measured(case, ("plain", "shared", "kept") if found.share else ("plain", "kept alone"))
    idle = [name for name, weight in case.model.named_parameters() if weight.requires_grad and weight.grad is None]
    return results | ({"idle": f"{len(idle)} weights of the adapter are not used, such as {idle[0]}"} if idle else {})


def wrong(results: dict[str, float | str]) -> dict[str, float | str]:
    """What of a measurement is not right."""
    found = {name: value for name, value in results.items() if isinstance(value, str) or not value <= RIGHT}
    effect = found.pop("effect", 0.0)
    return found if isinstance(effect, float) and effect > 10 * RIGHT else found | {"effect": effect}


def page(verdicts: Sequence[Verdict], version: str) -> str:
    """The list as a page in Markdown."""
    right = [verdict for verdict in verdicts if not verdict.reason]
    refused = [verdict for verdict in verdicts if verdict.reason and verdict.model_type not in NOT_BUILT]
    others = [verdict for verdict in verdicts if verdict.model_type in NOT_BUILT]
    lines = [
        "# Models",
        "",
        f"Every model type that `AutoModelForCausalLM` maps in transformers {version}, by `scripts/list_models.py`.",
        "A type works if a tiny random model of it answers as an independent calculation in one pass does (to 1e-4 of the",
        "largest logit): rows of a padded batch, caches asked twice and shared, every saving that is on, and gradients",
        "with and without `model.recompute`. `make test-all` measures all of them. Of the others no weights are loaded: an",
        "error says why. Savings: `layers` and `clean` of `data.reuse`; where a sliding window drops tokens, `clean` is",
        "off, too.",
        "",
        f"## {len(right)} work",
        "",
        "| model type | class | attention | adapter on | savings |",
        "|---|---|---|---|---|",
    ]
    for verdict in right:
        assert verdict.found is not None
        found, savings = verdict.found, "layers, clean" if verdict.found.share else "clean"
        cells = [f"`{verdict.model_type}`", verdict.name, found.attention, ", ".join(found.targets), savings]
        lines.append(f"| {' | '.join(cells)} |")
    for title, rest in ((f"{len(refused)} are refused", refused), (f"{len(others)} were not measured", others)):
        lines += ["", f"## {title}", "", "| model type | class | reason |", "|---|---|---|"]
        lines += [f"| `{verdict.model_type}` | {verdict.name} | {verdict.reason} |" for verdict in rest]
    return "\n".join([*lines, ""])
