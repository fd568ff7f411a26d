"""Unpacks GGUF files into model folders."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from introspection_lit.models.weight_files import load_exactly, tensor_mismatches
from introspection_lit.utils.errors import ConfigurationError, RunError
from introspection_lit.utils.files import atomic_folder, cache_folder
from introspection_lit.utils.resource_limits import room_for

if TYPE_CHECKING:
    from gguf import GGUFReader

    from introspection_lit.utils.lazy_types import PreTrainedModel


MAGIC = b"GGUF"
# Of the folders in the cache; another one where folders of earlier versions must not be used.
FORMAT = b"2"  # since 2, every tensor is that of the file


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
        ConfigurationError: The file is a part of a model, or its tensors are not those of the model in its header.
        ValueError: The file is not a GGUF model that ``transformers`` can read.
    """
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, lambda: hashlib.sha256(FORMAT)).hexdigest()[:16]
    folder = cache_folder() / f"{file.stem}-{digest}"
    if folder.is_dir():  # made from these bytes: they were checked then
        return folder
    if problems := header_problems(file):
        raise ConfigurationError(problems)
    try:
        with atomic_folder(folder, replace=False) as unfinished:
            _dequantise(file, unfinished)
    except ConfigurationError:
        raise
    except RunError as error:
        raise ValueError(f"INTROSPECTION_LIT_CACHE: {error.problems[0]}") from error
    except Exception as error:
        raise ValueError(f"base.name_or_path: {file} could not be read as a GGUF model: {error}") from error
    return folder


def header_problems(file: Path) -> list[str]:
    """Check that a GGUF file holds a whole model, by its header alone; at most one problem.

    Args:
        file: An existing file.
    """
    with file.open("rb") as stream:
        if (start := stream.read(len(MAGIC))) != MAGIC:
            return [
                f"base.name_or_path: {file} begins with {start!r}, not with {MAGIC!r}: it has no GGUF header. If it is one "
                "of several parts, join them, and give the whole."
            ]
    try:
        with room_for(file):
            reader = _reader(file)
    except Exception as error:  # gguf: whatever it meets in a damaged header
        return [f"base.name_or_path: {file} could not be read as a GGUF model: {type(error).__name__}: {error}"]
    parts, number = (_number(reader, field) for field in ("split.count", "split.no"))
    if parts > 1:
        return [
            f"base.name_or_path: {file} is part {number + 1} of a model in {parts} GGUF files. Expected one file: join "
            "them with llama-gguf-split --merge FIRST WHOLE (of llama.cpp), and give WHOLE."
        ]
    if "general.architecture" not in reader.fields:
        return [
            f"base.name_or_path: {file} could not be read as a GGUF model: its header has no general.architecture. "
            "Expected the file of a whole model."
        ]
    return []


def _reader(file: Path) -> GGUFReader:
    from gguf import GGUFReader

    return GGUFReader(file)


def _number(reader: GGUFReader, field: str) -> int:
    found = reader.get_field(field)
    return int(found.contents()) if found else 0


def _dequantise(file: Path, folder: Path) -> None:
    # In an empty folder, since transformers reads other files beside it, too, or even runs them.
    isolated = folder / "isolated"
    isolated.mkdir()
    (isolated / file.name).symlink_to(file.resolve())
    source = {"pretrained_model_name_or_path": str(isolated), "gguf_file": file.name, "trust_remote_code": False}
    model = load_exactly(AutoModelForCausalLM, str(file), **source, dtype=torch.float32)
    if problems := _left_out(file, model):
        raise ConfigurationError(problems)
    # The weights are dequantised by now; the remaining GGUF attributes would make save_pretrained fail.
    model.hf_quantizer = None
    for marker in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(model.config, marker):
            delattr(model.config, marker)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    shutil.rmtree(isolated)


def _left_out(file: Path, model: PreTrainedModel) -> list[str]:
    """Problems of tensors that ``transformers`` reads without a word: without a place, or one half of a fused one."""
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    reader = _reader(file)
    architecture = reader.fields["general.architecture"].contents()
    places = get_gguf_hf_weights_map(model, TENSOR_PROCESSORS.get(architecture, TensorProcessor)())
    tied = model.all_tied_weights_keys
    expected = {_stem(name) for name, place in places.items() if place not in tied}
    tied_too = {_stem(name) for name in places}
    have = {_stem(tensor.name) for tensor in reader.tensors}
    found = {"missing_keys": expected - have, "unexpected_keys": have - tied_too, "mismatched_keys": ()}
    return tensor_mismatches(found, type(model).__name__, str(file))


def _stem(name: str) -> str:
    """A tensor's name without ``.weight``, which fused experts lack in the names that ``transformers`` expects."""
    return re.sub(r"\.weight$", "", name)
