"""What a test shows beyond its averages: by dose, band, kind of text and observer. Tables in, plain values out.

Everything is computed from the trials (:class:`~introspection_lit.trial_table.TrialTable`) and ready for JSON. Intervals
are of 95 %: for rates the wider of Wilson's and the bootstrap over directions and contexts, for AUROCs the latter.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from introspection_lit.evaluation.observers import PROBE
from introspection_lit.evaluation.psychometric import detection_strength
from introspection_lit.evaluation.statistics import (
    auroc,
    clustered_bootstrap,
    information,
    rate,
    weighted_auroc,
    wilson_interval,
)
from introspection_lit.evaluation.trial_table import ADAPTER, CURVES, PLAIN_SETS, USUAL_SETS, TrialTable
from introspection_lit.trials.grid import CLEAR_NO, CLEAR_YES, DETECTION

Row = dict[str, Any]
# The false-alarm rate at which observers are compared.
FPR = 0.01
RESAMPLES = 300
REFERENCE_SETS = ("heldout", "concept", "doses", "doses_concept")


def gather(trials: TrialTable, threshold: float, weakest: float) -> dict[str, Any]:
    """Everything that the trials of a test show.

    Args:
        trials: All of them.
        threshold: The stored threshold of the adapter, on the log-odds.
        weakest: The weakest strength that was trained on.
    """
    plain = trials.of_sets(*PLAIN_SETS)
    cells, kinds = grid(trials, threshold), by_kind(plain, threshold)
    return {
        "max_fpr_threshold": threshold_at(plain, ADAPTER) if (~plain.steered).any() else None,
        "observers": list(trials.scores),
        "curves": {
            name: {observer: points for observer in trials.scores if (points := curve(trials, name, observer))}
            for name, source in CURVES.items()
            if source in trials.sets
        },
        "detection_strength": {name: strength(trials, name) for name, source in CURVES.items() if source in trials.sets},
        "grid": cells,
        "kind_grid": kind_grid(trials, threshold),
        "kinds": kinds,
        "worst": worst(cells, kinds, weakest),
        "roc": {name: roc(trials.of_sets(name)) for name in ("heldout", "concept", "newkinds") if name in trials.sets},
        "references": references(trials),
        "factual": factual(trials),
        "odd": by_kind(trials.of_sets("odd"), threshold),
        "histograms": histograms(trials),
    }


def threshold_at(trials: TrialTable, observer: str, fpr: float = FPR) -> float:
    """The lowest threshold at which at most a share of the distinct clean inputs is called steered by an observer."""
    clean = np.sort(trials.scored(observer).clean().scores.get(observer, np.empty(0)))[::-1]
    return float(clean[math.floor(fpr * len(clean))]) if len(clean) else 0.0


def rate_interval(hits: np.ndarray, trials: TrialTable) -> list[float]:
    """The interval of a rate: the wider of Wilson's and the clustered bootstrap's."""
    low, high = wilson_interval(int(hits.sum()), len(hits))
    if len(hits) < 2:
        return [low, high]
    drawn = clustered_bootstrap(lambda w: float(w @ hits / w.sum()) if w.any() else math.nan, trials.clusters, RESAMPLES)
    ends = [end for end in drawn if math.isfinite(end)]
    return [min([low, *ends]), max([high, *ends])]


def auroc_interval(scores: np.ndarray, trials: TrialTable) -> list[float | None]:
    """The interval of an AUROC over directions and contexts."""
    drawn = clustered_bootstrap(lambda w: weighted_auroc(scores, trials.steered, w), trials.clusters, RESAMPLES)
    return [_told(end) for end in drawn]


def curve(trials: TrialTable, name: str, observer: str) -> list[Row]:
    """Detection by strength: the share detected at a 1 % FPR of the observer, and the AUROC against all clean trials.

    Args:
        trials: All of them.
        name: ``random`` or ``concept``.
        observer: Who is asked.
    """
    threshold = threshold_at(trials.of_sets(*PLAIN_SETS), observer)
    asked = trials.of_sets(CURVES[name]).scored(observer)
    points = []
    for dose in np.unique(asked.strengths[asked.steered]):
        dosed = asked.where(asked.strengths == dose)
        against = asked.where((asked.strengths == dose) | ~asked.steered)
        hits = dosed.scores[observer] > threshold
        scores = against.scores[observer]
        points.append(
            {
                "strength": float(dose),
                "n": len(dosed),
                "tpr": rate(hits),
                "tpr_interval": rate_interval(hits, dosed),
                "auroc": _told(auroc(scores, against.steered)),
                "auroc_interval": auroc_interval(scores, against),
            }
        )
    return points


def strength(trials: TrialTable, name: str) -> Row:
    """The strength at which the adapter detects 75 % at a 1 % FPR, in all bands and in each."""
    threshold = threshold_at(trials.of_sets(*PLAIN_SETS), ADAPTER)
    asked = trials.of_sets(CURVES[name])
    steered = asked.where(asked.steered)

    def fitted(part: TrialTable) -> Row:
        return detection_strength(part.strengths, part.scores[ADAPTER] > threshold, FPR, part.clusters, resamples=RESAMPLES)

    return fitted(steered) | {"bands": {band: fitted(steered.where(steered.bands == band)) for band in steered.bands_of()}}


def grid(trials: TrialTable, threshold: float) -> list[Row]:
    """Band by strength for each type of vector: TPR at the stored threshold, and AUROC against all clean trials."""
    cells = []
    for name, source in CURVES.items():
        asked = trials.of_sets(source)
        for band in asked.bands_of():
            for dose in np.unique(asked.strengths[asked.bands == band]):
                inside = (asked.bands == band) & (asked.strengths == dose)
                against = asked.where(inside | ~asked.steered)
                hits = asked.scores[ADAPTER][inside] > threshold
                cells.append(
                    {
                        "vectors": name,
                        "band": [int(layer) for layer in band.split("..")],
                        "strength": float(dose),
                        "n": int(inside.sum()),
                        "tpr": rate(hits),
                        "tpr_interval": rate_interval(hits, asked.where(inside)),
                        "auroc": _told(auroc(against.scores[ADAPTER], against.steered)),
                    }
                )
    return cells


def kind_grid(trials: TrialTable, threshold: float) -> list[Row]:
    """Kind of context by strength for each type of vector, over all bands: TPR at the stored threshold."""
    cells = []
    for name, source in CURVES.items():
        asked = trials.of_sets(source)
        steered = asked.where(asked.steered)
        for kind, dose in sorted(set(zip(steered.kinds, steered.strengths, strict=True))):
            inside = (steered.kinds == kind) & (steered.strengths == dose)
            place = {"vectors": name, "kind": str(kind), "seen": bool(~steered.unseen[inside][0]), "strength": float(dose)}
            cells.append(place | {"n": int(inside.sum()), "tpr": rate(steered.scores[ADAPTER][inside] > threshold)})
    return cells


def by_kind(trials: TrialTable, threshold: float) -> list[Row]:
    """FPR over distinct clean inputs, TPR and AUROC of each kind of context, at the stored threshold.

    TPR and AUROC are over trials of the sets that do not run through doses and add directions as usual.
    """
    rows = []
    for kind in sorted(set(trials.kinds)):
        inside = trials.where(trials.kinds == kind)
        clean = inside.clean()
        dosed = inside.where(~np.isin(inside.sets, [*CURVES.values(), "flipped", "scattered"]))
        hits = dosed.scores[ADAPTER][dosed.steered] > threshold
        alarms = int((clean.scores[ADAPTER] > threshold).sum())
        rows.append(
            {
                "kind": str(kind),
                "seen": bool(~inside.unseen[0]),
                "n_clean": len(clean),
                "alarms": alarms,
                "fpr": alarms / len(clean) if len(clean) else None,
                "fpr_interval": list(wilson_interval(alarms, len(clean))),
                "n_steered": len(hits),
                "tpr": _told(rate(hits)),
                "tpr_interval": rate_interval(hits, dosed.where(dosed.steered)) if len(hits) else None,
                "auroc": _told(auroc(dosed.scores[ADAPTER], dosed.steered)),
            }
        )
    return rows


def worst(cells: list[Row], kinds: list[Row], weakest: float) -> dict[str, Row | None]:
    """Where it is worst: the kind with most false alarms, the kind and the cell with most misses.

    Args:
        cells: From :func:`grid`; those below the weakest trained strength do not count.
        kinds: From :func:`by_kind`.
        weakest: The weakest trained strength.
    """
    trained = [cell for cell in cells if cell["strength"] >= weakest]
    clean = [row for row in kinds if row["fpr"] is not None]
    steered = [row for row in kinds if row["tpr"] is not None]
    return {
        "fpr": max(clean, key=lambda row: (row["fpr"], row["fpr_interval"][1]), default=None),
        "tpr": min(steered, key=lambda row: (row["tpr"], row["tpr_interval"][0]), default=None),
        "cell": min(trained, key=lambda cell: (cell["tpr"], cell["tpr_interval"][0]), default=None),
    }


def roc(trials: TrialTable, points: int = 100) -> dict[str, list[list[float]]]:
    """The ROC curve of each observer: false and true alarm rates, thinned out."""
    curves = {}
    for observer in trials.scores:
        asked = trials.scored(observer)
        if len(set(asked.steered)) < 2:
            continue
        scores = asked.scores[observer]
        thresholds = np.unique(scores)[::-1]
        false, true = (
            np.array([0.0, *((scores[asked.steered == steered][None] >= thresholds[:, None]).mean(1))])
            for steered in (False, True)
        )
        # Corners only: what lies on a straight line between its neighbours says nothing.
        corner = np.ones(len(false), bool)
        right, up = np.diff(false), np.diff(true)
        corner[1:-1] = ~np.isclose(right[:-1] * up[1:], up[:-1] * right[1:], rtol=1e-9, atol=0)
        kept = np.flatnonzero(corner)
        kept = kept[np.unique(np.linspace(0, len(kept) - 1, min(points, len(kept))).round().astype(int))]
        curves[observer] = [np.round(false[kept], 4).tolist(), np.round(true[kept], 4).tolist()]
    return curves


def references(trials: TrialTable) -> list[Row]:
    """Every observer on every set it was asked about: AUROC, information in bits a trial, and its share of the probe's."""
    rows: list[Row] = []
    for name in REFERENCE_SETS:
        inside = trials.of_sets(name)
        bits: dict[str, float | None] = {}
        for observer in trials.scores:
            asked = inside.scored(observer)
            if len(set(asked.steered)) < 2:
                continue
            scores = asked.scores[observer]
            bits[observer] = _told(information(scores, asked.steered, asked.contexts))
            area, interval = _told(auroc(scores, asked.steered)), auroc_interval(scores, asked)
            rows.append(
                {"observer": observer, "set": name, "n": len(asked), "auroc": area, "auroc_interval": interval}
                | {"information": bits[observer]}
            )
        for row in rows:
            if row["set"] == name:
                row["share"] = share_of(row["information"], bits.get(PROBE))
    return rows


