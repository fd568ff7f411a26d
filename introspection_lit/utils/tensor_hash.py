"""The hash of nested content, with tensors in it: what a checkpoint or a vector bank is sealed with."""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from typing import Any

import torch
from torch import Tensor

from introspection_lit.utils.errors import RunError

# What torch reads back without unpickling; a subclass, such as numpy's float or a named tuple, it does not.
PLAIN = {str, bytes, bool, int, float, complex, type(None), torch.dtype, torch.device}
MAPPINGS, SEQUENCES = {dict, OrderedDict, Counter}, {list, tuple, torch.Size, bytearray}


def content_hash(content: Any) -> str:
    """The SHA-256 of nested content: names, dtypes, shapes, bytes and plain values, in their order.

    Raises:
        RunError: Something in it could not be read back without unpickling.
    """
    digest = hashlib.sha256()
    _add(digest, content, "")
    return digest.hexdigest()


def _add(digest: Any, value: Any, place: str) -> None:
    """Add a value to a hash; each kind and length is said before what it holds, so that no two contents are the same."""
    if isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous()
        digest.update(f"tensor {plain.dtype} {tuple(plain.shape)} ".encode())
        digest.update(plain.flatten().view(torch.uint8).numpy())
    elif type(value) in MAPPINGS:
        digest.update(f"mapping {len(value)} ".encode())
        for key, item in value.items():
            _add(digest, key, place)
            _add(digest, item, f"{place}/{key}")
    elif type(value) in PLAIN:
        text = value.hex() if isinstance(value, float) else repr(value)
        digest.update(f"{type(value).__name__} {len(text)} {text} ".encode("utf-8", "surrogatepass"))
    elif type(value) is set and all(type(item) in PLAIN for item in value):
        digest.update(f"set {len(value)} {sorted(map(repr, value))} ".encode("utf-8", "surrogatepass"))
    elif type(value) in SEQUENCES:
        digest.update(f"sequence {len(value)} ".encode())
        for number, item in enumerate(value):
            _add(digest, item, f"{place}/{number}")
    else:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise RunError(
            [
                f"the checkpoint cannot be written: {place.lstrip('/')} is a {kind}, which could not be read back without "
                "unpickling. Keep numbers, texts and tensors in the state of callbacks."
            ]
        )
