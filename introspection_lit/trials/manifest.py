"""Writes manifests: files that list the trials of a training, one in each line, to be inspected and trained on.

The first line is a header. Files are written and read as streams, so memory does not grow with the number of trials.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from introspection_lit.contexts.context import fingerprint
from introspection_lit.steering.vector_bank import VectorBank
from introspection_lit.trials.changed_plans import benign_plan_of, curriculum_of, subtracts
from introspection_lit.trials.composed_plans import ExchangesPlan
from introspection_lit.trials.plans import PairedPlan
from introspection_lit.trials.trial import Trial
from introspection_lit.utils.checksums import CHECKSUM
from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.files import atomic_file

if TYPE_CHECKING:
    from introspection_lit.trials.split import Split


FORMAT = "introspection_lit/manifest/1"
MAX_REPEATS = 20_000  # give up after this many repeated trials in a row
NO_CHECKSUM = "0" * 64  # placeholder of the checksum while it is computed
FIELDS = ("number", "steered", "context", "kind", "begins", "question", "vector", "band", "strength")


class SeenTrials:
    """A set on disk, in constant memory: :meth:`add` tells whether an item is new."""

    def __init__(self) -> None:
        self.database = sqlite3.connect("")  # a temporary file that sqlite removes
        self.database.execute("PRAGMA journal_mode = OFF")
        self.database.execute("CREATE TABLE seen (hash BLOB PRIMARY KEY) WITHOUT ROWID")

    def __enter__(self) -> SeenTrials:
        return self

    def __exit__(self, *error: object) -> None:
        self.database.close()

    def add(self, *what: object) -> bool:
        """Add an item; False if it was there."""
        digest = hashlib.sha256(json.dumps(what).encode()).digest()[:16]
        cursor = self.database.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,))
        return cursor.rowcount == 1


def manifest_row(number: int, trial: Trial, split: Split, bank: VectorBank) -> dict[str, Any]:
    """A trial as a line of a manifest, with texts and names instead of indices."""
    context = split.contexts[trial.context]
    return {
        "number": number,
        "steered": trial.steered,
        "context": context.key,
        "kind": context.kind,
        "begins": context.user[:60],
        "question": split.question_text(trial),
        "vector": bank.names[split.source.vectors][trial.vector] if trial.steered else None,
        "band": list(trial.band) if trial.steered else None,
        "strength": trial.strength if trial.steered else None,
    }


def distinct_pairs(plan: PairedPlan, count: int) -> Iterator[tuple[Trial, Trial]]:
    """Yield pairs of a clean and a steered trial whose steered trials are all different.

    Args:
        plan: The plan that pairs are drawn from.
        count: Number of pairs.

    Raises:
        ConfigurationError: The plan does not have that many, or steers parts of contexts, or changes caches besides
            steering, or has a curriculum, or subtracts directions: no line can say that.
    """
    if benign_plan_of(plan) is not None:
        raise ConfigurationError(["data.benign: a manifest lists trials without changes. Leave data.benign out."])
    if curriculum_of(plan) is not None:
        raise ConfigurationError(["data.curriculum: a manifest's strengths are all in data.strengths. Leave it out."])
    if subtracts(plan):
        raise ConfigurationError(["data.both_signs: a manifest lists directions that are added. Leave it out."])
    if isinstance(plan, ExchangesPlan):
        raise ConfigurationError(["data.long: a manifest lists contexts that are steered as a whole. Leave data.long out."])
    yielded = repeated = pair = 0
    with SeenTrials() as seen:
        while yielded < count:
            clean, steered = plan.trial(2 * pair), plan.trial(2 * pair + 1)
            pair += 1
            if seen.add(steered.context, steered.question, steered.vector, steered.band, steered.strength):
                yielded, repeated = yielded + 1, 0
                yield clean, steered
            elif (repeated := repeated + 1) > MAX_REPEATS:
                raise ConfigurationError(
                    [
                        f"--n-examples: {2 * count} trials asked for, but after {2 * yielded} nothing new comes: there are "
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
    """Write a manifest as a stream and check it; the file appears only if it is complete and valid.

    Args:
        path: Where to write it.
        header: The first line; ``format`` and a checksum are added.
        rows: The trials.
        check: Reads the file back and returns a sentence for each problem.

    Raises:
        ConfigurationError: The check finds a problem.
    """
    with atomic_file(path) as unfinished:
        with unfinished.open("wb") as file:
            first = json.dumps({"format": FORMAT, CHECKSUM: NO_CHECKSUM, **header}, ensure_ascii=False) + "\n"
            digest = hashlib.sha256(first.encode())
            file.write(first.encode())
            for row in rows:
                line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
                digest.update(line)
                file.write(line)
            file.seek(first.encode().index(NO_CHECKSUM.encode()))
            file.write(digest.hexdigest().encode())
        if problems := check(unfinished):
            raise ConfigurationError(problems)


def manifest_settings(split: Split, bank: VectorBank, seed: int) -> dict[str, Any]:
    """The settings that a manifest and a training on it must share, beside the base model; part of the header.

    Args:
        split: The training split.
        bank: The directions.
        seed: The experiment's seed.
    """
    return {
        "seed": seed,
        "training_contexts": fingerprint(*sorted(context.key for context in split.contexts)),
        "questions": list(split.questions),
        **split.phrasing.describe(),
        "answers": list(split.phrasing.answers),
        "bank": bank.fingerprint,
        "train_vectors": split.plan.vectors,
        "bands": [list(band) for band in split.plan.bands],
        "strengths": list(split.plan.strengths),
        "strength_unit": split.strength_unit,
    }


def setting_problems(header: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """List the settings in which a manifest differs from the training that is about to begin."""
    return [
        f"data.manifest: made with {name} {shorten(header.get(name))}, the configuration has {shorten(value)}. Leave the "
        "setting as it was, or run scripts/generate_training_data.py again with this one."
        for name, value in expected.items()
        if header.get(name) != value or isinstance(header.get(name), bool) != isinstance(value, bool)
    ]


def shorten(value: object) -> str:
    """A value of a file for a message, at most 160 characters of it."""
    text = repr(value)
    return text if len(text) <= 160 else f"{text[:160]}..."