def share_of(bits: float | None, of: float | None) -> float | None:
    """One observer's information over another's; None where the other has next to none."""
    return bits / of if bits is not None and of is not None and of > 0.02 else None


def factual(trials: TrialTable) -> list[Row]:
    """How steering moves the answers to the detection question and to questions about the world: means of log-odds."""
    sources = {DETECTION: trials.of_sets("heldout"), CLEAR_YES: trials, CLEAR_NO: trials}
    rows = []
    for role, source in sources.items():
        asked = source.where(source.roles == role)
        if "factual" not in trials.sets or len(set(asked.steered)) < 2:
            continue
        scores = asked.scores[ADAPTER]
        clean, steered = (float(scores[asked.steered == label].mean()) for label in (False, True))
        said = [rate(scores[asked.steered == label] > 0) for label in (False, True)]
        area = _told(auroc(scores, asked.steered))
        shift = {"clean": clean, "steered": steered, "shift": steered - clean}
        rows.append(
            {
                "question": role,
                **shift,
                "said_yes_clean": said[0],
                "said_yes_steered": said[1],
                "auroc": area,
                "n": len(asked),
            }
        )
    return rows


def histograms(trials: TrialTable, bins: int = 60) -> dict[str, Row]:
    """Counts of the adapter's log-odds, clean and steered, in each set; all sets have the same edges."""
    usual = trials.of_sets(*USUAL_SETS, "newquestions")
    scores = usual.scores[ADAPTER]
    edges = np.linspace(scores.min(), max(scores.max(), scores.min() + 1), bins + 1) if len(scores) else np.empty(0)
    return {
        str(name): {
            "edges": np.round(edges, 4).tolist(),
            "clean": np.histogram(scores[(usual.sets == name) & ~usual.steered], edges)[0].tolist(),
            "steered": np.histogram(scores[(usual.sets == name) & usual.steered], edges)[0].tolist(),
        }
        for name in dict.fromkeys(usual.sets)
    }


def _told(value: float) -> float | None:
    """A number for JSON: None for what is none."""
    return float(value) if math.isfinite(value) else None
