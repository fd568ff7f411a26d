"""A run whose model was measured by an earlier run: the same vector bank, without reading the texts again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from project_paths import CONFIG
from safetensors.torch import load_file, save_file

from introspection_lit.cli import attach
from introspection_lit.steering import extraction
from introspection_lit.steering.vector_bank import VectorBank
from introspection_lit.utils import kept_tensors

Bank = Callable[..., VectorBank]


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    """A tiny model that the test may change."""
    shutil.copytree(tiny, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """The number of texts in each reading by the model; the cache is empty, and all is worth keeping."""
    monkeypatch.setenv("INTROSPECTION_LIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept_tensors, "WORTH_KEEPING", 0.0)
    counted: list[int] = []
    read_texts = extraction.read_texts

    def counting(*arguments: object, **options: object) -> extraction.Readings:
        counted.append(len(arguments[3]))  # type: ignore[arg-type]
        return read_texts(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(extraction, "read_texts", counting)
    return counted


@pytest.fixture
def bank(model: Path, some_contexts: list[str]) -> Bank:
    """Makes the bank of a run with more options."""

    def make(*more: str) -> VectorBank:
        cli = attach(["--config", CONFIG, "--model.base.name_or_path", str(model), *some_contexts, *more])
        cli.datamodule.setup("")
        assert cli.datamodule.bank is not None
        return cli.datamodule.bank

    return make


def test_the_same_bank(bank: Bank, reads: list[int]) -> None:
    """Contexts and concepts are read once; the second run has all of the first one's bank."""
    first = bank()
    assert len(reads) == 2
    again = bank()
    assert len(reads) == 2
    assert again.fingerprint == first.fingerprint
    assert (again.names, again.metadata) == (first.names, first.metadata)
    assert torch.equal(again.lengths["concept"], first.lengths["concept"])


def test_what_differs_is_measured(bank: Bank, reads: list[int], model: Path) -> None:
    """A seed deals other contexts, whose norms are measured; concepts are the same for every seed."""
    first = bank()
    other_seed = bank("--data.seed", "1")
    assert len(reads) == 3
    assert torch.equal(other_seed.directions["concept"], first.directions["concept"])
    assert not torch.equal(other_seed.directions["train"], first.directions["train"])
    bank("--data.concepts", "[tea, snow, silver]")
    assert len(reads) == 4
    rounded = bank("--model.base.dtype", "bfloat16", "--trainer.precision", "bf16-true")
    assert len(reads) == 6
    assert rounded.fingerprint != first.fingerprint
    tensors = load_file(model / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    save_file(tensors | {name: -tensors[name]}, model / "model.safetensors", metadata={"format": "pt"})
    changed = bank()
    assert len(reads) == 8
    assert not torch.equal(changed.residual_norms, first.residual_norms)
