"""What a model's own files must not ask for: pickles, another model, packages of their choice, files elsewhere.

A folder or a hub repository may come from anybody. Code that it brings is only run with ``base.trust_remote_code``, which
``transformers`` sees to; what is looked for here, before a weight is read, is what it would do without asking.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
# Others import or fetch what they need by the name that the model's files give.
QUANTISED_BY = ("bitsandbytes",)
MOST_LAYERS = 100_000


def file_problems(source: Mapping[str, Any]) -> list[str]:
    """Look at a model's small files.

    Args:
        source: Where it comes from, as :func:`~introspection_lit.models.sources.resolve` says it.
    """
    name = source["pretrained_model_name_or_path"]
    local = Path(name).is_dir()
    if _find(source, "adapter_config.json"):
        return [
            f"base.name_or_path: {name} holds an adapter (adapter_config.json), and transformers would load it, or another "
            "model that it names. Give the base model here, and the adapter as model.adapter."
        ]
    config = _read(_find(source, "config.json"))
    if config is None and not local:
        return []  # loading it says why it is not there
    if config is None:
        return [f"base.name_or_path: the config.json of {name} cannot be read as JSON fields. Get the model again."]
    problems = [*_size(config), *_quantisation(config), *_kernels(config), *_weights(source, config, local)]
    return [f"base.name_or_path: {name}: {problem}" for problem in problems]


def _size(config: Mapping[str, Any]) -> list[str]:
    """Transformers makes a list as long as the number of layers before anything is loaded."""
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    counts = [count for part in parts if isinstance(count := part.get("num_hidden_layers"), int)]
    most = max(counts, default=0)
    return [f"its config.json has {most:.0e} layers, more than any model. Get it again."] if most > MOST_LAYERS else []


def _quantisation(config: Mapping[str, Any]) -> list[str]:
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    packed = [part["quantization_config"] for part in parts if part.get("quantization_config")]
    methods = [str(each.get("quant_method")) if isinstance(each, dict) else str(each) for each in packed]
    return [
        f"its weights are quantised by {method[:60]!r}, which loads packages or kernels of its own. Expected weights that "
        "are not quantised; base.quantization quantises them."
        for method in methods
        if method not in QUANTISED_BY
    ]


def _kernels(config: Mapping[str, Any]) -> list[str]:
    """An implementation of attention or experts that is a hub repository is fetched from there and run."""
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    named = [(name, value) for part in parts for name, value in part.items() if str(name).endswith("_implementation")]
    named += [(name, each) for name, value in named if isinstance(value, dict) for each in value.values()]
    return [
        f"its config.json has {name[:60]} {value[:60]!r}, which would be fetched and run. Take that line out; "
        "base.attention says what is used."
        for name, value in named
        if isinstance(value, str) and not value.replace("_", "").isalnum()
    ]


def _weights(source: Mapping[str, Any], config: Mapping[str, Any], local: bool) -> list[str]:
    named = config.get("transformers_weights")
    if named is not None and not _plain(named):
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
    if not isinstance(parts, dict) or not all(_plain(part) for part in parts.values()):
        return [f"its {INDEX} does not say which .safetensors files beside it hold the weights. Get the model again."]
    return []


def _plain(name: object) -> bool:
    """The name of a safetensors file, without a folder."""
    return isinstance(name, str) and name.endswith(".safetensors") and not set(name) & set("/\\:\0")


def _read(path: Path | None) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path else None
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _find(source: Mapping[str, Any], file: str) -> Path | None:
    """A small file of a model folder, or of a hub repository, fetched if need be; None if there is none."""
    folder = Path(source["pretrained_model_name_or_path"])
    if folder.is_dir():
        return folder / file if (folder / file).is_file() else None
    try:
        found = cached_file(
            str(folder),
            file,
            revision=source.get("revision"),
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except OSError:  # no such repository: loading the configuration says so
        return None
    return Path(found) if found else None
