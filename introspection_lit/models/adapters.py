"""Reads, checks and copies PEFT adapters from a folder or the hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from introspection_lit.models.adapter_config import Adapter, read_settings
from introspection_lit.models.adapter_weights import WEIGHTS, unreadable_weights, weight_mismatches
from introspection_lit.models.base_identity import BaseIdentity
from introspection_lit.models.base_model import BaseModel
from introspection_lit.models.recorded_settings import RECORD, validate_settings
from introspection_lit.utils import schema
from introspection_lit.utils.checksums import CHECKSUM, checksum_problem, file_hash, mismatch
from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.files import atomic_folder
from introspection_lit.utils.paths import inside_folder, parse_path

DESCRIPTION = "introspection.json"
CONFIG = "adapter_config.json"
# The chat template of the training, if it was not the model's own.
TEMPLATE = "chat_template.jinja"
# The vectors of the run, in a published adapter's folder or in the run's.
BANK = "vectors.safetensors"
FILES = (CONFIG, WEIGHTS, DESCRIPTION, TEMPLATE)
MAX_JSON_BYTES = 1 << 28  # bytes
# Adapters that come with this package, by name: each for the embedded model of the same name.
EMBEDDED = "smollm2-135m"
EMBEDDED_FOLDERS = {EMBEDDED: Path(__file__).parents[1] / "assets" / "adapters" / EMBEDDED}
DESCRIPTION_FORM = schema.fields("threshold", threshold=schema.number(), trained_on=RECORD)


def read_adapter(name: str) -> Adapter:
    """Read and check an adapter's configuration and description, without its weights.

    Args:
        name: A folder, the id of a repository on the Hugging Face hub, or ``smollm2-135m``, the adapter that comes with
            this package.

    Raises:
        ConfigurationError: The adapter does not exist, or its files cannot be used; with all problems.
    """
    folder = parse_path("model.adapter", name)
    if not folder.is_dir():
        folder = EMBEDDED_FOLDERS.get(name) or _from_hub(name)
    if unusable := _unusable_files(name, folder):
        raise ConfigurationError(unusable)
    try:
        content = _read_json(folder / CONFIG)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(
            [f"model.adapter: {name} is no PEFT adapter: its adapter_config.json cannot be read ({error})."]
        ) from error
    config, odd = read_settings(content)
    problems = [f"model.adapter: {name}: {problem}." for problem in odd]
    description = None
    if (folder / DESCRIPTION).is_file():
        try:
            description = _read_json(folder / DESCRIPTION)
            if odd := schema.problems(schema.required(DESCRIPTION_FORM), description, "description"):
                raise ValueError("; ".join(odd))
            validate_settings(description.get("options", {}), str(folder / DESCRIPTION))
        except ConfigurationError as error:
            problems += error.problems
        except (OSError, ValueError, RecursionError) as error:
            problems.append(f"model.adapter: {folder / DESCRIPTION} is damaged ({error!r}). Remove it, or export again.")
    if problems:
        raise ConfigurationError(problems)
    return Adapter(name, folder, config, description)


def _unusable_files(name: str, folder: Path) -> list[str]:
    """Problems of a folder's files: no adapter_config.json, or links to files outside of the folder."""
    if not (folder / CONFIG).is_file():
        return [f"model.adapter: {name} is no PEFT adapter: it has no {CONFIG}."]
    return [
        f"model.adapter: {folder / file} is a link to a file outside of the adapter's folder. Copy that file into it."
        for file in FILES
        if (folder / file).is_file() and not inside_folder([folder / file], folder)
    ]


def _read_json(path: Path) -> Any:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"it has more than {MAX_JSON_BYTES:,} bytes")
    return json.loads(path.read_text(encoding="utf-8"))


def _from_hub(name: str) -> Path:
    expected = f"Expected a folder with adapter_config.json, a hub id such as NAME/ADAPTER, or {EMBEDDED}"
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ConfigurationError([f"model.adapter: no such folder: {name}. {expected}."])
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[*FILES, BANK]))
    except Exception as error:  # offline, unknown, private: each has an error of its own
        detail = str(error).split("\n")[0]
        raise ConfigurationError(
            [f"model.adapter: {name} is no folder and could not be had from the hub ({detail}). {expected}."]
        ) from error


