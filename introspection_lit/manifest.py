"""Manifests: the trials of a training written out, one a line, to be read by people and trained on as they are.

The first line is a header, each other line a trial. Files are written and read as streams: a manifest of a million trials
needs no more memory than one of a hundred.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from introspection_lit.contexts import fingerprint, once
from introspection_lit.errors import ConfigurationError, RunError
from introspection_lit.files import whole
from introspection_lit.seals import SEAL, changed
from introspection_lit.trials import Bands, PairedPlan, Trial, part_of, shuffled
from introspection_lit.vectors import VectorBank

if TYPE_CHECKING:
    from introspection_lit.batches import Split

FORMAT = "introspection_lit/manifest/1"
# Every so many trials the place in the file is remembered, to find the others from there.
STRIDE = 1024
# After so many repeats in a row nothing new is expected.
MANY = 20_000
# So many pairs are read ahead at once; more than a pool of batches has.
WINDOW = 4096
REMEDY = "Put it back as it was and resume from the last checkpoint, or start again with the manifest as it is now."
# No line of ours is longer; what is given in messages is cut off long before.
LONGEST_LINE, MOST_SHOWN = 1_000_000, 160
# What stands for the seal while it is computed: as long as the seal itself.
UNSEALED = "0" * 64
FIELDS = ("number", "steered", "context", "kind", "begins", "question", "vector", "band", "strength")


class Seen:
    """A set on disk: says whether something was added before, in constant memory."""

    def __init__(self) -> None:
        self.database = sqlite3.connect("")  # a temporary file that sqlite removes
        self.database.execute("PRAGMA journal_mode = OFF")
        self.database.execute("CREATE TABLE seen (hash BLOB PRIMARY KEY) WITHOUT ROWID")

    def __enter__(self) -> Seen:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.database.close()

    def add(self, *what: object) -> bool:
        """Add something; False if it was there."""
        digest = hashlib.sha256(json.dumps(what).encode()).digest()[:16]
        cursor = self.database.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,))
        return cursor.rowcount == 1


def row_of(number: int, trial: Trial, split: Split, bank: VectorBank) -> dict[str, Any]:
    """A trial as a line of a manifest: everything in words, so that it can be read without the rest."""
    context = split.contexts[trial.context]
    return {
        "number": number,
        "steered": trial.steered,
        "context": context.key,
        "kind": context.kind,
        "begins": context.user[:60],
        "question": split.asked(trial),
        "vector": bank.names[split.source.vectors][trial.vector] if trial.steered else None,
        "band": list(trial.band) if trial.steered else None,
        "strength": trial.strength if trial.steered else None,
    }


def distinct_pairs(plan: PairedPlan, wanted: int) -> Iterator[tuple[Trial, Trial]]:
    """Pairs of trials, clean and steered, leaving out those whose steered trial was there before.

    Args:
        plan: Where they come from.
        wanted: How many pairs.

    Raises:
        ConfigurationError: There are not that many.
    """
    given = repeated = pair = 0
    with Seen() as seen:
        while given < wanted:
            clean, steered = plan.trial(2 * pair), plan.trial(2 * pair + 1)
            pair += 1
            if seen.add(steered.context, steered.question, steered.vector, steered.band, steered.strength):
                given, repeated = given + 1, 0
                yield clean, steered
            elif (repeated := repeated + 1) > MANY:
                raise ConfigurationError(
                    [
                        f"--n-examples: {2 * wanted} trials asked for, but after {2 * given} nothing new comes: there are "
                        f"{plan.contexts} contexts, {plan.vectors} vectors, {len(plan.bands)} bands and strengths from "
                        f"{plan.strengths[0]:g} to {plan.strengths[1]:g}. Ask for fewer, or widen data.strengths."
                    ]
                )


def write_manifest(
    path: Path,
    header: dict[str, Any],
    rows: Iterable[dict[str, Any]],
    check: Callable[[Path], list[str]] = lambda _path: [],
) -> None:
    """Write a manifest as a stream; the file is complete and right, or not there.

    Args:
        path: Where to.
        header: Its first line; ``format`` and a seal are added.
        rows: The trials.
        check: Reads what was written and says what is wrong with it.

    Raises:
        ConfigurationError: Something is.
    """
    with whole(path) as unfinished:
        with unfinished.open("wb") as file:
            first = json.dumps({"format": FORMAT, SEAL: UNSEALED, **header}, ensure_ascii=False) + "\n"
            digest = hashlib.sha256(first.encode())
            file.write(first.encode())
            for row in rows:
                line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
                digest.update(line)
                file.write(line)
            file.seek(first.encode().index(UNSEALED.encode()))
            file.write(digest.hexdigest().encode())
        if problems := check(unfinished):
            raise ConfigurationError(problems)


def settings(split: Split, bank: VectorBank, base_model: str, revision: str, seed: int) -> dict[str, Any]:
    """What a manifest and a training on it must agree about; part of the header.

    Args:
        split: The training split.
        bank: Its directions.
        base_model: The model's name.
        revision: Its revision; empty for the default.
        seed: The experiment's seed.
    """
    phrasing = asdict(split.phrasing)
    return {
        "base_model": base_model,
        "revision": revision,
        "seed": seed,
        "training_contexts": fingerprint(*sorted(context.key for context in split.contexts)),
        "questions": list(split.questions),
        **phrasing,
        "answers": list(split.phrasing.answers),
        "bank": bank.fingerprint,
        "train_vectors": split.plan.vectors,
        "bands": [list(band) for band in split.plan.bands],
        "strengths": list(split.plan.strengths),
        "strength_unit": split.strength_unit,
    }


def disagreements(header: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Say where a manifest was made for something else than what is about to be trained."""
    return [
        f"data.manifest: made with {name} {_short(header.get(name))}, the configuration has {_short(value)}. Leave the "
        "setting as it was, or run scripts/generate_training_data.py again with this one."
        for name, value in expected.items()
        if header.get(name) != value or isinstance(header.get(name), bool) != isinstance(value, bool)
    ]


