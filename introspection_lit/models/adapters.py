"""PEFT adapters from a folder or the hub: what they say about themselves, and whether they fit."""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file

from introspection_lit.models.adapter_config import read_settings
from introspection_lit.models.base_model import BaseModel
from introspection_lit.models.loading import outline
from introspection_lit.models.recorded_settings import RECORD, validate_settings
from introspection_lit.utils import schema
from introspection_lit.utils.checksums import CHECKSUM, checksum_problem, file_hash, mismatch
from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.files import atomic_folder
from introspection_lit.utils.paths import inside_folder, parse_path
from introspection_lit.utils.resource_limits import BYTES, BeyondLimitError, limited

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel


DESCRIPTION = "introspection.json"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FILES = (CONFIG, WEIGHTS, DESCRIPTION)
LARGEST_JSON = 1 << 28  # bytes
DESCRIPTION_FORM = schema.fields("threshold", threshold=schema.number(), trained_on=RECORD)


class Adapter(NamedTuple):
    """An adapter folder that was looked at.

    Attributes:
        name: The folder or hub id, as it was given.
        folder: Where it is on this machine.
        config: PEFT's.
        description: Our ``introspection.json``: what it was trained on, its question and threshold. None if there is none.
    """

    name: str
    folder: Path
    config: PeftConfig
    description: dict[str, Any] | None


def read_adapter(name: str) -> Adapter:
    """Look at an adapter without loading its weights.

    Args:
        name: A folder, or the id of a repository on the Hugging Face hub.

    Raises:
        ConfigurationError: There is none, or it cannot be used here; all problems.
    """
    folder = parse_path("model.adapter", name)
    if not folder.is_dir():
        folder = _from_hub(name)
    if missing := _missing(name, folder):
        raise ConfigurationError(missing)
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


def _missing(name: str, folder: Path) -> list[str]:
    """Why a folder's files cannot be used: there is no adapter, or some are links to files elsewhere."""
    if not (folder / CONFIG).is_file():
        return [f"model.adapter: {name} is no PEFT adapter: it has no {CONFIG}."]
    return [
        f"model.adapter: {folder / file} is a link to a file outside of the adapter's folder. Copy that file into it."
        for file in FILES
        if (folder / file).is_file() and not inside_folder([folder / file], folder)
    ]


def _read_json(path: Path) -> Any:
    if path.stat().st_size > LARGEST_JSON:
        raise ValueError(f"it has more than {LARGEST_JSON:,} bytes")
    return json.loads(path.read_text(encoding="utf-8"))


def _from_hub(name: str) -> Path:
    expected = "Expected a folder with adapter_config.json, or a hub id such as NAME/ADAPTER"
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ConfigurationError([f"model.adapter: no such folder: {name}. {expected}."])
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(FILES)))
    except Exception as error:  # offline, unknown, private: each has an error of its own
        detail = str(error).split("\n")[0]
        raise ConfigurationError(
            [f"model.adapter: {name} is no folder and could not be had from the hub ({detail}). {expected}."]
        ) from error


def _weight_problems(path: Path) -> list[str]:
    if not path.is_file():
        return [f"model.adapter: {path} is missing. Expected weights as safetensors; PEFT's save_pretrained writes them."]
    try:
        tensors = load_file(path)
        broken = [
            name for name, tensor in tensors.items() if not tensor.is_complex() and not tensor.float().isfinite().all()
        ]
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, MemoryError) as error:
        return [f"model.adapter: {path} cannot be read ({error}): it may be cut off."]
    if not tensors or broken:
        return [f"model.adapter: {path} holds {'no weights' if not tensors else f'numbers not finite in {broken[0]}'}."]
    return []


def weight_names(adapter: Adapter) -> set[str]:
    """The names of an adapter's tensors, as they are in its file."""
    return set(load_file(adapter.folder / WEIGHTS))


def misfits(adapter: Adapter, base: BaseModel) -> list[str]:
    """Say why an adapter's weights are not for a model: compared with those that PEFT puts on its outline.

    Args:
        adapter: One whose weights can be read.
        base: The model; no weight of it is loaded.
    """
    from peft import get_peft_model, get_peft_model_state_dict

    try:
        model = outline(base)
        memory = BYTES + 8 * (adapter.folder / WEIGHTS).stat().st_size
        with warnings.catch_warnings(), limited(memory=memory):
            warnings.simplefilter("ignore")  # what matters of it is said when it is loaded
            fitted = get_peft_model(model, copy.deepcopy(adapter.config), low_cpu_mem_usage=True)
            expected = get_peft_model_state_dict(fitted, save_embedding_layers=False)
    except BeyondLimitError as error:
        return [f"finding the modules that its adapter_config.json names: {error}. Its patterns are not used."]
    except Exception as error:  # PEFT's, of modules that are not there; torch's, of shapes that cannot be
        lines = str(error).strip().splitlines() or [""]
        return [f"PEFT cannot put it on the model ({type(error).__name__}: {lines[0][:300]})"]
    weights = load_file(adapter.folder / WEIGHTS)
    if differing := weights.keys() ^ expected.keys():
        return [f"{len(differing)} tensors are missing or too many, such as {', '.join(sorted(differing)[:2])}"]
    # AdaLoRA's ranks are cut to what its rank_pattern says only when the weights are loaded.
    cut = "ADALORA" in str(adapter.config.peft_type)
    wrong = []
    for name, tensor in weights.items():
        other, real = expected[name], tensor.is_floating_point()
        if tensor.shape != other.shape and not cut:
            wrong.append(f"{name} has shape {list(tensor.shape)}, expected {list(other.shape)}")
        elif tensor.is_complex() or real != other.is_floating_point():
            wrong.append(f"{name} is of {tensor.dtype}, expected {'whole' if real else 'floating-point'} numbers")
    return [f"{wrong[0]} ({len(wrong)} like this)"] if wrong else []


