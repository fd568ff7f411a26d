"""Directions in other projects' files: repeng's GGUF control vectors, ``.pt`` tensors, safetensors.

A file holds one direction or several. What comes out of each is ``(layers, hidden)``: a direction for each decoder layer's
output, zero at layers for which the file has none (repeng leaves layer 0 out). In all formats layer ``i`` is the output of
decoder layer ``i``, counted from 0, as in repeng and llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from introspection_lit.errors import ConfigurationError
from introspection_lit.files import whole

FORMATS = (".gguf", ".pt", ".safetensors")


def read_directions(path: Path, n_layers: int, hidden: int) -> dict[str, Tensor]:
    """Read every direction of a file.

    Args:
        path: A file of one of these kinds.

            - ``.gguf``: a control vector as repeng and llama.cpp write it, with tensors ``direction.LAYER``.
            - ``.safetensors``: tensors by name; or ``direction.LAYER``, as in a control vector.
            - ``.pt``: a tensor, or a dict of them by name or by layer, or a dict of such dicts. Loaded without running
              anything that the file contains.

            A tensor ``(hidden,)`` is a direction for every layer, ``(n, hidden)`` are n of them, ``(n, layers, hidden)`` n
            with a direction for each layer.
        n_layers: Decoder layers of the model.
        hidden: Its hidden size.

    Returns:
        Directions as they are in the file, not scaled, by name, each ``(n_layers, hidden)`` float32.

    Raises:
        ConfigurationError: There is no such file, it cannot be read, or it does not fit the model; all its problems.
    """
    if not path.is_file():
        raise ConfigurationError([f"import: no such file: {path}. Expected a {', '.join(FORMATS)} file."])
    readers = {".gguf": _read_gguf, ".pt": _read_pt, ".safetensors": load_file}
    if path.suffix not in readers:
        raise ConfigurationError(
            [f"import: {path} is none of {', '.join(FORMATS)}, which are the formats that can be read."]
        )
    try:
        content = readers[path.suffix](path)
    except Exception as error:  # each library has errors of its own for a file that is not one of its
        detail = f" ({error})" if isinstance(error, ValueError) else ""
        nature = (
            "Expected a file of tensors; other Python objects are never loaded"
            if path.suffix == ".pt"
            else "It may be cut off"
        )
        raise ConfigurationError([f"import: {path} cannot be read as {path.suffix}{detail}. {nature}."]) from error
    directions: dict[str, Tensor] = {}
    problems = []
    for name, value in _entries(content, path.stem):
        found = _directions(value, n_layers, hidden)
        if isinstance(found, str):
            problems.append(f"import: {path}: {name}: {found}")
            continue
        names = [name] if len(found) == 1 else [f"{name}-{number}" for number in range(len(found))]
        problems += [f"import: {path}: two directions are called {name!r}." for name in names if name in directions]
        directions |= dict(zip(names, found, strict=True))
    if not directions and not problems:
        problems.append(f"import: {path} holds no direction.")
    if problems:
        raise ConfigurationError(problems)
    return directions


def _read_gguf(path: Path) -> dict[str, Tensor]:
    reader = gguf.GGUFReader(path)
    field = reader.get_field("general.architecture")
    kind = field.contents() if field else None
    if kind != "controlvector":
        raise ValueError(f"it is a {kind!r}, not a 'controlvector'")
    plain = (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16)
    odd = sorted({tensor.tensor_type.name for tensor in reader.tensors if tensor.tensor_type not in plain})
    if odd:
        raise ValueError(f"its tensors are {', '.join(odd)}; expected F32 or F16")
    return {tensor.name: torch.from_numpy(np.array(tensor.data)) for tensor in reader.tensors}


def _read_pt(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _entries(content: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The directions in what a file held, each with its name: a tensor, or tensors by layer."""
    if not isinstance(content, Mapping):
        yield name, content
        return
    by_layer = {layer_of(key): value for key, value in content.items() if layer_of(key) is not None}
    if len(by_layer) < sum(layer_of(key) is not None for key in content):
        raise ConfigurationError([f"import: {name}: a layer is there twice, as a number and as a text."])
    if by_layer and all(isinstance(value, Mapping) for value in by_layer.values()):  # names by layer: the other way round
        names = dict.fromkeys(key for value in by_layer.values() for key in value)
        for each in names:
            yield str(each), {layer: value[each] for layer, value in by_layer.items() if each in value}
    elif by_layer:
        yield name, by_layer
    for key, value in content.items():
        if layer_of(key) is None:
            yield from _entries(value, str(key))


