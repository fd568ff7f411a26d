"""Manifests: the trials of a training written out, one a line, to be read by people and trained on as they are.

The first line is a header, each other line a trial. Files are written and read as streams: a manifest of a million trials
needs no more memory than one of a hundred.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from introspection_lit.contexts import fingerprint
from introspection_lit.errors import ConfigurationError
from introspection_lit.files import whole
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
        header: Its first line; ``format`` is added.
        rows: The trials.
        check: Reads what was written and says what is wrong with it.

    Raises:
        ConfigurationError: Something is.
    """
    with whole(path) as unfinished:
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(json.dumps({"format": FORMAT, **header}, ensure_ascii=False) + "\n")
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
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
        f"data.manifest: made with {name} {header.get(name)!r}, the configuration has {value!r}. Leave the setting as it "
        "was, or run scripts/generate_training_data.py again with this one."
        for name, value in expected.items()
        if header.get(name) != value
    ]


class Manifest:
    """A manifest on disk.

    Args:
        path: The file.

    Raises:
        ConfigurationError: It does not exist or does not begin with a manifest's header.

    Attributes:
        header: Its first line.
        total: How many trials the header says there are.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise ConfigurationError(
                [f"data.manifest: no such file: {path}. Expected one written by scripts/generate_training_data.py."]
            )
        with path.open("rb") as file:
            self.header = self._header(file.readline(1_000_000))
            self.places = [file.tell()]  # where trials 0, STRIDE, 2 STRIDE, ... begin, as far as is known
        self.total = int(self.header["n"])

    def _header(self, line: bytes) -> dict[str, Any]:
        try:
            header = json.loads(line)
        except (ValueError, RecursionError):
            header = None
        if not isinstance(header, dict) or header.get("format") != FORMAT or not isinstance(header.get("n"), int):
            raise ConfigurationError(
                [f"data.manifest: {self.path} is not a manifest: its first line is not a header with format {FORMAT!r}."]
            )
        if header["n"] < 2 or header["n"] % 2:
            raise ConfigurationError([f"data.manifest: {self.path} says that it has {header['n']} trials; expected pairs."])
        return header

    def lines(self, start: int = 0) -> Iterator[tuple[int, bytes]]:
        """The trials from number ``start`` on, as they are in the file, with their numbers."""
        block = min(start // STRIDE, len(self.places) - 1)
        number = block * STRIDE
        with self.path.open("rb") as file:
            file.seek(self.places[block])
            while line := file.readline(1_000_000):
                if number >= start:
                    yield number, line
                number += 1
                if number == len(self.places) * STRIDE:
                    self.places.append(file.tell())


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
        self._own = {number for number, context in enumerate(split.contexts) if context.asked}
        self._vector = {name: number for number, name in enumerate(bank.names[split.source.vectors][: self.vectors])}
        self._pairs: dict[int, tuple[Trial, Trial]] = {}
        self._window = WINDOW
        self.fingerprint = ""  # of the file, once it has been checked

    def problems(self) -> list[str]:
        """Read the whole file and say what is wrong with it: the first ten problems."""
        found: list[str] = []
        digest = hashlib.sha256()
        expected = 0
        clean: Trial | None = None
        with Seen() as seen:
            for number, line in self.manifest.lines():
                expected = number + 1
                digest.update(line)
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
        return [f"data.manifest: {self.manifest.path}: {problem}" for problem in found]

    def _trial(self, number: int, line: bytes) -> Trial:
        """Read a line.

        Raises:
            ValueError: It is not a trial of this split.
        """
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not JSON ({error}).") from error
        if not isinstance(row, dict) or set(row) != set(FIELDS):
            raise ValueError(f"expected an object with the fields {', '.join(FIELDS)}.")
        if type(row["number"]) is not int or row["number"] != number or row["steered"] is not bool(number % 2):
            raise ValueError(f"expected number {number}, {'steered' if number % 2 else 'clean'}: trials come in pairs.")
        context, question = self._context.get(str(row["context"])), self._question.get(str(row["question"]))
        if context is None:
            raise ValueError(f"the context {row['context']!r} ({row['begins']!r}) is none of the training split's.")
        question = 0 if context in self._own else question
        if question is None:
            raise ValueError(f"the question {row['question']!r} is none of data.questions.")
        if not row["steered"]:
            return Trial(self.split, number, context, question, steered=False)
        vector, band, strength = self._vector.get(str(row["vector"])), row["band"], row["strength"]
        if vector is None:
            raise ValueError(f"the vector {row['vector']!r} is none of the training split's.")
        if not isinstance(band, list) or band not in [list(known) for known in self.bands]:
            raise ValueError(f"the band {band} is none of data.bands ({', '.join(str(list(b)) for b in self.bands)}).")
        low, high = self.strengths
        if (
            not isinstance(strength, float | int)
            or isinstance(strength, bool)
            or not low * (1 - 1e-9) <= strength <= high * (1 + 1e-9)
        ):
            raise ValueError(f"the strength {strength} is not in data.strengths, {low:g} to {high:g}.")
        return Trial(self.split, number, context, question, True, vector, (band[0], band[1]), float(strength))

    def _pair(self, pair: int) -> tuple[Trial, Trial]:
        """Both trials of a pair; those that follow it in the file are kept at hand."""
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
