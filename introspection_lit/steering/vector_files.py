"""Reads and writes directions in other projects' formats: GGUF control vectors of repeng, tensors of torch and numpy.

A file holds one or several directions. Each is read as ``(layers, hidden)``: a direction for the output of each decoder
layer, zero at layers that the file leaves out (repeng leaves out layer 0). In all formats layer ``i`` is the output of
decoder layer ``i``, counted from 0, as in repeng and llama.cpp; a tensor with one row more than layers has that of the
embeddings first, as transformers' ``hidden_states`` (:mod:`~introspection_lit.steering.vector_layouts`).
"""

from __future__ import annotations

import io
import os
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from introspection_lit.steering.vector_bank import name_problem, shown
from introspection_lit.steering.vector_layouts import Layout, by_layout, layer_of
from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.files import atomic_file
from introspection_lit.utils.resource_limits import room_for

FORMATS = (".gguf", ".pt", ".safetensors")
READABLE = (*FORMATS, ".npy")
# Limits on what a file may declare: a few bytes can claim more numbers than fit in memory.
MOST_ENTRIES = 100_000
MOST_BYTES = 2**33
MOST_GGUF_FIELDS = 20_000
# Dicts may be nested this deep: tensors by name or layer, or dicts of such dicts.
DEEPEST = 2


def read_directions(path: Path, n_layers: int, hidden: int, layout: Layout = "auto") -> dict[str, Tensor]:
    """Read every direction of a file; warns where a file could mean something else.

    Args:
        path: A file in one of these formats.

            - ``.gguf``: a control vector as repeng and llama.cpp write it, with tensors ``direction.LAYER``.
            - ``.safetensors``: tensors by name; or by layer, as in a control vector.
            - ``.pt``: a tensor, or a dict of them by name or by layer, or a dict of such dicts. Loaded with
              ``weights_only``, so no code in the file runs.
            - ``.npy``: an array; no objects.

            Layers are numbers, or names such as ``direction.3``, ``layer_3`` and ``model.layers.3``. A tensor ``(hidden,)``
            is a direction for every layer, ``(n, hidden)`` are n of them, ``(n, layers, hidden)`` n with a direction for
            each layer, ``(layers + 1, hidden)`` one with a row for the embeddings first, which is left out.
        n_layers: Number of decoder layers of the model.
        hidden: Its hidden size.
        layout: What the rows of tensors, or the layers of dicts, are: ``auto``, or one of
            :data:`~introspection_lit.steering.vector_layouts.LAYOUTS`.

    Returns:
        Unscaled directions by name, each ``(n_layers, hidden)`` float32.

    Raises:
        ConfigurationError: The file does not exist, cannot be read, or does not fit the model; at most ten problems.
    """
    if not os.path.isfile(path):  # unlike Path.is_file, False of a name that no file can have
        raise ConfigurationError([f"import: no such file: {path}. Expected a {', '.join(READABLE)} file."])
    readers = {".gguf": _read_gguf, ".pt": _read_pt, ".safetensors": load_file, ".npy": _read_npy}
    if path.suffix not in readers:
        raise ConfigurationError(
            [f"import: {path} is none of {', '.join(READABLE)}, which are the formats that can be read."]
        )
    try:
        with room_for(path):
            content = readers[path.suffix](path)
    except Exception as error:  # each library raises its own errors for a malformed file
        detail = f" ({str(error)[:200]})" if isinstance(error, ValueError) else ""
        nature = (
            "Expected a file of tensors; other Python objects are never loaded"
            if path.suffix == ".pt"
            else "It may be cut off"
        )
        raise ConfigurationError([f"import: {path} cannot be read as {path.suffix}{detail}. {nature}."]) from error
    entries, problems, room = [], [], MOST_BYTES // (4 * n_layers * hidden)
    for name, value in _entries(content, path.stem):
        count: int | str
        try:
            value, note = by_layout(value, n_layers, layout)
            count = _parts(value, n_layers, hidden)
        except ValueError as error:
            note, count = None, str(error)
        if note and not isinstance(count, str):
            warnings.warn(f"import: {path}: {shown(name)}: {note}", stacklevel=2)
        problem = name_problem(name) or (count if isinstance(count, str) else None)
        if problem:
            problems.append(f"import: {path}: {shown(name)}: {problem}")
        else:
            entries.append((name, value))
            room -= 1 if isinstance(count, str) else count
        if len(problems) == 10 or len(entries) > MOST_ENTRIES or room < 0:
            break
    if len(entries) > MOST_ENTRIES or room < 0:
        problems.append(
            f"import: {path}: holds more directions than can be imported at once ({MOST_ENTRIES}, or "
            f"{MOST_BYTES >> 30} GB of numbers for the {n_layers} layers of this model). Split it into several files."
        )
    if problems:
        raise ConfigurationError(problems)
    return _filled(path, entries, n_layers, hidden)


