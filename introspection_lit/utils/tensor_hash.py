"""The hash of nested content with tensors: the checksum of checkpoints and vector banks."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter, OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from introspection_lit.utils.errors import RunError

# What torch reads back without unpickling; a subclass, such as numpy's float or a named tuple, it does not.
SCALARS = {str, bytes, bool, int, float, complex, type(None), torch.dtype, torch.device}
MAPPINGS, SEQUENCES = {dict, OrderedDict, Counter}, {list, tuple, torch.Size, bytearray}
MAX_VALUES = 10**7  # a checkpoint has some thousand; a few lists of lists of one another can be billions


def content_hash(content: Any) -> str:
    """The SHA-256 of nested content: names, dtypes, shapes, bytes and plain values, in their order.

    Raises:
        RunError: A value could not be read back without unpickling.
        ValueError: There are too many values.
    """
    digest = hashlib.sha256()
    _add(digest, content, "", itertools.count())
    return digest.hexdigest()


def _add(digest: Any, value: Any, place: str, counter: Iterator[int]) -> None:
    """Add a value to a hash; type and length come before the content, so that no two contents have the same bytes."""
    if next(counter) > MAX_VALUES:
        raise ValueError(f"more than {MAX_VALUES} values")
    if isinstance(value, Tensor):
        dense = value.detach().cpu().contiguous()
        digest.update(f"tensor {dense.dtype} {tuple(dense.shape)} ".encode())
        digest.update(dense.flatten().view(torch.uint8).numpy())
    elif type(value) in MAPPINGS:
        digest.update(f"mapping {len(value)} ".encode())
        for key, item in value.items():
            _add(digest, key, place, counter)
            _add(digest, item, f"{place}/{key}", counter)
    elif type(value) in SCALARS:
        text = value.hex() if isinstance(value, float) else repr(value)
        digest.update(f"{type(value).__name__} {len(text)} {text} ".encode("utf-8", "surrogatepass"))
    elif type(value) is set and all(type(item) in SCALARS for item in value):
        digest.update(f"set {len(value)} {sorted(map(repr, value))} ".encode("utf-8", "surrogatepass"))
    elif type(value) in SEQUENCES:
        digest.update(f"sequence {len(value)} ".encode())
        for number, item in enumerate(value):
            _add(digest, item, f"{place}/{number}", counter)
    else:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        problem = (
            f"the checkpoint cannot be written: {place.lstrip('/')} is a {kind}, which could not be read back without "
        )
        raise RunError([f"{problem}unpickling. Keep numbers, texts and tensors in the state of callbacks."])
