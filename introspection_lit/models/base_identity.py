"""Says which base model is in use by what it is, not by where it lies, and compares it with the one that a file records.

A model has many places (a hub id, a copy on the disk of a compute node), and a place can hold another model tomorrow. So
checkpoints, adapters, vector banks and manifests record hashes of the model's configuration, its tokenizer and samples of
its weights. Files from before have its name alone, which then decides.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn

from introspection_lit.models.base_model import BaseModel
from introspection_lit.models.file_checks import find_file, model_config, present_file, weight_files
from introspection_lit.models.gguf_files import parts_of
from introspection_lit.models.random_models import is_random
from introspection_lit.models.sources import gguf_file, resolve

# What of a model is hashed, and how messages call it.
PARTS = {"config": "another config.json", "tokenizer": "another tokenizer", "weights": "other weights"}
# Settings that say how a configuration was written, not what the model is.
NOT_HASHED = {"transformers_version", "torch_dtype", "dtype", "use_cache"}
# The first of these that a model has, or else all others.
TOKENIZER, OLDER_TOKENIZERS = "tokenizer.json", ("tokenizer.model", "spiece.model", "vocab.json", "merges.txt", "vocab.txt")
# Tensors, chosen by a hash of their names so that every kind of matrix is among them, from whose middle bytes are read.
MAX_SAMPLES, SAMPLE_BYTES = 1024, 1024
MAX_HEADER_BYTES = 100_000_000  # as in the library
UNREADABLE = (OSError, ValueError, RecursionError, TypeError, LookupError, AttributeError, ArithmeticError)
MAX_NAME = 1000  # characters of a recorded name
OTHERWISE = "If you know that they match, set model.adapter_base to any: names and shapes of the tensors are still checked"

BASE_FIELDS = ("base_model", "revision", "base_hashes")  # of files that record a base model

Hashes = dict[str, str | None]


@dataclass
class BaseIdentity:
    """The base model in use.

    Attributes:
        base: Its options.
        accepts_any: The user says that it matches what files record (``model.adapter_base any``).
        accepted: The differences that were accepted for that reason, a sentence each.
    """

    base: BaseModel
    accepts_any: bool = False
    accepted: list[str] = field(default_factory=list)
    _hashes: Hashes | None = None
    _computed: bool = False

    @property
    def hashes(self) -> Hashes | None:
        """See :func:`base_hashes`; computed once, weights again until they are there."""
        if not self._computed or (self._hashes and self._hashes["weights"] is None):
            self._hashes, self._computed = base_hashes(self.base), True
        return self._hashes

    def record(self) -> dict[str, Any]:
        """What files record of the model."""
        return dict(zip(BASE_FIELDS, (self.base.name, self.base.revision, self.hashes), strict=True))

    def as_texts(self) -> dict[str, str]:
        """The same for the metadata of a safetensors file, whose values are texts."""
        texts = {"base_model": self.base.name, "revision": self.base.revision or ""}
        return texts | ({"base_hashes": json.dumps(self.hashes)} if self.hashes else {})

    def exactly(self) -> dict[str, Any] | None:
        """What can be kept for later runs depends on: the hashes, and size and time of change of each file of weights.

        The hashes see samples of the weights; a file that was changed elsewhere has another time. None: the model has no
        files, or they cannot be told apart, since code of its own may read others.
        """
        hashes = self.hashes
        if not hashes or not all(hashes.values()) or self.base.trust_remote_code:
            return None
        try:
            files = _files_of_weights(self.base)
            states = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        except UNREADABLE:
            return None
        return {"hashes": hashes, "files": states}

    def difference(self, recorded: Mapping[str, Any]) -> str | None:
        """How the model differs from the one that a file was made for, in words; None: it is the same.

        Args:
            recorded: As :meth:`record` has it, possibly from an untrusted file; hashes may be missing, or JSON.
        """
        texts = (recorded.get(name) for name in ("base_model", "revision"))
        made_for, revision = (text[:MAX_NAME] if isinstance(text, str) else None for text in texts)
        known, own = _as_hashes(recorded.get("base_hashes")), self.hashes
        if known and own:
            parts = [text for part, text in PARTS.items() if known[part] and own[part] and known[part] != own[part]]
            model = f"the model {made_for!r}" if made_for else "another model"
            if not parts and known["weights"] and not own["weights"] and _name_of(made_for or "") != self.base.name:
                return (
                    f"was made for {model}, and the weights of {self.base.name!r} are not here yet to be compared: fetch "
                    f"them first (python -m introspection_lit.model {self.base.name})"
                )
            if not parts:
                return None
            return f"was made for {model}; {self.base.name!r} has {' and '.join(parts)}"
        if not made_for:
            return f"does not say for which model it was made; here it is {self.base.name!r}"
        if _name_of(made_for) != self.base.name:
            return f"was made for the model {made_for!r}, not for {self.base.name!r}"
        if self.base.on_hub and (revision or "main") != (self.base.revision or "main"):
            return f"was made for revision {revision!r} of the model, not for {self.base.revision!r}"
        return None

    def problems(self, subject: str, recorded: Mapping[str, Any], advice: str = "") -> list[str]:
        """Check that a file was made for this model; at most one problem.

        Args:
            subject: The beginning of the message: the option, and the file.
            recorded: As :meth:`record` has it.
            advice: What to do, without the full stop; by default, that the user may say that the models match, and then no
                difference is a problem.
        """
        difference = self.difference(recorded)
        return [] if difference is None else self.differs(f"{subject} {difference}", advice)

    def differs(self, sentence: str, advice: str = "") -> list[str]:
        """A problem, unless the user says that the models match: then it is said, and recorded.

        Args:
            sentence: What differs, without the full stop.
            advice: As in :meth:`problems`.
        """
        if not self.accepts_any or advice:
            return [f"{sentence}. {advice or f'Use that model, wherever it lies now. {OTHERWISE}'}."]
        if sentence not in self.accepted:
            self.accepted.append(sentence)
            rank_zero_warn(f"{sentence}. You say that they match: names and shapes of its tensors are checked.")
        return []


def base_hashes(base: BaseModel) -> Hashes | None:
    """Hash what a model is: its configuration, its tokenizer, and names, shapes and samples of its weights.

    Reads at most some megabytes: of weights, their headers and :data:`SAMPLE_BYTES` of at most :data:`MAX_SAMPLES` tensors.
    How they are divided into files does not matter. Of a GGUF file, all three are one hash of samples of the file.

    Args:
        base: Options of the model.

    Returns:
        Sixteen hexadecimal digits for each of :data:`PARTS`. That of the weights is None while those of a hub id are not
        in the hub's cache. None: the model has no files (random weights), or they cannot be read.
    """
    if is_random(base.name):
        return None
    try:
        if (file := gguf_file(base)) is not None:
            return dict.fromkeys(PARTS, _digest(*(sample for part in parts_of(file) for sample in _file_samples(part))))
        source = resolve(base)
        config = model_config(source)
        if config is None:
            return None
        tokenizer = [find_file(source, TOKENIZER)]
        tokenizer = tokenizer if tokenizer[0] else [find_file(source, name) for name in OLDER_TOKENIZERS]
        return {
            "config": _digest(json.dumps(_essential(config), sort_keys=True).encode()),
            "tokenizer": _digest(*(path.read_bytes() for path in tokenizer if path)),
            "weights": _weights_hash(source, config),
        }
    except UNREADABLE:  # loading says why
        return None


def _files_of_weights(base: BaseModel) -> list[Path]:
    """The files that hold a model's weights, which must be there."""
    if (file := gguf_file(base)) is not None:
        return parts_of(file)
    source = resolve(base)
    return [path for name in weight_files(source, model_config(source) or {}) if (path := present_file(source, name))]


