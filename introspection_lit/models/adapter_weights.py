"""The weights of an adapter: checked against those that PEFT creates for the model, and loaded.

Where an adapter has matrices beside embeddings (``embed_tokens``, ``lm_head``), PEFT writes these into the file, too, and
when it loads the file, writes them over those of the model. Here they are compared with the model's, and left out.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from introspection_lit.models.loading import meta_model
from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.resource_limits import BYTES, BeyondLimitError, limited

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel

    from introspection_lit.models.adapter_config import Adapter
    from introspection_lit.models.base_identity import BaseIdentity
    from introspection_lit.models.base_model import BaseModel


WEIGHTS = "adapter_model.safetensors"
# The end of the name of a tensor of the base model's own, in PEFT's files.
COPIED = ".base_layer.weight"
# Copies of the model's own tensors differ from it by their rounding at most: of bfloat16, relative.
ROUNDING, ROWS = 2**-7, 4096


def unreadable_weights(path: Path) -> list[str]:
    """Problems of a weights file by itself: it is missing, cannot be read, or holds numbers that are not finite."""
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


def split_weights(adapter: Adapter) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of an adapter's weights file: its own, and copies of the base model's."""
    tensors = load_file(adapter.folder / WEIGHTS)
    return tuple({name: t for name, t in tensors.items() if name.endswith(COPIED) == copied} for copied in (False, True))  # type: ignore[return-value]


def weight_mismatches(adapter: Adapter, base: BaseModel) -> list[str]:
    """Compare names, shapes and dtypes of an adapter's weights with those that PEFT creates for the model.

    Args:
        adapter: Its weights must be readable.
        base: The model; it is built on the meta device, without its weights.

    Returns:
        At most one problem, in words.
    """
    from peft import get_peft_model, get_peft_model_state_dict

    try:
        model = meta_model(base)
        memory = BYTES + 8 * (adapter.folder / WEIGHTS).stat().st_size
        with warnings.catch_warnings(), limited(memory=memory):
            warnings.simplefilter("ignore")  # they appear when the adapter is loaded
            adapted = get_peft_model(model, copy.deepcopy(adapter.config), low_cpu_mem_usage=True)
            expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
            whole = dict(adapted.named_parameters(remove_duplicate=False))
    except BeyondLimitError as error:
        return [f"finding the modules that its adapter_config.json names: {error}. Its patterns are not used."]
    except Exception as error:  # PEFT: unknown modules; torch: impossible shapes
        lines = str(error).strip().splitlines() or [""]
        return [f"PEFT cannot put it on the model ({type(error).__name__}: {lines[0][:300]})"]
    weights = load_file(adapter.folder / WEIGHTS)
    # The shapes of what the file has of the model's own are checked, too.
    expected |= {name: whole[name] for name in weights if name.endswith(COPIED) and name in whole}
    if differing := weights.keys() ^ expected.keys():
        return [f"{len(differing)} tensors are missing or too many, such as {', '.join(sorted(differing)[:2])}"]
    # AdaLoRA reduces its ranks to its rank_pattern only when the weights are loaded.
    varying_ranks = "ADALORA" in str(adapter.config.peft_type)
    problems = []
    for name, tensor in weights.items():
        other, floating = expected[name], tensor.is_floating_point()
        if tensor.shape != other.shape and not varying_ranks:
            problems.append(f"{name} has shape {list(tensor.shape)}, expected {list(other.shape)}")
        elif tensor.is_complex() or floating != other.is_floating_point():
            problems.append(f"{name} is of {tensor.dtype}, expected {'whole' if floating else 'floating-point'} numbers")
    return [f"{problems[0]} ({len(problems)} like this)"] if problems else []


def load_adapter(model: PreTrainedModel, adapter: Adapter, identity: BaseIdentity) -> PeftModel:
    """Load an adapter's weights onto its base model, with the configuration that was checked.

    The adapter then acts on every token while it is on: the protocol switches it on and off itself, where an activated
    adapter would look for its invocation tokens.

    Args:
        model: The base model.
        adapter: From :func:`~introspection_lit.models.adapters.read_adapter`.
        identity: Options of the model, for messages, and whether the user says that it matches.

    Raises:
        ConfigurationError: The adapter's weights do not fit the model, or its copies of the model's own are others.
    """
    from peft import PeftModel, get_peft_model_state_dict

    problem = f"model.adapter: {adapter.name} does not fit {identity.base.name}"
    own, copied = split_weights(adapter)
    try:
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
            warnings.filterwarnings("ignore", ".*missing adapter keys.*")  # an error, below
            if copied:
                save_file(own, Path(folder) / WEIGHTS)
            loaded = PeftModel.from_pretrained(
                # With the checked configuration; PEFT would read the file again, without our checks.
                model,
                folder if copied else str(adapter.folder),
                config=_always_on(adapter.config),
                low_cpu_mem_usage=model.device.type == "meta",
            )
    except (RuntimeError, TypeError, ValueError) as error:  # PEFT and torch: tensors of another shape
        lines = str(error).strip().splitlines()
        raise ConfigurationError([f"{problem}: {' '.join(lines[:2])} ({len(lines)} lines like this)."]) from error
    if differing := own.keys() ^ get_peft_model_state_dict(loaded, save_embedding_layers=False).keys():
        examples = ", ".join(sorted(differing)[:2])
        raise ConfigurationError([f"{problem}: {len(differing)} tensors are missing or too many, such as {examples}."])
    weights = dict(loaded.named_parameters(remove_duplicate=False))
    if other := [name for name, tensor in copied.items() if name not in weights or not _same(tensor, weights[name])]:
        subject = f"model.adapter: {adapter.name} was trained on another {other[0].removesuffix(COPIED)}"
        if problems := identity.differs(f"{subject} than that of {identity.base.name!r}"):
            raise ConfigurationError(problems)
    return loaded


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same but for rounding; also if one has no values, or is packed in 4 bits."""
    if other.is_meta or one.shape != other.shape:
        return True
    pairs = zip(torch.split(one, ROWS), torch.split(other, ROWS), strict=True)
    return all(a.float().allclose(b.to(a.device).float(), rtol=ROUNDING, atol=1e-6) for a, b in pairs)


def _always_on(config: PeftConfig) -> PeftConfig:
    """The configuration without invocation tokens."""
    config = copy.deepcopy(config)
    if getattr(config, "alora_invocation_tokens", None) is not None:
        config.alora_invocation_tokens = None
    return config
