"""PEFT adapters from a folder or the hub: what they say about themselves, and whether they fit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safetensors import SafetensorError, safe_open

from introspection_lit.descriptions import RECORD, believed, faults
from introspection_lit.errors import ConfigurationError
from introspection_lit.export import DESCRIPTION
from introspection_lit.model import BaseModel

if TYPE_CHECKING:
    from peft import PeftConfig

WEIGHTS = "adapter_model.safetensors"
FILES = ("adapter_config.json", WEIGHTS, DESCRIPTION)


class Adapter(NamedTuple):
    """An adapter folder that was looked at.

    Attributes:
        folder: Where it is on this machine.
        config: PEFT's.
        description: Our ``introspection.json``: what it was trained on, its question and threshold. None if there is none.
    """

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
    from peft import LoraConfig, PeftConfig  # takes seconds: not where --help is all that is wanted

    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _from_hub(name)
    problems = []
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except Exception as error:  # PEFT passes on whatever it meets in the file
        raise ConfigurationError(
            [f"model.adapter: {name} is no PEFT adapter: its adapter_config.json cannot be read ({error})."]
        ) from error
    targets = getattr(config, "target_modules", None)
    if isinstance(config, LoraConfig) and not (isinstance(config.r, int) and isinstance(targets, str | list | set)):
        problems.append(f"model.adapter: {name}: its adapter_config.json has r {config.r!r}, target_modules {targets!r}.")
    if config.is_prompt_learning or not hasattr(config, "target_modules"):
        problems.append(
            f"model.adapter: {name} is of type {config.peft_type}, which adds tokens of its own to the cache. Expected an "
            "adapter of weights, such as LoRA."
        )
    description = None
    if (folder / DESCRIPTION).is_file():
        try:
            description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
            threshold = description["threshold"]
            if isinstance(threshold, bool) or not math.isfinite(threshold):
                raise ValueError(f"its threshold is {threshold}")
            if odd := faults(description["trained_on"], RECORD, required=True):
                raise ValueError(f"its training record: {'; '.join(odd)}")
            believed(description.get("options", {}), str(folder / DESCRIPTION))
        except ConfigurationError as error:
            problems += error.problems
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            problems.append(f"model.adapter: {folder / DESCRIPTION} is damaged ({error!r}). Remove it, or export again.")
    if problems:
        raise ConfigurationError(problems)
    return Adapter(folder, config, description)


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
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        return [f"model.adapter: {path} cannot be read ({error}): it may be cut off."]
    broken = [name for name, tensor in tensors.items() if not tensor.float().isfinite().all()]
    if not tensors or broken:
        return [f"model.adapter: {path} holds {'no weights' if not tensors else f'numbers not finite in {broken[0]}'}."]
    return []


def weight_names(adapter: Adapter) -> set[str]:
    """The names of an adapter's tensors, as they are in its file."""
    with safe_open(adapter.folder / WEIGHTS, framework="pt") as file:
        return set(file.keys())


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
    problems += _weight_problems(adapter.folder / WEIGHTS)
    made_for = str(adapter.config.base_model_name_or_path)
    if BaseModel(made_for).name != base.name:
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
