"""Reads a manifest and uses it as the plan of the training split."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from introspection_lit.steering.bands import Bands
from introspection_lit.steering.vector_bank import VectorBank
from introspection_lit.trials.manifest import FIELDS, FORMAT, NO_CHECKSUM, SeenTrials, shorten
from introspection_lit.trials.plans import PairedPlan, equal_part
from introspection_lit.trials.trial import Trial
from introspection_lit.utils.checksums import CHECKSUM, mismatch
from introspection_lit.utils.config_files import unique_fields
from introspection_lit.utils.errors import ConfigurationError, RunError
from introspection_lit.utils.seeds import round_order

if TYPE_CHECKING:
    from introspection_lit.trials.split import Split

STRIDE = 1024  # the position in the file is stored once for this many trials
WINDOW = 4096  # pairs that are read ahead at once; at least a pool of batches
LONGEST_LINE = 1_000_000  # bytes
REMEDY = "Put it back as it was and resume from the last checkpoint, or start again with the manifest as it is now."


class Manifest:
    """A manifest on disk.

    Args:
        path: The file.

    Raises:
        ConfigurationError: There is no such file, or its first line is not the header of a manifest.

    Attributes:
        header: Its first line.
        total: Number of trials, according to the header.
        places: Positions of trials 0, ``STRIDE``, 2 ``STRIDE``, ... in the file, as far as it has been read.
        hashes: Hash of each block of ``STRIDE`` trials that has been read; a block must not change later.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not os.path.isfile(path):  # unlike Path.is_file, False of a name that no file can have
            raise ConfigurationError(
                [f"data.manifest: no such file: {path}. Expected one written by scripts/generate_training_data.py."]
            )
        with path.open("rb") as file:
            self.first = file.readline(LONGEST_LINE)
            self.header = self._header(self.first)
            self.places = [file.tell()]
        self.hashes: list[bytes] = []
        self.total = int(self.header["n"])

    def _header(self, line: bytes) -> dict[str, Any]:
        try:
            header = json.loads(line, object_pairs_hook=unique_fields)
        except (ValueError, RecursionError):
            header = None
        wrong = None
        if not isinstance(header, dict) or header.get("format") != FORMAT or not isinstance(header.get("n"), int):
            wrong = f"is not a manifest: its first line is not a header with format {FORMAT!r}"
        elif header["n"] < 2 or header["n"] % 2:
            wrong = f"says that it has {shorten(header['n'])} trials; expected pairs"
        if header is None or wrong:
            raise ConfigurationError([f"data.manifest: {self.path} {wrong}."])
        return dict(header)

    def lines(self, start: int = 0) -> Iterator[tuple[int, bytes]]:
        """Yield number and raw line of each trial from number ``start`` on.

        Raises:
            RunError: The file has changed or can no longer be read.
        """
        block = min(start // STRIDE, len(self.places) - 1)
        try:
            with self.path.open("rb") as file:
                file.seek(self.places[block])
                while lines := self._block(file, block):
                    for number, line in enumerate(lines, block * STRIDE):
                        if number >= start:
                            yield number, line
                    block += 1
        except OSError as error:
            raise RunError([f"data.manifest: {self.path} can no longer be read ({error.strerror}). {REMEDY}"]) from error
        if block < len(self.hashes):
            raise RunError([f"data.manifest: {self.path} has been cut off since it was checked. {REMEDY}"])

    def _block(self, file: BinaryIO, block: int) -> list[bytes]:
        """The lines of the next ``STRIDE`` trials, fewer at the end of the file."""
        lines: list[bytes] = []
        while len(lines) < STRIDE and (line := file.readline(LONGEST_LINE)):
            lines.append(line)
        if not lines:
            return lines
        digest = hashlib.sha256(b"".join(lines)).digest()
        if block == len(self.hashes):
            self.hashes.append(digest)
            self.places.append(file.tell())
        elif self.hashes[block] != digest:
            first = block * STRIDE + 2
            last = first + len(lines) - 1
            raise RunError(
                [f"data.manifest: lines {first} to {last} of {self.path} have changed since they were checked. {REMEDY}"]
            )
        return lines


class ManifestPlan(PairedPlan):
    """A plan that repeats the trials of a manifest.

    Args:
        manifest: The file.
        split: The training split, with a random plan of the same sizes.
        bank: The directions.
        seed: The experiment's seed; decides the order of the batches.
    """

    def __init__(self, manifest: Manifest, split: Split, bank: VectorBank, seed: int) -> None:
        self.manifest = manifest
        self.seed, self.split = seed, split.name
        self.contexts, self.questions, self.vectors = split.plan.contexts, split.plan.questions, split.plan.vectors
        self.bands: Bands = split.plan.bands
        self.strengths = split.plan.strengths
        self._context = {context.key: number for number, context in enumerate(split.contexts)}
        self._question = {question: number for number, question in enumerate(split.questions)}
        own = [number for number, context in enumerate(split.contexts) if split.question(number, 0) is None]
        self._own = {number: split.question_text(Trial(split.name, 0, number, 0, steered=False)) for number in own}
        self._vector = {name: number for number, name in enumerate(bank.names[split.source.vectors][: self.vectors])}
        self._pairs: dict[int, tuple[Trial, Trial]] = {}
        self._window = WINDOW
        self.fingerprint = ""  # of the file, once it has been checked

    def problems(self) -> list[str]:
        """Read the whole file and return its first ten problems, a sentence for each."""
        problems: list[str] = []
        checksum, first = self.manifest.header.get(CHECKSUM), self.manifest.first  # older manifests have none
        if isinstance(checksum, str) and len(checksum) == len(NO_CHECKSUM) and checksum.isascii():
            first = first.replace(checksum.encode(), NO_CHECKSUM.encode(), 1)
        whole_file, trials = hashlib.sha256(first), hashlib.sha256()
        count, clean = 0, None
        with SeenTrials() as seen:
            for number, line in self.manifest.lines():
                count = number + 1
                trials.update(line)
                whole_file.update(line)
                try:
                    trial = self._trial(number, line)
                    if clean and trial.steered and (clean.context, clean.question) != (trial.context, trial.question):
                        raise ValueError("its context or question is not that of the clean trial before it.")
                    if trial.steered and not seen.add(*trial[2:]):
                        raise ValueError("the same steered trial as an earlier one.")
                    clean = trial
                except ValueError as error:
                    problems.append(f"line {number + 2}: {error}")
                    clean = None
                if len(problems) >= 10 or count > self.manifest.total:
                    break
        self.fingerprint = trials.hexdigest()[:16]
        if count != self.manifest.total and len(problems) < 10:
            problems.append(f"it has {count} trials or more, its header says {self.manifest.total}: it may be cut off.")
        if not problems and checksum not in (None, whole_file.hexdigest()):
            problems.append(mismatch(f"{CHECKSUM!r} from its first line") + ".")
        return [f"data.manifest: {self.manifest.path}: {problem}" for problem in problems]

    def _trial(self, number: int, line: bytes) -> Trial:
        """Parse a line.

        Raises:
            ValueError: It is not a trial of this split.
        """
        try:
            row = json.loads(line, object_pairs_hook=unique_fields)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not JSON ({error}).") from error
        if not isinstance(row, dict) or set(row) != set(FIELDS):
            raise ValueError(f"expected an object with the fields {', '.join(FIELDS)}.")
        if type(row["number"]) is not int or row["number"] != number or row["steered"] is not bool(number % 2):
            raise ValueError(f"expected number {number}, {'steered' if number % 2 else 'clean'}: trials come in pairs.")
        context = _number_of(row["context"], self._context)
        if context is None:
            message = f"the context {shorten(row['context'])} ({shorten(row['begins'])}) is none of the training split's."
            raise ValueError(message)
        question = _number_of(row["question"], {self._own[context]: 0} if context in self._own else self._question)
        if question is None:
            text = shorten(row["question"])
            raise ValueError(f"the question {text} is none of data.questions, or not the context's own.")
        vector, band, strength = _number_of(row["vector"], self._vector), row["band"], row["strength"]
        if not row["steered"]:
            if any(row[name] is not None for name in ("vector", "band", "strength")):
                raise ValueError("a clean trial with a vector, a band or a strength. Expected null for each.")
            return Trial(self.split, number, context, question, steered=False)
        if vector is None:
            raise ValueError(f"the vector {shorten(row['vector'])} is none of the training split's.")
        layers = isinstance(band, list) and all(type(layer) is int for layer in band)
        if not layers or tuple(band) not in self.bands:
            known = ", ".join(str(list(each)) for each in self.bands)
            raise ValueError(f"the band {shorten(band)} is none of data.bands ({known}).")
        low, high = self.strengths
        if type(strength) not in (float, int) or not low * (1 - 1e-9) <= strength <= high * (1 + 1e-9):
            raise ValueError(f"the strength {shorten(strength)} is not in data.strengths, {low:g} to {high:g}.")
        return Trial(self.split, number, context, question, True, vector, (band[0], band[1]), float(strength))

    def _pair(self, pair: int) -> tuple[Trial, Trial]:
        """Both trials of a pair; the pairs that follow it in the file are cached.

        Raises:
            RunError: The file has changed since it was checked.
        """
        pair %= self.manifest.total // 2
        if pair not in self._pairs:
            if len(self._pairs) > self._window:
                self._pairs = {}
            clean = None
            for number, line in self.manifest.lines(2 * pair):
                trial = self._trial(number, line)
                if trial.steered and clean is not None:
                    self._pairs[number // 2] = (clean, trial)
                    if number // 2 == pair + self._window:
                        break
                clean = trial
        return self._pairs[pair]

    def batch(
        self, number: int, size: int, lengths: Sequence[int], pool: int, share: tuple[int, int] = (0, 1)
    ) -> list[Trial]:
        """The trials of a batch, in the order of the file except that pools of ``pool`` batches are sorted by length.

        A pass has every trial once; after its last batch the next pass begins. The last batch is filled up with the first
        trials of the file.
        """
        half, total = size // 2, self.manifest.total // 2
        self._window = max(WINDOW, pool * half)
        batches = -(-total // half)
        turn, place = divmod(number, batches)
        which, place = divmod(place, pool)
        pairs = range(which * pool * half, min((which + 1) * pool * half, total))
        by_length = sorted(pairs, key=lambda pair: (lengths[self.context_of(pair)], pair))
        full = -(-len(pairs) // half)
        by_length += range(full * half - len(pairs))
        slot = int(round_order(self.seed, self.split, "pool", turn * batches + which, full)[place])
        chosen = equal_part(by_length[slot * half : (slot + 1) * half], share)
        return [self.trial(2 * pair + steered) for pair in chosen for steered in (0, 1)]

    def trial(self, number: int) -> Trial:
        """Make trial ``number``; numbers beyond the last trial start again at the first."""
        return self._pair(number // 2)[number % 2]

    def context_of(self, pair: int) -> int:
        """Index of the context of both trials of a pair."""
        return self._pair(pair)[0].context


def _number_of(name: object, numbers: Mapping[str, int]) -> int | None:
    """The index of a name; None if it is unknown or not a text."""
    return numbers.get(name) if isinstance(name, str) else None
