"""Damaged vector banks by the hundred: each is sound by another reckoning, or refused with an error of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damage import REFUSED, damaged_bytes, nested_too_deeply, odd
from hypothesis import event, given
from hypothesis import strategies as st
from safetensors.torch import save

from introspection_lit.models.base_identity import BaseIdentity
from introspection_lit.models.base_model import BaseModel
from introspection_lit.steering.vector_bank import RANDOM_SPLITS, REMEDY, VectorBank, random_unit_vectors, repeated
from introspection_lit.utils.errors import ConfigurationError

pytestmark = pytest.mark.thorough

LAYERS, HIDDEN = 6, 32
MODEL = BaseIdentity(BaseModel("m"))
SPLITS = (*RANDOM_SPLITS, "concept", "imported")


def opposite() -> torch.Tensor:
    """Four directions, the second of which is the first with its sign changed."""
    made = random_unit_vectors(4, HIDDEN, 0, "train")
    made[1] = -made[0]
    return made


def sound_bank() -> VectorBank:
    """A bank that fits a model of six layers."""
    directions = {split: random_unit_vectors(4, HIDDEN, 0, split) for split in RANDOM_SPLITS}
    for number, split in enumerate(("concept", "imported")):
        rows = torch.randn(3, LAYERS, HIDDEN, generator=torch.Generator().manual_seed(number))
        directions[split] = torch.nn.functional.normalize(rows, dim=-1)
    directions["imported"][:, 0] = 0
    names = {split: [f"{split}-{n}" for n in range(len(rows))] for split, rows in directions.items()}
    lengths = {"imported": torch.ones(3, LAYERS)}
    metadata = {"base_model": "m", "revision": "", "seed": "0", "layer": "any"}
    return VectorBank(directions, names, torch.arange(1.0, LAYERS + 1), metadata, lengths)


def is_sound(bank: VectorBank) -> bool:
    """Whether a bank can be used, in NumPy and double precision."""
    norms = bank.residual_norms.numpy()
    fine = norms.dtype == np.float32 and norms.shape == (LAYERS,) and bool(np.isfinite(norms).all() and (norms > 0).all())
    fine = fine and set(bank.directions) == set(bank.names) and {*RANDOM_SPLITS, "concept"} <= set(bank.directions)
    if not fine or not set(bank.directions) <= {*SPLITS, "concept_pca"} or bank.metadata.get("base_model") != "m":
        return False
    flat = {}
    for split, rows in bank.directions.items():
        values, names = rows.numpy().astype(np.float64), bank.names[split]
        shapes = [(len(values), LAYERS, HIDDEN), (len(values), HIDDEN)] if values.ndim else []
        if (
            rows.dtype != torch.float32
            or values.shape not in shapes[: 2 if split in RANDOM_SPLITS else 1]
            or not len(values)
        ):
            return False
        sizes = np.sqrt((values**2).sum(-1))
        right = np.isclose(sizes, 1, atol=2e-3) | ((sizes == 0) & (split == "imported"))
        if not right.all() or len(names) != len(values) or len(set(names)) != len(names):
            return False
        if not all(name and len(name) <= 200 and name.isprintable() for name in names):
            return False
        flat[split] = values.reshape(len(values), -1)
        if len(np.unique(np.abs(flat[split]), axis=0)) < len(values):
            return False
    return True


def outcome(bank: VectorBank) -> str:
    """What set-up says of a bank: whether it is used or refused."""
    return "refused" if problems_of(bank) or bank.leaks() else "used"


def problems_of(bank: VectorBank) -> list[str]:
    """Of shape and content, and of the model that it was made for."""
    return bank.misfits("m", HIDDEN, LAYERS) + MODEL.problems("data.bank: it", bank.metadata, REMEDY)


def header_of(bank: VectorBank) -> dict[str, str]:
    """The metadata of a bank's file without its seal, so that what is changed on purpose is read at all."""
    plain = {"format": "introspection_lit/vector-bank/1", "names": json.dumps(bank.names)}
    return plain | bank.metadata


def tensors_of(bank: VectorBank) -> dict[str, torch.Tensor]:
    """The tensors of a bank's file."""
    found = {f"directions.{split}": rows for split, rows in bank.directions.items()}
    return found | {f"lengths.{s}": rows for s, rows in bank.lengths.items()} | {"residual_norms": bank.residual_norms}