def _filled(path: Path, entries: list[tuple[str, Any]], n_layers: int, hidden: int) -> dict[str, Tensor]:
    """Convert all entries of a file to directions by name."""
    directions: dict[str, Tensor] = {}
    problems = []
    for name, value in entries:
        rows = _directions(value, n_layers, hidden)
        if isinstance(rows, str):
            problems.append(f"import: {path}: {shown(name)}: {rows}")
            continue
        names = [name] if len(rows) == 1 else [f"{name}-{number}" for number in range(len(rows))]
        problems += [f"import: {path}: two directions are called {shown(n)!r}." for n in names if n in directions]
        directions |= dict(zip(names, rows, strict=True))
    if not directions and not problems:
        problems.append(f"import: {path} holds no direction.")
    if problems:
        raise ConfigurationError(problems[:10])
    return directions


class _CarefulReader(gguf.GGUFReader):
    """The library's reader with checks of counts and offsets, which it takes from the file and may loop on."""

    gets = 0

    def _get(self, offset: Any, dtype: Any, count: Any = 1, *more: Any, **named: Any) -> Any:
        self.gets += 1
        if self.gets > MOST_GGUF_FIELDS:
            raise ValueError("it has more fields than a control vector")
        if not 0 <= int(offset) <= int(offset) + np.dtype(dtype).itemsize * int(count) <= len(self.data):
            raise ValueError("it says that it is longer than it is")
        return super()._get(int(offset), dtype, count, *more, **named)


def _read_gguf(path: Path) -> dict[str, Tensor]:
    reader = _CarefulReader(path)
    field = reader.get_field("general.architecture")
    kind = field.contents() if field else None
    if kind != "controlvector":
        raise ValueError(f"it is a {str(kind)[:60]!r}, not a 'controlvector'")
    plain = (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16)
    odd = sorted({tensor.tensor_type.name for tensor in reader.tensors if tensor.tensor_type not in plain})
    if odd:
        raise ValueError(f"its tensors are {', '.join(odd)}; expected F32 or F16")
    return {tensor.name: torch.from_numpy(np.array(tensor.data)) for tensor in reader.tensors}


