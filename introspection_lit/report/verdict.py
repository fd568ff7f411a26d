"""The verdict on a run in plain words: what holds, from what strength on, what fails first and where, what stays open."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from introspection_lit.evaluation.rungs import HIGHEST_FPR, LOWEST_AUROC, LOWEST_TPR, RUNGS, failures
from introspection_lit.report.parts import layers, part, percent, strength, strength_interval, with_interval

Results = Mapping[str, Any]


def rungs(results: Results) -> dict[str, Mapping[str, Any]]:
    """The test sets that are rungs of the ladder, lowest first."""
    sets = results.get("sets") or {}
    return {name: sets[name] for name in RUNGS if name in sets}


def subject(results: Results) -> str:
    """Who was tested."""
    trained = results.get("adapter") or results.get("checkpoint") or part(results, "evidence", "training")
    return "the adapter" if trained else "the untrained model"


def sentences(results: Results) -> list[str]:
    """Say what the numbers of a run say, and no more.

    Args:
        results: Of ``results.json``; whatever it has not got is passed over.

    Returns:
        Sentences, most important first.
    """
    parts = (_holds, _strengths, _weakest, _alarms, _excluded, _references, _controls, _mass, _leaks)
    return [sentence for part_of in parts for sentence in part_of(results)]


def worst_unseen(results: Results) -> Mapping[str, Any] | None:
    """The row of the unseen kind with the highest FPR; between equal ones that with the widest interval."""
    rows = [row for row in part(results, "evidence", "kinds") or [] if not row["seen"] and row.get("fpr") is not None]
    return max(rows, key=lambda row: (row["fpr"], (row.get("fpr_interval") or [0, 0])[1]), default=None)


def detection(results: Results, vectors: str) -> tuple[str, str]:
    """The strength from which on the share asked for (75 %) is detected, and its interval, as texts.

    A strength at an end of what was tested is a bound, and is called one.
    """
    found = part(results, "evidence", "detection_strength", vectors)
    if not found:
        return "not measured", ""
    at = found.get("strength")
    tested = [p["strength"] for p in part(results, "evidence", "curves", vectors, "adapter") or [] if p.get("strength")]
    text = strength(at)
    if at is not None and tested and at <= min(tested) * (1 + 1e-9):
        text = f"at most {text}"
    elif at is not None and tested and at > max(tested) * (1 + 1e-9):
        text = f"{text}, beyond the {strength(max(tested))} tested"
    return text, strength_interval(found.get("interval"))


def _holds(results: Results) -> list[str]:
    rows = rungs(results)
    if not rows:
        return []
    low, high = (strength(end) for end in results.get("strengths") or (None, None))
    doses = f"strength {low}" if low == high else f"strengths {low} to {high}"
    at = f" at {doses} ({results.get('strength_unit')})" if results.get("strengths") else ""
    limits = f"AUROC at least {LOWEST_AUROC:g}, TPR at least {LOWEST_TPR:g}, FPR at most {HIGHEST_FPR:g}"
    failing = {name: failures(row) for name, row in rows.items() if failures(row)}
    holding = [RUNGS[name] for name in rows if name not in failing]
    tested = f"On {len(rows)} test set{'' if len(rows) == 1 else 's'}{at}"
    if not holding:
        said = [f"{tested} {subject(results)} keeps to the limits ({limits}) nowhere."]
    else:
        where = "all of them" if not failing else f"{len(holding)}"
        said = [f"{tested} {subject(results)} keeps to the limits ({limits}) on {where}: {', '.join(holding)}."]
    if failing:
        first, *others = failing
        said.append(f"The first to fail is {RUNGS[first]}: {', '.join(failing[first])}.")
        also = [f"{RUNGS[name]} ({', '.join(failing[name])})" for name in others]
        if also:
            said.append(f"Also failing: {'; '.join(also)}.")
    return said


def _strengths(results: Results) -> list[str]:
    said = []
    for vectors, found in (part(results, "evidence", "detection_strength") or {}).items():
        if not found:
            continue
        value, ends = detection(results, vectors)
        share = found.get("share") or 0.75
        if found.get("strength") is None:
            said.append(f"A share of {percent(share)} detected at 1 % FPR is not reached on {vectors} vectors.")
        else:
            interval = f" (95 %: {ends})" if ends else ""
            said.append(
                f"On {vectors} vectors {percent(share)} are detected at 1 % FPR from strength {value} on{interval}."
            )
    return said


def _weakest(results: Results) -> list[str]:
    cell = part(results, "evidence", "worst", "cell")
    if not cell or cell.get("tpr") is None:
        return []
    where = (
        f"{cell['vectors']} vectors, layers {layers(cell['band'])}, strength {strength(cell['strength'])}, n = {cell['n']}"
    )
    return [f"Within the trained range the lowest TPR of a band and strength is {cell['tpr']:.3f} ({where})."]


def _alarms(results: Results) -> list[str]:
    row = part(results, "evidence", "worst", "fpr") or worst_unseen(results)
    said = []
    if row and row.get("fpr") is not None:
        said.append(
            f"Most false alarms come on the kind {_kind(row)}: FPR {_rate(row, 'fpr')}, {row['n_clean']} clean inputs."
        )
    unseen = worst_unseen(results)
    if row and row["seen"] and unseen:
        said.append(f"Among unseen kinds it is {unseen['kind']}: FPR {_rate(unseen, 'fpr')}.")
    row = part(results, "evidence", "worst", "tpr")
    if row and row.get("tpr") is not None:
        missed = f"Most is missed on the kind {_kind(row)}: TPR {_rate(row, 'tpr')}."
        said.append(missed if row["tpr"] < 1 else "Nothing was missed there, on any kind.")
    return said


def _kind(row: Mapping[str, Any]) -> str:
    return f"{row['kind']} ({'seen in training' if row['seen'] else 'unseen'})"


def _rate(row: Mapping[str, Any], key: str) -> str:
    return with_interval(row[key], row.get(f"{key}_interval"))


def _excluded(results: Results) -> list[str]:
    rows = {name: row for name, row in rungs(results).items() if row.get("fpr_interval")}
    said = []
    if rows:
        name, widest = max(rows.items(), key=lambda item: float(item[1]["fpr_interval"][1]))
        high = float(widest["fpr_interval"][1])
        beyond = f", which is above the limit of {HIGHEST_FPR:g}" if high > HIGHEST_FPR >= widest["fpr"] else ""
        said.append(
            f"Not excluded (95 %): an FPR of up to {high:.3f} on {RUNGS[name]}, with {widest['n_clean_distinct']} distinct "
            f"clean inputs{beyond}."
        )
    kinds = [
        row for row in part(results, "evidence", "kinds") or [] if row.get("fpr") is not None and row.get("fpr_interval")
    ]
    if kinds:
        row = max(kinds, key=lambda row: float(row["fpr_interval"][1]))
        said.append(f"By kind it is {row['fpr_interval'][1]:.3f}, on {row['kind']} ({row['n_clean']} inputs).")
    return said


def _references(results: Results) -> list[str]:
    rows = [row for row in part(results, "evidence", "references") or [] if row.get("auroc") is not None]
    said, compared = [], []
    for ours in (row for row in rows if row["observer"] == "adapter"):
        others = [row for row in rows if row["set"] == ours["set"] and row is not ours]
        compared += [row["observer"] for row in others]
        for other in others:
            if round(other["auroc"], 3) > round(ours["auroc"], 3):
                name = RUNGS.get(ours["set"], ours["set"])
                said.append(
                    f"On {name} the reference '{other['observer']}' has a higher AUROC than the adapter: "
                    f"{_rate(other, 'auroc')} against {_rate(ours, 'auroc')}{_overlap(ours, other)}."
                )
    if compared and not said:
        said.append(
            f"No reference ({', '.join(dict.fromkeys(compared))}) has a higher AUROC than the adapter, to three decimals."
        )
    return said


def _overlap(ours: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    one, two = ours.get("auroc_interval"), other.get("auroc_interval")
    if not one or not two or None in one or None in two:
        return ""
    return "; the intervals overlap" if two[0] <= one[1] else "; the intervals do not overlap"


def _controls(results: Results) -> list[str]:
    rows = part(results, "evidence", "controls") or []
    if not rows:
        return []
    failed = [row["name"] for row in rows if row.get("held") is False]
    unjudged = [row["name"] for row in rows if row.get("held") is None]
    said = f"Controls held: {sum(row.get('held') is True for row in rows)} of {len(rows)}"
    said += f"; not held: {', '.join(failed)}" if failed else ""
    said += f"; not judged: {', '.join(unjudged)}" if unjudged else ""
    return [f"{said}."]


def _mass(results: Results) -> list[str]:
    rows = {name: row["mass"] for name, row in (results.get("sets") or {}).items() if row.get("mass") is not None}
    low = {name: mass for name, mass in rows.items() if mass < 0.5}
    if not low:
        return []
    said = ", ".join(f"{RUNGS.get(name, name)} {mass:.3f}" for name, mass in low.items())
    return [
        f"Most of the probability goes to other words than the two answers (mass: {said}): the log-odds there mean little."
    ]


def _leaks(results: Results) -> list[str]:
    leaks = part(results, "evidence", "leaks") or {}
    found = []
    if leaks.get("shared_messages"):
        found.append(f"{leaks['shared_messages']} messages")
    if leaks.get("unseen_kinds_in_training"):
        found.append(f"kinds called unseen ({', '.join(leaks['unseen_kinds_in_training'])})")
    if leaks.get("shared_questions"):
        found.append(f"{leaks['shared_questions']} questions")
    return [f"Training and test share {', '.join(found)}: these numbers are not of unseen data."] if found else []
