"""The hash of nested content with tensors: equal for equal content, and for that only."""

from __future__ import annotations

import pickle
import struct
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from introspection_lit.utils.tensor_hash import content_hash

values = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text() | some.binary(),
    lambda inner: some.lists(inner) | some.dictionaries(some.text(), inner),
    max_leaves=6,
)


@settings(max_examples=settings.default.max_examples // 3)
@given(values, values)
def test_equal_content_and_only_that_has_equal_hashes(first: Any, second: Any) -> None:
    """Against pickle, which tells apart whatever is not the same."""
    assert content_hash(first) == content_hash(pickle.loads(pickle.dumps(first)))
    assert (content_hash(first) == content_hash(second)) == (told_apart(first) == told_apart(second))


def told_apart(value: Any) -> Any:
    """A value in a form in which == means the same bits, the same kind and the same order."""
    if isinstance(value, dict):
        return "dict", [(key, told_apart(item)) for key, item in value.items()]
    if isinstance(value, list):
        return "list", [told_apart(item) for item in value]
    return type(value).__name__, "nan" if value != value else struct.pack("d", value) if type(value) is float else value


def test_hashes_tell_tensors_apart() -> None:
    """By dtype, shape, bytes and place; not by strides, device or gradient."""
    rows = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    others = [
        rows.reshape(3, 2), rows.reshape(6), rows.double(), rows.int(), rows.view(torch.int32), rows + 1e-6, -rows, [rows],
        {"a": rows}, rows.tolist(), torch.zeros(0), torch.zeros(0, 2), torch.tensor(0.0), torch.tensor(-0.0),
        torch.tensor(True), 1, 1.0, True, "1", b"1", None, "", [], {}, [[]], [1, [2]], [[1], 2], {1: 2}, {"1": 2}, {1, 2},
        torch.float32,
    ]  # fmt: skip
    hashes = [content_hash(value) for value in (rows, *others)]
    assert len(set(hashes)) == len(hashes)
    assert content_hash(rows.T.contiguous().T) == content_hash(rows.clone().requires_grad_()) == hashes[0]
