"""Files of directions that claim to hold more than they do, or ask for more memory; here the limits are low."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import gguf
import pytest
import torch
from hostile import exceeding

from introspection_lit.steering import vector_files
from introspection_lit.steering.vector_files import read_directions, write_direction
from introspection_lit.utils.errors import ConfigurationError

pytestmark = pytest.mark.thorough

LAYERS, HIDDEN = 6, 32


def rows(*shape: int) -> torch.Tensor:
    """Some numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_many_directions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as the limit are read; a file of a few bytes can say that it holds a billion, and is refused by the shape."""
    many = {f"word {number}": row for number, row in enumerate(rows(200, 4))}
    torch.save(many, tmp_path / "many.pt")
    assert len(read_directions(tmp_path / "many.pt", 2, 4)) == 200
    monkeypatch.setattr(vector_files, "MOST_BYTES", 100 * 4 * LAYERS * HIDDEN)
    for claimed in (rows(1, HIDDEN).expand(101, HIDDEN), rows(1, 1, 1).expand(101, LAYERS, HIDDEN)):
        torch.save(claimed, tmp_path / "claims.pt")
        with pytest.raises(ConfigurationError, match="more directions than can be imported at once"):
            read_directions(tmp_path / "claims.pt", LAYERS, HIDDEN)
    monkeypatch.setattr(vector_files, "MOST_ENTRIES", 100)
    with pytest.raises(ConfigurationError, match="more directions than can be imported at once"):
        read_directions(tmp_path / "many.pt", 2, 4)


def test_packed_archives_are_refused(tmp_path: Path) -> None:
    """A .pt file is an archive: a part that is packed could be a million times as large as the file."""
    torch.save(torch.ones(1000, HIDDEN), tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "packed.pt", "w") as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name), zipfile.ZIP_DEFLATED)
    with pytest.raises(ConfigurationError, match="larger than the file"):
        read_directions(tmp_path / "packed.pt", LAYERS, HIDDEN)


@pytest.mark.parametrize("suffix", [".gguf", ".pt", ".safetensors"])
def test_reading_has_a_limit_of_memory(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of a few bytes can ask for gigabytes."""
    write_direction(tmp_path / f"x{suffix}", rows(LAYERS, HIDDEN), "qwen2")
    assert read_directions(tmp_path / f"x{suffix}", LAYERS, HIDDEN)
    monkeypatch.setattr(vector_files, "room_for", exceeding(MemoryError()))
    with pytest.raises(ConfigurationError, match=rf"cannot be read as \{suffix}"):
        read_directions(tmp_path / f"x{suffix}", LAYERS, HIDDEN)


def pair(key: str, kind: int, value: bytes) -> bytes:
    """A key and its value as GGUF has them."""
    return struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + value


ARCHITECTURE = pair("general.architecture", 8, struct.pack("<Q", 13) + b"controlvector")


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<QQ", 9, 0),  # tensors
        struct.pack("<QQ", 0, 9),  # keys
        struct.pack("<QQ", 0, 1) + pair("a", 9, struct.pack("<IQ", 4, 9)),  # numbers, at the end of the file
        struct.pack("<QQ", 0, 1) + pair("a", 8, struct.pack("<Q", 99)),  # a text
        struct.pack("<QQ", 1, 1) + ARCHITECTURE + struct.pack("<Q", 1) + b"a" + struct.pack("<I", 9),  # dimensions
        struct.pack("<QQ", 1, 1) + ARCHITECTURE + struct.pack("<Q", 1) + b"a" + struct.pack("<IQQIQ", 2, 9, 9, 0, 0),
        struct.pack("<QQ", 1, 1) + ARCHITECTURE + struct.pack("<Q", 1) + b"a" + struct.pack("<IQIQ", 1, 32, 0, 999),
    ],
)
def test_gguf_that_claims_to_be_longer_than_it_is(content: bytes, tmp_path: Path) -> None:
    """The library takes counts and places as they are given; large ones would keep it busy, or fill the memory."""
    (tmp_path / "file.gguf").write_bytes(struct.pack("<II", gguf.GGUF_MAGIC, 3) + content)
    with pytest.raises(ConfigurationError, match=r"it says that it is longer than it is"):
        read_directions(tmp_path / "file.gguf", LAYERS, HIDDEN)


def test_gguf_with_more_fields_than_any_control_vector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library would keep each number as an array of its own, a hundred times as large."""
    monkeypatch.setattr(vector_files, "MOST_GGUF_FIELDS", 50)
    content = struct.pack("<QQ", 0, 1) + pair("a", 9, struct.pack("<IQ", 0, 60)) + bytes(60)
    (tmp_path / "file.gguf").write_bytes(struct.pack("<II", gguf.GGUF_MAGIC, 3) + content)
    with pytest.raises(ConfigurationError, match="more fields than a control vector"):
        read_directions(tmp_path / "file.gguf", LAYERS, HIDDEN)