def layer_of(key: object) -> int | None:
    """The layer that a key means: a number, or ``direction.NUMBER``; None if it is a name."""
    if isinstance(key, int) and not isinstance(key, bool):
        return key
    match = re.fullmatch(r"(?:direction\.)?(\d+)", str(key))
    return int(match.group(1)) if match else None


def _directions(value: Any, n_layers: int, hidden: int) -> Tensor | str:
    """Turn an entry into ``(n, n_layers, hidden)``, or say what is wrong with it."""
    parts = value if isinstance(value, dict) else {None: value}
    for part in parts.values():
        if not isinstance(part, Tensor):
            return f"expected a tensor of floating-point numbers, got {type(part).__name__}."
        plain = part.layout == torch.strided and part.device.type == "cpu" and not part.is_quantized
        if not part.is_floating_point() or not plain:
            return f"expected a plain tensor of floating-point numbers, got {part.dtype} ({part.layout}, {part.device})."
    if isinstance(value, dict):
        outside = sorted(layer for layer in value if not 0 <= layer < n_layers)
        if outside:
            return f"it has directions for the layers {outside}, which the model does not have (0..{n_layers - 1})."
        wrong = [tuple(part.shape) for part in value.values() if tuple(part.shape) != (hidden,)]
        if wrong:
            return f"a layer's direction has shape {wrong[0]}. Expected ({hidden},), the model's hidden size."
        rows = torch.zeros(1, n_layers, hidden)
        for layer, part in value.items():
            rows[0, layer] = part.detach()
    elif value.shape[-1:] != (hidden,) or value.dim() > 3 or (value.dim() == 3 and value.shape[1] != n_layers):
        return (
            f"it has shape {tuple(value.shape)}. Expected ({hidden},), (n, {hidden}) or (n, {n_layers}, {hidden}) for this "
            "model."
        )
    elif value.dim() == 2 and len(value) == n_layers:
        return (
            f"shape {tuple(value.shape)} can mean {n_layers} directions or one with a direction for each of the {n_layers} "
            f"layers. Save it as ({n_layers}, 1, {hidden}) expanded over layers, or as (1, {n_layers}, {hidden})."
        )
    else:
        flat = value.detach().float()
        rows = flat.reshape(-1, value.shape[-2] if value.dim() == 3 else 1, hidden).expand(-1, n_layers, -1)
    norms = rows.norm(dim=-1)
    if not rows.isfinite().all() or not norms.isfinite().all():
        return "it has numbers, or a length, that are not finite."
    if not (norms > 0).any(dim=-1).all():
        return "it is zero."
    return rows.contiguous()


def write_direction(path: Path, direction: Tensor, model_type: str) -> None:
    """Write one direction in the format that the file's name ends in; the file is complete or not there.

    Args:
        path: A ``.gguf``, ``.pt`` or ``.safetensors`` file.
        direction: ``(layers, hidden)``.
        model_type: The architecture, such as ``qwen2``: a hint that control vectors carry.

    Raises:
        ConfigurationError: The name ends in something else.
    """
    if path.suffix not in FORMATS:
        known = ", ".join(FORMATS)
        raise ConfigurationError([f"export: {path} is none of {known}, which are the formats that can be written."])
    rows = direction.float().contiguous()
    with whole(path) as unfinished:
        if path.suffix == ".gguf":
            _write_gguf(unfinished, rows, model_type)
        elif path.suffix == ".pt":
            torch.save({path.stem: rows[None]}, unfinished)
        else:
            save_file({path.stem: rows[None]}, unfinished)


def _write_gguf(path: Path, rows: Tensor, model_type: str) -> None:
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", model_type)
    writer.add_uint32("controlvector.layer_count", len(rows) - 1)
    for layer in range(1, len(rows)):  # llama.cpp knows no direction for layer 0
        writer.add_tensor(f"direction.{layer}", rows[layer].numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def unit(directions: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Scale directions to length 1 layer by layer.

    Args:
        directions: Each ``(layers, hidden)``; zero where there is none.

    Returns:
        ``(n, layers, hidden)``, and how long they were, ``(n, layers)``.
    """
    rows = torch.stack(list(directions.values()))
    return torch.nn.functional.normalize(rows, dim=-1), rows.norm(dim=-1)