def _essential(config: Any) -> Any:
    if isinstance(config, dict):
        return {
            name: _essential(value)
            for name, value in config.items()
            if name not in NOT_HASHED and not name.startswith("_") and value is not None
        }
    return config


def _weights_hash(source: Mapping[str, Any], config: Mapping[str, Any]) -> str | None:
    """The hash of all names, dtypes and shapes and of samples of the weights; None: they are not there yet."""
    paths = [present_file(source, name) for name in weight_files(source, config)]
    if not paths or None in paths:
        return None
    tensors: dict[str, tuple[Any, Path, int, int]] = {}
    for path in paths:
        assert path is not None
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > MAX_HEADER_BYTES:
                raise ValueError(f"{path}: a header of {length} bytes")
            header = json.loads(file.read(length))
        for name, tensor in header.items():
            if name != "__metadata__":
                first, last = tensor["data_offsets"]
                middle = 8 + length + first + max(0, last - first - SAMPLE_BYTES) // 2
                tensors[name] = [tensor["dtype"], tensor["shape"]], path, middle, min(last - first, SAMPLE_BYTES)
    names = sorted(tensors)
    chosen = sorted(sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())[:MAX_SAMPLES])
    samples = {}
    for path in dict.fromkeys(tensors[name][1] for name in chosen):
        with path.open("rb") as file:
            for name in sorted((n for n in chosen if tensors[n][1] == path), key=lambda n: tensors[n][2]):
                file.seek(tensors[name][2])
                samples[name] = file.read(tensors[name][3])
    return _digest(json.dumps([(name, tensors[name][0]) for name in names]).encode(), *(samples[name] for name in chosen))


def _file_samples(path: Path) -> Iterator[bytes]:
    """The size of a file, its beginning, and samples of all of it."""
    size = path.stat().st_size
    yield str(size).encode()
    with path.open("rb") as file:
        yield file.read(1 << 20)
        for number in range(MAX_SAMPLES):
            file.seek(size * number // MAX_SAMPLES)
            yield file.read(SAMPLE_BYTES)


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:16]


def _as_hashes(value: object) -> Hashes | None:
    """Recorded hashes; None if there are none, or what is there is something else."""
    if isinstance(value, str):
        try:
            value = json.loads(value[:1000])
        except (ValueError, RecursionError):
            return None
    found = {part: value.get(part) for part in PARTS} if isinstance(value, Mapping) else {}
    hashes = {part: one if isinstance(one, str) else None for part, one in found.items()}
    return hashes if any(hashes.values()) else None


def _name_of(model: str) -> str:
    try:
        return BaseModel(model).name
    except UNREADABLE:  # loading says why
        return model