def spoil_tensor(tensor: torch.Tensor, how: str, number: float) -> torch.Tensor:
    """One way in which a tensor can be wrong."""
    if (
        tensor.dtype != torch.float32 or tensor.dim() not in (1, 2, 3) or not len(tensor)
    ):  # spoilt before, and not every way is one for every type
        return tensor
    flat = tensor.clone()
    spot = int(abs(number)) % max(len(flat), 1) if number == number and abs(number) < 1e9 else 0
    changed: dict[str, Any] = {
        "value": lambda: flat.index_fill_(0, torch.tensor([spot]), number),
        "one value": lambda: flat.view(-1).index_fill_(0, torch.tensor([spot]), number).view(flat.shape),
        "scale": lambda: flat * number,
        "wider": lambda: torch.cat([flat, flat], dim=-1),
        "narrower": lambda: flat[..., :-1],
        "copy of the first": lambda: torch.cat([flat[:1], flat[:1], flat[2:]]),
        "opposite of the first": lambda: torch.cat([flat[:1], -flat[:1], flat[2:]]),
        "none": lambda: flat[:0],
        "0-d": lambda: flat.reshape(-1)[0],
        "4-d": lambda: flat[None, None],
        "1-d": lambda: flat.reshape(-1),
        "other layers": lambda: flat[:, : LAYERS - 1] if flat.dim() == 3 else flat[:-1],
    }
    if how in changed:
        return changed[how]()
    return flat.to(getattr(torch, how))


DAMAGES = ("value", "one value", "scale", "wider", "narrower", "copy of the first", "opposite of the first", "none", "0-d")


DAMAGES += ("4-d", "1-d", "other layers", "float16", "bfloat16", "float64", "int64", "uint8", "bool", "float8_e4m3fn")


NAMES = st.dictionaries(st.sampled_from([*SPLITS, "more", ""]), st.lists(st.text(max_size=4), max_size=5) | odd)


@st.composite
def spoilt_banks(draw: st.DrawFn) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a bank's file, with something wrong in them; sometimes with nothing."""
    bank = sound_bank()
    tensors, header = tensors_of(bank), header_of(bank)
    for _ in range(draw(st.integers(0, 2))):
        what = draw(st.sampled_from(("tensor", "tensor", "tensor", "names", "metadata", "rename", "across", "remove")))
        key = draw(st.sampled_from(sorted(tensors)))
        if what == "tensor":
            tensors[key] = spoil_tensor(tensors[key], draw(st.sampled_from(DAMAGES)), draw(st.floats(width=32)))
        elif what == "names":
            names = draw(NAMES | odd | st.just({**bank.names, "train": ["train-0", "train-0", "x", "y", "z"]}))
            header["names"] = draw(st.sampled_from(["", "[[[[", "{", json.dumps(names)]))
        elif what == "metadata":
            name = draw(st.sampled_from([*header, "more"]))
            header[name] = draw(st.sampled_from(["", "other", "x" * 3000, "é\x00"]))
        elif what == "rename":
            tensors[draw(st.sampled_from(["directions.more", "directions.", "lengths.train", "x"]))] = tensors.pop(key)
        elif what == "across":
            rows, sign = tensors.get("directions.train", torch.empty(0)), draw(st.sampled_from([1, -1]))
            if rows.shape == (4, HIDDEN) and rows.dtype == torch.float32:
                tensors["directions.heldout"] = torch.cat([rows[:1] * sign, bank.directions["heldout"][1:]])
        elif len(tensors) > 1:
            del tensors[key]
    return {name: tensor.contiguous() for name, tensor in tensors.items()}, header


@given(spoilt=spoilt_banks())
def test_banks_with_something_wrong(spoilt: tuple[dict[str, torch.Tensor], dict[str, str]], tmp_path: Path) -> None:
    """Whatever is in a well-formed file: a bank that is used is sound by another reckoning, and no error is a stranger."""
    path = tmp_path / "bank.safetensors"
    path.write_bytes(save(*spoilt))
    try:
        bank = VectorBank.load(path)
        said = outcome(bank)
    except REFUSED:
        event("refused")
        return
    event(said)
    if said == "used":
        assert is_sound(bank)
        assert not bank.unreached([(1, 4)]) or not bank.directions["imported"][:, 1:5].any(dim=-1).any(dim=-1).all()


