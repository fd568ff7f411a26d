"""The vector bank: random and concept directions by split, and the residual norms that are the unit of strength."""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from introspection_lit.utils import schema
from introspection_lit.utils.checksums import CHECKSUM, mismatch
from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.files import write_file
from introspection_lit.utils.seeds import generator
from introspection_lit.utils.tensor_hash import content_hash

RANDOM_SPLITS = ("train", "validation", "heldout")
# Optional splits: concepts that are trained on, concepts by principal components, and directions imported from files.
OPTIONAL_SPLITS = ("concept_train", "concept_pca", "imported")
# Independent unit vectors of hidden size d have |cos| of about 1/sqrt(d): above this limit, two count as copies.
MAX_COSINE = 0.9
FORMAT = "introspection_lit/vector-bank/1"
# Of the metadata, beside the header.
KNOWN = {"base_model", "revision", "base_hashes", "seed", "layer"}
HEADER = {"format", "names", "residual_norms", "fingerprint"}
NAMES = schema.required(schema.named(schema.required(schema.TEXTS)))
LONGEST_NAME = 200  # a name is printed in tables and messages, and written to manifests and results
REMEDY = "Make one for this model with scripts/generate_vectors.py, or leave data.bank out to have one made for the run."


@dataclass
class VectorBank:
    """Unit directions by split.

    Attributes:
        directions: Unit vectors by split, float32: ``(n, hidden)`` for ``train``, ``validation`` and ``heldout``;
            ``(n, layers, hidden)``, a direction for each layer's output, for ``concept`` and the optional
            ``concept_train``, ``concept_pca`` and ``imported``. ``imported`` is zero at layers for which the file has no
            direction.
        names: Name of each direction, by split.
        residual_norms: Median norm of the residual stream after each layer on clean contexts, ``(layers,)``.
        metadata: The bank's origin: ``base_model``, ``revision``, ``base_hashes`` (JSON), ``seed``, ``layer``.
        lengths: Lengths of directions before scaling to 1, by split, ``(n, layers)``; for splits that have them.
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
        """A hash of each direction of a split, 16 hexadecimal digits; equal for equal directions."""
        return [hashlib.sha256(row.numpy().tobytes()).hexdigest()[:16] for row in self.directions[split].contiguous()]

    def save(self, path: Path) -> None:
        """Write the bank as one safetensors file, atomically."""
        tensors = {f"directions.{split}": rows.contiguous() for split, rows in self.directions.items()}
        tensors |= {f"lengths.{split}": rows.contiguous() for split, rows in self.lengths.items()}
        tensors["residual_norms"] = self.residual_norms.contiguous()
        tensors = dict(sorted(tensors.items()))
        # Rounded norms in the header too, for readers of the header alone.
        norms = json.dumps([round(norm, 4) for norm in self.residual_norms.tolist()])
        header = {"format": FORMAT, "names": json.dumps(self.names), "residual_norms": norms, **self.metadata}
        header["fingerprint"] = self.fingerprint
        header[CHECKSUM] = content_hash([dict(sorted(header.items())), tensors])
        write_file(path, _in_order(save(dict(tensors), metadata=header)))

    @classmethod
    def load(cls, path: Path) -> VectorBank:
        """Read a bank.

        Raises:
            ConfigurationError: There is no such file, or it is not a vector bank.
        """
        if not os.path.isfile(path):  # unlike Path.is_file, False of a name that no file can have
            raise ConfigurationError([f"data.bank: no such file: {path}. {REMEDY}"])
        try:
            with safe_open(path, framework="pt") as file:
                metadata = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
            checksum = metadata.pop(CHECKSUM, None)  # older banks have none
            if metadata.get("format") != FORMAT:
                raise ValueError(f"its metadata does not say {FORMAT!r}")
            if checksum not in (None, content_hash([dict(sorted(metadata.items())), tensors])):
                raise ValueError(mismatch(f"{CHECKSUM!r} from its metadata"))
            names, norms = json.loads(metadata["names"]), tensors.pop("residual_norms")
            if wrong := schema.problems(NAMES, names, "names"):
                raise ValueError(f"its names are not lists of texts, by split: {wrong[0]}")
            lengths = {name[8:]: tensors.pop(name) for name in list(tensors) if name.startswith("lengths.")}
            directions = {name.removeprefix("directions."): rows for name, rows in tensors.items()}
            metadata = {name: value for name, value in metadata.items() if name not in HEADER}
            return cls(directions, names, norms, metadata, lengths)
        except (SafetensorError, ValueError, KeyError, OSError, RuntimeError) as error:
            raise ConfigurationError([f"data.bank: {path} is not a vector bank: {str(error)[:300]}. {REMEDY}"]) from error

    def misfits(self, base_model: str, hidden: int, n_layers: int) -> list[str]:
        """Say why the bank does not fit a model's shape, or cannot be used at all, whichever model it was made for.

        Args:
            base_model: Name of the model to be steered.
            hidden: Its hidden size.
            n_layers: Its number of decoder layers.
        """
        problems = []
        if tuple(self.residual_norms.shape) != (n_layers,):
            problems.append(f"made for {self.residual_norms.numel()} layers; {base_model} has {n_layers}")
        elif not _is_float32(self.residual_norms) or (self.residual_norms <= 0).any():
            problems.append("its residual norms are not all positive float32 numbers")
        for split, lengths in self.lengths.items():
            if lengths.shape != self.directions.get(split, torch.empty(0, 0)).shape[:2]:
                problems.append(f"the lengths of {shown(split)!r} are not those of its directions")
            elif not _is_float32(lengths) or (lengths < 0).any():
                problems.append(f"the lengths of {shown(split)!r} are not all float32 numbers of 0 or more")
        splits = {*self.directions, *self.names}
        needed = (*RANDOM_SPLITS, "concept", *(split for split in OPTIONAL_SPLITS if split in splits))
        if extra := splits.difference(needed):
            problems.append(f"it has splits that are not known: {sorted(map(shown, extra))[:5]}")
        for split in needed:
            rows, names = self.directions.get(split, torch.empty(0)), self.names.get(split, [])
            n = len(rows) if rows.dim() else 0
            shapes = [(n, n_layers, hidden)] + [(n, hidden)] * (split in RANDOM_SPLITS)
            if rows.dtype != torch.float32:
                problems.append(f"the directions of {split!r} are {rows.dtype}, not float32")
            elif n == 0:
                problems.append(f"it has no directions for {split!r}")
            elif tuple(rows.shape) not in shapes:
                problems.append(
                    f"{split!r} has shape {tuple(rows.shape)[:8]}; {base_model} needs {' or '.join(map(str, shapes))}"
                )
            elif not _unit(rows, or_zero=split == "imported"):
                problems.append(f"the directions of {split!r} are not all of length 1")
            elif not len(set(names)) == len(names) == n:
                problems.append(f"{split!r} has {n} directions and {len(names)} names, {len(set(names))} of them different")
            elif odd := [f"{shown(name)!r}: {fault}" for name in names if (fault := name_problem(name))]:
                problems.append(f"a direction of {split!r} cannot be called {odd[0]}")
            elif twice := repeated(rows):
                first, again = (shown(names[number]) for number in twice)
                problems.append(f"{first!r} and {again!r} of {split!r} are the same direction, up to its sign")
        if unknown := set(self.metadata) - KNOWN:  # a checksum whose name is damaged would be skipped
            problems.append(f"its metadata has fields that are not known: {sorted(map(shown, unknown))[:5]}")
        return [f"data.bank: {problem}. {REMEDY}" for problem in problems]

    def unreached(self, bands: Iterable[tuple[int, int]]) -> list[str]:
        """Find imported directions that are zero at all layers of a band: steering would not change the cache.

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
        """List the splits that share a direction with a random split, and concepts that are trained on and tested."""
        leaks = overlapping_splits(self.directions)
        if "concept_train" in self.directions:
            trained, tested = self.directions["concept_train"], self.directions["concept"]
            cosines = torch.einsum("ilh,jlh->ij", trained, tested).abs() / trained.shape[1]
            if len(trained) and len(tested) and cosines.max() >= MAX_COSINE:
                one, other = divmod(int(cosines.argmax()), len(tested))
                names = f"{self.names['concept_train'][one]!r} (trained) and {self.names['concept'][other]!r} (tested)"
                leaks.append(f"the concepts {names} have one direction (mean |cos| over layers {cosines.max():.3f})")
        return leaks

    def concept_cosines(self) -> Tensor:
        """Cosines between concepts, averaged over layers, ``(n, n)``. Near 1 off the diagonal: few independent tests."""
        concepts = self.directions["concept"]
        return torch.einsum("ilh,jlh->ij", concepts, concepts) / concepts.shape[1]


