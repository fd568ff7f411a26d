"""The verdict on a run in sentences: test sets that hold, detection strength, worst cases, bounds, controls, leaks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from introspection_lit.evaluation.rungs import HIGHEST_FPR, LOWEST_AUROC, LOWEST_TPR, RUNGS, failures
from introspection_lit.report.deployment import deployed_sentences
from introspection_lit.report.exported import exported_sentences
from introspection_lit.report.formatting import (
    format_band,
    format_percent,
    format_rate_with_interval,
    format_strength,
    format_strength_interval,
    lookup,
)
from introspection_lit.report.lengths import length_sentences

Results = Mapping[str, Any]
# How far the AUROC of steered against clean may lie from the untrained model's where the question is not about steering.
MOST_MOVED = 0.06


def rung_summaries(results: Results) -> dict[str, Mapping[str, Any]]:
    """The test sets that are rungs of the ladder, lowest first."""
    sets = results.get("sets") or {}
    return {name: sets[name] for name in RUNGS if name in sets}


def _subject(results: Results) -> str:
    """The subject of the sentences: the adapter or the untrained model."""
    trained = results.get("adapter") or results.get("checkpoint") or lookup(results, "evidence", "training")
    return "the adapter" if trained else "the untrained model"


def verdict_sentences(results: Results) -> list[str]:
    """State the results of a run in sentences.

    Args:
        results: Content of ``results.json``; missing parts are skipped.

    Returns:
        Sentences, most important first.
    """
    parts = (
        answer_sentences,
        exported_sentences,
        length_sentences,
        deployed_sentences,
        _rungs_holding,
        _detection_strengths,
        _weakest_cell,
        _worst_kinds,
        _upper_bounds,
        _references,
        _controls,
        _low_mass,
        _leaks,
    )
    return [sentence for part in parts for sentence in part(results)]


def worst_unseen(results: Results) -> Mapping[str, Any] | None:
    """The row of the unseen kind with the highest FPR; among equal ones the one with the highest upper end."""
    rows = [row for row in lookup(results, "evidence", "kinds") or [] if not row["seen"] and row.get("fpr") is not None]
    return max(rows, key=lambda row: (row["fpr"], (row.get("fpr_interval") or [0, 0])[1]), default=None)


def detection_strength_text(results: Results, vectors: str) -> tuple[str, str]:
    """The strength from which on 75 % are detected, and its interval, as texts.

    A strength at or beyond an end of the tested range is described as a bound.
    """
    fit = lookup(results, "evidence", "detection_strength", vectors)
    if not fit:
        return "not measured", ""
    at = fit.get("strength")
    tested = [p["strength"] for p in lookup(results, "evidence", "curves", vectors, "adapter") or [] if p.get("strength")]
    text = format_strength(at)
    if at is not None and tested and at <= min(tested) * (1 + 1e-9):
        text = f"at most {text}"
    elif at is not None and tested and at > max(tested) * (1 + 1e-9):
        text = f"{text}, beyond the {format_strength(max(tested))} tested"
    return text, format_strength_interval(fit.get("interval"))


def _rungs_holding(results: Results) -> list[str]:
    rows = rung_summaries(results)
    if not rows:
        return []
    low, high = (format_strength(end) for end in results.get("strengths") or (None, None))
    doses = f"strength {low}" if low == high else f"strengths {low} to {high}"
    at = f" at {doses} ({results.get('strength_unit')})" if results.get("strengths") else ""
    limits = f"AUROC at least {LOWEST_AUROC:g}, TPR at least {LOWEST_TPR:g}, FPR at most {HIGHEST_FPR:g}"
    failing = {name: failures(row) for name, row in rows.items() if failures(row)}
    holding = [RUNGS[name] for name in rows if name not in failing]
    tested = f"On {len(rows)} test set{'' if len(rows) == 1 else 's'}{at}"
    if not holding:
        sentences = [f"{tested} {_subject(results)} keeps to the limits ({limits}) nowhere."]
    else:
        where = "all of them" if not failing else f"{len(holding)}"
        sentences = [f"{tested} {_subject(results)} keeps to the limits ({limits}) on {where}: {', '.join(holding)}."]
    if failing:
        first, *others = failing
        sentences.append(f"The first to fail is {RUNGS[first]}: {', '.join(failing[first])}.")
        also = [f"{RUNGS[name]} ({', '.join(failing[name])})" for name in others]
        if also:
            sentences.append(f"Also failing: {'; '.join(also)}.")
    return sentences


def answer_sentences(results: Results) -> list[str]:
    """Say whether the adapter answers what it is asked, or says one word whenever a cache is steered.

    It answers if detection follows the answer words when they change places, and if steering moves the answers to questions
    about something else no more than it moves those of the untrained model.
    """
    sets, rows = results.get("sets") or {}, lookup(results, "evidence", "tasks") or []
    adapter = {row["set"]: row for row in rows if row["observer"] == "adapter"}
    untrained = {row["set"]: row for row in rows if row["observer"] == "untrained"}
    codes = (adapter.get("codes") or sets.get("swapped") or {}).get("auroc")
    words = "with the answer words in both orders" if "codes" in adapter else "with the answer words exchanged"
    others = {name: adapter.get(name) or {} for name in ("facts", "reading")} | {"factual": sets.get("factual") or {}}
    usual = {name: row["auroc"] for name, row in untrained.items() if row.get("auroc") is not None}
    moved = {name: (row["auroc"], usual.get(name, 0.5)) for name, row in others.items() if row.get("auroc") is not None}
    if codes is None or not moved:
        return []
    name = max(moved, key=lambda name: abs(moved[name][0] - moved[name][1]))
    area, expected = moved[name]
    compared = "the untrained model's" if name in untrained else "chance"
    numbers = (
        f"Detection {words} has an AUROC of {codes:.3f} (1 is right); steering moves the answers to questions about "
        f"something else ({name}) to an AUROC of {area:.3f} ({expected:.3f} is {compared})."
    )
    if codes < LOWEST_AUROC:
        says_a_word = area - expected > MOST_MOVED
        return [f"{'It says a word' if says_a_word else 'It does not follow the answer words'}. {numbers}"]
    if abs(area - expected) > MOST_MOVED:
        return [f"It follows the answer words, but steering also moves other answers. {numbers}"]
    return [f"It answers what it is asked. {numbers}"]


def _detection_strengths(results: Results) -> list[str]:
    sentences = []
    for vectors, fit in (lookup(results, "evidence", "detection_strength") or {}).items():
        if not fit:
            continue
        value, ends = detection_strength_text(results, vectors)
        share = fit.get("share") or 0.75
        if fit.get("strength") is None:
            sentences.append(f"A share of {format_percent(share)} detected at 1 % FPR is not reached on {vectors} vectors.")
        else:
            interval = f" (95 %: {ends})" if ends else ""
            sentences.append(
                f"On {vectors} vectors {format_percent(share)} are detected at 1 % FPR from strength {value} on{interval}."
            )
    return sentences


def _weakest_cell(results: Results) -> list[str]:
    cell = lookup(results, "evidence", "worst", "cell")
    if not cell or cell.get("tpr") is None:
        return []
    place = f"{cell['vectors']} vectors, layers {format_band(cell['band'])}"
    where = f"{place}, strength {format_strength(cell['strength'])}, n = {cell['n']}"
    return [f"Within the trained range the lowest TPR of a band and strength is {cell['tpr']:.3f} ({where})."]


def _worst_kinds(results: Results) -> list[str]:
    row = lookup(results, "evidence", "worst", "fpr") or worst_unseen(results)
    sentences = []
    if row and row.get("fpr") is not None:
        sentences.append(
            f"Most false alarms come on the kind {_describe_kind(row)}: FPR {_rate_of(row, 'fpr')}, "
            f"{row['n_clean']} clean inputs."
        )
    unseen = worst_unseen(results)
    if row and row["seen"] and unseen:
        sentences.append(f"Among unseen kinds it is {unseen['kind']}: FPR {_rate_of(unseen, 'fpr')}.")
    row = lookup(results, "evidence", "worst", "tpr")
    if row and row.get("tpr") is not None:
        missed = f"Most is missed on the kind {_describe_kind(row)}: TPR {_rate_of(row, 'tpr')}."
        sentences.append(missed if row["tpr"] < 1 else "Nothing was missed there, on any kind.")
    return sentences


def _describe_kind(row: Mapping[str, Any]) -> str:
    return f"{row['kind']} ({'seen in training' if row['seen'] else 'unseen'})"


def _rate_of(row: Mapping[str, Any], key: str) -> str:
    return format_rate_with_interval(row[key], row.get(f"{key}_interval"))


def _upper_bounds(results: Results) -> list[str]:
    rows = {name: row for name, row in rung_summaries(results).items() if row.get("fpr_interval")}
    sentences = []
    if rows:
        name, widest = max(rows.items(), key=lambda item: float(item[1]["fpr_interval"][1]))
        high = float(widest["fpr_interval"][1])
        beyond = f", which is above the limit of {HIGHEST_FPR:g}" if high > HIGHEST_FPR >= widest["fpr"] else ""
        sentences.append(
            f"Not excluded (95 %): an FPR of up to {high:.3f} on {RUNGS[name]}, with {widest['n_clean_distinct']} distinct "
            f"clean inputs{beyond}."
        )
    kinds = [
        row for row in lookup(results, "evidence", "kinds") or [] if row.get("fpr") is not None and row.get("fpr_interval")
    ]
    if kinds:
        row = max(kinds, key=lambda row: float(row["fpr_interval"][1]))
        sentences.append(f"By kind it is {row['fpr_interval'][1]:.3f}, on {row['kind']} ({row['n_clean']} inputs).")
    return sentences


def _references(results: Results) -> list[str]:
    rows = [row for row in lookup(results, "evidence", "references") or [] if row.get("auroc") is not None]
    sentences, compared = [], []
    for ours in (row for row in rows if row["observer"] == "adapter"):
        others = [row for row in rows if row["set"] == ours["set"] and row is not ours]
        compared += [row["observer"] for row in others]
        for other in others:
            if round(other["auroc"], 3) > round(ours["auroc"], 3):
                name = RUNGS.get(ours["set"], ours["set"])
                sentences.append(
                    f"On {name} the reference '{other['observer']}' has a higher AUROC than the adapter: "
                    f"{_rate_of(other, 'auroc')} against {_rate_of(ours, 'auroc')}{_overlap(ours, other)}."
                )
    if compared and not sentences:
        sentences.append(
            f"No reference ({', '.join(dict.fromkeys(compared))}) has a higher AUROC than the adapter, to three decimals."
        )
    return sentences


def _overlap(ours: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    one, two = ours.get("auroc_interval"), other.get("auroc_interval")
    if not one or not two or None in one or None in two:
        return ""
    return "; the intervals overlap" if two[0] <= one[1] else "; the intervals do not overlap"


def _controls(results: Results) -> list[str]:
    rows = lookup(results, "evidence", "controls") or []
    if not rows:
        return []
    failed = [row["name"] for row in rows if row.get("held") is False]
    unjudged = [row["name"] for row in rows if row.get("held") is None]
    sentence = f"Controls held: {sum(row.get('held') is True for row in rows)} of {len(rows)}"
    sentence += f"; not held: {', '.join(failed)}" if failed else ""
    sentence += f"; not judged: {', '.join(unjudged)}" if unjudged else ""
    return [f"{sentence}."]


def _low_mass(results: Results) -> list[str]:
    rows = {name: row["mass"] for name, row in (results.get("sets") or {}).items() if row.get("mass") is not None}
    low = {name: mass for name, mass in rows.items() if mass < 0.5}
    if not low:
        return []
    masses = ", ".join(f"{RUNGS.get(name, name)} {mass:.3f}" for name, mass in low.items())
    return [
        f"Most of the probability goes to other words than the two answers (mass: {masses}): the log-odds there mean "
        "little."
    ]


def _leaks(results: Results) -> list[str]:
    leaks = lookup(results, "evidence", "leaks") or {}
    shared = []
    if leaks.get("shared_messages"):
        shared.append(f"{leaks['shared_messages']} messages")
    if leaks.get("unseen_kinds_in_training"):
        shared.append(f"kinds called unseen ({', '.join(leaks['unseen_kinds_in_training'])})")
    if leaks.get("shared_questions"):
        shared.append(f"{leaks['shared_questions']} questions")
    return [f"Training and test share {', '.join(shared)}: these numbers are not of unseen data."] if shared else []
