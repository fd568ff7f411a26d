"""What a results file must look like: every number that a report shows or draws, with its type and its range.

A report says what a file says. So a rate of 7, a negative count or "0.9" for a number is an error, not something to draw.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from introspection_lit.evaluation.rungs import RUNGS
from introspection_lit.utils.schema import FLAG, TEXT, Check, fields, listed, named, number

MAX = 1e9  # no number of ours is larger
NUMBER, SHARE, COUNT = number(-MAX, MAX), number(0, 1), number(0, MAX, whole=True)
SEED = number(0, 2**32 - 1, whole=True)
STRENGTH, LAYER = number(0, MAX), number(0, 100_000, whole=True)
SHARES, NUMBERS, ENDS, BAND = listed(SHARE), listed(NUMBER), listed(SHARE, 2), listed(LAYER, 2)
RATES = dict.fromkeys(("auroc", "accuracy", "tpr", "fpr", "tpr_at_1pct_fpr", "mass", "recalibrated"), SHARE)
RATES |= {f"{name}_interval": ENDS for name in ("auroc", "accuracy", "tpr", "fpr", "mass")}
RATES |= dict.fromkeys(("n", "n_clean", "n_steered", "n_clean_distinct", "alarms"), COUNT)
WORDS = dict.fromkeys(("kind", "vectors", "observer", "set", "name", "what", "expected", "question"), TEXT)
ROW = WORDS | RATES | {"seen": FLAG, "held": FLAG, "band": BAND, "strength": STRENGTH}
LONG = ROW | dict.fromkeys(("tokens", "exchanges", "after"), listed(COUNT, 2))
LONG |= {"part_tpr": SHARE, "part_tpr_interval": ENDS, "n_part": COUNT}
FIT = {"share": SHARE, "strength": STRENGTH, "interval": listed(STRENGTH, 2), "lapse": SHARE, "guess": SHARE}
FIT |= {"location": NUMBER, "width": number(0, MAX)}
TESTED = RATES | {"dprime": NUMBER, "threshold": NUMBER, "p_yes_clean": SHARE, "p_yes_steered": SHARE}
KIND = fields("kind seen", **ROW)
CELL = fields("vectors band", **ROW)
LINES = fields("mean", "mean low high", mean=NUMBERS, low=NUMBERS, high=NUMBERS)
SAID = dict.fromkeys(("said_yes_clean", "said_yes_steered"), SHARE)
FACTS = fields(**RATES, yes=SHARE, log_odds=NUMBER)
RUINED = 1e300  # the perplexity of a ruined model is less (evaluation/side_effects.py)
LANGUAGE = fields(nats=NUMBER, perplexity=number(0, RUINED))


def test_sets(value: Any, place: str) -> Iterator[str]:
    """Numbers of each test set; those of the ladder's rungs must be there, for they are compared with its limits."""
    yield from named(fields(**TESTED))(value, place)
    for name, row in value.items() if isinstance(value, dict) else ():
        if row is None:
            yield f"{place}.{name[:60]} is null"
        elif name in RUNGS:
            yield from fields("auroc tpr fpr")(row, f"{place}.{name}")


def histogram(value: Any, place: str) -> Iterator[str]:
    """Counts, and one edge more than there are of them."""
    counts = listed(COUNT)
    found = list(fields("edges clean steered", "clean steered", edges=NUMBERS, clean=counts, steered=counts)(value, place))
    yield from found
    edges = value["edges"] if value and not found else []
    if edges and (None in edges or edges != sorted(edges) or len(edges) != len(value["clean"]) + 1):
        yield f"{place}.edges do not ascend, or are not one more than the counts"


def confused(value: Any, place: str) -> Iterator[str]:
    """A right answer, the answer given, and how often."""
    if not (isinstance(value, list) and len(value) == 3):
        yield f"{place} is not [right, given, count]"
        return
    for check, part in zip((TEXT, TEXT, COUNT), value, strict=True):
        yield from check(part, place)


