"""Damaged files of directions: each ends in directions that are right, or in an error of ours."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damage import REFUSED, damaged_bytes
from hypothesis import event, given
from hypothesis import strategies as st

from introspection_lit.steering.vector_bank import VectorBank
from introspection_lit.steering.vector_files import read_directions, scale_to_unit, write_direction
from introspection_lit.utils.errors import ConfigurationError

pytestmark = pytest.mark.thorough

LAYERS, HIDDEN = 6, 32


def no_files(folder: Path, suffix: str) -> list[Path]:
    """Paths that are no files: a folder, a link to itself, a pipe, a device, a name that no file can have."""
    (folder / f"folder{suffix}").mkdir()
    (folder / f"loop{suffix}").symlink_to(folder / f"loop{suffix}")
    os.mkfifo(folder / f"pipe{suffix}")
    (folder / f"zeros{suffix}").symlink_to("/dev/zero")
    return [*folder.iterdir(), folder / f"{'x' * 5000}{suffix}", folder / f"\udcff{suffix}"]


@pytest.mark.parametrize("suffix", [".gguf", ".pt", ".safetensors"])
def test_what_is_no_file(suffix: str, tmp_path: Path) -> None:
    """Refused at once: a pipe that nobody writes to would be waited for."""
    for path in no_files(tmp_path, suffix):
        for read in (VectorBank.load, lambda path: read_directions(path, LAYERS, HIDDEN)):
            with pytest.raises(ConfigurationError, match="no such file"):
                read(path)


def rows(*shape: int) -> torch.Tensor:
    """Some numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def is_right(read: dict[str, torch.Tensor]) -> None:
    """What was read is directions: some of them, finite, none zero, and of length 1 once they are scaled."""
    assert read
    for direction in read.values():
        assert direction.shape == (LAYERS, HIDDEN)
        assert direction.dtype == torch.float32
        assert direction.isfinite().all()
    lengths = np.linalg.norm(scale_to_unit(read)[0].numpy().astype(np.float64), axis=-1)
    assert (np.isclose(lengths, 1, atol=1e-5) | (lengths == 0)).all()
    assert (lengths > 0).any(axis=1).all()


@given(content=st.data())
@pytest.mark.parametrize("suffix", [".gguf", ".pt", ".safetensors"])
def test_foreign_files_of_damaged_bytes(suffix: str, content: st.DataObject, tmp_path: Path) -> None:
    """No format of theirs has a seal: what is read need not be what was written, but it is directions."""
    path, good = tmp_path / f"bread{suffix}", tmp_path / f"good{suffix}"
    if not good.is_file():
        write_direction(good, rows(LAYERS, HIDDEN), "qwen2")
    path.write_bytes(content.draw(damaged_bytes(good.read_bytes())))
    try:
        is_right(read_directions(path, LAYERS, HIDDEN))
    except REFUSED:
        event("refused")
        return


TENSORS = st.sampled_from(
    [
        *(rows(HIDDEN), rows(3, HIDDEN), rows(2, LAYERS, HIDDEN), rows(HIDDEN).double(), rows(HIDDEN).bfloat16()),
        *(rows(HIDDEN + 1), rows(LAYERS, HIDDEN), rows(1, 1, 1, HIDDEN), rows(0, HIDDEN), torch.tensor(1.0), rows(0)),
        *(torch.zeros(HIDDEN), torch.full((HIDDEN,), float("nan")), torch.full((HIDDEN,), 1e-30), rows(HIDDEN) * 1e-42),
        *(torch.full((HIDDEN,), 3e38), rows(HIDDEN).double() * 1e200, rows(HIDDEN).to(torch.complex64), rows(HIDDEN).int()),
        *(rows(HIDDEN).to_sparse(), rows(HIDDEN).bool()),
        *(torch.empty(HIDDEN, device="meta"), torch.nn.Parameter(rows(HIDDEN)), rows(HIDDEN).to(torch.float8_e4m3fn)),
        *(
            torch.nested.nested_tensor([rows(3), rows(4)], layout=torch.jagged),
            rows(1, HIDDEN).expand(3, HIDDEN),
            rows(HIDDEN, 2)[:, 0],
        ),
        rows(1, 1, 1).expand(9, LAYERS, HIDDEN),
    ]
)


KEYS = st.sampled_from([*range(-1, LAYERS + 1), 99, "1", "direction.2", "direction.01", "direction.99", "٣"])

KEYS |= st.sampled_from(
    [
        "layer_1",
        "layers.0",
        "layer_-2",
        "-1",
        "bread",
        "cats",
        "",
        "x" * 300,
        "\x1b[2J",
        "\ud800",
        None,
        1.5,
        True,
        (1, 2),
        b"1",
        "9" * 50,
    ]
)


CONTENTS = st.recursive(
    TENSORS | st.sampled_from([None, 1, "text", [], [torch.ones(HIDDEN)], OrderedDict()]),
    lambda inner: st.dictionaries(KEYS, inner, max_size=3) | st.dictionaries(st.integers(0, LAYERS - 1), inner, max_size=3),
    max_leaves=5,
)


@given(content=CONTENTS)
def test_what_a_pt_file_may_hold(content: object, tmp_path: Path) -> None:
    """Any dicts of any tensors: directions, or our error; and none takes the machine's memory."""
    torch.save(content, tmp_path / "file.pt")
    try:
        is_right(read_directions(tmp_path / "file.pt", LAYERS, HIDDEN))
    except REFUSED as error:
        event("refused")
        assert len(str(error)) < 20_000  # noqa: PT017 - either way is right


def test_dicts_that_have_no_end(tmp_path: Path) -> None:
    """A dict in itself, and one of a thousand times the same thousand: neither is walked through."""
    itself: dict[str, Any] = {}
    itself["a"] = itself
    many = dict.fromkeys(map(str, range(400, 1400)), torch.ones(HIDDEN))
    times = {f"x{number}": {f"{name}y": value for name, value in many.items()} for number in range(2)}
    same = dict.fromkeys(times, next(iter(times.values())))
    for content, message in ((itself, "dicts in dicts"), (same, "two directions are called")):
        torch.save(content, tmp_path / "file.pt")
        with pytest.raises(ConfigurationError, match=message):
            read_directions(tmp_path / "file.pt", LAYERS, HIDDEN)


def test_short_directions_are_scaled_to_one(tmp_path: Path) -> None:
    """In float32 the squares of small numbers are 0: a direction of length 1e-20 once came out with length 1e-8."""
    for length in (1e-42, 1e-30, 1e-20, 1e-13, 1e30):
        torch.save(rows(HIDDEN) * length, tmp_path / "file.pt")
        read = read_directions(tmp_path / "file.pt", LAYERS, HIDDEN)
        np.testing.assert_allclose(scale_to_unit(read)[0].norm(dim=-1), 1, rtol=1e-5)
