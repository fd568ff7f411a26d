"""Statistics of one experiment over several seeds: mean, standard deviation and worst value of every number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.table import Table

from introspection_lit.report.verdict import worst_unseen

Results = Mapping[str, Any]
Row = dict[str, Any]
METRICS = ("auroc", "accuracy", "tpr", "fpr", "mass", "n_clean_distinct")
TITLES = {"auroc": "AUROC", "accuracy": "accuracy", "tpr": "TPR", "fpr": "FPR"}


def seed_statistics(values: Mapping[int, float | None], highest_is_worst: bool) -> Row:
    """Mean, standard deviation and worst value over seeds.

    Args:
        values: By seed; None where the number does not exist, such as a strength that no dose reached, counts as worst.
        highest_is_worst: Whether the highest value is the worst one; else the lowest is.

    Returns:
        ``mean`` and ``sd`` (divided by n - 1; None for one seed), both None if a value is; ``worst`` and ``worst_seed``,
        the first of equal ones; and ``values`` by seed.
    """
    value_list = list(values.values())
    missing = [seed for seed, value in values.items() if value is None]
    if missing:
        return {"mean": None, "sd": None, "worst": None, "worst_seed": missing[0], "values": value_list}
    numbers = np.array(value_list, dtype=float)
    worst = int(numbers.argmax() if highest_is_worst else numbers.argmin())
    return {
        "mean": float(numbers.mean()),
        "sd": float(numbers.std(ddof=1)) if len(numbers) > 1 else None,
        "worst": value_list[worst],
        "worst_seed": list(values)[worst],
        "values": value_list,
    }


def summarise_seeds(experiment: str, runs: Mapping[int, tuple[str, Results]]) -> Row:
    """Summarise the results of several seeds.

    Args:
        experiment: The configuration that they share.
        runs: By seed: the run's folder, and the content of its ``results.json``.

    Returns:
        ``experiment``, ``seeds``, ``runs``, ``commits``; and :func:`seed_statistics` of the metrics of every test set
        (``sets``), of the ``detection_strength``, of the FPR of the worst unseen kind of context (``worst_unseen_kind``,
        with the ``kinds`` by seed) and of ``side_effects``: relative change of the perplexity, and accuracy lost on facts.
    """
    results = {seed: run for seed, (_, run) in runs.items()}
    evidence = {seed: run.get("evidence") or {} for seed, run in results.items()}
    return {
        "experiment": experiment,
        "seeds": list(runs),
        "runs": [folder for folder, _ in runs.values()],
        "commits": [run.get("commit") for run in results.values()],
        "sets": _set_statistics(results),
        "detection_strength": _strength_statistics(evidence),
        "worst_unseen_kind": _kind_statistics(results),
        "side_effects": _side_effect_statistics(evidence),
    }


def _set_statistics(results: Mapping[int, Results]) -> Row:
    """Statistics of every metric of the test sets that all seeds have."""
    sets = [name for name in next(iter(results.values()))["sets"] if all(name in run["sets"] for run in results.values())]
    return {
        name: {
            metric: seed_statistics(
                {seed: run["sets"][name].get(metric) for seed, run in results.items()}, highest_is_worst=metric == "fpr"
            )
            for metric in METRICS
            if any(metric in run["sets"][name] for run in results.values())
        }
        for name in sets
    }


def _strength_statistics(evidence: Mapping[int, Results]) -> Row:
    """Statistics of the detection strength for each type of vectors."""
    fits = {seed: row.get("detection_strength") or {} for seed, row in evidence.items()}
    return {
        vectors: seed_statistics(
            {seed: (fit.get(vectors) or {}).get("strength") for seed, fit in fits.items()}, highest_is_worst=True
        )
        for vectors in dict.fromkeys(name for fit in fits.values() for name in fit)
    }


def _kind_statistics(results: Mapping[int, Results]) -> Row | None:
    """Statistics of the FPR of each seed's worst unseen kind; None if no seed has any."""
    worst = {seed: worst_unseen(run) for seed, run in results.items()}
    if not any(worst.values()):
        return None
    rates = seed_statistics({seed: row["fpr"] if row else None for seed, row in worst.items()}, highest_is_worst=True)
    return {"fpr": rates | {"kinds": [row["kind"] if row else None for row in worst.values()]}}


def _side_effect_statistics(evidence: Mapping[int, Results]) -> Row | None:
    """Statistics of the side effects; None if no seed has any."""
    effects = {seed: row.get("side_effects") for seed, row in evidence.items()}
    if not any(effects.values()):
        return None
    return {
        name: seed_statistics({seed: measure(row) if row else None for seed, row in effects.items()}, highest_is_worst=True)
        for name, measure in {"perplexity_change": perplexity_change, "accuracy_lost": accuracy_lost}.items()
    }


def perplexity_change(effects: Results) -> float | None:
    """The relative change of the perplexity by the adapter; .1 means 10 % higher."""
    return (effects.get("perplexity") or {}).get("change")


def accuracy_lost(effects: Results) -> float | None:
    """The accuracy on factual questions with the adapter off minus that with it on."""
    facts = effects.get("factual") or {}
    off, on = ((facts.get(state) or {}).get("accuracy") for state in ("off", "on"))
    return off - on if off is not None and on is not None else None


def seeds_with_repeated_bank(results: Mapping[int, Results]) -> list[int]:
    """Seeds whose vector bank is that of an earlier seed."""
    banks: set[Any] = set()
    repeated = []
    for seed, run in results.items():
        if run.get("bank") is not None and run["bank"] in banks:
            repeated.append(seed)
        banks.add(run.get("bank"))
    return repeated


def seed_tables(summary: Results) -> list[Table]:
    """Lay out :func:`summarise_seeds` as tables that fit 80 columns: mean ± sd, and the worst seed below."""
    title = f"Seeds {', '.join(map(str, summary['seeds']))}: mean ± sd, worst (seed)"
    main = Table(title=title, padding=(0, 1))
    main.add_column("test set", no_wrap=True)
    for name in TITLES.values():
        main.add_column(name, justify="right", no_wrap=True)
    for name, metrics in summary["sets"].items():
        main.add_row(name, *("\n".join(_format_statistics(metrics[key])) if key in metrics else "" for key in TITLES))
    rows = {f"detection strength, {name}": row for name, row in summary["detection_strength"].items()}
    if summary["worst_unseen_kind"]:
        rows["FPR of the worst unseen kind"] = summary["worst_unseen_kind"]["fpr"]
    rows |= {name.replace("_", " "): row for name, row in (summary["side_effects"] or {}).items()}
    if not rows:
        return [main]
    others = Table(padding=(0, 1))
    for column in ("number", "mean ± sd", "worst (seed)"):
        others.add_column(column, justify="left" if column == "number" else "right", no_wrap=True)
    for name, row in rows.items():
        others.add_row(name, *_format_statistics(row))
    return [main, others]


def _format_statistics(row: Results) -> tuple[str, str]:
    """:func:`seed_statistics` as two texts: mean ± sd, and worst (seed)."""
    worst = "none" if row["worst"] is None else f"{row['worst']:.3f}"
    mean = "-" if row["mean"] is None else f"{row['mean']:.3f}"
    return mean + ("" if row["sd"] is None else f"±{row['sd']:.3f}"), f"{worst} ({row['worst_seed']})"
