"""What evidence is made of tables of trials, against loops in plain numpy and scikit-learn."""

from __future__ import annotations

import json
import tracemalloc
from itertools import product
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import auc, roc_auc_score

from introspection_lit.evaluation import analysis
from introspection_lit.evaluation.fixed_fpr import FixedFpr
from introspection_lit.evaluation.observers import PROBE
from introspection_lit.evaluation.statistics import information, wilson_interval
from introspection_lit.evaluation.trial_table import ADAPTER, PLAIN_SETS, USUAL_SETS, TrialTable

KINDS = ("chat", "python", "rust")
BANDS, DOSES = ((0, 1), (2, 4), (10, 12)), (0.1, 0.4, 1.6)
Rows = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals are tested with the statistics; here only how they are used."""
    monkeypatch.setattr(analysis, "RESAMPLES", 8)


def rows_of(name: str, contexts: int, steered_each: int = 1, start: int = 0, seed: int = 0, sign: float = 1.0) -> Rows:
    """Trials of a set: each context once clean and then steered, with scores of three observers."""
    random = np.random.default_rng([seed, *name.encode()])
    rows = []
    for context in range(start, start + contexts):
        for place in range(1 + steered_each):
            band, dose = list(product(BANDS, DOSES))[(context + 4 * place) % 9]
            steered = place > 0
            shift = sign * 6 * np.log10(1 + 9 * dose) * steered
            scores = {
                ADAPTER: shift + random.normal() * 2 - 3,
                "untrained": random.normal(),
                PROBE: shift + random.normal(),
            }
            rows.append(
                {
                    "split": name,
                    "number": len(rows),
                    "kind": KINDS[context % 3],
                    "context_key": f"c{context}",
                    "question_text": "Well?",
                    "role": "detection",
                    "vectors": "heldout",
                    "vector_name": f"v{context % 5}" if steered else None,
                    "band": band if steered else (-1, -1),
                    "strength": dose if steered else 0.0,
                    "steered": steered,
                    "scores": {key: float(value) for key, value in scores.items()},
                }
            )
    return rows


def table(rows: Rows) -> TrialTable:
    """The table of rows; ``rust`` is a kind that was not trained on."""
    return TrialTable.from_rows(rows, ("chat", "python"))


def distinct_clean(rows: Rows, sets: tuple[str, ...], observer: str = ADAPTER) -> list[float]:
    """The score of each distinct clean input, the first one given."""
    found: dict[tuple[str, str], float] = {}
    for row in rows:
        if row["split"] in sets and not row["steered"] and observer in row["scores"]:
            found.setdefault((row["context_key"], row["question_text"]), row["scores"][observer])
    return list(found.values())


@pytest.fixture(scope="module")
def rows() -> Rows:
    """A test of several sets; heldout and doses share their first contexts, as in an experiment."""
    made = rows_of("heldout", 90) + rows_of("doses", 120, steered_each=3) + rows_of("doses_concept", 60, 3, start=200)
    made += rows_of("flipped", 30, start=300) + rows_of("newkinds", 45, start=400)
    for row in made:  # a deterministic model answers equal inputs equally
        if row["split"] == "doses" and not row["steered"]:
            same = [
                r for r in made if r["split"] == "heldout" and not r["steered"] and r["context_key"] == row["context_key"]
            ]
            row["scores"] = dict(same[0]["scores"]) if same else row["scores"]
    odd = rows_of("odd", 30, start=500)
    swapped = rows_of("swapped", 30, sign=-1)
    factual = [
        row | {"role": ("clear yes", "clear no")[number // 2 % 2]} for number, row in enumerate(rows_of("factual", 40))
    ]
    for row in swapped + factual:
        row["question_text"] = f"{row['split']} {row['role']}"
    return made + odd + swapped + factual


@pytest.mark.parametrize(("n", "allowed"), [(99, 0), (100, 1), (150, 1), (200, 2), (300, 3), (700, 7)])
@pytest.mark.parametrize("copies", [1, 4])
def test_threshold_lets_one_in_a_hundred_distinct_inputs_through(n: int, allowed: int, copies: int) -> None:
    """It is the lowest such one, and inputs that come again count once."""
    rows = rows_of("heldout", n, steered_each=0)
    threshold = FixedFpr(table(rows + rows[: n // 3] * (copies - 1)), ADAPTER, 0.01).threshold
    scores = np.array(distinct_clean(rows, ("heldout",)))
    assert (scores > threshold).sum() == allowed
    lower = np.nextafter(threshold, -np.inf)
    assert (scores > lower).sum() > allowed


def test_threshold_of_the_run_is_over_plain_sets_only(rows: Rows) -> None:
    """Odd texts and other questions are no part of it, and neither are inputs that an observer was not asked about."""
    scores = np.array(distinct_clean(rows, PLAIN_SETS))
    found = analysis.analyse(table(rows), 0.0, 0.3)["max_fpr_threshold"]
    assert found == np.sort(scores)[::-1][int(0.01 * len(scores))]
    only = [row | {"scores": {k: v for k, v in row["scores"].items() if k != PROBE or i % 3}} for i, row in enumerate(rows)]
    clean = np.sort(distinct_clean(only, ("heldout",), PROBE))[::-1]
    assert len(clean) < 90
    assert FixedFpr(table(only).of_sets("heldout"), PROBE, 0.01).threshold == clean[int(0.01 * len(clean))]


def test_curve_points_equal_a_loop(rows: Rows) -> None:
    """At each dose: the share above the observer's own 1 % threshold, and the AUROC against all clean trials of the set."""
    for name, source in (("random", "doses"), ("concept", "doses_concept")):
        for observer in (ADAPTER, "untrained", PROBE):
            clean = np.sort(distinct_clean(rows, PLAIN_SETS, observer))[::-1]
            threshold = clean[int(0.01 * len(clean))]
            points = analysis.dose_response(table(rows), name, observer)
            assert [point["strength"] for point in points] == list(DOSES)
            for point in points:
                hit = [
                    r["scores"][observer]
                    for r in rows
                    if r["split"] == source and r["steered"] and r["strength"] == point["strength"]
                ]
                missed = [r["scores"][observer] for r in rows if r["split"] == source and not r["steered"]]
                assert point["n"] == len(hit)
                assert point["tpr"] == pytest.approx(np.mean(np.array(hit) > threshold))
                area = roc_auc_score([1] * len(hit) + [0] * len(missed), hit + missed)
                assert point["auroc"] == pytest.approx(area)
                low, high = point["tpr_interval"]
                wilson = wilson_interval(int(np.sum(np.array(hit) > threshold)), len(hit))
                assert low <= wilson[0] <= wilson[1] <= high  # never narrower than independent trials allow
                assert point["auroc_interval"][0] <= area <= point["auroc_interval"][1]


