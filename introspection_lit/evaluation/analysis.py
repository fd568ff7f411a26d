"""Breaks the scores of a test down by strength, band, kind of context and observer.

Every function takes the trials (:class:`~introspection_lit.evaluation.trial_table.TrialTable`) and returns values ready for
JSON. Intervals are 95 %: for a rate the wider of Wilson's interval and the clustered bootstrap over directions and
contexts, for an AUROC the bootstrap. Where a rate is at 1 % FPR, the bootstrap resamples the threshold, too.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from introspection_lit.evaluation.fixed_fpr import FixedFpr
from introspection_lit.evaluation.observers import PROBE
from introspection_lit.evaluation.psychometric import detection_strength
from introspection_lit.evaluation.statistics import (
    Floats,
    auroc,
    auroc_of_ranks,
    clustered_bootstrap,
    information,
    ranks,
    rate,
    wilson_interval,
)
from introspection_lit.evaluation.trial_table import ADAPTER, CURVES, PLAIN_SETS, USUAL_SETS, TrialTable
from introspection_lit.trials.grid import CLEAR_NO, CLEAR_YES, DETECTION

Row = dict[str, Any]
# The false-alarm rate at which observers are compared.
FPR = 0.01
# Bootstrap resamples for each interval.
RESAMPLES = 300
# Test sets on which the adapter is compared with the other observers.
REFERENCE_SETS = ("heldout", "concept", "doses", "doses_concept")


def analyse(trials: TrialTable, threshold: float, weakest: float) -> dict[str, Any]:
    """Run every analysis of this module.

    Args:
        trials: All trials of the test.
        threshold: The stored threshold of the adapter, on the log-odds, in nats.
        weakest: The lowest strength used in training.

    Returns:
        The part of ``evidence`` in ``results.json`` that follows from the scores alone.
    """
    plain = trials.of_sets(*PLAIN_SETS)
    cells, kinds = band_grid(trials, threshold), rates_by_kind(plain, threshold)
    return {
        "max_fpr_threshold": FixedFpr(plain, ADAPTER, FPR).threshold if (~plain.steered).any() else None,
        "observers": list(trials.scores),
        "curves": {
            name: {observer: points for observer in trials.scores if (points := dose_response(trials, name, observer))}
            for name, source in CURVES.items()
            if source in trials.sets
        },
        "detection_strength": {
            name: detection_strengths(trials, name) for name, source in CURVES.items() if source in trials.sets
        },
        "grid": cells,
        "kind_grid": kind_grid(trials, threshold),
        "kinds": kinds,
        "worst": worst_cases(cells, kinds, weakest),
        "roc": {
            name: roc_curves(trials.of_sets(name)) for name in ("heldout", "concept", "newkinds") if name in trials.sets
        },
        "references": compare_observers(trials),
        "factual": question_shifts(trials),
        "odd": rates_by_kind(trials.of_sets("odd"), threshold),
        "histograms": score_histograms(trials),
    }


def rate_interval(hits: np.ndarray, trials: TrialTable, at: FixedFpr | None = None) -> list[float]:
    """The 95 % interval of a rate: from the lower to the higher end of Wilson's and the clustered bootstrap's.

    Args:
        hits: Booleans, one for each of ``trials``, ``(n,)``.
        trials: Provide the clusters.
        at: The threshold of the hits if it is an estimate, which is resampled with them.
    """
    low, high = wilson_interval(int(hits.sum()), len(hits))
    if len(hits) < 2:
        return [low, high]

    def resampled(weights: Floats) -> float:
        own = weights[: len(hits)]
        above = hits if at is None else at.detected(trials, weights)
        return float(own @ above / own.sum()) if own.any() else math.nan

    clusters = trials.clusters if at is None else at.clusters(trials)
    ends = [end for end in clustered_bootstrap(resampled, clusters, RESAMPLES) if math.isfinite(end)]
    return [min([low, *ends]), max([high, *ends])]


def auroc_interval(scores: np.ndarray, trials: TrialTable) -> list[float | None]:
    """The 95 % interval of an AUROC by the clustered bootstrap; ``scores``: ``(n,)``, one for each of ``trials``."""
    place = ranks(scores)  # sorted once, not in every resample
    ends = clustered_bootstrap(lambda w: auroc_of_ranks(place, trials.steered, w), trials.clusters, RESAMPLES)
    return [finite_or_none(end) for end in ends]


def dose_response(trials: TrialTable, name: str, observer: str) -> list[Row]:
    """Detection by strength: TPR at 1 % FPR of the observer, and AUROC against all clean trials, with intervals.

    Args:
        trials: All trials of the test.
        name: Type of vectors, ``random`` or ``concept``.
        observer: Name of the scores to use.
    """
    at = FixedFpr(trials.of_sets(*PLAIN_SETS), observer, FPR)
    subset = trials.of_sets(CURVES[name]).scored(observer)
    points = []
    for dose in np.unique(subset.strengths[subset.steered]):
        dosed = subset.where(subset.strengths == dose)
        against = subset.where((subset.strengths == dose) | ~subset.steered)
        hits, scores = at.detected(dosed), against.scores[observer]
        points.append(
            {
                "strength": float(dose),
                "n": len(dosed),
                "tpr": rate(hits),
                "tpr_interval": rate_interval(hits, dosed, at),
                "auroc": finite_or_none(auroc(scores, against.steered)),
                "auroc_interval": auroc_interval(scores, against),
            }
        )
    return points


def detection_strengths(trials: TrialTable, name: str) -> Row:
    """The strength at which the adapter detects 75 % of steered trials at 1 % FPR, over all bands and for each band."""
    at = FixedFpr(trials.of_sets(*PLAIN_SETS), ADAPTER, FPR)
    subset = trials.of_sets(CURVES[name])
    steered = subset.where(subset.steered)

    def fit(part: TrialTable) -> Row:
        return detection_strength(part.strengths, partial(at.detected, part), FPR, at.clusters(part), resamples=RESAMPLES)

    return fit(steered) | {"bands": {band: fit(steered.where(steered.bands == band)) for band in steered.bands_of()}}


def band_grid(trials: TrialTable, threshold: float) -> list[Row]:
    """Band by strength for each type of vector: TPR at the stored threshold, and AUROC against all clean trials."""
    cells = []
    for name, source in CURVES.items():
        subset = trials.of_sets(source)
        for band in subset.bands_of():
            for dose in np.unique(subset.strengths[subset.bands == band]):
                inside = (subset.bands == band) & (subset.strengths == dose)
                against = subset.where(inside | ~subset.steered)
                hits = subset.scores[ADAPTER][inside] > threshold
                cells.append(
                    {
                        "vectors": name,
                        "band": [int(layer) for layer in band.split("..")],
                        "strength": float(dose),
                        "n": int(inside.sum()),
                        "tpr": rate(hits),
                        "tpr_interval": rate_interval(hits, subset.where(inside)),
                        "auroc": finite_or_none(auroc(against.scores[ADAPTER], against.steered)),
                    }
                )
    return cells


def kind_grid(trials: TrialTable, threshold: float) -> list[Row]:
    """Kind of context by strength for each type of vector, over all bands: TPR at the stored threshold."""
    cells = []
    for name, source in CURVES.items():
        subset = trials.of_sets(source)
        steered = subset.where(subset.steered)
        for kind, dose in sorted(set(zip(steered.kinds, steered.strengths, strict=True))):
            inside = (steered.kinds == kind) & (steered.strengths == dose)
            place = {"vectors": name, "kind": str(kind), "seen": bool(~steered.unseen[inside][0]), "strength": float(dose)}
            cells.append(place | {"n": int(inside.sum()), "tpr": rate(steered.scores[ADAPTER][inside] > threshold)})
    return cells


def rates_by_kind(trials: TrialTable, threshold: float) -> list[Row]:
    """:func:`rates_of` each kind of context, at the stored threshold."""
    rows = []
    for kind in sorted(set(trials.kinds)):
        inside = trials.where(trials.kinds == kind)
        rows.append({"kind": str(kind), "seen": bool(~inside.unseen[0]), **rates_of(inside, threshold)})
    return rows


def rates_of(trials: TrialTable, threshold: float) -> Row:
    """FPR over distinct clean inputs; TPR and AUROC without the dose sets and those of flipped or scattered directions."""
    clean = trials.clean()
    dosed = trials.where(~np.isin(trials.sets, [*CURVES.values(), "flipped", "scattered"]))
    hits = dosed.scores[ADAPTER][dosed.steered] > threshold
    alarms = int((clean.scores[ADAPTER] > threshold).sum())
    return {
        "n_clean": len(clean),
        "alarms": alarms,
        "fpr": alarms / len(clean) if len(clean) else None,
        "fpr_interval": list(wilson_interval(alarms, len(clean))),
        "n_steered": len(hits),
        "tpr": finite_or_none(rate(hits)),
        "tpr_interval": rate_interval(hits, dosed.where(dosed.steered)) if len(hits) else None,
        "auroc": finite_or_none(auroc(dosed.scores[ADAPTER], dosed.steered)),
    }


def worst_cases(cells: list[Row], kinds: list[Row], weakest: float) -> dict[str, Row | None]:
    """The kind with the highest FPR, and the kind and the cell with the lowest TPR; None where there is no row.

    Args:
        cells: From :func:`band_grid`; cells below ``weakest`` are left out.
        kinds: From :func:`rates_by_kind`.
        weakest: The lowest strength used in training.
    """
    trained = [cell for cell in cells if cell["strength"] >= weakest]
    clean = [row for row in kinds if row["fpr"] is not None]
    steered = [row for row in kinds if row["tpr"] is not None]
    return {
        "fpr": max(clean, key=lambda row: (row["fpr"], row["fpr_interval"][1]), default=None),
        "tpr": min(steered, key=lambda row: (row["tpr"], row["tpr_interval"][0]), default=None),
        "cell": min(trained, key=lambda cell: (cell["tpr"], cell["tpr_interval"][0]), default=None),
    }


def roc_curves(trials: TrialTable, points: int = 100) -> dict[str, list[list[float]]]:
    """The ROC curve of each observer as [FPRs, TPRs], thinned to at most ``points`` corners."""
    curves = {}
    for observer in trials.scores:
        subset = trials.scored(observer)
        if len(set(subset.steered)) < 2:
            continue
        scores = subset.scores[observer]
        thresholds = np.unique(scores)[::-1]
        classes = (np.sort(scores[subset.steered == steered]) for steered in (False, True))
        false, true = (np.append(0.0, (len(own) - np.searchsorted(own, thresholds)) / len(own)) for own in classes)
        # Corners only: points on a straight line between their neighbours are redundant.
        corner = np.ones(len(false), bool)
        right, up = np.diff(false), np.diff(true)
        corner[1:-1] = ~np.isclose(right[:-1] * up[1:], up[:-1] * right[1:], rtol=1e-9, atol=0)
        corners = np.flatnonzero(corner)
        corners = corners[np.unique(np.linspace(0, len(corners) - 1, min(points, len(corners))).round().astype(int))]
        curves[observer] = [np.round(false[corners], 4).tolist(), np.round(true[corners], 4).tolist()]
    return curves


def compare_observers(trials: TrialTable) -> list[Row]:
    """AUROC and information (bits a trial, and relative to the probe's) of every observer on each reference set."""
    rows: list[Row] = []
    for name in REFERENCE_SETS:
        inside = trials.of_sets(name)
        bits: dict[str, float | None] = {}
        for observer in trials.scores:
            subset = inside.scored(observer)
            if len(set(subset.steered)) < 2:
                continue
            scores = subset.scores[observer]
            bits[observer] = finite_or_none(information(scores, subset.steered, subset.contexts))
            area, interval = finite_or_none(auroc(scores, subset.steered)), auroc_interval(scores, subset)
            rows.append(
                {"observer": observer, "set": name, "n": len(subset), "auroc": area, "auroc_interval": interval}
                | {"information": bits[observer]}
            )
        for row in rows:
            if row["set"] == name:
                row["share"] = relative_information(row["information"], bits.get(PROBE))
    return rows


def relative_information(bits: float | None, reference: float | None) -> float | None:
    """One observer's information over the reference's; None if the reference has at most 0.02 bits."""
    return bits / reference if bits is not None and reference is not None and reference > 0.02 else None


def question_shifts(trials: TrialTable) -> list[Row]:
    """How far steering shifts the mean log-odds of the detection question and of questions with a clear yes or no."""
    sources = {DETECTION: trials.of_sets("heldout"), CLEAR_YES: trials, CLEAR_NO: trials}
    rows = []
    for role, source in sources.items():
        subset = source.where(source.roles == role)
        if "factual" not in trials.sets or len(set(subset.steered)) < 2:
            continue
        scores = subset.scores[ADAPTER]
        clean, steered = (float(scores[subset.steered == label].mean()) for label in (False, True))
        yes_rates = [rate(scores[subset.steered == label] > 0) for label in (False, True)]
        area = finite_or_none(auroc(scores, subset.steered))
        shift = {"clean": clean, "steered": steered, "shift": steered - clean}
        rows.append(
            {
                "question": role,
                **shift,
                "said_yes_clean": yes_rates[0],
                "said_yes_steered": yes_rates[1],
                "auroc": area,
                "n": len(subset),
            }
        )
    return rows


def score_histograms(trials: TrialTable, bins: int = 60) -> dict[str, Row]:
    """Histograms of the adapter's log-odds of clean and of steered trials in each set, all with the same bin edges."""
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


def finite_or_none(value: float) -> float | None:
    """A value for JSON: None for NaN or infinity."""
    return float(value) if math.isfinite(value) else None
