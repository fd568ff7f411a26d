"""A results file by the schema with plausible numbers, made up from a seed: no model is needed to test the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import ndtr

from introspection_lit.evaluation.statistics import dprime, wilson_interval

STRENGTHS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28)
BANDS = ([0, 9], [10, 18], [19, 28])
SEEN = ("chat", "python", "french", "json", "legal", "poem", "recipe", "shell", "sql", "story", "news", "email")
UNSEEN = ("rust", "italian", "japanese", "latex", "logs", "turkish", "typos", "capitals")
# Half-way strengths on a log10 scale: the lower, the better.
LOCATIONS = {"adapter": -1.55, "untrained": 0.1, "with info": -0.1, "linear probe": -1.75, "norms": -0.9, "text": 2.0}
SEPARATIONS = {"adapter": 5.0, "untrained": 0.7, "with info": 0.9, "linear probe": 5.6, "norms": 1.8, "text": 0.0}


def share(strength: float, location: float, width: float = 0.22) -> float:
    """P(detected) of an observer at a strength."""
    return float(0.01 + 0.98 * ndtr((np.log10(strength) - location) / width))


def counted(random: np.random.Generator, rate: float, total: int) -> tuple[int, float, list[float]]:
    """Draw a count, its rate and its interval."""
    count = int(random.binomial(total, rate))
    return count, count / total, list(wilson_interval(count, total))


def example_set(random: np.random.Generator, tpr: float, fpr: float, auroc: float, clean: int) -> dict[str, Any]:
    """A test set as ``results.json`` has it."""
    hits, tpr, _ = counted(random, tpr, clean)
    alarms, fpr, interval = counted(random, fpr, clean)
    return {
        "auroc": auroc,
        "accuracy": (tpr + 1 - fpr) / 2,
        "tpr": tpr,
        "fpr": fpr,
        "fpr_interval": interval,
        "tpr_at_1pct_fpr": min(1.0, tpr + 0.005),
        "dprime": dprime(hits, clean, alarms, clean),
        "mass": float(random.uniform(0.995, 1)),
        "p_yes_clean": 0.004,
        "p_yes_steered": 0.981,
        "n_steered": clean,
        "n_clean": clean,
        "n_clean_distinct": clean,
        "threshold": -0.4172,
    }


def example_curves(random: np.random.Generator, strengths: Sequence[float]) -> dict[str, Any]:
    """Detection curves of six observers on two sorts of vectors."""
    made: dict[str, Any] = {}
    for vectors, shift in (("random", 0.0), ("concept", -0.12)):
        made[vectors] = {}
        for observer, location in LOCATIONS.items():
            made[vectors][observer] = []
            for strength in strengths:
                _, tpr, interval = counted(random, share(strength, location + shift), 120)
                auroc = 0.5 + 0.5 * share(strength, location + shift - 0.35)
                ends = [max(0.0, auroc - 0.03), min(1.0, auroc + 0.02)]
                point = {"strength": strength, "n": 120, "tpr": tpr, "tpr_interval": interval}
                made[vectors][observer].append(point | {"auroc": min(1.0, auroc), "auroc_interval": ends})
    return made


def example_roc(random: np.random.Generator, separation: float) -> list[list[float]]:
    """A ROC curve of two normal distributions this far apart."""
    clean, steered = random.normal(0, 1, 300), random.normal(separation, 1.3, 300)
    cuts = np.sort(np.concatenate([clean, steered, [-np.inf, np.inf]]))[::-1]
    return [[float((values > cut).mean()) for cut in cuts] for values in (clean, steered)]


def example_kinds(random: np.random.Generator, kinds: dict[str, bool]) -> list[dict[str, Any]]:
    """A row for each kind."""
    rows = []
    for kind, seen in kinds.items():
        alarms, fpr, interval = counted(random, 0.003 if seen else 0.012, 320)
        _, tpr, ends = counted(random, 0.975, 320)
        row = {"kind": kind, "seen": seen, "n_clean": 320, "alarms": alarms, "fpr": fpr, "fpr_interval": interval}
        rows.append(row | {"n_steered": 320, "tpr": tpr, "tpr_interval": ends, "auroc": float(random.uniform(0.99, 1))})
    return rows


def example(seed: int = 0, extra_kinds: int = 0, strengths: Sequence[float] = STRENGTHS) -> dict[str, Any]:
    """A whole results file.

    Args:
        seed: Of everything drawn.
        extra_kinds: Kinds beyond the twenty, half of them unseen.
        strengths: Tested.
    """
    random = np.random.default_rng(seed)
    kinds = dict.fromkeys(SEEN, True) | dict.fromkeys(UNSEEN, False)
    kinds |= {f"kind number {number}": number % 2 == 0 for number in range(extra_kinds)}
    curves, rows = example_curves(random, strengths), example_kinds(random, kinds)
    grid = [
        {"vectors": vectors, "band": list(band), "strength": strength, "n": 40, "auroc": 0.9}
        | {"tpr": counted(random, share(strength, -1.6 + shift), 40)[1]}
        for vectors in ("random", "concept")
        for band, shift in zip(BANDS, (0.0, 0.05, 0.4), strict=True)
        for strength in strengths
    ]
    kind_grid = [
        {"vectors": vectors, "kind": kind, "seen": seen, "strength": strength, "n": 12}
        | {"tpr": counted(random, share(strength, -1.5), 12)[1]}
        for vectors in ("random", "concept")
        for kind, seen in kinds.items()
        for strength in strengths
    ]
    # What is never measured is null: a report has to live with it.
    kind_grid[1]["tpr"] = None
    cells = [cell for cell in grid if cell["strength"] >= 0.04] or grid
    evidence = {
        "max_fpr_threshold": 0.6312,
        "curves": curves,
        "detection_strength": {
            "random": example_strength(0.0372, [0.0314, 0.0441]),
            "concept": example_strength(0.0283, [None, 0.0335]),
        },
        "grid": grid,
        "kind_grid": kind_grid,
        "kinds": rows,
        "worst": {
            "fpr": max(rows, key=lambda row: row["fpr"]),
            "tpr": min(rows, key=lambda row: row["tpr"]),
            "cell": min(cells, key=lambda cell: cell["tpr"]),
        },
        "roc": {
            name: {observer: example_roc(random, apart) for observer, apart in SEPARATIONS.items()}
            for name in ("heldout", "concept")
        },
        "references": example_references(),
        "controls": example_controls(),
        "factual": [
            {
                "question": "detection",
                "clean": -5.21,
                "steered": 6.42,
                "shift": 11.63,
                "said_yes_clean": 0.004,
                "said_yes_steered": 0.981,
                "n": 96,
            },
            {
                "question": "clear yes",
                "clean": 2.31,
                "steered": 2.02,
                "shift": -0.29,
                "said_yes_clean": 0.871,
                "said_yes_steered": 0.842,
                "n": 96,
            },
            {
                "question": "clear no",
                "clean": -1.73,
                "steered": -1.41,
                "shift": 0.32,
                "said_yes_clean": 0.151,
                "said_yes_steered": 0.193,
                "n": 96,
            },
        ],
        "odd": [
            {
                "kind": kind,
                "n_clean": 120,
                "fpr": alarms / 120,
                "fpr_interval": list(wilson_interval(alarms, 120)),
                "tpr": 0.967,
                "auroc": 0.997,
            }
            for kind, alarms in (
                ("odd: typos", 1),
                ("odd: shuffled words", 4),
                ("odd: rare script", 0),
                ("odd: reversed words", 7),
            )
        ],
        "lens": example_lens(random),
        "side_effects": {
            "perplexity": {
                "off": {"nats": 2.873, "perplexity": 17.69},
                "on": {"nats": 2.921, "perplexity": 18.56},
                "change": 0.049,
            },
            "factual": {
                "off": {"accuracy": 0.731, "auroc": 0.802, "yes": 0.612, "mass": 0.641, "log_odds": 0.521},
                "on": {"accuracy": 0.706, "auroc": 0.791, "yes": 0.534, "mass": 0.988, "log_odds": 0.112},
            },
            "facts": 160,
            "texts": 64,
        },
        "leaks": {
            "vectors": {"train / heldout": 0.147, "train / concept": 0.128, "heldout / concept": 0.119},
            "shared_messages": 0,
            "unseen_kinds_in_training": [],
            "shared_questions": 0,
            "distinct_clean": {"heldout": 320, "concept": 320, "newkinds": 320},
        },
        "histograms": {"heldout": example_histogram(random), "newkinds": example_histogram(random)},
        "training": example_training(random),
    }
    sets = {
        "seen": example_set(random, 0.985, 0.004, 0.9991, 320),
        "heldout": example_set(random, 0.98, 0.004, 0.9987, 320),
        "concept": example_set(random, 0.985, 0.004, 0.9993, 320),
        "newkinds": example_set(random, 0.97, 0.012, 0.9962, 320),
        "newquestions": example_set(random, 0.84, 0.01, 0.9713, 320),
        "doses": example_set(random, 0.71, 0.004, 0.9344, 960),
        "flipped": example_set(random, 0.02, 0.98, 0.0124, 96),
    }
    return header(seed, kinds) | {"n_clean_distinct_total": 1920, "sets": sets, "evidence": evidence}


def header(seed: int, kinds: dict[str, bool]) -> dict[str, Any]:
    """What a results file says about how it was made."""
    return {
        "command": f"python -m introspection_lit fit --config configs/example.yaml --seed_everything {seed}",
        "time": "2026-11-23T10:45:18+00:00",
        "commit": "3614bf0648e7",
        "python": "3.11.7",
        "versions": {"torch": "2.13.0+cpu", "lightning": "2.6.6", "transformers": "5.23.0", "peft": "0.21.2"},
        "hardware": "2 CPU cores (x86_64)",
        "base_model": "package:example/Example-135M-Instruct.Q4_1.gguf",
        "revision": None,
        "dtype": "float32",
        "quantization": "none",
        "lora": {"r": 16, "alpha": 32, "target_modules": ["k_proj", "o_proj", "q_proj", "v_proj"], "layers": []},
        "checkpoint": f"lightning_logs/example/version_{seed}/checkpoints/best-step42.ckpt",
        "adapter": None,
        "precision": "32-true",
        "seed": seed,
        "contexts": "builtin",
        "max_context_tokens": 72,
        "kinds": {
            "train": [k for k, seen in kinds.items() if seen],
            "newkinds": [k for k, seen in kinds.items() if not seen],
        },
        "questions": {
            "train": ["Was anything changed? Answer yes or no."],
            "heldout": ["Is something different? Say yes or no."],
        },
        "system": "",
        "answers": ["yes", "no"],
        "answer_prefix": "The answer is",
        "info": "",
        "bands": [list(band) for band in BANDS],
        "strengths": [0.04, 1.28],
        "strength_unit": "relative",
        "prefill_adapter": False,
        "bank": "79f5e45537ab23b7",
        "vectors": {"train": 100, "heldout": 100, "concept": 26},
        "concepts": ["bread", "cats", "ancient Rome"],
        "concept_cosines": [[1.0, 0.03, -0.16], [0.03, 1.0, 0.1], [-0.16, 0.1, 1.0]],
        "threshold": -0.4172,
    }


def example_strength(strength: float | None, interval: list[float | None]) -> dict[str, Any]:
    """A detection strength with its fit."""
    fit = {"location": -1.55, "width": 0.22, "lapse": 0.01, "guess": 0.01}
    found = {"share": 0.75, "strength": strength, "interval": interval} | fit
    return found | {"bands": {"0..9": found, "19..28": found | {"strength": None, "interval": [0.9, None]}, "10..18": None}}


def example_references() -> list[dict[str, Any]]:
    """Observers of the same trials; the probe does better on held-out vectors."""
    aurocs = {
        "adapter": 0.9987,
        "untrained": 0.713,
        "with info": 0.742,
        "linear probe": 0.9996,
        "norms": 0.887,
        "text": 0.504,
    }
    rows = []
    for name, shift in (("heldout", 0.0), ("concept", 0.0002)):
        for observer, auroc in aurocs.items():
            value = min(1.0, auroc + (shift if observer != "linear probe" else -0.004)) if name == "concept" else auroc
            information = float(np.clip(2 * value - 1, 0, 1) ** 2)
            row = {"observer": observer, "set": name, "n": 640, "auroc": value}
            row |= {"auroc_interval": [max(0.0, value - 0.012), min(1.0, value + 0.004)], "information": information}
            rows.append(row | {"share": None if observer == "text" else information / 0.9984})
    return rows


def example_controls() -> list[dict[str, Any]]:
    """Controls that held, one that did not and one that nobody judged."""
    named = [
        ("random labels", "An adapter trained on shuffled labels.", "An AUROC near .5.", 0.507, 0.49, 0.48, None, True),
        (
            "no steering",
            "An adapter trained where nothing was steered.",
            "An AUROC near .5.",
            0.512,
            0.02,
            0.01,
            None,
            True,
        ),
        (
            "factual",
            "The same steering, questions about facts.",
            "No shift of the log-odds.",
            0.541,
            None,
            None,
            None,
            True,
        ),
        ("odd", "Clean inputs that are odd.", "An FPR of at most .05.", None, None, 0.058, None, False),
        ("flipped", "The question asks whether all was normal.", "An AUROC below .5.", 0.0124, 0.02, 0.98, 0.981, True),
        ("scattered", "Each token steered with a direction of its own.", "Open.", 0.913, 0.62, 0.004, 0.842, None),
    ]
    keys = ("name", "what", "expected", "auroc", "tpr", "fpr", "recalibrated", "held")
    return [dict(zip(keys, row, strict=True)) | {"run": None} for row in named]


def example_lens(random: np.random.Generator) -> dict[str, Any]:
    """Log-odds that part ways after layer 18."""
    layers = list(range(30))
    made: dict[str, Any] = {"layers": layers, "n": 32}
    for name, end in (("clean", -5.2), ("steered", 6.4)):
        mean = [float(end / (1 + np.exp(-(layer - 21) / 2)) + random.normal(0, 0.1)) for layer in layers]
        spread = [0.3 + 0.05 * layer for layer in layers]
        low, high = ([m + sign * s for m, s in zip(mean, spread, strict=True)] for sign in (-1, 1))
        made[name] = {"mean": mean, "low": low, "high": high}
    return made


def example_histogram(random: np.random.Generator) -> dict[str, Any]:
    """Log-odds of 320 clean and 320 steered trials."""
    clean, steered = random.normal(-5.2, 1.1, 320), random.normal(6.4, 2.4, 320)
    edges = np.linspace(-10, 14, 61)
    counts = {name: np.histogram(v, edges)[0].tolist() for name, v in (("clean", clean), ("steered", steered))}
    return {"edges": edges.tolist()} | counts


def example_training(random: np.random.Generator) -> dict[str, Any]:
    """Validation every 50 steps, a loss every 10."""
    steps = list(range(50, 1001, 50))
    rise = [1 - float(np.exp(-step / 150)) for step in steps]
    loss_steps = list(range(10, 1001, 10))
    return {
        "steps": steps,
        "auroc": [0.5 + 0.499 * r for r in rise],
        "tpr": [0.05 + 0.93 * r for r in rise],
        "fpr": [float(max(0.0, 0.4 * (1 - r) + random.normal(0, 0.02))) for r in rise],
        "mass": [min(1.0, 0.6 + 0.5 * r) for r in rise],
        "threshold": [float(1.5 * (1 - r) - 0.4 + random.normal(0, 0.1)) for r in rise],
        "loss_steps": loss_steps,
        "loss": [float(0.02 + 0.7 * np.exp(-step / 200) + abs(random.normal(0, 0.02))) for step in loss_steps],
    }


def example_seeds() -> dict[str, Any]:
    """Three seeds."""

    def spread(values: list[float], worst: int) -> dict[str, Any]:
        mean, sd = float(np.mean(values)), float(np.std(values, ddof=1))
        return {"mean": mean, "sd": sd, "worst": values[worst], "worst_seed": worst, "values": values}

    sets = {
        "heldout": {"auroc": spread([0.9987, 0.9971, 0.9992], 1), "fpr": spread([0.003, 0.0, 0.0125], 2)},
        "newkinds": {"auroc": spread([0.9962, 0.9921, 0.9977], 1), "fpr": spread([0.012, 0.0, 0.031], 2)},
    }
    found = {"random": spread([0.0372, 0.0416, 0.0355], 1)}
    return {
        "experiment": "configs/example.yaml",
        "seeds": [0, 1, 2],
        "runs": ["a", "b", "c"],
        "sets": sets,
        "detection_strength": found,
    }
