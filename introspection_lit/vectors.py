"""The vector bank: random directions by split, concept directions, and the norms that give strength its unit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from introspection_lit.errors import ConfigurationError
from introspection_lit.files import whole
from introspection_lit.seeds import generator

RANDOM_SPLITS = ("train", "validation", "heldout")
# Splits that a bank may have: concepts extracted in another way, and directions from files.
OPTIONAL_SPLITS = ("concept_pca", "imported")
# Between independent unit vectors of hidden size d, |cos| is about 1/sqrt(d): above this, one is a copy of the other.
MAX_COSINE = 0.9
FORMAT = "introspection_lit/vector-bank/1"
REMEDY = "Make one for this model with scripts/generate_vectors.py, or leave data.bank out to have one made for the run."


@dataclass
class VectorBank:
    """Unit directions by split.

    Attributes:
        directions: ``train``, ``validation`` and ``heldout`` hold ``(n, hidden)``; ``concept`` and, if there,
            ``concept_pca`` and ``imported`` hold ``(n, layers, hidden)``, a direction for each layer's output. All float32,
            of length 1; at layers for which a file had none, ``imported`` is zero.
        names: A name for each direction, by split.
        residual_norms: Median norm of the residual stream after each layer on clean contexts, ``(layers,)``.
        metadata: What the bank was made from: ``base_model``, ``revision``, ``seed``, ``layer``.
        lengths: How long directions were before they were scaled to 1, by split, ``(n, layers)``; where it means something.
    """

    directions: dict[str, Tensor]
    names: dict[str, list[str]]
    residual_norms: Tensor
    metadata: dict[str, str]
    lengths: dict[str, Tensor] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """A hash of all directions and norms, 16 hexadecimal digits."""
        digest = hashlib.sha256(self.residual_norms.numpy().tobytes())
        for split in sorted(self.directions):
            digest.update(split.encode() + self.directions[split].contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def keys(self, split: str) -> list[str]:
        """Fingerprint each direction of a split, 16 hexadecimal digits: equal keys are the same direction."""
        return [hashlib.sha256(row.numpy().tobytes()).hexdigest()[:16] for row in self.directions[split].contiguous()]

    def save(self, path: Path) -> None:
        """Write the bank as one safetensors file, complete or not at all."""
        tensors = {f"directions.{split}": rows.contiguous() for split, rows in self.directions.items()}
        tensors |= {f"lengths.{split}": rows.contiguous() for split, rows in self.lengths.items()}
        tensors["residual_norms"] = self.residual_norms.contiguous()
        # For people and tools that read the header only, the norms are there too, rounded.
        norms = json.dumps([round(norm, 4) for norm in self.residual_norms.tolist()])
        header = {"format": FORMAT, "names": json.dumps(self.names), "residual_norms": norms, **self.metadata}
        with whole(path) as unfinished:
            save_file(tensors, unfinished, metadata=header)

    @classmethod
    def load(cls, path: Path) -> VectorBank:
        """Read a bank.

        Raises:
            ConfigurationError: The file does not exist or is not a bank.
        """
        if not path.is_file():
            raise ConfigurationError([f"data.bank: no such file: {path}. {REMEDY}"])
        try:
            with safe_open(path, framework="pt") as file:
                metadata = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            if metadata.pop("format", None) != FORMAT:
                raise ValueError(f"its metadata does not say {FORMAT!r}")
            norms = tensors.pop("residual_norms")
            metadata.pop("residual_norms", None)
            lengths = {name: tensors.pop(name) for name in list(tensors) if name.startswith("lengths.")}
            directions = {name.removeprefix("directions."): rows for name, rows in tensors.items()}
            lengths = {name.removeprefix("lengths."): rows for name, rows in lengths.items()}
            names = json.loads(metadata.pop("names"))
            if not all(isinstance(n, list) and all(isinstance(name, str) for name in n) for n in dict(names).values()):
                raise ValueError("its names are not lists of texts")
            return cls(directions, names, norms, metadata, lengths)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ConfigurationError([f"data.bank: {path} is not a vector bank: {error}."]) from error

    def misfits(self, base_model: str, revision: str, hidden: int, n_layers: int) -> list[str]:
        """Say why the bank does not fit a model, if it does not, or is not usable at all.

        Args:
            base_model: The model about to be steered.
            revision: Its revision; empty for the default.
            hidden: Its hidden size.
            n_layers: Its number of decoder layers.
        """
        problems = []
        if tuple(self.residual_norms.shape) != (n_layers,):
            problems.append(f"made for {self.residual_norms.numel()} layers; {base_model} has {n_layers}")
        elif (
            self.residual_norms.dtype != torch.float32
            or not (self.residual_norms.isfinite() & (self.residual_norms > 0)).all()
        ):
            problems.append("its residual norms are not all positive float32 numbers")
        for split, lengths in self.lengths.items():
            if lengths.shape != self.directions.get(split, torch.empty(0, 0)).shape[:2]:
                problems.append(f"the lengths of {split!r} are not those of its directions")
        if extra := set(self.directions) - {*RANDOM_SPLITS, "concept", *OPTIONAL_SPLITS}:
            problems.append(f"it has splits that are not known: {sorted(extra)}")
        for split in (*RANDOM_SPLITS, "concept", *(s for s in OPTIONAL_SPLITS if s in self.directions)):
            rows = self.directions.get(split, torch.empty(0))
            shapes = [(len(rows), n_layers, hidden)] + [(len(rows), hidden)] * (split in RANDOM_SPLITS)
            if rows.dtype != torch.float32:
                problems.append(f"the directions of {split!r} are {rows.dtype}, not float32")
            elif len(rows) == 0:
                problems.append(f"it has no directions for {split!r}")
            elif tuple(rows.shape) not in shapes:
                problems.append(
                    f"{split!r} has shape {tuple(rows.shape)}; {base_model} needs {' or '.join(map(str, shapes))}"
                )
            elif not _unit(rows, or_zero=split == "imported"):
                problems.append(f"the directions of {split!r} are not all of length 1")
            elif len(set(self.names.get(split, ()))) != len(rows):
                problems.append(f"{split!r} has {len(rows)} directions and {len(set(self.names.get(split, ())))} names")
        made_for = self.metadata.get("base_model"), self.metadata.get("revision", "")
        if made_for != (base_model, revision):
            problems.append(
                f"made for the model {made_for[0]!r} (revision {made_for[1]!r}), not for {base_model!r} ({revision!r})"
            )
        return [f"data.bank: {problem}. {REMEDY}" for problem in problems]

    def unreached(self, bands: Iterable[tuple[int, int]]) -> list[str]:
        """Say which directions from files would leave the cache as it is, in a band: the file has none for its layers.

        Args:
            bands: First and last layer steered, inclusive.
        """
        problems = []
        for first, last in bands:
            reaching = self.directions["imported"][:, first : min(last, len(self.residual_norms) - 2) + 1]
            empty = [name for name, rows in zip(self.names["imported"], reaching, strict=True) if not rows.any()]
            if empty:
                problems.append(
                    f"data.bank: {', '.join(empty[:5])} (imported) has no direction for the layers {first}..{last}: a "
                    "steered trial would be identical to a clean one. Steer other layers (data.test_bands, or --bands)."
                )
        return problems

    def leaks(self) -> list[str]:
        """List the splits that share a direction with a random one: the same, or nearly, up to its sign."""
        return overlapping_splits(self.directions)

    def concept_cosines(self) -> Tensor:
        """Cosines between concepts, averaged over layers, ``(n, n)``. Near 1 off the diagonal: few independent tests."""
        concepts = self.directions["concept"]
        return torch.einsum("ilh,jlh->ij", concepts, concepts) / concepts.shape[1]


def _unit(rows: Tensor, or_zero: bool) -> bool:
    """Whether all rows have length 1 (or, if allowed, some layers of each direction 0)."""
    norms = rows.norm(dim=-1)
    fine = (norms - 1).abs() < 1e-3
    if or_zero:
        return bool(((norms == 0) | fine).all() and fine.any(dim=-1).all())
    return bool(fine.all())


def overlapping_splits(directions: Mapping[str, Tensor]) -> list[str]:
    """List the pairs of splits whose largest absolute cosine is at least ``MAX_COSINE``; one of a pair is a random split.

    Two sets of concepts may be alike: neither is trained on.

    Args:
        directions: Unit vectors by split, each ``(n, hidden)`` or ``(n, layers, hidden)``.
    """
    names = list(directions)
    leaks = []
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            if not {first, second} & set(RANDOM_SPLITS):
                continue
            a, b = directions[first].flatten(0, -2), directions[second].flatten(0, -2)
            cosine = (a @ b.T).abs().max().item() if len(a) and len(b) else 0.0
            if cosine >= MAX_COSINE:
                leaks.append(f"{first} and {second} share a direction (largest |cos| {cosine:.3f})")
    return leaks


def random_unit_vectors(n: int, hidden: int, seed: int, split: str) -> Tensor:
    """Draw directions uniformly from the unit sphere.

    Args:
        n: How many.
        hidden: The hidden size.
        seed: The experiment's seed.
        split: Names the stream; every split has an independent one.

    Returns:
        ``(n, hidden)`` float32. The first rows do not depend on ``n``; they do depend on the split.
    """
    rows = generator(seed, "vectors", split).standard_normal((n, hidden))
    return torch.from_numpy((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32))
