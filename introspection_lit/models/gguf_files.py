"""Unpacks GGUF files into model folders."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Sequence
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
PART = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
# Of the folders in the cache; another one where folders of earlier versions must not be used.
FORMAT = b"2"  # since 2, every tensor is that of the file


def unpack_gguf(file: Path) -> Path:
    """Dequantise a GGUF file, or all parts of a model in several, into a model folder in the cache, once.

    ``transformers`` takes 25 s to read the GGUF file of a 135M model, once each for configuration, tokenizer and weights;
    the folder loads in 1 s. The cache is ``$INTROSPECTION_LIT_CACHE``, or
    ``~/.cache/introspection_lit``.

    Args:
        file: An existing ``.gguf`` file; of a model in parts (``NAME-00001-of-00003.gguf``), any of them.

    Returns:
        A folder with float32 safetensors and the tokenizer.

    Raises:
        ConfigurationError: A part is missing, or the tensors are not those of the model in the header.
        ValueError: The file is not a GGUF model that ``transformers`` can read.
    """
    parts, digest = parts_of(file), hashlib.sha256(FORMAT)
    for part in parts if all(part.is_file() for part in parts) else ():
        with part.open("rb") as stream:
            hashlib.file_digest(stream, lambda: digest)
    folder = cache_folder() / f"{parts[0].stem}-{digest.hexdigest()[:16]}"
    if folder.is_dir():  # made from these bytes: they were checked then
        return folder
    if problems := header_problems(file):
        raise ConfigurationError(problems)
    try:
        with atomic_folder(folder, replace=False) as unfinished:
            _dequantise(parts, unfinished)
    except ConfigurationError:
        raise
    except RunError as error:
        raise ValueError(f"INTROSPECTION_LIT_CACHE: {error.problems[0]}") from error
    except Exception as error:
        raise ValueError(f"base.name_or_path: {file} could not be read as a GGUF model: {error}") from error
    return folder


def parts_of(file: Path) -> list[Path]:
    """All files of a model, by the name of one of them, as llama.cpp splits them; they need not exist."""
    match = PART.fullmatch(file.name)
    if match is None or not int(match["count"]):
        return [file]
    count = int(match["count"])
    return [file.with_name(f"{match['name']}-{number + 1:05d}-of-{count:05d}.gguf") for number in range(count)]


def header_problems(file: Path) -> list[str]:
    """Check that a GGUF file holds a whole model, or that all its parts are there, by headers alone; at most one problem.

    Args:
        file: An existing file.
    """
    name, parts, tensors = f"base.name_or_path: {file}", parts_of(file), 0
    if missing := [part.name for part in parts if not part.is_file()]:
        return [
            f"{name} is a part of a model in {len(parts)} GGUF files, of which {len(missing)} are not beside it: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}. Get them, too."
        ]
    for number, part in enumerate(parts):
        with part.open("rb") as stream:
            if (start := stream.read(len(MAGIC))) != MAGIC:
                return [
                    f"base.name_or_path: {part} begins with {start!r}, not with {MAGIC!r}: it has no GGUF header. If it is "
                    "one of several parts cut by bytes, join them (cat), and give the whole."
                ]
        try:
            with room_for(part):
                reader = _reader(part)
        except Exception as error:  # gguf: whatever it meets in a damaged header
            return [f"base.name_or_path: {part} could not be read as a GGUF model: {type(error).__name__}: {error}"]
        count, own = (_number(reader, field) for field in ("split.count", "split.no"))
        if (max(count, 1), own) != (len(parts), number):
            return [
                f"base.name_or_path: {part} says that it is part {own + 1} of a model in {count} GGUF files. Expected the "
                "names of llama.cpp, such as model-00001-of-00003.gguf, and all of them in one folder."
            ]
        if number == 0:
            if "general.architecture" not in reader.fields:
                return [
                    f"base.name_or_path: {part} could not be read as a GGUF model: its header has no general.architecture. "
                    "Expected the file of a whole model, or all its parts."
                ]
            expected = _number(reader, "split.tensors.count")
        tensors += len(reader.tensors)
    if len(parts) > 1 and expected not in (0, tensors):
        return [
            f"{name}: the parts have {tensors} tensors, the first one says {expected}. Get them again, all of one model."
        ]
    return []


def _join(parts: Sequence[Path], whole: Path) -> None:
    """Write the parts of a model as one file: the header of the first one, and the tensors of all, as they are stored."""
    from gguf import GGUFValueType, GGUFWriter

    readers = [_reader(part) for part in parts]
    fields = {name: field for name, field in readers[0].fields.items() if not name.startswith(("GGUF.", "split."))}
    writer = GGUFWriter(whole, fields.pop("general.architecture").contents())
    for name, field in fields.items():
        value = field.contents()
        if field.types[0] != GGUFValueType.ARRAY:
            writer.add_key_value(name, value, field.types[0])
        elif value:
            writer.add_array(name, value)
    tensors = [tensor for reader in readers for tensor in reader.tensors]
    for tensor in tensors:
        data = tensor.data
        writer.add_tensor_info(tensor.name, data.shape, data.dtype, data.nbytes, tensor.tensor_type)
    writer.data_alignment = readers[0].alignment
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_ti_data_to_file):
        write()
    for tensor in tensors:
        writer.write_tensor_data(tensor.data)
    writer.close()


def _reader(file: Path) -> GGUFReader:
    from gguf import GGUFReader

    return GGUFReader(file)


def _number(reader: GGUFReader, field: str) -> int:
    found = reader.get_field(field)
    return int(found.contents()) if found else 0


def _dequantise(parts: Sequence[Path], folder: Path) -> None:
    # In an empty folder, since transformers reads other files beside it, too, or even runs them.
    isolated, file = folder / "isolated", parts[0]
    isolated.mkdir()
    whole = isolated / file.name
    if len(parts) > 1:
        _join(parts, whole)
    else:
        whole.symlink_to(file.resolve())
    source = {"pretrained_model_name_or_path": str(isolated), "gguf_file": file.name, "trust_remote_code": False}
    model = load_exactly(AutoModelForCausalLM, str(file), **source, dtype=torch.float32)
    if problems := _left_out(whole, file, model):
        raise ConfigurationError(problems)
    # The weights are dequantised by now; the remaining GGUF attributes would make save_pretrained fail.
    model.hf_quantizer = None
    for marker in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(model.config, marker):
            delattr(model.config, marker)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    shutil.rmtree(isolated)


def _left_out(whole: Path, file: Path, model: PreTrainedModel) -> list[str]:
    """Problems of tensors that ``transformers`` reads without a word: without a place, or one half of a fused one."""
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    reader = _reader(whole)
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
