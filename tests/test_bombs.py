"""Small files that are huge once they are read: each is refused in an instant, by its shape or by a limit of memory."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import gguf
import numpy as np
import pytest
import torch
from results_example import example
from safetensors.torch import save_file

from introspection_lit import report
from introspection_lit.contexts.loading import load_contexts
from introspection_lit.models.adapters import read_adapter, weight_mismatches
from introspection_lit.models.base_model import BaseModel
from introspection_lit.models.loading import load_config
from introspection_lit.steering.vector_files import read_directions
from introspection_lit.training.checkpoint_checks import content_problems
from introspection_lit.training.checkpoint_files import read_checkpoint
from introspection_lit.utils.checksums import CHECKSUM
from introspection_lit.utils.errors import ConfigurationError

pytestmark = pytest.mark.thorough

GIGABYTE = 2**30


def repacked(file: Path, content: bytes | None = None, way: int = zipfile.ZIP_STORED) -> None:
    """Write an archive of torch's again: packed, or with another pickle in it."""
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", way) as archive:
        for name, part in parts.items():
            archive.writestr(name, content if content and name.endswith("/data.pkl") else part)


def expanded(file: Path) -> None:
    """One number that says it is a thousand million."""
    adapter = {"a": torch.zeros(1).as_strided((10**9,), (0,))}
    torch.save({"introspection": {}, "state_dict": adapter}, file)


def expanded_and_sealed(file: Path) -> None:
    """The same with a seal, which is computed from all numbers."""
    torch.save(
        {"introspection": {}, "state_dict": {}, "x": torch.zeros(1).as_strided((10**9,), (0,)), CHECKSUM: "0" * 64}, file
    )


def packed(file: Path) -> None:
    """Half a gigabyte of zeros in half a megabyte."""
    torch.save({"introspection": {}, "state_dict": {"a": torch.zeros(GIGABYTE // 8)}}, file)
    repacked(file, way=zipfile.ZIP_DEFLATED)


def bytes_by_their_number(file: Path) -> None:
    """What torch lets through without unpickling: an array of as many bytes as a number says."""
    torch.save({"a": 1}, file)
    repacked(file, b"\x80\x02c__builtin__\nbytearray\n(J" + struct.pack("<i", GIGABYTE) + b"tR.")


def lists_of_lists(file: Path) -> None:
    """Sixty lists, each of the one before, twice."""
    content: Any = [0]
    for _ in range(60):
        content = [content, content]
    torch.save({"introspection": {"validation": {}}, "state_dict": {"a": torch.zeros(1)}, "epoch": content}, file)


def inside_itself(file: Path) -> None:
    """A list that has no end."""
    content: list[Any] = []
    content.append(content)
    torch.save({"introspection": {}, "state_dict": {}, "epoch": content, CHECKSUM: "0" * 64}, file)


@pytest.mark.parametrize(
    "made", [expanded, expanded_and_sealed, packed, bytes_by_their_number, lists_of_lists, inside_itself]
)
def test_checkpoints(made: Callable[[Path], None], tmp_path: Path) -> None:
    """None is read, whether it claims to be sealed or from before there were seals."""
    made(tmp_path / "x.ckpt")
    assert (tmp_path / "x.ckpt").stat().st_size < 2**20
    with pytest.raises(ConfigurationError, match=r"plain tensors|does not hold what was written|MemoryError|RuntimeError"):
        read_checkpoint(tmp_path / "x.ckpt")


@pytest.mark.parametrize(
    "score",
    [
        torch.zeros(1, device="meta"),
        torch.zeros(1).to_sparse(),
        torch.quantize_per_tensor(torch.zeros(1), 1, 0, torch.qint8),
        torch.nested.nested_tensor([torch.zeros(1)]),
    ],
    ids=["meta", "sparse", "quantised", "nested"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch, of nested tensors
def test_scores_that_are_no_plain_numbers(score: torch.Tensor) -> None:
    """Torch has no answer to whether they are finite."""
    checkpoint = {"introspection": {"validation": {"auroc": score}}, "state_dict": {"a": torch.zeros(1)}}
    assert any("introspection.validation.auroc is" in problem for problem in content_problems(checkpoint, "test", {}))
    checkpoint["introspection"]["validation"]["auroc"] = torch.tensor(3)
    assert not any("introspection.validation.auroc is" in problem for problem in content_problems(checkpoint, "test", {}))


def test_pt_files(tmp_path: Path) -> None:
    """As in a checkpoint."""
    bytes_by_their_number(tmp_path / "x.pt")
    with pytest.raises(ConfigurationError, match=r"cannot be read as \.pt"):
        read_directions(tmp_path / "x.pt", 4, 64)


def test_gguf_with_tensors_over_each_other(tmp_path: Path) -> None:
    """A megabyte of numbers that eight hundred tensors lie over."""

    def text(words: str) -> bytes:
        return struct.pack("<Q", len(words)) + words.encode()

    names = [f"n{number}" for number in range(800)]
    tensors = b"".join(text(name) + struct.pack("<IQQIQ", 2, 64, 4096, 0, 0) for name in names)
    head = struct.pack("<IIQQ", gguf.GGUF_MAGIC, 3, len(names), 1) + text("general.architecture")
    head += struct.pack("<I", 8) + text("controlvector") + tensors
    numbers = np.ones(64 * 4096, "<f4").tobytes()
    (tmp_path / "x.gguf").write_bytes(head + bytes(-len(head) % 32) + numbers)
    with pytest.raises(ConfigurationError, match=r"cannot be read as \.gguf"):
        read_directions(tmp_path / "x.gguf", 4, 64)


def test_adapters(tiny: Path, tmp_path: Path) -> None:
    """Settings that ask for gigabytes of weights, beside a file of one number."""
    config = {"peft_type": "VBLORA", "num_vectors": 40_000_000, "vector_length": 32, "r": 4, "target_modules": ["q_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file({"a": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    assert "PEFT cannot put it on the model" in weight_mismatches(read_adapter(str(tmp_path)), BaseModel(str(tiny)))[0]


def test_models_with_more_layers_than_any(tiny: Path, tmp_path: Path) -> None:
    """Transformers makes a list of them, before a weight is read."""
    config = json.loads((tiny / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 10**9}))
    with pytest.raises(ValueError, match=r"has 1e\+09 layers, more than any model"):
        load_config(BaseModel(str(tmp_path)))


def test_objects_with_many_fields(tmp_path: Path) -> None:
    """A field is looked for among all others once, and not once for each of them."""
    fields = ",".join(f'"k{number}":0' for number in range(200_000))
    (tmp_path / "x.jsonl").write_text(f'{{{fields},"k199999":0}}\n')
    with pytest.raises(ConfigurationError, match="has the field 'k199999' twice"):
        load_contexts(str(tmp_path / "x.jsonl"))


def test_tables_of_a_report(tmp_path: Path) -> None:
    """As many rows as columns, from a file of a few kilobytes, would be a page of gigabytes."""
    results = cast("dict[str, Any]", example())
    cell = results["evidence"]["grid"][0]
    results["evidence"]["grid"] = [cell | {"band": [n, n], "strength": 1 + n / 1000} for n in range(400)]
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(ConfigurationError, match="400 rows by 400 strengths are more than a page can show"):
        report.write_report(tmp_path)
