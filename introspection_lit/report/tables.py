"""Tables of a report on one run: the ladder, references, controls, side effects, leaks, seeds, and how to repeat it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from introspection_lit.evaluation.rungs import HIGHEST_FPR, LOWEST_AUROC, LOWEST_TPR, RUNGS, failures
from introspection_lit.report.parts import (
    HELD,
    MISSING,
    Table,
    count,
    part,
    percent,
    rate,
    strength,
    strength_interval,
    with_interval,
)

Results = Mapping[str, Any]
SET_HEAD = ("AUROC", "TPR", "FPR", "TPR at 1 % FPR", "d'", "mass", "steered", "clean (distinct)")
METRICS = {"auroc": "AUROC", "tpr": "TPR", "fpr": "FPR", "tpr_at_1pct_fpr": "TPR at 1 % FPR", "dprime": "d'"}


def ladder_table(results: Results) -> Table | None:
    """The rungs, lowest first, with a mark for each that holds."""
    sets = results.get("sets") or {}
    rows = [(RUNGS[name], *set_cells(sets[name]), _held(sets[name])) for name in RUNGS if name in sets]
    note = (
        f"A rung holds with an AUROC of at least {LOWEST_AUROC:g}, a TPR of at least {LOWEST_TPR:g} and an FPR of at most "
        f"{HIGHEST_FPR:g}. FPR, its 95 % interval and d' count distinct clean inputs."
    )
    return Table("Test sets, from the ground up", ("test set", *SET_HEAD, "holds"), rows, note) if rows else None


def other_sets_table(results: Results) -> Table | None:
    """Test sets that are no rungs: doses and controls."""
    rows = [(name, *set_cells(row)) for name, row in (results.get("sets") or {}).items() if name not in RUNGS]
    return Table("Other test sets", ("test set", *SET_HEAD), rows) if rows else None


def set_cells(row: Results) -> list[str]:
    """The numbers of a test set, in the order of ``SET_HEAD``."""
    return [
        rate(row.get("auroc")),
        rate(row.get("tpr")),
        with_interval(row.get("fpr"), row.get("fpr_interval")),
        rate(row.get("tpr_at_1pct_fpr")),
        MISSING if row.get("dprime") is None else f"{row['dprime']:.2f}",
        rate(row.get("mass")),
        count(row.get("n_steered")),
        f"{count(row.get('n_clean'))} ({count(row.get('n_clean_distinct'))})",
    ]


def _held(row: Results) -> str:
    reasons = failures(row)
    return f"✗ {', '.join(reasons)}" if reasons else "✓ holds"


def strengths_table(evidence: Results) -> Table | None:
    """The detection strength of all layers together and of each band, with its fit."""
    rows = []
    for vectors, found in (part(evidence, "detection_strength") or {}).items():
        if found:
            for name, row in {"all layers": found, **(found.get("bands") or {})}.items():
                lapse = rate(row.get("lapse")) if row else MISSING
                ends = strength_interval(row.get("interval")) if row else ""
                at = strength(row.get("strength")) if row else MISSING
                rows.append((f"{vectors}, {name}", at, ends or MISSING, lapse))
    note = "Missed however strong: the share that the fitted curve says is never detected."
    head = ("vectors, layers", "strength", "95 % interval", "missed however strong")
    return Table("Strength from which on 75 % are detected at 1 % FPR", head, rows, note) if rows else None


def references_table(evidence: Results) -> Table | None:
    """What other observers make of the same trials."""
    rows = [
        (
            row["observer"],
            RUNGS.get(row["set"], row["set"]),
            count(row.get("n")),
            with_interval(row.get("auroc"), row.get("auroc_interval")),
            rate(row.get("information")),
            MISSING if row.get("share") is None else percent(row["share"]),
        )
        for row in part(evidence, "references") or []
    ]
    head = ("observer", "test set", "trials", "AUROC", "information (bits)", "share of the probe's information")
    return Table("The same trials, seen by others", head, rows, "95 % intervals in brackets.") if rows else None


def controls_table(evidence: Results) -> Table | None:
    """What was expected of each control, what was measured, and whether it held."""
    rows = [
        (row["name"], row.get("what") or "", row.get("expected") or "", measured(row), HELD[row.get("held")])
        for row in part(evidence, "controls") or []
    ]
    return Table("Controls", ("control", "what", "expected", "measured", "held"), rows) if rows else None


def measured(row: Results) -> str:
    """The numbers that a control has."""
    named = {"AUROC": "auroc", "TPR": "tpr", "FPR": "fpr", "balanced accuracy, threshold set anew": "recalibrated"}
    return ", ".join(f"{name} {rate(row[key])}" for name, key in named.items() if row.get(key) is not None) or MISSING


def factual_table(evidence: Results) -> Table | None:
    """Whether steering shifts the answers to questions that have nothing to do with it."""
    found = part(evidence, "factual") or []
    named = {
        "log-odds, clean": "clean",
        "log-odds, steered": "steered",
        "shift": "shift",
        "says yes, clean": "said_yes_clean",
        "says yes, steered": "said_yes_steered",
        "AUROC": "auroc",
    }
    named = {title: key for title, key in named.items() if any(row.get(key) is not None for row in found)}
    rows = [(row["question"], *(rate(row.get(key)) for key in named.values()), count(row.get("n"))) for row in found]
    return Table("Factual questions under the same steering", ("question", *named, "n"), rows) if rows else None


def odd_table(evidence: Results) -> Table | None:
    """Clean inputs that are merely odd."""
    rows = [
        (
            row["kind"],
            count(row.get("n_clean")),
            with_interval(row.get("fpr"), row.get("fpr_interval")),
            rate(row.get("tpr")),
            rate(row.get("auroc")),
        )
        for row in part(evidence, "odd") or []
    ]
    return Table("Odd but clean inputs", ("kind", "clean inputs", "FPR", "TPR", "AUROC"), rows) if rows else None


def side_effects_table(evidence: Results) -> Table | None:
    """The model with the adapter off and on, where nobody asks about steering."""
    found = part(evidence, "side_effects")
    if not found:
        return None
    texts, facts = found.get("texts"), found.get("facts")
    named = [
        (f"perplexity ({count(texts)} texts)", "perplexity", "perplexity"),
        ("nats per token", "perplexity", "nats"),
        (f"factual questions: accuracy ({count(facts)})", "factual", "accuracy"),
        ("factual questions: AUROC", "factual", "auroc"),
        ("factual questions: says yes", "factual", "yes"),
        ("factual questions: mass", "factual", "mass"),
        ("factual questions: mean log-odds", "factual", "log_odds"),
    ]
    rows = []
    for name, group, key in named:
        off, on = part(found, group, "off", key), part(found, group, "on", key)
        if off is not None or on is not None:
            change = MISSING if off is None or on is None else f"{on - off:+.3f}"
            rows.append((name, rate(off), rate(on), change))
    return Table("Side effects of the adapter", ("measure", "off", "on", "change"), rows) if rows else None


def leak_tables(evidence: Results) -> list[Table]:
    """What training and test share, and how far their vectors are apart."""
    leaks = part(evidence, "leaks")
    if not leaks:
        return []
    kinds = leaks.get("unseen_kinds_in_training")
    shared = [
        ("messages in training and test", leaks.get("shared_messages"), ""),
        ("kinds called unseen, in training", None if kinds is None else len(kinds), ", ".join(kinds or [])),
        ("questions in training and test", leaks.get("shared_questions"), ""),
    ]
    rows = [(name, count(n), "0", MISSING if n is None else HELD[n == 0], which or "none") for name, n, which in shared]
    tables = [Table("What training and test share", ("what", "shared", "expected", "held", "which"), rows)]
    cosines = [(pair, rate(value)) for pair, value in (leaks.get("vectors") or {}).items()]
    if cosines:
        tables.append(Table("Largest |cosine| between vectors of two splits", ("splits", "|cosine|"), cosines))
    distinct = [(RUNGS.get(name, name), count(n)) for name, n in (leaks.get("distinct_clean") or {}).items()]
    if distinct:
        tables.append(Table("Distinct clean inputs", ("test set", "inputs"), distinct))
    return tables


def seeds_tables(seeds: Results) -> list[Table]:
    """Mean, spread and worst of several seeds."""
    head = ("mean", "sd", "worst (seed)", "by seed")
    named = ", ".join(map(str, seeds.get("seeds") or []))
    rows = [
        (f"{RUNGS.get(name, name)}: {METRICS.get(metric, metric)}", *_spread(found, rate))
        for name, metrics in (seeds.get("sets") or {}).items()
        for metric, found in (metrics or {}).items()
        if found and isinstance(found, Mapping)
    ]
    strengths = [
        (vectors, *_spread(found, strength)) for vectors, found in (seeds.get("detection_strength") or {}).items() if found
    ]
    note = f"Seeds {named}. sd: standard deviation between seeds."
    tables = [Table("Test sets over seeds", ("test set: metric", *head), rows, note)] if rows else []
    return tables + ([Table("Detection strength over seeds", ("vectors", *head), strengths)] if strengths else [])


def _spread(found: Results, text: Any) -> list[str]:
    worst = f"{text(found.get('worst'))} ({found.get('worst_seed')})"
    return [text(found.get("mean")), text(found.get("sd")), worst, ", ".join(map(text, found.get("values") or []))]


def settings(results: Results) -> dict[str, str]:
    """Everything that a run was made with, by name, nested settings under ``name.part``."""
    skipped = ("command", "sets", "evidence", "concept_cosines")
    found: dict[str, str] = {}
    for name, value in results.items():
        if name in skipped:
            continue
        if name == "kinds" and isinstance(value, Mapping):
            found |= {f"kinds.{split}": f"{len(kinds)}: {_said(kinds)}" for split, kinds in value.items()}
        elif isinstance(value, Mapping):
            found |= {f"{name}.{key}": _said(inner) for key, inner in value.items()}
        else:
            found[name] = _said(value)
    limit = part(results, "evidence", "max_fpr_threshold")
    return found | ({"threshold at 1 % FPR": _said(limit)} if limit is not None else {})


def _said(value: Any) -> str:
    if value is None or value in ("", [], {}):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_said(inner)}" for key, inner in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        nested = any(isinstance(inner, Sequence) and not isinstance(inner, str) for inner in value)
        return ("; " if nested or any(" " in str(inner) for inner in value) else ", ").join(_band(inner) for inner in value)
    return str(value)


def _band(value: Any) -> str:
    pair = isinstance(value, list) and len(value) == 2 and all(isinstance(end, int) for end in value)
    return f"{value[0]}..{value[1]}" if pair else _said(value)