def adapter_problems(name: str, base: BaseModel, checkpoint: str | None, fitting: bool) -> list[str]:
    """Check that an adapter exists, can be read and belongs to the model.

    Args:
        name: A folder or hub id.
        base: The model that is about to be loaded.
        checkpoint: What ``ckpt_path`` names, if anything.
        fitting: The trainer is about to train.
    """
    problems = []
    if fitting:
        problems.append("model.adapter: is for validate, test and predict. To go on training a checkpoint, use ckpt_path.")
    if checkpoint is not None:
        problems.append("model.adapter: given together with ckpt_path. Each brings an adapter: give one of them.")
    try:
        adapter = read_adapter(name)
    except ConfigurationError as error:
        return problems + error.problems
    problems += damage(adapter)
    problems += other_base(adapter, base)
    if not problems:
        problems += [f"model.adapter: {name} does not fit {base.name}: {misfit}." for misfit in misfits(adapter, base)]
    return problems


def damage(adapter: Adapter) -> list[str]:
    """List what is wrong with an adapter's files: weights missing, unreadable or not finite, or files changed."""
    return _weight_problems(adapter.folder / WEIGHTS) + changes(adapter.folder, adapter.description)


def other_base(adapter: Adapter, base: BaseModel) -> list[str]:
    """Say if an adapter was made for another model, or for another revision of it."""
    name, made_for, problems = adapter.name, str(adapter.config.base_model_name_or_path), []
    if _name_of(made_for) != base.name:
        problems.append(
            f"model.adapter: {name} was made for the model {made_for!r}, not for {base.name!r}. Use that model, or an "
            "adapter for this one."
        )
    if adapter.config.revision not in (None, base.revision or "main") and base.on_hub:
        problems.append(
            f"model.adapter: {name} was made for revision {adapter.config.revision!r} of the model. Set "
            "model.base.revision."
        )
    return problems


def _name_of(made_for: str) -> str:
    try:
        return BaseModel(made_for).name
    except (OSError, ValueError, RuntimeError):  # it cannot be a path on this machine
        return made_for


def load_adapter(model: PreTrainedModel, adapter: Adapter, base: BaseModel) -> PeftModel:
    """Put an adapter on its base model, with the configuration that was checked.

    Args:
        model: The base model, loaded.
        adapter: From :func:`read_adapter`.
        base: What the model is, for messages.

    Raises:
        ConfigurationError: Its weights do not fit the model.
    """
    from peft import PeftModel, get_peft_model_state_dict

    problem = f"model.adapter: {adapter.name} does not fit {base.name}"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*missing adapter keys.*")  # an error, below
            loaded = PeftModel.from_pretrained(
                # Its checked configuration: PEFT would read the file again, and believe all of it.
                model,
                str(adapter.folder),
                config=adapter.config,
                low_cpu_mem_usage=model.device.type == "meta",
            )
    except (RuntimeError, TypeError, ValueError) as error:  # PEFT's and torch's, of tensors of another shape
        lines = str(error).strip().splitlines()
        raise ConfigurationError([f"{problem}: {' '.join(lines[:2])} ({len(lines)} lines like this)."]) from error
    if differing := weight_names(adapter) ^ set(get_peft_model_state_dict(loaded, save_embedding_layers=False)):
        examples = ", ".join(sorted(differing)[:2])
        raise ConfigurationError([f"{problem}: {len(differing)} tensors are missing or too many, such as {examples}."])
    return loaded


def shape_of(adapter: Adapter) -> dict[str, Any]:
    """The settings of an adapter for results files: those of LoRA as in a checkpoint, of others their type."""
    from peft import LoraConfig

    config = adapter.config
    targets = config.target_modules
    named = sorted(targets) if isinstance(targets, set | list) else [str(targets)]
    if not isinstance(config, LoraConfig):
        return {"type": str(config.peft_type), "target_modules": named}
    layers = config.layers_to_transform
    return {
        "r": config.r,
        "alpha": config.lora_alpha,
        "target_modules": named,
        "layers": [layers] if isinstance(layers, int) else sorted(layers or ()),
    }


def copy_adapter(source: Path, folder: Path) -> None:
    """Copy an exported adapter; the folder appears complete or not at all, and an older export is replaced."""
    check_replaceable(folder)
    with atomic_folder(folder) as unfinished:
        shutil.copytree(source, unfinished, dirs_exist_ok=True)


def check_replaceable(folder: Path) -> None:
    """Check that a folder is not there, or an adapter that may be replaced.

    Raises:
        ConfigurationError: It is something else.
    """
    if folder.exists() and not (folder / DESCRIPTION).is_file():
        raise ConfigurationError(
            [f"{folder} exists and is not an adapter of ours: it is not replaced. Name another folder."]
        )


def changes(folder: Path, description: Mapping[str, Any] | None) -> list[str]:
    """Say which files of an exported adapter are not as they were written.

    Args:
        folder: The adapter's.
        description: Its ``introspection.json``; older ones, and None, say nothing of the files.
    """
    if not description:
        return []
    found = [f"model.adapter: {folder / DESCRIPTION}: {fault}."] if (fault := checksum_problem(description)) else []
    hashes = description.get("files")
    if not isinstance(hashes, dict):
        return found
    for name in (WEIGHTS, CONFIG):
        if name in hashes and (folder / name).is_file() and file_hash(folder / name) != hashes[name]:
            said = mismatch(f"'files' and {CHECKSUM!r} from {DESCRIPTION}")
            found.append(f"model.adapter: {folder / name}: {said}.")
    return found