@given(content=st.data())
def test_banks_of_damaged_bytes(content: st.DataObject, tmp_path: Path) -> None:
    """Cut at any byte, flipped, moved: refused, or bit by bit what was written."""
    path, good = tmp_path / "bank.safetensors", tmp_path / "good.safetensors"
    if not good.is_file():
        sound_bank().save(good)
    path.write_bytes(content.draw(damaged_bytes(good.read_bytes())))
    try:
        bank = VectorBank.load(path)
    except REFUSED:
        event("refused")
        return
    said = outcome(bank)
    event(said)
    assert said == "refused" or bank.fingerprint == sound_bank().fingerprint


def test_seal_whose_name_is_damaged(tmp_path: Path) -> None:
    """Two flipped bytes, one of them in the name of the seal: found by the thorough profile, once used as an older bank."""
    sound_bank().save(tmp_path / "bank")
    content = (tmp_path / "bank").read_bytes()
    broken = content.replace(b'"sha256"', b'"sha25 "', 1)
    (tmp_path / "bank").write_bytes(broken[:-1] + bytes([broken[-1] ^ 1]))
    assert "fields that are not known: ['sha25 ']" in str(VectorBank.load(tmp_path / "bank").misfits("m", HIDDEN, LAYERS))


def test_names_without_directions() -> None:
    """A split that is lost while its names are still there, which went through."""
    bank = sound_bank()
    del bank.directions["imported"], bank.lengths["imported"]
    assert "it has no directions for 'imported'" in str(bank.misfits("m", HIDDEN, LAYERS))


def test_sound_banks_are_used(tmp_path: Path) -> None:
    """Neither way of reckoning is so strict that everything would be refused."""
    (tmp_path / "bank").write_bytes(save(tensors_of(sound_bank()), header_of(sound_bank())))
    bank = VectorBank.load(tmp_path / "bank")
    assert outcome(bank) == "used"
    assert is_sound(bank)


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("directions.train", torch.tensor(1.0), "no directions for 'train'"),
        ("directions.train", opposite(), "'train-0' and 'train-1' of 'train' are the same direction, up to its sign"),
        ("lengths.imported", torch.full((3, LAYERS), float("nan")), "the lengths of 'imported' are not all float32"),
        ("names", '[["train", ["a", "b", "c", "d"]]]', "names are not lists of texts"),
        ("names", ('["train-0",', '["train-0", "train-0",'), "4 directions and 5 names"),
        ("names", ("train-0", "\\u001b[31m"), r"U\+001B, which cannot be printed"),
        ("names", ("train-0", "\\ud800"), r"U\+D800, which cannot be printed"),
        ("names", ("train-0", "x" * 201), "its name has 201 characters"),
        ("base_model", "x" * 1000, "made for the model 'x{1000}'"),
    ],
)
def test_faults_of_banks_that_were_found(where: str, value: Any, message: str, tmp_path: Path) -> None:
    """Each of these was once a traceback, or went through."""
    tensors, header = tensors_of(sound_bank()), header_of(sound_bank())
    if isinstance(value, torch.Tensor):
        tensors[where] = value.contiguous()
    else:
        header[where] = value if isinstance(value, str) else header[where].replace(*value)
    (tmp_path / "bank").write_bytes(save(tensors, header))
    with pytest.raises(ConfigurationError, match=message):
        raise ConfigurationError(problems_of(VectorBank.load(tmp_path / "bank")))


def test_names_in_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's parser gives up at some depth, with an error that is none of JSON's."""
    sound_bank().save(tmp_path / "bank")
    nested_too_deeply(monkeypatch)
    with pytest.raises(ConfigurationError, match="is not a vector bank"):
        VectorBank.load(tmp_path / "bank")


def test_repeated_directions_are_found() -> None:
    """Equal, or opposite, whatever the sign of their zeros; others are not."""
    some = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(1))
    assert repeated(some) is None
    for copy in (some[1], -some[1]):
        assert repeated(torch.cat([some, copy[None]])) == (1, 5)
    zeros = torch.zeros(2, HIDDEN)
    zeros[:, 0] = torch.tensor([1.0, -1.0])
    assert repeated(zeros) == (0, 1)
    assert repeated(torch.randn(3, LAYERS, HIDDEN, generator=torch.Generator().manual_seed(1))) is None