EVIDENCE = fields(
    max_fpr_threshold=NUMBER,
    curves=named(named(listed(fields(**ROW)))),
    detection_strength=named(fields(**FIT, bands=named(fields(**FIT)))),
    grid=listed(CELL),
    kind_grid=listed(fields("vectors kind seen", **ROW)),
    kinds=listed(KIND),
    lengths=listed(fields("tokens n_trained", **LONG, n_trained=COUNT)),
    worst=fields(fpr=KIND, tpr=KIND, cell=fields("vectors band strength n", **ROW)),
    roc=named(named(listed(SHARES, 2))),
    references=listed(fields("observer set", **ROW, information=NUMBER, share=NUMBER)),
    controls=listed(fields("name", **ROW)),
    factual=listed(fields("question", **ROW, **SAID, clean=NUMBER, steered=NUMBER, shift=NUMBER)),
    tasks=listed(
        fields(
            "set observer",
            **ROW,
            **dict.fromkeys(("both_right", "both_right_clean", "both_right_steered", "changed"), SHARE),
            **dict.fromkeys(("both_right_interval", "changed_interval"), ENDS),
            shift=NUMBER,
        )
    ),
    choices=listed(
        fields(
            "set observer chance accuracy",
            **ROW,
            **dict.fromkeys(("chance", "strong"), SHARE),
            strong_interval=ENDS,
            n_strong=COUNT,
            by_band=named(SHARE),
            confusion=listed(confused),
            **dict.fromkeys(("information", "information_by_chance"), NUMBER),
        )
    ),
    as_exported=fields(
        protocol=fields(**ROW),
        exported=fields(**ROW),
        **dict.fromkeys(("n", "decided_differently"), COUNT),
        **dict.fromkeys(("threshold", "largest_difference"), NUMBER),
    ),
    long=fields(
        "trained by_length by_exchanges by_part",
        trained=COUNT,
        by_length=listed(fields("set tokens", **LONG)),
        by_exchanges=listed(fields("set exchanges", **LONG)),
        by_part=listed(fields("set after", **LONG)),
    ),
    deployed=listed(
        fields("set change benign", **ROW, change=TEXT, benign=FLAG, auroc_untouched=SHARE, auroc_untouched_interval=ENDS)
    ),
    odd=listed(fields("kind", **ROW)),
    lens=fields(layers=listed(LAYER), n=COUNT, clean=LINES, steered=LINES),
    side_effects=fields(
        perplexity=fields(off=LANGUAGE, on=LANGUAGE, change=number(-1, RUINED)),
        factual=fields(off=FACTS, on=FACTS),
        facts=COUNT,
        texts=COUNT,
    ),
    leaks=fields(
        vectors=named(SHARE),
        shared_messages=COUNT,
        unseen_kinds_in_training=listed(TEXT),
        shared_questions=COUNT,
        distinct_clean=named(COUNT),
    ),
    histograms=named(histogram),
    training=fields(
        "",
        "steps auroc tpr fpr mass threshold",
        **dict.fromkeys(("auroc", "tpr", "fpr", "mass"), SHARES),
        **{name: listed(COUNT) for name in ("steps", "loss_steps")},
        threshold=NUMBERS,
        loss=NUMBERS,
    ),
)
RESULTS = fields(
    "sets",
    sets=test_sets,
    evidence=EVIDENCE,
    threshold=NUMBER,
    n_clean_distinct_total=COUNT,
    strengths=listed(STRENGTH, 2),
    kinds=named(listed(TEXT)),
    **dict.fromkeys(("strength_unit", "command", "base_model", "other_base", "checkpoint", "adapter"), TEXT),
)
SPREAD = fields(mean=NUMBER, sd=number(0, MAX), worst=NUMBER, worst_seed=SEED, values=NUMBERS)
# By the field that a file must have: results, several seeds, control adapters.
SHAPES: Mapping[str, Check] = {
    "sets": RESULTS,
    "seeds": fields("seeds", seeds=listed(SEED), sets=named(named(SPREAD)), detection_strength=named(SPREAD)),
    "rows": fields("rows", rows=listed(fields("name", **ROW))),
}
