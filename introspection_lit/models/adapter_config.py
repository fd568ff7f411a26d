"""Validates ``adapter_config.json`` from untrusted sources.

For some of its settings PEFT imports packages, loads other models and pickles, or changes the base model. So only types of
adapter that do none of this are accepted, of texts only known settings, and of the settings of LoRA itself only those
below. A value that is PEFT's own default is always accepted.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from introspection_lit.utils import schema

if TYPE_CHECKING:
    from peft import PeftConfig

# Adapters that are weights, leave the base model as it was when they are switched off, and need nothing but their file.
# Others add tokens, load further models (shadow, xlora), or compute their weights from the base model's.
KINDS = (
    *("LORA", "ADALORA", "IA3", "LOHA", "LOKR", "OFT", "BOFT", "HRA", "VERA", "PVERA", "RANDLORA", "VBLORA"),
    *("UNILORA", "FOURIERFT", "WAVEFT", "C3A", "DELORA", "DEFT", "GLORA", "GRALORA", "HIRA", "LILY", "MISS", "BONE", "OSF"),
    *("BEFT", "LN_TUNING", "PEANUT", "PSOFT", "ROAD", "SUPERTUNING", "TRAINABLE_TOKENS"),
)
NUMBER = schema.either("a number, or true or false", schema.number(), schema.FLAG)
WORD = schema.text(r"[\w-]{1,60}", "one word")
NAME = schema.single("a name", lambda name: isinstance(name, str) and len(name) <= 1000 and name.isprintable())
NAMES = schema.either("a text or a list of texts", schema.TEXT, schema.TEXTS)
PATTERN = schema.named(schema.required(schema.either("a number or flags", schema.number(), schema.FLAGS)))
PATTERN = schema.either("numbers by name", PATTERN)
# Initialisations that need neither data nor the base model's weights; the file's weights replace them.
STARTS = "gaussian|orthogonal|eva|lycoris|kaiming_uniform|xavier_uniform|normal|uniform|bat|mini"
START = schema.either(
    "an initialisation that leaves the base model's own weights alone; PEFT's save_pretrained can convert others, with "
    "path_initial_model_for_weight_conversion",
    schema.FLAG,
    schema.text(STARTS),
)
SETTINGS: dict[str, schema.Check] = {
    **dict.fromkeys(("inference_mode", "fan_in_fan_out", "use_rslora", "use_dora", "lora_bias"), schema.FLAG),
    **dict.fromkeys(("target_modules", "exclude_modules", "modules_to_save", "layers_pattern"), NAMES),
    **dict.fromkeys(("base_model_name_or_path", "revision"), NAME),
    **dict.fromkeys(("lora_alpha", "lora_dropout"), schema.number()),
    **dict.fromkeys(("rank_pattern", "alpha_pattern"), PATTERN),
    "peft_version": schema.text(r"[\w.+@-]{1,100}", "a version"),
    "task_type": schema.text("CAUSAL_LM", "an adapter of a causal language model"),
    "r": schema.number(1, whole=True),
    "target_parameters": schema.TEXTS,
    "layers_to_transform": schema.either("a layer or a list of layers", schema.COUNT, schema.COUNTS),
    "trainable_token_indices": schema.either("numbers of tokens", schema.COUNTS, schema.named(schema.COUNTS)),
    "alora_invocation_tokens": schema.COUNTS,
    "ensure_weight_tying": schema.FLAG,
    "init_lora_weights": START,
    "eva_config": schema.named(NUMBER),
}
# Settings of other types of adapter that are neither numbers nor flags.
OTHERS: dict[str, schema.Check] = {
    **dict.fromkeys(("variant", "decomposition_method", "config_A_B", "config_C", "config_D_E", "act_fn"), WORD),
    **dict.fromkeys(("wavelet_family", "ab_svd_init", "psoft_svd"), WORD),
    **dict.fromkeys(("init_weights", "init_ia3_weights"), START),
    **dict.fromkeys(("lambda_pattern", "n_frequency_pattern", "block_size_pattern", "target_svd_config"), PATTERN),
    "feedforward_modules": NAMES,
    "token_indices": schema.COUNTS,
}
# Written by PEFT and not needed: never given to it. The first would name packages to import.
LEFT_OUT = ("auto_mapping", "runtime_config")
WHY = {
    "bias": "such an adapter changes the base model's own biases, also while it is switched off",
    "layer_replication": "it would give the model other layers",
    "megatron_config": "it would import a package",
    "sample_at_inference": "no two evaluations would be alike",
}


class Adapter(NamedTuple):
    """An adapter whose configuration has been read and checked.

    Attributes:
        name: The folder or hub id, as the user typed it.
        folder: The local folder.
        config: PEFT's configuration.
        description: Content of ``introspection.json`` (training options, question, threshold); None without that file.
    """

    name: str
    folder: Path
    config: PeftConfig
    description: dict[str, Any] | None


def read_settings(content: object) -> tuple[Any, list[str]]:
    """PEFT's configuration of an adapter, if all of its settings are accepted.

    Args:
        content: The fields of ``adapter_config.json``.

    Returns:
        A ``peft.PeftConfig``, or None; and what is wrong.
    """
    from peft import LoraConfig, PeftConfig
    from peft.config import PromptLearningConfig
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    if not isinstance(content, dict) or not isinstance(content.get("peft_type"), str):
        return None, ["its adapter_config.json does not say of which peft_type it is"]
    kind = content["peft_type"]
    known = {str(getattr(each, "value", each)): config for each, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if kind not in known or kind not in KINDS:
        adds_tokens = kind in known and (issubclass(known[kind], PromptLearningConfig) or kind == "ADAPTION_PROMPT")
        what = "adds tokens of its own to the cache" if adds_tokens else "is not among those known to be safe here"
        return None, [f"it is of type {kind[:60]}, which {what}. Expected an adapter of weights, such as LoRA"]
    defaults, checks = _defaults(known[kind]), SETTINGS
    if kind != "LORA":
        own = defaults.keys() - {field.name for field in dataclasses.fields(LoraConfig)} - WHY.keys()
        checks = SETTINGS | {name: OTHERS.get(name, NUMBER) for name in own}
    elif not content.get("target_parameters"):
        checks = SETTINGS | {"target_modules": schema.required(NAMES)}
    settings = {name: value for name, value in content.items() if name in defaults and name not in LEFT_OUT}
    # Of settings that this version of PEFT does not know, those that are empty do no harm.
    chosen = {name: value for name, value in content.items() if (value != defaults[name] if name in defaults else value)}
    for name in (*LEFT_OUT, "peft_type"):
        chosen.pop(name, None)
    wrong = schema.problems(schema.fields(others=_refuse, **checks), chosen)
    if wrong:
        return None, [f"its adapter_config.json: {problem}" for problem in wrong]
    try:
        return PeftConfig.from_peft_type(**settings), []
    except Exception as error:  # PEFT passes on whatever it meets
        return None, [f"its adapter_config.json cannot be used ({type(error).__name__}: {error})"]


def _refuse(value: Any, place: str) -> Iterator[str]:
    """A setting that is not among those accepted; null is, whatever it is called."""
    if value is not None:
        yield f"{place} is {str(value)[:60]!r}: {WHY.get(place, 'not a setting that is taken from a file')}"


def _defaults(config: Any) -> dict[str, Any]:
    """PEFT's defaults, as its JSON has them; ``...`` where there is none."""
    defaults: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        factory = field.default_factory
        value = field.default if factory is dataclasses.MISSING else factory()
        try:
            defaults[field.name] = json.loads(json.dumps(value))
        except TypeError:  # also of MISSING
            defaults[field.name] = ...
    return defaults
