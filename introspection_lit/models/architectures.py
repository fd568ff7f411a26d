"""What each architecture can do here, decided from its configuration before any weights are loaded.

A run needs a causal decoder whose cache is all that it keeps of a context, that reads a question of several tokens after
it, and whose layers return a residual stream. What is refused here was measured on tiny models (docs/models.md), as was
which savings are exact.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from introspection_lit.models.architecture import find_decoder_layers
from introspection_lit.models.base_model import BaseModel, Implementation, Lora, lora_problems
from introspection_lit.models.loading import meta_model
from introspection_lit.models.lora_checks import placement_problems
from introspection_lit.models.lora_targets import default_targets
from introspection_lit.utils.cache_option import NEW, OLD, takes
from introspection_lit.utils.errors import ConfigurationError

if TYPE_CHECKING:
    from introspection_lit.utils.lazy_types import PretrainedConfig

INSTEAD = "Use a model of another architecture: docs/models.md lists those that work"
ENCODER = "it is an encoder, or the half of an encoder-decoder: not a decoder that reads from left to right"
SECOND_PASS = "a second pass of several tokens ignores the state that its recurrent layers have stored"
STREAMS = "its layers pass on several residual streams in one tensor, and none of them is what a layer reads"
OWN_CACHE = "its forward takes no past_key_values, or ignores them: it keeps its state elsewhere, if at all"
ENCODERS = (
    "bart bert bert-generation big_bird bigbird_pegasus blenderbot blenderbot-small camembert data2vec-text electra ernie "
    "git marian mbart megatron-bert mvp pegasus plbart prophetnet rembert roberta roberta-prelayernorm roc_bert roformer "
    "trocr whisper xlm xlm-roberta xlm-roberta-xl xmod musicgen musicgen_decoder musicgen_melody musicgen_melody_decoder"
)
REFUSED: dict[str, str] = {
    **dict.fromkeys(ENCODERS.split(), ENCODER),
    **dict.fromkeys(("jamba", "zamba"), SECOND_PASS),
    # Since transformers 5.24 their option has the name that those of other architectures have.
    **dict.fromkeys(("falcon_mamba", "mamba", "mamba2", "xlstm"), OWN_CACHE),
    **dict.fromkeys(("deepseek_v4", "hy_v4", "qwen4_exp", "qwen4_exp_text"), STREAMS),
    **dict.fromkeys(("gemma4_assistant", "gemma4_unified_assistant"), "it drafts for another model, whose caches it reads"),
    "blt": "it reads bytes in patches, with three decoders",
    "cpmant": "it puts prompt tokens of its own before the text, and lets them attend both ways",
    "recurrent_gemma": "it keeps its recurrent states in the modules, where they outlive a context",
    "minimax": "its cache has a class of its own that cannot be forked",
    "longcat_flash": "each of its decoder layers holds two attentions, which have two layers of the cache",
    "hrm_text": "it runs its layers several times, each time with another layer of the cache",
}
# What rows cannot be cut out of, or put into, while they run.
NOT_SHARED = {
    **dict.fromkeys(("bloom", "mpt"), "its position biases are not arranged by the rows of a batch"),
    "zaya": "its layers pass on the state of a router beside the residual stream",
}
ALIBI = ("falcon", "refinedweb", "refinedwebmodel")


class Architecture(NamedTuple):
    """What was decided about a model.

    Attributes:
        layers: Number of decoder layers.
        reach: Number of the first layers whose output reaches the cache: what is added at a later one changes no cache.
        attention: The attention implementation that the model is loaded with.
        targets: Names of the modules that get an adapter.
        usual: Names of those that get one by default.
        share: Whether rows may share the layers below the steering (``data.reuse.layers``).
        notes: What was switched off or chosen, a sentence each.
        problems: Why the model cannot be used as configured, a sentence each.
    """

    layers: int
    reach: int
    attention: Implementation
    targets: list[str]
    usual: list[str]
    share: bool
    notes: list[str]
    problems: list[str]


def examine(base: BaseModel, config: PretrainedConfig, lora: Lora | None = None) -> Architecture:
    """Decide whether and how a model can be used, from a model without weights.

    Args:
        base: Options of the model.
        config: The decoder's configuration.
        lora: Options of the adapter; None: one that exists is loaded.
    """
    layers = int(getattr(config, "num_hidden_layers", 0) or 0)
    targets = list((lora and lora.target_modules) or ())
    found = Architecture(layers, reach(config), base.implementation, targets, [], True, [], [])
    name = f"base.name_or_path: {base.name_or_path!r} is a {config.model_type!r}"
    if reason := refusal(config):
        found.problems.append(f"{name}, which cannot be used: {reason}. {INSTEAD}.")
        return found
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    try:
        model: Any = meta_model(base)
    except ConfigurationError as error:
        found.problems.extend(error.problems)
        return found
    except Exception as error:  # transformers: unknown classes, sizes that do not fit, packages that are missing
        problem = str(error).strip().splitlines()[:1] or [""]
        detail = f"{type(error).__name__}: {problem[0][:200]}"
        found.problems.append(f"{name}, of which no causal language model can be made ({detail}). {INSTEAD}.")
        return found
    if not any(takes(type(model).forward, option) for option in (NEW, OLD)):
        found.problems.append(f"{name}, which cannot be used: {OWN_CACHE}. {INSTEAD}.")
        return found
    found = found._replace(attention=_attention(model, base, found))
    try:
        modules = find_decoder_layers(model, base.decoder_layers)
    except ValueError as error:
        found.problems.append(str(error))
        return found
    usual = default_targets(modules, config.model_type)
    found = found._replace(usual=usual)
    if lora is not None:
        found = found._replace(targets=usual if lora.target_modules is None else list(lora.target_modules))
        if not found.targets and lora.target_modules is None:
            found.problems.append(
                f"model.lora.target_modules: {type(model).__name__} has no linear modules of a known kind. Name some."
            )
        elif not lora_problems(lora, layers):
            lora = replace(lora, target_modules=found.targets)
            found.problems.extend(placement_problems(model, lora, base.decoder_layers, usual))
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        found.notes.append(f"{name}, which was not measured here (docs/models.md): compare its scores with a single pass")
    if not_shared := _not_shared(config):
        found.notes.append(f"data.reuse.layers is off for this model: {not_shared}")
    return found._replace(share=not not_shared)


def reach(config: PretrainedConfig) -> int:
    """Number of the first decoder layers whose output reaches a key, a value or a state of a later layer.

    The last layer's does not; nor do those after the last layer that writes a cache: layers that take keys and values from
    earlier ones (Gemma 3n, Gemma 4) or mix no tokens (Nemotron-H) write none.
    """
    layers = int(getattr(config, "num_hidden_layers", 0) or 0)
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * layers
    modes = getattr(config, "kv_sharing_modes", None) or [None] * layers
    writing = layers - int(getattr(config, "num_kv_shared_layers", 0) or 0)
    writers = [
        number
        for number, (kind, mode) in enumerate(zip(kinds, modes, strict=False))
        if kind not in ("mlp", "moe") and mode != "reuse" and number < writing
    ]
    return max(writers, default=0)


def refusal(config: PretrainedConfig) -> str | None:
    """Why an architecture cannot be used whatever the options, without the full stop; None: it can, as far as is known."""
    if reason := REFUSED.get(config.model_type):
        return reason
    if getattr(config, "is_encoder_decoder", False):
        return ENCODER
    both_ways = getattr(config, "use_bidirectional_attention", None)
    if both_ways in (True, "all") or getattr(config, "is_causal", True) is False:
        return "its configuration lets tokens attend to later ones (use_bidirectional_attention), so it is not causal"
    return None


def _attention(model: Any, base: BaseModel, found: Architecture) -> Implementation:
    """The attention implementation: the one that is asked for, or another one that the architecture has."""
    kind = type(model)
    flash = getattr(kind, "_supports_flash_attn", False) or getattr(kind, "_supports_flash_attn_2", False)
    if base.implementation == "flash_attention_2" and not flash:
        other = "sdpa" if kind._supports_sdpa else "eager"
        found.problems.append(f"base.attention: {kind.__name__} has no flash_attention_2. Expected {other}.")
    if base.implementation == "sdpa" and not kind._supports_sdpa:
        found.notes.append(f"base.attention: {kind.__name__} has no sdpa; eager is used")
        return "eager"
    return base.implementation


def _not_shared(config: PretrainedConfig) -> str | None:
    """Why rows of a batch cannot share their lower layers, without the full stop; None: they can."""
    if config.model_type in NOT_SHARED:
        return NOT_SHARED[config.model_type]
    if "shared" in (getattr(config, "indexer_types", None) or ()):
        return "its layers pass on the tokens that an index has chosen beside the residual stream"
    if config.model_type.lower() in ALIBI and getattr(config, "alibi", False):
        return NOT_SHARED["bloom"]
    if getattr(config, "num_kv_shared_layers", 0) or "reuse" in (getattr(config, "kv_sharing_modes", None) or ()):
        return "its upper layers read keys and values of lower ones, which not all rows run through"
    return None