def test_grids_equal_a_loop(rows: Rows) -> None:
    """Every band with every dose, every kind with every dose, at the stored threshold."""
    trials, threshold = table(rows), -1.0
    cells = analysis.band_grid(trials, threshold)
    assert [tuple(cell["band"]) for cell in cells[:9:3]] == list(BANDS)  # lowest first, ten after two
    assert {(c["vectors"], tuple(c["band"]), c["strength"]) for c in cells} == set(
        product(("random", "concept"), BANDS, DOSES)
    )
    for cell in cells:
        source = {"random": "doses", "concept": "doses_concept"}[cell["vectors"]]
        inside = [
            r
            for r in rows
            if r["split"] == source and list(r["band"]) == cell["band"] and r["strength"] == cell["strength"]
        ]
        hit = [r["scores"][ADAPTER] for r in inside]
        missed = [r["scores"][ADAPTER] for r in rows if r["split"] == source and not r["steered"]]
        assert (cell["n"], cell["tpr"]) == (len(hit), pytest.approx(np.mean(np.array(hit) > threshold)))
        assert cell["auroc"] == pytest.approx(roc_auc_score([1] * len(hit) + [0] * len(missed), hit + missed))
    for cell in analysis.kind_grid(trials, threshold):
        source = {"random": "doses", "concept": "doses_concept"}[cell["vectors"]]
        hit = [
            r["scores"][ADAPTER] > threshold
            for r in rows
            if r["split"] == source and r["steered"] and (r["kind"], r["strength"]) == (cell["kind"], cell["strength"])
        ]
        assert (cell["n"], cell["tpr"]) == (len(hit), pytest.approx(np.mean(hit)))
        assert cell["seen"] == (cell["kind"] != "rust")


def test_kinds_count_distinct_clean_inputs_over_sets(rows: Rows) -> None:
    """FPR over distinct inputs of all plain sets; TPR over trials that are steered as usual, doses left out."""
    threshold = -1.5
    found = analysis.analyse(table(rows), threshold, 0.3)["kinds"]
    assert [row["kind"] for row in found] == sorted(KINDS)
    for row in found:
        inside = [r for r in rows if r["kind"] == row["kind"]]
        clean = np.array(distinct_clean(inside, PLAIN_SETS))
        assert (row["n_clean"], row["alarms"]) == (len(clean), (clean > threshold).sum())
        assert row["fpr"] == pytest.approx((clean > threshold).mean())
        assert row["fpr_interval"] == pytest.approx(wilson_interval(row["alarms"], len(clean)))
        usual = ("heldout", "newkinds")
        hit = [r["scores"][ADAPTER] for r in inside if r["split"] in usual and r["steered"]]
        assert (row["n_steered"], row["tpr"]) == (len(hit), pytest.approx(np.mean(np.array(hit) > threshold)))
        assert row["seen"] == (row["kind"] != "rust")
    assert len(distinct_clean(rows, PLAIN_SETS)) == sum(row["n_clean"] for row in found) == 90 + 30 + 60 + 30 + 45


