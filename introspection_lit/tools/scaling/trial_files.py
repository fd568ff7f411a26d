"""Measures what grows with the number of trials and takes no model: manifests, and the results and report of a test."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from introspection_lit import report
from introspection_lit.cli import attach
from introspection_lit.evaluation.metrics import summarise
from introspection_lit.evaluation.observers import PROBE
from introspection_lit.evaluation.scored_trials import analyse_rows, write_trials
from introspection_lit.evaluation.trial_table import ADAPTER, TrialTable
from introspection_lit.models.decoder_shape import decoder_shape
from introspection_lit.models.loading import load_config
from introspection_lit.steering.vector_bank import RANDOM_SPLITS, VectorBank, random_unit_vectors
from introspection_lit.tools import pipeline
from introspection_lit.tools.benchmark.hardware import peak, reset_peak
from introspection_lit.training.experiment_setup import prepare
from introspection_lit.trials import manifest
from introspection_lit.trials.manifest_plan import Manifest, ManifestPlan
from introspection_lit.trials.plans import PairedPlan
from introspection_lit.utils.checksums import write_json

CPU = torch.device("cpu")
VECTORS, BATCHES, BATCH, POOL = 100, 100, 32, 8
# Of the made-up test: kinds of text, strengths and bands of the full experiment, and the share of its trials in each set.
KINDS, STRENGTHS, BANDS = 42, (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0), ((0, 9), (10, 19), (20, 28))
SHARES = {"heldout": 0.1, "concept": 0.1, "newkinds": 0.4, "doses": 0.2, "doses_concept": 0.2}


class ManifestWork:
    """Writes, checks and reads manifests of the training split of a model's tokenizer; no weights are loaded.

    Args:
        model: Hub id, folder, short name, or ``random:NAME``.
        more: Other options of the command line.
    """

    def __init__(self, model: str, more: tuple[str, ...] = ()) -> None:
        settings = {"trainer.logger": False, "trainer.devices": 1, "model.base.name_or_path": model}
        settings |= {"data.strengths": [0.02, 1.0], "data.train_vectors": VECTORS}
        cli = attach([*pipeline.as_arguments(settings), *more])
        shape = decoder_shape(load_config(cli.model.base))
        directions = {name: random_unit_vectors(VECTORS, shape.hidden, 0, name) for name in RANDOM_SPLITS}
        names = {name: [f"{name}-{number}" for number in range(VECTORS)] for name in RANDOM_SPLITS}
        self.bank = VectorBank(directions, names, torch.ones(shape.layers), {"base_model": model, "revision": ""})
        self.split = prepare(cli.datamodule.run).splits["train"]
        self.lengths = self.split.lengths()

    def point(self, trials: int) -> dict[str, Any]:
        """Measure a manifest of so many trials.

        Returns:
            ``size``, ``trials``, ``seconds`` in all, those to ``write`` and ``check``, peak ``memory`` of the process, and
            the bytes of the file.
        """
        reset_peak(CPU)
        begun = time.perf_counter()
        with TemporaryDirectory() as folder:
            path = Path(folder, "train.jsonl")
            header = {"n": trials, "base_model": "", "revision": "", **manifest.manifest_settings(self.split, self.bank, 0)}
            manifest.write_manifest(path, header, self._rows(trials))
            written = time.perf_counter()
            plan = ManifestPlan(Manifest(path), self.split, self.bank, 0)
            assert not plan.problems()
            checked = time.perf_counter()
            for number in range(BATCHES):
                plan.batch(number, BATCH, self.lengths, POOL)
            files = {path.name: path.stat().st_size}
        parts = {"write": written - begun, "check": checked - written, "batches": time.perf_counter() - checked}
        return {
            "size": trials,
            "trials": trials,
            "seconds": sum(parts.values()),
            **parts,
            "memory": peak(CPU),
            "files": files,
        }

    def _rows(self, trials: int) -> Iterator[dict[str, Any]]:
        assert isinstance(self.split.plan, PairedPlan)
        for number, pair in enumerate(manifest.distinct_pairs(self.split.plan, trials // 2)):
            for steered, trial in enumerate(pair):
                yield manifest.manifest_row(2 * number + steered, trial, self.split, self.bank)


def scored_rows(trials: int) -> list[dict[str, Any]]:
    """Made-up scored trials of a test, as :meth:`~introspection_lit.trials.split.Split.describe` makes them.

    Each set has its share; each context is asked once clean, and once steered. Scores are normal, and rise with the
    logarithm of the strength.
    """
    rows: list[dict[str, Any]] = []
    for name, share in SHARES.items():
        random = np.random.default_rng([0, *name.encode()])
        for number in range(2 * round(share * trials / 2)):
            context, steered = divmod(number, 2)
            strength = STRENGTHS[context % 9] if name.startswith("doses") else 0.16
            shift = 3.0 * np.log10(strength / 0.005) * steered
            scores = {observer: float(shift + random.normal(-3, 2)) for observer in (ADAPTER, PROBE, "untrained")}
            kind = context % KINDS
            rows.append(
                {
                    "split": name,
                    "number": number,
                    "context": context,
                    "kind": f"kind {kind}",
                    "context_key": f"{context:016x}",
                    "question_text": "Was something added to your internal state? Answer yes or no.",
                    "role": "detection",
                    "vectors": name,
                    "vector_name": f"{name}-{context % VECTORS}" if steered else None,
                    "band": list(BANDS[context % 3]) if steered else [-1, -1],
                    "strength": strength if steered else 0.0,
                    "steered": bool(steered),
                    "scores": scores,
                }
            )
    return rows


def results_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The results file of made-up trials, by the functions that a test calls."""
    trained = {f"kind {number}" for number in range(KINDS * 2 // 3)}
    trials = TrialTable.from_rows(rows, trained)
    sets = {}
    for name in SHARES:
        own = trials.of_sets(name)
        scores, labels = torch.from_numpy(own.scores[ADAPTER]), torch.from_numpy(own.steered)
        inputs = torch.from_numpy(np.unique(own.inputs, return_inverse=True)[1])
        sets[name] = summarise(scores, labels, torch.ones(len(own)), inputs, 0.0)
    evidence = analyse_rows(rows, trials, trained, 0.0, 0.02, sets)
    return {"base_model": "made up", "threshold": 0.0, "strength_unit": "relative", "sets": sets, "evidence": evidence}


def tested_point(trials: int) -> dict[str, Any]:
    """Measure what a test does with so many scored trials.

    Returns:
        ``size``, ``trials``, ``seconds`` in all, those of ``results`` and ``report``, peak ``memory`` of the process, and
        the bytes of the ``files``.
    """
    rows = scored_rows(trials)
    reset_peak(CPU)
    begun = time.perf_counter()
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_trials(folder / "trials.jsonl", rows)
        write_json(folder / "results.json", results_of(rows))
        analysed = time.perf_counter()
        report.write_report(folder)
        files = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    parts = {"results": analysed - begun, "report": time.perf_counter() - analysed}
    return {"size": trials, "trials": trials, "seconds": sum(parts.values()), **parts, "memory": peak(CPU), "files": files}
