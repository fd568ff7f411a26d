"""Several trainings: each in a process and a folder of its own, and what their results say together."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from introspection_lit.report.result_files import read_results
from introspection_lit.report.verdict import worst_unseen
from introspection_lit.utils.errors import ConfigurationError

Results = Mapping[str, Any]
Row = dict[str, Any]
METRICS = ("auroc", "accuracy", "tpr", "fpr", "mass", "n_clean_distinct")
LOGGER = "--trainer.logger.init_args"
# Seconds that a process gets to end by itself after Ctrl-C, before it is told to.
GRACE = 5


class Training(NamedTuple):
    """A training, and the folder that it is to have.

    Attributes:
        folder: Gets the run's files.
        options: Of ``python -m introspection_lit fit``, but for the logger's.
    """

    folder: Path
    options: list[str]

    @property
    def words(self) -> list[str]:
        """Arguments of ``python -m introspection_lit``: without a name, the logger's folder is save_dir/version."""
        parts = {"save_dir": self.folder.parent, "name": "", "version": self.folder.name}
        return ["fit", *self.options, *(f"{LOGGER}.{name}={value}" for name, value in parts.items())]

    @property
    def command(self) -> str:
        """The command, as the results of the run have it."""
        return f"python -m introspection_lit {shlex.join(self.words)}"

    @property
    def results(self) -> Path:
        """What the run leaves when its tests are done."""
        return self.folder / "results.json"

    def done(self) -> bool:
        """Whether it has been run.

        Raises:
            ConfigurationError: The folder holds the results of another command.
        """
        if not self.results.exists():
            return False
        made_by = read_results(self.results).get("command")
        if made_by != self.command:
            raise ConfigurationError(
                [
                    f"{self.results}: made by another command ({made_by}). Expected none yet, or one made by: "
                    f"{self.command}. Name another --folder, or move {self.folder} away."
                ]
            )
        return True

    def run(self) -> int:
        """Train and test in a process of its own; what an earlier attempt has left is moved aside.

        Returns:
            Its exit status: 0 if all went well.
        """
        if self.folder.is_dir() and any(self.folder.iterdir()):
            self.folder.rename(aside(self.folder))
        process = subprocess.Popen([sys.executable, "-m", "introspection_lit", *self.words])
        try:
            return process.wait()
        except BaseException:
            end(process)
            raise