def test_odd_kinds_are_judged_alone(rows: Rows) -> None:
    """Their clean inputs are in no other number."""
    found = analysis.analyse(table(rows), -1.5, 0.3)["odd"]
    for row in found:
        clean = np.array(distinct_clean([r for r in rows if r["kind"] == row["kind"]], ("odd",)))
        assert (row["n_clean"], row["alarms"]) == (len(clean), (clean > -1.5).sum())


def area_under(curve: list[list[float]]) -> float:
    """By trapezoids."""
    return float(auc(*curve))


@pytest.mark.parametrize("digits", [6, 1, 0])
@pytest.mark.parametrize("contexts", [8, 90, 700])
def test_area_under_the_thinned_roc_is_the_auroc(contexts: int, digits: int) -> None:
    """To .005, with ties too: under bfloat16 many log-odds are equal."""
    made = rows_of("heldout", contexts)
    for row in made:
        row["scores"] = {name: round(score, digits) for name, score in row["scores"].items()}
    trials = table(made)
    curves = analysis.roc_curves(trials)
    assert set(curves) == {ADAPTER, "untrained", PROBE}
    for observer, curve in curves.items():
        false, true = curve
        assert len(false) == len(true) <= 101
        assert (false[0], true[0], false[-1], true[-1]) == (0.0, 0.0, 1.0, 1.0)
        assert (np.diff(false) >= 0).all()
        assert (np.diff(true) >= 0).all()
        assert area_under(curve) == pytest.approx(roc_auc_score(trials.steered, trials.scores[observer]), abs=0.005)


def test_memory_of_roc_curves_grows_as_the_trials_do() -> None:
    """Four times the trials, about four times the memory; with a row for each threshold it would be sixteen times."""
    peaks = []
    for contexts in (500, 2000):
        trials = table(rows_of("heldout", contexts))
        tracemalloc.start()
        analysis.roc_curves(trials)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 6 * peaks[0]


def test_references_share_is_of_the_probes_information(rows: Rows) -> None:
    """Information of each observer in each set, over the probe's; none where the probe has next to none."""
    trials = table(rows)
    found = analysis.compare_observers(trials)
    assert {(row["observer"], row["set"]) for row in found} == set(
        product((ADAPTER, "untrained", PROBE), ("heldout", "doses", "doses_concept"))
    )
    by_place = {(row["observer"], row["set"]): row for row in found}
    for (observer, name), row in by_place.items():
        inside = [r for r in rows if r["split"] == name]
        labels = [r["steered"] for r in inside]
        scores = [r["scores"][observer] for r in inside]
        bits = information(scores, labels, [r["context_key"] for r in inside])
        assert (row["n"], row["information"]) == (len(inside), pytest.approx(bits))
        assert row["auroc"] == pytest.approx(roc_auc_score(labels, scores))
        assert row["share"] == pytest.approx(row["information"] / by_place[PROBE, name]["information"])
    assert by_place[PROBE, "heldout"]["share"] == 1
    assert (
        analysis.relative_information(0.5, 0.01),
        analysis.relative_information(None, 0.5),
        analysis.relative_information(0.5, None),
    ) == (None, None, None)


def test_worst_is_where_it_says(rows: Rows) -> None:
    """The kind with the highest FPR, the kind with the lowest TPR, and the cell with the lowest TPR that was trained."""
    found = analysis.analyse(table(rows), -1.5, 0.4)
    worst = found["worst"]
    assert worst["fpr"]["fpr"] == max(row["fpr"] for row in found["kinds"])
    assert worst["tpr"]["tpr"] == min(row["tpr"] for row in found["kinds"])
    trained = [cell["tpr"] for cell in found["grid"] if cell["strength"] >= 0.4]
    assert worst["cell"]["tpr"] == min(trained)
    assert min(cell["tpr"] for cell in found["grid"]) < min(trained)  # the weakest dose does not count
    assert analysis.worst_cases([], [], 0.3) == {"fpr": None, "tpr": None, "cell": None}


