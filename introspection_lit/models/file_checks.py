"""Refuses model files that ask for pickles, another model, packages of their choice or files elsewhere.

A folder or a hub repository may come from anybody. transformers runs its code only with ``base.trust_remote_code``; the
rest is refused here, before a weight is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformers.utils.hub import cached_file

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
# Others import or fetch what they need by the name that the model's files give.
QUANTISED_BY = ("bitsandbytes",)
MAX_LAYERS = 100_000


def file_problems(source: Mapping[str, Any]) -> list[str]:
    """Check a model's small files.

    Args:
        source: Where the model is, from :func:`~introspection_lit.models.sources.resolve`.
    """
    name = source["pretrained_model_name_or_path"]
    local = Path(name).is_dir()
    if find_file(source, "adapter_config.json"):
        return [
            f"base.name_or_path: {name} holds an adapter (adapter_config.json), and transformers would load it, or another "
            "model that it names. Give the base model here, and the adapter as model.adapter."
        ]
    config = model_config(source)
    if config is None and not local:
        return []  # loading it says why it is not there
    if config is None:
        return [f"base.name_or_path: the config.json of {name} cannot be read as JSON fields. Get the model again."]
    return [f"base.name_or_path: {name}: {problem}" for problem in (*_settings(config), *_weights(source, config, local))]


def model_config(source: Mapping[str, Any]) -> dict[str, Any] | None:
    """The fields of a model's ``config.json``; None if it is not there or cannot be read."""
    return _read(find_file(source, "config.json"))


def _settings(config: Mapping[str, Any]) -> Iterator[str]:
    """What a config.json, or a part of it such as text_config, asks for: layers, quantisation, kernels."""
    for part in (config, *(part for part in config.values() if isinstance(part, dict))):
        layers, packed = part.get("num_hidden_layers"), part.get("quantization_config")
        of_old = isinstance(packed, dict) and (packed.get("load_in_4bit") or packed.get("load_in_8bit"))
        if isinstance(layers, int) and layers > MAX_LAYERS:  # transformers makes a list of them before a weight is read
            yield f"its config.json has {layers:.0e} layers, more than any model. Get it again."
        method = str(
            packed.get("quant_method", QUANTISED_BY[0] if of_old else None) if isinstance(packed, dict) else packed
        )
        if packed and method not in QUANTISED_BY:
            reason = f"its weights are quantised by {method[:60]!r}, which loads packages or kernels of its own"
            yield f"{reason}. Expected weights that are not quantised; base.quantization quantises them."
        # An implementation of attention or experts that is a hub repository is fetched from there and run.
        for name, value in part.items():
            for each in value.values() if isinstance(value, dict) else (value,):
                kernel = isinstance(each, str) and not each.replace("_", "").isalnum()
                if str(name).endswith("_implementation") and kernel:
                    reason = f"its config.json has {name[:60]} {each[:60]!r}, which would be fetched and run"
                    yield f"{reason}. Take that line out; base.attention says what is used."


def _weights(source: Mapping[str, Any], config: Mapping[str, Any], local: bool) -> list[str]:
    named = config.get("transformers_weights")
    if named is not None and not _is_beside(named):
        return [f"its config.json names the weights {str(named)[:60]!r}. Expected a .safetensors file beside it."]
    if named is not None or (local and find_file(source, WEIGHTS)):
        return []
    index = find_file(source, INDEX)
    if index is None and not local:
        return []  # finding out would fetch them; loading takes nothing but safetensors
    if index is None:
        pickled = next((file for file in PICKLED if find_file(source, file)), None)
        reason = f"it has {pickled}, a pickle, which can run anything" if pickled else "it has none"
        return [
            f"expected weights as safetensors ({WEIGHTS}); {reason}. Use a revision that has them, or convert it where you "
            "trust it: load it with transformers, and save_pretrained writes safetensors."
        ]
    parts = (_read(index) or {}).get("weight_map")
    if not isinstance(parts, dict) or not all(map(_is_beside, parts.values())):
        return [f"its {INDEX} does not say which .safetensors files beside it hold the weights. Get the model again."]
    return []


def weight_files(source: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """Names of the files that hold a model's weights, as far as its other files say; they need not be there yet.

    Args:
        source: Where the model is, from :func:`~introspection_lit.models.sources.resolve`.
        config: The fields of its ``config.json``.
    """
    named = config.get("transformers_weights") or WEIGHTS
    if not _is_beside(named):
        return []
    here = (Path(source["pretrained_model_name_or_path"]) / named).is_file()
    index = None if here or named != WEIGHTS else find_file(source, INDEX)
    parts = (_read(index) or {}).get("weight_map") if index else {}
    return sorted({name for name in parts.values() if _is_beside(name)}) if isinstance(parts, dict) and parts else [named]


def _is_beside(name: object) -> bool:
    """Whether a value is the name of a safetensors file, without a folder."""
    return isinstance(name, str) and name.endswith(".safetensors") and not set(name) & set("/\\:\0")


def _read(path: Path | None) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path else None
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def find_file(source: Mapping[str, Any], file: str) -> Path | None:
    """A small file of a model folder, or of a hub repository, fetched if need be; None if there is none."""
    folder = Path(source["pretrained_model_name_or_path"])
    if folder.is_dir():
        return folder / file if (folder / file).is_file() else None
    quiet = {f"_raise_exceptions_for_{case}": False for case in ("gated_repo", "missing_entries", "connection_errors")}
    try:
        path = cached_file(str(folder), file, revision=source.get("revision"), **quiet)
    except OSError:  # no such repository: loading the configuration says so
        return None
    return Path(path) if path else None


def present_file(source: Mapping[str, Any], file: str) -> Path | None:
    """A file of a model folder, or of the hub's cache; None if it is not there. Nothing is fetched."""
    folder = Path(source["pretrained_model_name_or_path"])
    if folder.is_dir():
        return folder / file if (folder / file).is_file() else None
    path = try_to_load_from_cache(str(folder), file, revision=source.get("revision"))
    return Path(path) if isinstance(path, str) else None
