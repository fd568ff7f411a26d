"""What is believed of an adapter's ``adapter_config.json``, which may come from anybody.

PEFT imports packages, loads other models and pickles, or changes the base model, for some of its settings. So only kinds of
adapter that do none of this are known here, and only settings of the right form; what has PEFT's own default is all right.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any

from introspection_lit.utils.validators import finite, flag, text, texts, whole

# Adapters that are weights, leave the base model as it was when they are switched off, and need nothing but their file.
# Others add tokens, load further models (shadow, xlora), or compute their weights from the base model's.
KINDS = (
    *("LORA", "ADALORA", "IA3", "LOHA", "LOKR", "OFT", "BOFT", "HRA", "VERA", "PVERA", "RANDLORA", "VBLORA"),
    *("UNILORA", "FOURIERFT", "WAVEFT", "C3A", "DELORA", "DEFT", "GLORA", "GRALORA", "HIRA", "LILY", "MISS", "BONE", "OSF"),
    *("BEFT", "LN_TUNING", "PEANUT", "PSOFT", "ROAD", "SUPERTUNING", "TRAINABLE_TOKENS"),
)
# Ways of making first weights that need neither data nor the base model's weights: the file's are put in their place.
STARTS = (
    *("gaussian", "orthogonal", "eva", "lycoris", "kaiming_uniform", "xavier_uniform", "normal", "uniform", "bat", "mini"),
)


def _word(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[\w-]{1,60}", value) is not None


def _name(value: object) -> bool:
    return isinstance(value, str) and len(value) <= 1000 and value.isprintable()


def _version(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[\w.+@-]{1,100}", value) is not None


def _names(value: object) -> bool:
    return text(value) or texts(value)


def _layers(value: object) -> bool:
    return whole(value) or _numbers(value)


def _numbers(value: object) -> bool:
    return isinstance(value, list) and all(map(whole, value))


def _tokens(value: object) -> bool:
    return _numbers(value) or (isinstance(value, dict) and all(map(_numbers, value.values())))


def _by_name(value: object) -> bool:
    return isinstance(value, dict) and all(finite(each) or _flags(each) for each in value.values())


def _flags(value: object) -> bool:
    return isinstance(value, list) and all(map(flag, value))


def _plain(value: object) -> bool:
    return isinstance(value, dict) and all(each is None or finite(each) or flag(each) for each in value.values())


def _start(value: object) -> bool:
    return flag(value) or value in STARTS


def _positive(value: object) -> bool:
    return whole(value) and value != 0


def _language(value: object) -> bool:
    return value == "CAUSAL_LM"


FORMS: dict[Callable[[object], bool], str] = {
    _name: "base_model_name_or_path revision",
    _version: "peft_version",
    _language: "task_type",
    _names: "target_modules exclude_modules modules_to_save feedforward_modules layers_pattern",
    texts: "target_parameters",
    _layers: "layers_to_transform",
    _tokens: "trainable_token_indices token_indices",
    _by_name: "rank_pattern alpha_pattern lambda_pattern n_frequency_pattern block_size_pattern target_svd_config",
    _plain: "eva_config",
    _start: "init_lora_weights init_ia3_weights init_weights",
    _word: ("variant decomposition_method config_A_B config_C config_D_E act_fn wavelet_family ab_svd_init psoft_svd"),
    flag: (
        "inference_mode fan_in_fan_out use_rslora use_dora lora_bias ensure_weight_tying use_effective_conv2d "
        "decompose_both rank_dropout_scale coft block_share use_cayley_neumann apply_GS save_projection sparse "
        "very_sparse use_idwt para proportional_parameters save_only_topk_weights save_indices save_precomputed_indices "
        "select_top psoft_orth psoft_mag_a psoft_mag_b"
    ),
    finite: (
        "lora_alpha lora_dropout alpha boft_block_size boft_block_num boft_n_butterfly_factor boft_dropout block_size "
        "rank_dropout module_dropout decompose_factor oft_block_size eps num_cayley_neumann_terms cayley_neumann_eps "
        "projection_prng_key vera_dropout pvera_dropout d_initial randlora_dropout randlora_alpha "
        "num_vectors vector_length topk vblora_dropout init_vector_bank_bound init_logits_std "
        "proj_seed theta_d_length unilora_dropout init_theta_d_bound "
        "n_frequency scaling random_loc_seed delora_lambda deft_dropout init_scale hybrid_r gralora_dropout gralora_k "
        "hira_dropout stride_A num_B miss_dropout mini_r effective_rank depth psoft_alpha psoft_dropout "
        "psoft_svd_lowrank_niter random_seed group_size sparsity target_r init_r tinit tfinal deltaT beta1 beta2 "
        "orth_reg_weight total_step"
    ),
}
SETTINGS = {name: form for form, names in FORMS.items() for name in names.split()}
# Written by PEFT, and of no use here: never given to it. The first would name packages to import.
LEFT_OUT = ("auto_mapping", "runtime_config")
WHY = {
    "bias": "such an adapter changes the base model's own biases, also while it is switched off",
    "init_lora_weights": "such a start changes the base model's own weights; PEFT's save_pretrained can convert it, with "
    "path_initial_model_for_weight_conversion",
    "task_type": "expected an adapter of a causal language model",
    "layer_replication": "it would give the model other layers",
    "megatron_config": "it would import a package",
}


def read_settings(content: object) -> tuple[Any, list[str]]:
    """PEFT's configuration of an adapter, if all of its settings are believed.

    Args:
        content: Of ``adapter_config.json``.

    Returns:
        A ``peft.PeftConfig``, or None; and what is wrong.
    """
    from peft import PeftConfig
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    if not isinstance(content, dict) or not isinstance(content.get("peft_type"), str):
        return None, ["its adapter_config.json does not say of which peft_type it is"]
    kind = content["peft_type"]
    known = {str(getattr(each, "value", each)): made for each, made in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if kind not in known or kind not in KINDS:
        added = kind in known and (issubclass(known[kind], _prompts()) or kind == "ADAPTION_PROMPT")
        what = "which adds tokens of its own to the cache" if added else "which is not among those known to be safe here"
        return None, [f"it is of type {kind[:60]}, {what}. Expected an adapter of weights, such as LoRA"]
    defaults = _defaults(known[kind])
    settings = {name: value for name, value in content.items() if name in defaults and name not in LEFT_OUT}
    odd = [problem for name, value in content.items() if (problem := _problem(name, value, defaults))]
    rank = content.get("r")
    if "r" in content and not _positive(rank) and rank != defaults.get("r"):
        odd.append(f"r is {str(rank)[:60]!r}")
    if kind == "LORA" and not _names(content.get("target_modules")) and not content.get("target_parameters"):
        odd.append(f"target_modules is {str(content.get('target_modules'))[:60]!r}")
    if odd:
        return None, [f"its adapter_config.json: {problem}" for problem in odd[:10]]
    try:
        return PeftConfig.from_peft_type(**settings), []
    except Exception as error:  # PEFT passes on whatever it meets
        return None, [f"its adapter_config.json cannot be used ({type(error).__name__}: {error})"]


def _problem(name: str, value: object, defaults: dict[str, Any]) -> str | None:
    """Why a setting is not believed; None if it is."""
    if value is None or name in (*LEFT_OUT, "peft_type", "r") or (name in defaults and value == defaults[name]):
        return None
    shown = f"{name[:60]} is {str(value)[:60]!r}"
    if name not in defaults:
        return f"{shown}, which this version of PEFT does not know" if value else None
    if name in SETTINGS and SETTINGS[name](value):
        return None
    return f"{shown}: {WHY.get(name, 'not a setting that is taken from a file')}"


def _defaults(config: Any) -> dict[str, Any]:
    """PEFT's defaults, as its JSON has them; ``...`` where there is none."""
    found = {}
    for field in dataclasses.fields(config):
        default = ... if field.default is dataclasses.MISSING else field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        try:
            found[field.name] = default if default is ... else json.loads(json.dumps(default))
        except TypeError:
            found[field.name] = ...
    return found


def _prompts() -> type:
    from peft.config import PromptLearningConfig

    return PromptLearningConfig