def _in_order(content: bytes) -> bytes:
    """A safetensors file with its header in order: the library writes metadata in another order each time."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    text = json.dumps({"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}, separators=(",", ":"))
    padded = text.encode() + b" " * (-len(text.encode()) % 8)
    return len(padded).to_bytes(8, "little") + padded + content[end:]


def _is_float32(values: Tensor) -> bool:
    """Whether all are finite float32 numbers."""
    return values.dtype == torch.float32 and bool(values.isfinite().all())


def _unit(rows: Tensor, or_zero: bool) -> bool:
    """Whether all rows have length 1; with ``or_zero``, some layers of each direction may be zero."""
    norms = rows.norm(dim=-1)
    unit = (norms - 1).abs() < 1e-3
    return bool((unit | (norms == 0)).all() and unit.any(dim=-1).all()) if or_zero else bool(unit.all())


def repeated(rows: Tensor) -> tuple[int, int] | None:
    """Find two directions of a split that are equal up to the sign and would count as two observations.

    Args:
        rows: Finite, ``(n, hidden)`` or ``(n, layers, hidden)``.

    Returns:
        The indices of the first such pair, or None.
    """
    flat = rows.flatten(1)
    signs = flat.gather(1, flat.abs().argmax(dim=1, keepdim=True)).sign()
    seen: dict[bytes, int] = {}
    for number, row in enumerate(flat * signs + 0.0):  # + 0.0 turns -0.0 into 0.0, which has other bits
        first = seen.setdefault(hashlib.sha256(row.numpy().tobytes()).digest(), number)
        if first != number:
            return first, number
    return None


def name_problem(name: str) -> str | None:
    """Check the name of a direction: a sentence if it is empty, too long or not printable, else None."""
    if not 0 < len(name) <= LONGEST_NAME:
        return f"its name has {len(name)} characters. Expected 1 to {LONGEST_NAME}."
    odd = next((letter for letter in name if unicodedata.category(letter) in ("Cc", "Cs")), None)
    return f"its name has the character U+{ord(odd):04X}, which cannot be printed. Rename it." if odd else None


def shown(name: str) -> str:
    """A name in printable form, for a message."""
    return name[:60].encode("ascii", "backslashreplace").decode() if name_problem(name) else name


def overlapping_splits(directions: Mapping[str, Tensor]) -> list[str]:
    """List the pairs of splits whose largest absolute cosine is at least ``MAX_COSINE``.

    One split of a pair is a random one; concepts are compared by :meth:`VectorBank.leaks`.

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
        n: Number of directions.
        hidden: Hidden size of the model.
        seed: The experiment's seed.
        split: Name of the split; each has an independent random stream.

    Returns:
        Unit vectors, ``(n, hidden)`` float32. The first rows do not depend on ``n``.
    """
    rows = generator(seed, "vectors", split).standard_normal((n, hidden))
    return torch.from_numpy((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32))


def bank_size_problems(bank: VectorBank, counts: dict[str, int | None]) -> list[str]:
    """Check that a bank has at least the configured number of vectors in each split."""
    return [
        f"data.{split}_vectors: {count} asked for, but data.bank has {len(bank.directions.get(split, ()))}. Ask for "
        "fewer, or make a larger bank."
        for split, count in counts.items()
        if count is not None and count > len(bank.directions.get(split, ()))
    ]