def test_factual_shift_is_a_difference_of_means(rows: Rows) -> None:
    """Of steered and clean log-odds, for the detection question and for both kinds of questions about the world."""
    found = {row["question"]: row for row in analysis.question_shifts(table(rows))}
    assert set(found) == {"detection", "clear yes", "clear no"}
    for role, row in found.items():
        inside = [r for r in rows if r["split"] == ("heldout" if role == "detection" else "factual") and r["role"] == role]
        clean, steered = (np.mean([r["scores"][ADAPTER] for r in inside if r["steered"] == s]) for s in (False, True))
        assert (row["clean"], row["steered"]) == pytest.approx((clean, steered))
        assert (row["shift"], row["n"]) == (pytest.approx(steered - clean), len(inside))


def test_histograms_hold_every_trial(rows: Rows) -> None:
    """Sixty bins with the same edges in all sets that are steered as usual; nothing falls outside."""
    found = analysis.score_histograms(table(rows))
    assert set(found) == {"heldout", "doses", "doses_concept", "newkinds"} <= set(USUAL_SETS)
    for name, row in found.items():
        assert (len(row["edges"]), len(row["clean"])) == (61, 60)
        assert row["edges"] == found["heldout"]["edges"]
        assert sum(row["clean"]) == sum(r["split"] == name and not r["steered"] for r in rows)
        assert sum(row["steered"]) == sum(r["split"] == name and r["steered"] for r in rows)


def test_detection_strength_is_where_three_quarters_are_found() -> None:
    """Scores that rise with the dose on a known curve give its 75 % point, overall and in each band."""
    made = rows_of("doses", 400, steered_each=6)
    for row in made:
        row["scores"][ADAPTER] = 1.0 if row["strength"] >= 0.4 else -2.0 + (not row["steered"])
    found = analysis.detection_strengths(table(made), "random")
    assert 0.1 < found["strength"] <= 0.45
    assert set(found["bands"]) == {"0..1", "2..4", "10..12"}
    for part in (found, *found["bands"].values()):
        assert part["share"] == 0.75
        assert part["interval"][0] <= part["strength"] <= part["interval"][1]


ONLY_CLEAN = [row for row in rows_of("heldout", 12) if not row["steered"]]
ONLY_STEERED = [row for row in rows_of("doses", 12) if row["steered"]]
ONE_STRENGTH = [row for row in rows_of("doses", 40, 3) if row["strength"] in (0.0, 0.4)]
SOME_ASKED = [
    row | {"scores": row["scores"] if number < 3 else {ADAPTER: row["scores"][ADAPTER]}}
    for number, row in enumerate(rows_of("doses", 40, 3) + rows_of("heldout", 20))
]
CLEAN_ASKED = [
    row | {"scores": row["scores"] if not row["steered"] else {ADAPTER: row["scores"][ADAPTER]}}
    for row in rows_of("doses", 40, 3)
]


@pytest.mark.parametrize(
    "made",
    [
        rows_of("heldout", 20),
        rows_of("doses", 20, 3),
        rows_of("odd", 6),
        rows_of("swapped", 6),
        rows_of("factual", 6),
        rows_of("newkinds", 1),
        ONLY_CLEAN,
        ONLY_STEERED,
        ONLY_STEERED + rows_of("heldout", 20),
        ONE_STRENGTH,
        SOME_ASKED,
        CLEAN_ASKED,
        rows_of("flipped", 4) + rows_of("scattered", 4) + rows_of("seen", 4),
        [row | {"scores": {ADAPTER: 0.0}} for row in rows_of("heldout", 9) + rows_of("doses", 9, 3)],
    ],
    ids=lambda made: f"{len(made)} rows",
)
def test_everything_is_json_whatever_is_missing(made: Rows) -> None:
    """No nan, no infinity, no numpy number; one class, one strength, no doses, no heldout, observers asked of some."""
    found = analysis.analyse(table(made), 0.0, 0.3)
    assert json.loads(json.dumps(found, allow_nan=False)) == json.loads(json.dumps(found))
    assert set(found["curves"]) == {
        name for name, s in (("random", "doses"), ("concept", "doses_concept")) if any(r["split"] == s for r in made)
    }


def test_table_columns_and_parts() -> None:
    """Names of directions with their kind, bands as text, nothing where clean; parts keep rows and observers together."""
    made = table(rows_of("heldout", 12) + rows_of("concept", 6, start=3))
    assert len(made) == 36
    assert set(made.vectors[made.steered]) <= {f"heldout/v{number}" for number in range(5)}
    assert set(made.bands[~made.steered]) == set(made.vectors[~made.steered]) == {""}
    assert made.bands_of() == ["0..1", "2..4", "10..12"]
    part = made.of_sets("concept").where(made.of_sets("concept").steered)
    assert len(part) == len(part.scores[ADAPTER]) == 6
    assert len(made.scored("nobody")) == 0
    clean = made.clean()
    assert len(clean) == len(set(clean.inputs)) == 12  # concept's contexts 3..8 are heldout's
    assert not clean.steered.any()
