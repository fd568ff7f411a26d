"""Banks: independent streams, disjointness, concepts, files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bank_example import small_bank
from safetensors.torch import save_file

from introspection_lit.steering.extraction import mean_differences
from introspection_lit.steering.vector_bank import RANDOM_SPLITS, VectorBank, overlapping_splits, random_unit_vectors
from introspection_lit.utils.errors import ConfigurationError


def test_splits_are_independent_streams() -> None:
    """The published leak: with one seed, held-out vectors were the first training vectors. Here |cos| is that of chance."""
    train, heldout = (random_unit_vectors(200, 1024, 0, split) for split in ("train", "heldout"))
    assert (train @ heldout.T).abs().max() < 0.25  # 40,000 pairs of independent vectors: about 4.3 / sqrt(1024)
    torch.testing.assert_close(train.norm(dim=1), torch.ones(200))


def test_vectors_depend_on_seed_and_split_only() -> None:
    """More vectors leave the first ones alone; another seed is another set."""
    assert torch.equal(random_unit_vectors(3, 64, 0, "train"), random_unit_vectors(9, 64, 0, "train")[:3])
    assert not torch.allclose(random_unit_vectors(3, 64, 0, "train"), random_unit_vectors(3, 64, 1, "train"))


def test_leaks_are_found() -> None:
    """A copied direction, also with its sign flipped or at one layer of a concept, is a leak; chance is not."""
    bank = small_bank()
    assert bank.leaks() == []
    bank.directions["heldout"][2] = -bank.directions["train"][4]
    assert any("train and heldout" in leak for leak in bank.leaks())
    bank = small_bank()
    bank.directions["concept"][1, 2] = bank.directions["validation"][0]
    assert any("validation and concept" in leak for leak in bank.leaks())
    assert overlapping_splits({"a": torch.zeros(0, 8), "b": torch.eye(8)}) == []


def test_centring_takes_out_what_concepts_share() -> None:
    """Activations that share a large offset are collinear; centred directions are not, and are orthogonal to it."""
    shared = torch.zeros(64)
    shared[0] = 100.0
    own = torch.nn.functional.pad(torch.eye(6), (1, 57))
    activations = (shared + own)[:, None, None, :].expand(6, 3, 2, 64)
    directions = torch.nn.functional.normalize(mean_differences(activations), dim=-1)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(6, 2))
    torch.testing.assert_close(directions[..., 0], torch.zeros(6, 2))
    cosines = torch.einsum("ilh,jlh->ij", directions, directions) / 2
    # Six centred, otherwise orthogonal directions: cosine -1/5.
    torch.testing.assert_close(cosines[0, 1], torch.tensor(-0.2))


def test_file_round_trip(tmp_path: Path) -> None:
    """Everything comes back bit by bit, and no unfinished file is left."""
    bank = small_bank()
    bank.save(tmp_path / "bank.safetensors")
    again = VectorBank.load(tmp_path / "bank.safetensors")
    assert again.names == bank.names
    assert again.metadata == bank.metadata
    assert torch.equal(again.residual_norms, bank.residual_norms)
    assert all(torch.equal(again.directions[split], rows) for split, rows in bank.directions.items())
    assert [again.keys(split) for split in RANDOM_SPLITS] == [bank.keys(split) for split in RANDOM_SPLITS]
    assert [path.name for path in tmp_path.iterdir()] == ["bank.safetensors"]


def test_bad_files_are_refused(tmp_path: Path) -> None:
    """Missing, not safetensors, and safetensors of something else."""
    with pytest.raises(ConfigurationError, match="no such file"):
        VectorBank.load(tmp_path / "missing.safetensors")
    (tmp_path / "text.safetensors").write_text("hello, this is no bank")
    save_file({"weights": torch.zeros(2)}, tmp_path / "other.safetensors")
    for name in ("text", "other"):
        with pytest.raises(ConfigurationError, match="is not a vector bank"):
            VectorBank.load(tmp_path / f"{name}.safetensors")


def test_misfits_are_named() -> None:
    """Another hidden size, another depth."""
    bank = small_bank()
    assert bank.misfits("m", 64, 3) == []
    assert "shape (5, 64); m needs (5, 3, 128) or (5, 128)" in bank.misfits("m", 128, 3)[0]
    assert "made for 3 layers; m has 30" in bank.misfits("m", 64, 30)[0]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda bank: bank.directions.pop("heldout"), "no directions for 'heldout'"),
        (lambda bank: bank.directions.update(train=torch.zeros(0, 64)), "no directions for 'train'"),
        (lambda bank: bank.directions["train"].mul_(2), "'train' are not all of length 1"),
        (lambda bank: bank.directions["concept"][0, 0].fill_(float("nan")), "'concept' are not all of length 1"),
        (lambda bank: bank.directions.update(concept=bank.directions["train"]), "'concept' has shape (5, 64)"),
        (lambda bank: bank.residual_norms.zero_(), "not all positive"),
        (lambda bank: bank.residual_norms.fill_(float("inf")), "not all positive"),
        (lambda bank: bank.directions.update(train=bank.directions["train"].half()), "torch.float16, not float32"),
        (lambda bank: bank.directions.update(more=bank.directions["train"]), "splits that are not known: ['more']"),
        (lambda bank: bank.names["train"].pop(), "5 directions and 4 names"),
    ],
)
def test_unusable_banks_are_refused(spoil, message: str) -> None:
    """A bank from elsewhere may lack a split, be of other lengths, or have directions for too few layers."""
    bank = small_bank()
    spoil(bank)
    assert any(message in problem for problem in bank.misfits("m", 64, 3))
