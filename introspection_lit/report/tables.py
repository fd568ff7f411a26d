"""The tables of the report on one run: test sets, references, controls, side effects, leaks, seeds and settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from introspection_lit.evaluation.rungs import HIGHEST_FPR, LOWEST_AUROC, LOWEST_TPR, RUNGS, failures
from introspection_lit.report.elements import Table
from introspection_lit.report.formatting import (
    HELD,
    MISSING,
    format_count,
    format_percent,
    format_rate,
    format_rate_with_interval,
    format_strength,
    format_strength_interval,
    lookup,
)

Results = Mapping[str, Any]
SET_HEAD = ("AUROC", "TPR", "FPR", "TPR at 1 % FPR", "d'", "mass", "steered", "clean (distinct)")
TASK_SETS = {
    "codes": "steered? trained words, both orders",
    "newcodes": "steered? new words, both orders",
    "facts": "facts, with the lead-in",
    "facts_bare": "facts, without the lead-in",
    "reading": "about the text",
}
CHOICE_SETS = {
    "halves": "which half was steered",
    "lines": "which of four lines was steered",
    "comparison": "which half was steered more",
    "identification": "which of ten concepts was added",
    "naming": "which concept, by its name",
}
METRICS = {"auroc": "AUROC", "tpr": "TPR", "fpr": "FPR", "tpr_at_1pct_fpr": "TPR at 1 % FPR", "dprime": "d'"}


def ladder_table(results: Results) -> Table | None:
    """The rungs, lowest first, and whether each holds."""
    sets = results.get("sets") or {}
    rows = [(RUNGS[name], *set_cells(sets[name]), _rung_result(sets[name])) for name in RUNGS if name in sets]
    note = (
        f"A rung holds with an AUROC of at least {LOWEST_AUROC:g}, a TPR of at least {LOWEST_TPR:g} and an FPR of at most "
        f"{HIGHEST_FPR:g}. FPR, its 95 % interval and d' count distinct clean inputs."
    )
    return Table("Test sets, from the ground up", ("test set", *SET_HEAD, "holds"), rows, note) if rows else None


def other_sets_table(results: Results) -> Table | None:
    """Test sets that are not rungs: dose sets and controls."""
    rows = [(name, *set_cells(row)) for name, row in (results.get("sets") or {}).items() if name not in RUNGS]
    return Table("Other test sets", ("test set", *SET_HEAD), rows) if rows else None


def set_cells(row: Results) -> list[str]:
    """The metrics of a test set, in the order of ``SET_HEAD``."""
    return [
        format_rate(row.get("auroc")),
        format_rate(row.get("tpr")),
        format_rate_with_interval(row.get("fpr"), row.get("fpr_interval")),
        format_rate(row.get("tpr_at_1pct_fpr")),
        MISSING if row.get("dprime") is None else f"{row['dprime']:.2f}",
        format_rate(row.get("mass")),
        format_count(row.get("n_steered")),
        f"{format_count(row.get('n_clean'))} ({format_count(row.get('n_clean_distinct'))})",
    ]


def _rung_result(row: Results) -> str:
    reasons = failures(row)
    return f"✗ {', '.join(reasons)}" if reasons else "✓ holds"


def strengths_table(evidence: Results) -> Table | None:
    """The detection strength over all layers and for each band, with its interval and lapse rate."""
    rows = []
    for vectors, fit in (lookup(evidence, "detection_strength") or {}).items():
        if fit:
            for name, row in {"all layers": fit, **(fit.get("bands") or {})}.items():
                lapse = format_rate(row.get("lapse")) if row else MISSING
                ends = format_strength_interval(row.get("interval")) if row else ""
                at = format_strength(row.get("strength")) if row else MISSING
                rows.append((f"{vectors}, {name}", at, ends or MISSING, lapse))
    note = "Missed however strong: the share that the fitted curve says is never detected."
    head = ("vectors, layers", "strength", "95 % interval", "missed however strong")
    return Table("Strength from which on 75 % are detected at 1 % FPR", head, rows, note) if rows else None


def references_table(evidence: Results) -> Table | None:
    """AUROC and information of every observer on each reference set."""
    rows = [
        (
            row["observer"],
            RUNGS.get(row["set"], row["set"]),
            format_count(row.get("n")),
            format_rate_with_interval(row.get("auroc"), row.get("auroc_interval")),
            format_rate(row.get("information")),
            MISSING if row.get("share") is None else format_percent(row["share"]),
        )
        for row in lookup(evidence, "references") or []
    ]
    head = ("observer", "test set", "trials", "AUROC", "information (bits)", "share of the probe's information")
    return Table("The same trials, seen by others", head, rows, "95 % intervals in brackets.") if rows else None


def controls_table(evidence: Results) -> Table | None:
    """The change, the expectation, the metrics and the result of each control."""
    rows = [
        (row["name"], row.get("what") or "", row.get("expected") or "", control_metrics_text(row), HELD[row.get("held")])
        for row in lookup(evidence, "controls") or []
    ]
    return Table("Controls", ("control", "what", "expected", "measured", "held"), rows) if rows else None


def control_metrics_text(row: Results) -> str:
    """The metrics of a control, as one text."""
    titles = {"AUROC": "auroc", "TPR": "tpr", "FPR": "fpr", "balanced accuracy, threshold set anew": "recalibrated"}
    metrics = [f"{title} {format_rate(row[key])}" for title, key in titles.items() if row.get(key) is not None]
    return ", ".join(metrics) or MISSING


def factual_table(evidence: Results) -> Table | None:
    """How far steering shifts the answers to the detection question and to factual questions."""
    questions = lookup(evidence, "factual") or []
    titles = {
        "log-odds, clean": "clean",
        "log-odds, steered": "steered",
        "shift": "shift",
        "says yes, clean": "said_yes_clean",
        "says yes, steered": "said_yes_steered",
        "AUROC": "auroc",
    }
    titles = {title: key for title, key in titles.items() if any(row.get(key) is not None for row in questions)}
    rows = [
        (row["question"], *(format_rate(row.get(key)) for key in titles.values()), format_count(row.get("n")))
        for row in questions
    ]
    return Table("Factual questions under the same steering", ("question", *titles, "n"), rows) if rows else None


def tasks_table(evidence: Results) -> Table | None:
    """What test sets with several questions show: whether the question is answered, or a word said."""
    rows = [
        (
            TASK_SETS.get(row["set"], row["set"]),
            row["observer"],
            format_count(row.get("n")),
            format_rate_with_interval(row.get("auroc"), row.get("auroc_interval")),
            format_rate_with_interval(row.get("both_right"), row.get("both_right_interval")),
            format_rate_with_interval(row.get("changed"), row.get("changed_interval")),
            MISSING if row.get("shift") is None else f"{row['shift']:+.2f}",
            format_rate(row.get("accuracy")),
        )
        for row in lookup(evidence, "tasks") or []
    ]
    head = (
        "questions",
        "observer",
        "trials",
        "AUROC",
        "right in both orders",
        "answers changed",
        "shift (nats)",
        "accuracy",
    )
    note = (
        "AUROC of steered against clean caches: 1 is right where the question is about steering, that of the untrained "
        "model (or .5) where it is not. Right in both orders: of the same answer words, at a threshold of 0, mean of clean "
        "caches and of those steered at strength 0.5 or more. Answers changed: by the steering, same question and context."
    )
    return Table("Answers, or one word?", head, rows, note) if rows else None


def choices_table(evidence: Results) -> Table | None:
    """How often it is named which half or line was steered, which half more, and which concept was added."""
    rows = [
        (
            CHOICE_SETS.get(row["set"], row["set"]),
            row["observer"],
            format_count(row.get("n")),
            format_rate(row.get("chance")),
            format_rate_with_interval(row.get("accuracy"), row.get("accuracy_interval")),
            format_rate_with_interval(row.get("strong"), row.get("strong_interval")),
            "; ".join(f"{band}: {rate:.2f}" for band, rate in (row.get("by_band") or {}).items()),
            _information(row),
        )
        for row in lookup(evidence, "choices") or []
    ]
    head = (
        "question",
        "observer",
        "trials",
        "chance",
        "accuracy",
        "strength 0.5 or more",
        "by layers",
        "information (bits)",
    )
    note = (
        "Saying one word always is right as often as chance: each half is right half of the time over the same context. "
        "Information: between the concept that was added and the one that is named, and in brackets its mean over random "
        "orders of the names; it shows a bias to few names that the accuracy hides."
    )
    return Table("Which part, which concept", head, rows, note) if rows else None


def _information(row: Results) -> str:
    bits, chance = row.get("information"), row.get("information_by_chance")
    return MISSING if bits is None or chance is None else f"{bits:.2f} ({chance:.2f})"


def odd_table(evidence: Results) -> Table | None:
    """FPR, TPR and AUROC on each kind of corrupted input."""
    rows = [
        (
            row["kind"],
            format_count(row.get("n_clean")),
            format_rate_with_interval(row.get("fpr"), row.get("fpr_interval")),
            format_rate(row.get("tpr")),
            format_rate(row.get("auroc")),
        )
        for row in lookup(evidence, "odd") or []
    ]
    return Table("Odd but clean inputs", ("kind", "clean inputs", "FPR", "TPR", "AUROC"), rows) if rows else None


def side_effects_table(evidence: Results) -> Table | None:
    """Perplexity and answers to factual questions without steering, with the adapter off and on."""
    effects = lookup(evidence, "side_effects")
    if not effects:
        return None
    texts, facts = effects.get("texts"), effects.get("facts")
    measures = [
        (f"perplexity ({format_count(texts)} texts)", "perplexity", "perplexity"),
        ("nats per token", "perplexity", "nats"),
        (f"factual questions: accuracy ({format_count(facts)})", "factual", "accuracy"),
        ("factual questions: AUROC", "factual", "auroc"),
        ("factual questions: says yes", "factual", "yes"),
        ("factual questions: mass", "factual", "mass"),
        ("factual questions: mean log-odds", "factual", "log_odds"),
    ]
    rows = []
    for name, group, key in measures:
        off, on = lookup(effects, group, "off", key), lookup(effects, group, "on", key)
        if off is not None or on is not None:
            change = MISSING if off is None or on is None else f"{'+' if on >= off else ''}{format_rate(on - off)}"
            rows.append((name, format_rate(off), format_rate(on), change))
    return Table("Side effects of the adapter", ("measure", "off", "on", "change"), rows) if rows else None


def leak_tables(evidence: Results) -> list[Table]:
    """Messages, kinds and questions shared by training and test, and the largest cosines between their vectors."""
    leaks = lookup(evidence, "leaks")
    if not leaks:
        return []
    kinds = leaks.get("unseen_kinds_in_training")
    shared = [
        ("messages in training and test", leaks.get("shared_messages"), ""),
        ("kinds called unseen, in training", None if kinds is None else len(kinds), ", ".join(kinds or [])),
        ("questions in training and test", leaks.get("shared_questions"), ""),
    ]
    rows = [
        (name, format_count(n), "0", MISSING if n is None else HELD[n == 0], items or "none") for name, n, items in shared
    ]
    tables = [Table("What training and test share", ("what", "shared", "expected", "held", "which"), rows)]
    cosines = [(pair, format_rate(value)) for pair, value in (leaks.get("vectors") or {}).items()]
    if cosines:
        tables.append(Table("Largest |cosine| between vectors of two splits", ("splits", "|cosine|"), cosines))
    distinct = [(RUNGS.get(name, name), format_count(n)) for name, n in (leaks.get("distinct_clean") or {}).items()]
    if distinct:
        tables.append(Table("Distinct clean inputs", ("test set", "inputs"), distinct))
    return tables


def seeds_tables(seeds: Results) -> list[Table]:
    """Mean, standard deviation and worst value over several seeds."""
    head = ("mean", "sd", "worst (seed)", "by seed")
    numbers = ", ".join(map(str, seeds.get("seeds") or []))
    rows = [
        (f"{RUNGS.get(name, name)}: {METRICS.get(metric, metric)}", *_seed_cells(row, format_rate))
        for name, metrics in (seeds.get("sets") or {}).items()
        for metric, row in (metrics or {}).items()
        if row and isinstance(row, Mapping)
    ]
    strengths = [
        (vectors, *_seed_cells(row, format_strength))
        for vectors, row in (seeds.get("detection_strength") or {}).items()
        if row
    ]
    note = f"Seeds {numbers}. sd: standard deviation between seeds."
    tables = [Table("Test sets over seeds", ("test set: metric", *head), rows, note)] if rows else []
    return tables + ([Table("Detection strength over seeds", ("vectors", *head), strengths)] if strengths else [])


def _seed_cells(row: Results, format_value: Callable[[Any], str]) -> list[str]:
    worst = f"{format_value(row.get('worst'))} ({row.get('worst_seed')})"
    values = ", ".join(map(format_value, row.get("values") or []))
    return [format_value(row.get("mean")), format_value(row.get("sd")), worst, values]


def run_settings(results: Results) -> dict[str, str]:
    """All settings, versions and hardware of a run by name; nested values under ``name.part``."""
    skipped = ("command", "sets", "evidence", "concept_cosines")
    texts: dict[str, str] = {}
    for name, value in results.items():
        if name in skipped:
            continue
        if name == "kinds" and isinstance(value, Mapping):
            texts |= {f"kinds.{split}": f"{len(kinds)}: {_format_value(kinds)}" for split, kinds in value.items()}
        elif isinstance(value, Mapping):
            texts |= {f"{name}.{key}": _format_value(inner) for key, inner in value.items()}
        else:
            texts[name] = _format_value(value)
    limit = lookup(results, "evidence", "max_fpr_threshold")
    return texts | ({"threshold at 1 % FPR": _format_value(limit)} if limit is not None else {})


def _format_value(value: Any) -> str:
    if value is None or value in ("", [], {}):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_format_value(inner)}" for key, inner in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        nested = any(isinstance(inner, Sequence) and not isinstance(inner, str) for inner in value)
        return ("; " if nested or any(" " in str(inner) for inner in value) else ", ").join(
            _format_item(inner) for inner in value
        )
    return str(value)


def _format_item(value: Any) -> str:
    pair = isinstance(value, list) and len(value) == 2 and all(isinstance(end, int) for end in value)
    return f"{value[0]}..{value[1]}" if pair else _format_value(value)
