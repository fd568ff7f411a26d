"""Refuses model files that ask for pickles, another model, packages of their choice or files elsewhere.

A folder or a hub repository may come from anybody. transformers runs its code only with ``base.trust_remote_code``; the
rest is refused here, before a weight is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

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
    if _find(source, "adapter_config.json"):
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
    return _read(_find(source, "config.json"))


def weight_files(source: Mapping[str, Any]) -> list[Path]:
    """All safetensors files of a model, fetched if need be; none if one is missing, or it is not clear which they are.

    Args:
        source: Where the model is; its small files have been checked.
    """
    named = (model_config(source) or {}).get("transformers_weights")
    names: Iterable[str] = [str(named)] if named is not None else [WEIGHTS]
    if named is None and _find(source, WEIGHTS) is None:
        names = dict.fromkeys(((_read(_find(source, INDEX)) or {}).get("weight_map") or {}).values())
    files = [_find(source, name) for name in names]
    return [file for file in files if file] if all(files) else []


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
    if named is not None or (local and _find(source, WEIGHTS)):
        return []
    index = _find(source, INDEX)
    if index is None and not local:
        return []  # finding out would fetch them; loading takes nothing but safetensors
    if index is None:
        pickled = next((file for file in PICKLED if _find(source, file)), None)
        reason = f"it has {pickled}, a pickle, which can run anything" if pickled else "it has none"
        return [
            f"expected weights as safetensors ({WEIGHTS}); {reason}. Use a revision that has them, or convert it where you "
            "trust it: load it with transformers, and save_pretrained writes safetensors."
        ]
    parts = (_read(index) or {}).get("weight_map")
    if not isinstance(parts, dict) or not all(map(_is_beside, parts.values())):
        return [f"its {INDEX} does not say which .safetensors files beside it hold the weights. Get the model again."]
    return []


def _is_beside(name: object) -> bool:
    """Whether a value is the name of a safetensors file, without a folder."""
    return isinstance(name, str) and name.endswith(".safetensors") and not set(name) & set("/\\:\0")


def _read(path: Path | None) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path else None
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _find(source: Mapping[str, Any], file: str) -> Path | None:
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