def _read_pt(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(part.file_size for part in archive.infolist()) > path.stat().st_size:
                raise ValueError("its parts are packed, and larger than the file")
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_npy(path: Path) -> Tensor:
    array = np.load(path, allow_pickle=False)
    return torch.from_numpy(np.ascontiguousarray(array, array.dtype.newbyteorder("=")))


def _entries(content: Any, name: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield name and value of each direction in a file's content; a value is a tensor or a dict of tensors by layer."""
    if not isinstance(content, Mapping):
        yield name, content
        return
    odd = [type(key).__name__ for key in content if not isinstance(key, str) and layer_of(key) is None]
    if depth == DEEPEST or odd:
        what = f"a name is of type {odd[0]}" if odd else "it has dicts in dicts in dicts"
        raise ConfigurationError(
            [f"import: {shown(name)}: {what}. Expected tensors by name or layer, or dicts of such dicts."]
        )
    by_layer = {layer_of(key): value for key, value in content.items() if layer_of(key) is not None}
    if any(layer is not None and layer < 0 for layer in by_layer):
        problem = "negative layer numbers, which count from the end in some projects and not in others"
        raise ConfigurationError([f"import: {shown(name)}: {problem}. Expected layers counted from 0, the first."])
    if len(by_layer) < sum(layer_of(key) is not None for key in content):
        raise ConfigurationError([f"import: {shown(name)}: a layer is there twice, as a number and as a text."])
    # A dict of names for each layer, instead of a dict of layers for each name.
    if by_layer and all(isinstance(value, Mapping) for value in by_layer.values()):
        names = dict.fromkeys(key for value in by_layer.values() for key in value)
        for each in names:
            yield (
                each if isinstance(each, str) else "",
                {layer: value[each] for layer, value in by_layer.items() if each in value},
            )
    elif by_layer:
        yield name, by_layer
    for key, value in content.items():
        if layer_of(key) is None:
            yield from _entries(value, key, depth + 1)


def _parts(value: Any, n_layers: int, hidden: int) -> int | str:
    """Number of directions of an entry, by its shape, or a problem as a sentence."""
    if isinstance(value, dict):
        outside = sorted(layer for layer in value if not 0 <= layer < n_layers)
        if outside:
            return (
                f"it has directions for the layers {outside[:5]}, which the model does not have (0..{n_layers - 1}). If "
                "its 0 stands for the embeddings, give --layout layers+1."
            )
        wrong = [tuple(part.shape) for part in value.values() if tuple(part.shape) != (hidden,)]
        return f"a layer's direction has shape {wrong[0]}. Expected ({hidden},), the model's hidden size." if wrong else 1
    if (
        value.shape[-1:] != (hidden,)
        or len(value) == 0
        or value.dim() > 3
        or (value.dim() == 3 and value.shape[1] != n_layers)
    ):
        return (
            f"it has shape {tuple(value.shape)[:8]}. Expected ({hidden},), (n, {hidden}) or (n, {n_layers}, {hidden}) for "
            "this model."
        )
    return 1 if value.dim() == 1 else len(value)


def _directions(value: Any, n_layers: int, hidden: int) -> Tensor | str:
    """Convert an entry of valid shape to ``(n, n_layers, hidden)``, or return a problem as a sentence."""
    if isinstance(value, dict):
        rows = torch.zeros(1, n_layers, hidden)
        for layer, part in value.items():
            rows[0, layer] = part.detach()
    else:
        flat = value.detach().float()
        rows = flat.reshape(-1, value.shape[-2] if value.dim() == 3 else 1, hidden).expand(-1, n_layers, -1)
    # In float64, because in float32 squares of small numbers underflow and those of large ones overflow.
    norms = rows.norm(dim=-1, dtype=torch.float64).float()
    if not rows.isfinite().all() or not norms.isfinite().all():
        return "it has numbers, or a length, that are not finite."
    if not (norms > 0).any(dim=-1).all():
        return "it is zero."
    return rows.contiguous()


def write_direction(path: Path, direction: Tensor, model_type: str) -> None:
    """Write one direction in the format given by the file's suffix; the file is written atomically.

    Args:
        path: A ``.gguf``, ``.pt`` or ``.safetensors`` file.
        direction: ``(layers, hidden)``.
        model_type: The architecture, such as ``qwen2``; stored as a hint in control vectors.

    Raises:
        ConfigurationError: The suffix is none of these.
    """
    if path.suffix not in FORMATS:
        known = ", ".join(FORMATS)
        raise ConfigurationError([f"export: {path} is none of {known}, which are the formats that can be written."])
    rows = direction.float().contiguous()
    with atomic_file(path) as unfinished:
        if path.suffix == ".gguf":
            _write_gguf(unfinished, rows, model_type)
        elif path.suffix == ".pt":
            content = io.BytesIO()  # torch's and safetensors' file writers hide the reason of an error
            torch.save({path.stem: rows[None]}, content)
            unfinished.write_bytes(content.getbuffer())
        else:
            unfinished.write_bytes(save({path.stem: rows[None]}))


def _write_gguf(path: Path, rows: Tensor, model_type: str) -> None:
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", model_type)
    writer.add_uint32("controlvector.layer_count", len(rows) - 1)
    for layer in range(1, len(rows)):  # llama.cpp has no direction for layer 0
        writer.add_tensor(f"direction.{layer}", rows[layer].numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def scale_to_unit(directions: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Scale directions to length 1 at each layer.

    Args:
        directions: Directions by name, each ``(layers, hidden)``; zero at layers without one.

    Returns:
        Unit vectors, ``(n, layers, hidden)``, and the original lengths, ``(n, layers)``; both float32.
    """
    rows = torch.stack(list(directions.values()))
    lengths = rows.norm(dim=-1, dtype=torch.float64)
    scaled = rows / torch.where(lengths > 0, lengths, 1.0)[..., None]
    return scaled.float(), lengths.float()