def aside(folder: Path) -> Path:
    """A name that is free, for a folder that an unfinished run has left."""
    name, number = f"{folder.name}.unfinished", 1
    while folder.with_name(name).exists():
        number += 1
        name = f"{folder.name}.unfinished-{number}"
    return folder.with_name(name)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process after Ctrl-C. In a terminal it has got the signal, too, and is cleaning up: it is not hurried."""
    for hurry in (process.terminate, process.kill):
        try:
            process.wait(GRACE)
            return
        except subprocess.TimeoutExpired:
            hurry()
    process.wait()


def spread(values: Mapping[int, float | None], highest_is_worst: bool) -> Row:
    """How a number differs between seeds.

    Args:
        values: By seed; None where the number does not exist, such as a strength that no dose reached: nothing is worse.
        highest_is_worst: Else the lowest is.

    Returns:
        ``mean`` and ``sd`` (over n - 1; None of one seed), both None if a value is; ``worst`` and ``worst_seed``, the
        first of equal ones; and ``values`` by seed.
    """
    listed = list(values.values())
    missing = [seed for seed, value in values.items() if value is None]
    if missing:
        return {"mean": None, "sd": None, "worst": None, "worst_seed": missing[0], "values": listed}
    numbers = np.array(listed, dtype=float)
    place = int(numbers.argmax() if highest_is_worst else numbers.argmin())
    return {
        "mean": float(numbers.mean()),
        "sd": float(numbers.std(ddof=1)) if len(numbers) > 1 else None,
        "worst": listed[place],
        "worst_seed": list(values)[place],
        "values": listed,
    }


def together(experiment: str, runs: Mapping[int, tuple[str, Results]]) -> Row:
    """What the results of several seeds say together.

    Args:
        experiment: The configuration that they share.
        runs: By seed: the run's folder, and its ``results.json``.

    Returns:
        ``experiment``, ``seeds``, ``runs``, ``commits``; and :func:`spread` for the metrics of every test set (``sets``),
        for the ``detection_strength``, for the FPR of the worst unseen kind of context (``worst_unseen_kind``, with the
        ``kinds`` by seed) and for ``side_effects``: the relative change of the perplexity, and the accuracy lost on facts.
    """
    results = {seed: found for seed, (_, found) in runs.items()}
    evidence = {seed: found.get("evidence") or {} for seed, found in results.items()}
    sets = [name for name in next(iter(results.values()))["sets"] if all(name in run["sets"] for run in results.values())]
    vectors = dict.fromkeys(name for found in evidence.values() for name in found.get("detection_strength") or {})
    strengths = {
        name: {seed: ((e.get("detection_strength") or {}).get(name) or {}).get("strength") for seed, e in evidence.items()}
        for name in vectors
    }
    kinds = {seed: worst_unseen(run) for seed, run in results.items()}
    effects = {seed: e.get("side_effects") for seed, e in evidence.items()}
    found: Row = {
        "experiment": experiment,
        "seeds": list(runs),
        "runs": [folder for folder, _ in runs.values()],
        "commits": [run.get("commit") for run in results.values()],
        "sets": {
            name: {
                metric: spread({seed: run["sets"][name].get(metric) for seed, run in results.items()}, metric == "fpr")
                for metric in METRICS
            }
            for name in sets
        },
        "detection_strength": {name: spread(values, highest_is_worst=True) for name, values in strengths.items()},
        "worst_unseen_kind": None,
        "side_effects": None,
    }
    if any(kinds.values()):
        rates = spread({seed: row["fpr"] if row else None for seed, row in kinds.items()}, highest_is_worst=True)
        found["worst_unseen_kind"] = {"fpr": rates | {"kinds": [row["kind"] if row else None for row in kinds.values()]}}
    if any(effects.values()):
        measures = {"perplexity_change": perplexity_change, "accuracy_lost": accuracy_lost}
        found["side_effects"] = {
            name: spread({seed: measured(row) if row else None for seed, row in effects.items()}, highest_is_worst=True)
            for name, measured in measures.items()
        }
    return found


def perplexity_change(effects: Results) -> float | None:
    """By how much the adapter changes the perplexity, relative: .1 is a tenth more."""
    return (effects.get("perplexity") or {}).get("change")


def accuracy_lost(effects: Results) -> float | None:
    """How much less accurate the adapter makes the answers to questions of fact."""
    facts = effects.get("factual") or {}
    off, on = ((facts.get(way) or {}).get("accuracy") for way in ("off", "on"))
    return off - on if off is not None and on is not None else None


def shared_vectors(results: Mapping[int, Results]) -> list[int]:
    """Seeds whose vectors are those of an earlier seed: they were not drawn anew."""
    banks: set[Any] = set()
    repeated = []
    for seed, run in results.items():
        if run.get("bank") is not None and run["bank"] in banks:
            repeated.append(seed)
        banks.add(run.get("bank"))
    return repeated


TITLES = {"auroc": "AUROC", "accuracy": "accuracy", "tpr": "TPR", "fpr": "FPR"}


def tables(found: Results) -> list[Table]:
    """Lay the numbers of :func:`together` out as tables that fit 80 columns: mean ± sd, and the worst seed below."""
    title = f"Seeds {', '.join(map(str, found['seeds']))}: mean ± sd, worst (seed)"
    main = Table(title=title, padding=(0, 1))
    main.add_column("test set", no_wrap=True)
    for name in TITLES.values():
        main.add_column(name, justify="right", no_wrap=True)
    for name, metrics in found["sets"].items():
        main.add_row(name, *("\n".join(told(metrics[key])) for key in TITLES))
    rows = {f"detection strength, {name}": row for name, row in found["detection_strength"].items()}
    if found["worst_unseen_kind"]:
        rows["FPR of the worst unseen kind"] = found["worst_unseen_kind"]["fpr"]
    rows |= {name.replace("_", " "): row for name, row in (found["side_effects"] or {}).items()}
    if not rows:
        return [main]
    others = Table(padding=(0, 1))
    for column in ("number", "mean ± sd", "worst (seed)"):
        others.add_column(column, justify="left" if column == "number" else "right", no_wrap=True)
    for name, row in rows.items():
        others.add_row(name, *told(row))
    return [main, others]


def told(row: Results) -> tuple[str, str]:
    """A :func:`spread` as two texts."""
    worst = "none" if row["worst"] is None else f"{row['worst']:.3f}"
    middle = "-" if row["mean"] is None else f"{row['mean']:.3f}"
    return middle + ("" if row["sd"] is None else f"±{row['sd']:.3f}"), f"{worst} ({row['worst_seed']})"


def settled(words: Sequence[str], names: Sequence[str]) -> list[str]:
    """Which options of a command line a script decides itself, as problems of the configuration."""
    given = [word.split("=")[0] for word in words if word.startswith("--")]
    taken = [word for word in given if any(word == name or word.startswith(f"{name}.") for name in names)]
    return [f"{word}: is decided by the script. Leave it out." for word in dict.fromkeys(taken)]