def _short(value: object, most: int = MOST_SHOWN) -> str:
    """A value of a file as a message can show it, however long it is."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def _found(numbers: Mapping[str, int], name: object) -> int | None:
    """The number of a name; None if it is none, or no text at all."""
    return numbers.get(name) if isinstance(name, str) else None


class Manifest:
    """A manifest on disk.

    Args:
        path: The file.

    Raises:
        ConfigurationError: It does not exist or does not begin with a manifest's header.

    Attributes:
        header: Its first line.
        total: How many trials the header says there are.
        places: Where trials 0, ``STRIDE``, 2 ``STRIDE``, ... begin, as far as is known.
        hashes: Of each ``STRIDE`` trials that have been read: what is read again must be the same.
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
            header = json.loads(line, object_pairs_hook=once)
        except (ValueError, RecursionError):
            header = None
        if not isinstance(header, dict) or header.get("format") != FORMAT or not isinstance(header.get("n"), int):
            raise ConfigurationError(
                [f"data.manifest: {self.path} is not a manifest: its first line is not a header with format {FORMAT!r}."]
            )
        if header["n"] < 2 or header["n"] % 2:
            number = _short(header["n"])
            raise ConfigurationError([f"data.manifest: {self.path} says that it has {number} trials; expected pairs."])
        return header

    def lines(self, start: int = 0) -> Iterator[tuple[int, bytes]]:
        """The trials from number ``start`` on, as they are in the file, with their numbers.

        Raises:
            RunError: They are not what was read before.
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
        """The next ``STRIDE`` trials of the file, or those that are left; empty at its end."""
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
    """The trials of a manifest, again and again, as the plan of a split.

    Args:
        manifest: The file.
        split: The split that it is for, with the plan that the manifest was drawn from or one like it.
        bank: Its directions.
        seed: The experiment's seed; orders the batches.
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
        self._own = {number: split.asked(Trial(split.name, 0, number, 0, steered=False)) for number in own}
        self._vector = {name: number for number, name in enumerate(bank.names[split.source.vectors][: self.vectors])}
        self._pairs: dict[int, tuple[Trial, Trial]] = {}
        self._window = WINDOW
        self.fingerprint = ""  # of the file, once it has been checked

    def problems(self) -> list[str]:
        """Read the whole file and say what is wrong with it: the first ten problems."""
        found: list[str] = []
        digest = hashlib.sha256()
        seal = self.manifest.header.get(SEAL)  # older manifests have none
        plain = isinstance(seal, str) and len(seal) == len(UNSEALED) and seal.isascii()
        first = self.manifest.first
        found_seal = hashlib.sha256(first.replace(str(seal).encode(), UNSEALED.encode(), 1) if plain else first)
        expected = 0
        clean: Trial | None = None
        with Seen() as seen:
            for number, line in self.manifest.lines():
                expected = number + 1
                digest.update(line)
                found_seal.update(line)
                try:
                    trial = self._trial(number, line)
                except ValueError as error:
                    found.append(f"line {number + 2}: {error}")
                    clean = None
                else:
                    if number % 2 == 0:
                        clean = trial
                    elif clean is not None and (clean.context, clean.question) != (trial.context, trial.question):
                        found.append(
                            f"line {number + 2}: its context or question is not that of the clean trial before it."
                        )
                    if trial.steered and not seen.add(*trial[2:]):
                        found.append(f"line {number + 2}: the same steered trial as an earlier one.")
                if len(found) >= 10 or expected > self.manifest.total:
                    break
        self.fingerprint = digest.hexdigest()[:16]
        if expected != self.manifest.total and len(found) < 10:
            found.append(f"it has {expected} trials or more, its header says {self.manifest.total}: it may be cut off.")
        if not found and seal is not None and seal != found_seal.hexdigest():
            found.append(changed(f"{SEAL!r} from its first line") + ".")
        return [f"data.manifest: {self.manifest.path}: {problem}" for problem in found]

    def _trial(self, number: int, line: bytes) -> Trial:
        """Read a line.

        Raises:
            ValueError: It is not a trial of this split.
        """
        try:
            row = json.loads(line, object_pairs_hook=once)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not JSON ({error}).") from error
        if not isinstance(row, dict) or set(row) != set(FIELDS):
            raise ValueError(f"expected an object with the fields {', '.join(FIELDS)}.")
        if type(row["number"]) is not int or row["number"] != number or row["steered"] is not bool(number % 2):
            raise ValueError(f"expected number {number}, {'steered' if number % 2 else 'clean'}: trials come in pairs.")
        context, question = _found(self._context, row["context"]), _found(self._question, row["question"])
        if context is None:
            raise ValueError(
                f"the context {_short(row['context'])} ({_short(row['begins'])}) is none of the training split's."
            )
        if context in self._own:
            question = 0 if row["question"] == self._own[context] else None
        if question is None:
            raise ValueError(f"the question {_short(row['question'])} is none of data.questions, or not the context's own.")
        if not row["steered"]:
            if any(row[name] is not None for name in ("vector", "band", "strength")):
                raise ValueError("a clean trial with a vector, a band or a strength. Expected null for each.")
            return Trial(self.split, number, context, question, steered=False)
        vector, band, strength = _found(self._vector, row["vector"]), row["band"], row["strength"]
        if vector is None:
            raise ValueError(f"the vector {_short(row['vector'])} is none of the training split's.")
        whole_numbers = isinstance(band, list) and all(type(layer) is int for layer in band)
        if not whole_numbers or tuple(band) not in self.bands:
            raise ValueError(
                f"the band {_short(band)} is none of data.bands ({', '.join(str(list(known)) for known in self.bands)})."
            )
        low, high = self.strengths
        if (
            not isinstance(strength, float | int)
            or isinstance(strength, bool)
            or not low * (1 - 1e-9) <= strength <= high * (1 + 1e-9)
        ):
            raise ValueError(f"the strength {_short(row['strength'])} is not in data.strengths, {low:g} to {high:g}.")
        return Trial(self.split, number, context, question, True, vector, (band[0], band[1]), float(strength))

    def _pair(self, pair: int) -> tuple[Trial, Trial]:
        """Both trials of a pair; those that follow it in the file are kept at hand.

        Raises:
            RunError: The file is no longer what was checked.
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
        """The trials of a batch: the next of the file, but that pools of ``pool`` batches are sorted by length.

        After the last batch of a pass the next pass begins; each has every trial once. A last batch that is not full is
        filled up with the first trials of the file.
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
        slot = int(shuffled(self.seed, self.split, "pool", turn * batches + which, full)[place])
        chosen = part_of(by_length[slot * half : (slot + 1) * half], share)
        return [self.trial(2 * pair + steered) for pair in chosen for steered in (0, 1)]

    def trial(self, number: int) -> Trial:
        """Trial ``number``; beyond the last one it starts again."""
        return self._pair(number // 2)[number % 2]

    def context_of(self, pair: int) -> int:
        """The context that both trials of a pair have."""
        return self._pair(pair)[0].context