def adapter_problems(name: str, identity: BaseIdentity, checkpoint: str | None, fitting: bool) -> list[str]:
    """Check ``model.adapter``: the adapter exists, can be read and fits the model, and no other option contradicts it.

    Args:
        name: A folder or hub id.
        identity: The model that will be loaded.
        checkpoint: The value of ``ckpt_path``, if given.
        fitting: Whether the subcommand is ``fit``.
    """
    problems, base = [], identity.base
    if fitting:
        problems.append("model.adapter: is for validate, test and predict. To go on training a checkpoint, use ckpt_path.")
    if checkpoint is not None:
        problems.append("model.adapter: given together with ckpt_path. Each brings an adapter: give one of them.")
    try:
        adapter = read_adapter(name)
    except ConfigurationError as error:
        return problems + error.problems
    problems += adapter_file_problems(adapter)
    problems += base_mismatches(adapter, identity)
    if not problems:
        mismatches = weight_mismatches(adapter, base)
        problems += [f"model.adapter: {name} does not fit {base.name}: {difference}." for difference in mismatches]
    return problems


def adapter_file_problems(adapter: Adapter) -> list[str]:
    """List what is wrong with an adapter's files: weights missing, unreadable or not finite, or files changed."""
    return unreadable_weights(adapter.folder / WEIGHTS) + changed_files(adapter.folder, adapter.description)


def base_mismatches(adapter: Adapter, identity: BaseIdentity, advice: str = "") -> list[str]:
    """Problems if an adapter was made for another model, or does not say for which; none if the user accepts any.

    Args:
        adapter: The adapter.
        identity: The model.
        advice: See :meth:`~introspection_lit.models.base_identity.BaseIdentity.problems`.
    """
    return identity.problems(f"model.adapter: {adapter.name}", recorded_base(adapter, identity.base), advice)


def recorded_base(adapter: Adapter, base: BaseModel) -> dict[str, Any]:
    """What an adapter's files say of its base model, as :class:`BaseIdentity` compares it."""
    config, description = adapter.config, adapter.description or {}
    # PEFT writes no revision where it is the default one, and often where it is not.
    revision = config.revision or base.revision
    hashes = description.get("base_hashes")
    return {"base_model": config.base_model_name_or_path, "revision": revision, "base_hashes": hashes}


def adapter_settings(adapter: Adapter) -> dict[str, Any]:
    """The settings of an adapter for results files: for LoRA as in a checkpoint, for other types type and targets."""
    from peft import LoraConfig

    config = adapter.config
    targets = config.target_modules
    modules = sorted(targets) if isinstance(targets, set | list) else [str(targets)]
    if not isinstance(config, LoraConfig):
        return {"type": str(config.peft_type), "target_modules": modules}
    layers = config.layers_to_transform
    return {
        "r": config.r,
        "alpha": config.lora_alpha,
        "target_modules": modules,
        "layers": [layers] if isinstance(layers, int) else sorted(layers or ()),
    }


def copy_adapter(source: Path, folder: Path) -> None:
    """Copy an exported adapter atomically; an older export in ``folder`` is replaced."""
    check_replaceable(folder)
    with atomic_folder(folder) as unfinished:
        shutil.copytree(source, unfinished, dirs_exist_ok=True)


def own_template(adapter: Adapter) -> Path | None:
    """The chat template that an adapter was trained with; None: that of its base model."""
    named = ((adapter.description or {}).get("options") or {}).get("data.chat_template")
    return None if named is None else adapter.folder / TEMPLATE


def check_replaceable(folder: Path) -> None:
    """Check that a folder does not exist, or is an export of this package.

    Raises:
        ConfigurationError: It exists and is something else.
    """
    if folder.exists() and not (folder / DESCRIPTION).is_file():
        raise ConfigurationError(
            [f"{folder} exists and is not an adapter of ours: it is not replaced. Name another folder."]
        )


def changed_files(folder: Path, description: Mapping[str, Any] | None) -> list[str]:
    """Problems if a file of an exported adapter was changed since it was written.

    Args:
        folder: The adapter's folder.
        description: Its ``introspection.json``; None, and older ones without hashes, are not checked.
    """
    if not description:
        return []
    problem = checksum_problem(description)
    problems = [f"model.adapter: {folder / DESCRIPTION}: {problem}."] if problem else []
    hashes = description.get("files")
    if not isinstance(hashes, dict):
        return problems
    for name in (WEIGHTS, CONFIG, TEMPLATE):
        if name in hashes and (folder / name).is_file() and file_hash(folder / name) != hashes[name]:
            difference = mismatch(f"'files' and {CHECKSUM!r} from {DESCRIPTION}")
            problems.append(f"model.adapter: {folder / name}: {difference}.")
    return problems
