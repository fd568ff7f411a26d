"""The baseline: answers of a model to clean and steered contexts by direction, for detection and control questions.

Reads the rows that ``predict`` wrote for a grid (:mod:`~introspection_lit.trials.grid`) and compares every steered trial
with the clean one of the same context and question.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.table import Table

from introspection_lit.evaluation.statistics import auroc
from introspection_lit.trials.grid import CLEAR_NO, CLEAR_YES, DETECTION, info_of

RANDOM = "random"


class AnswerScore(NamedTuple):
    """The scores of one trial.

    Attributes:
        log_odds: logit(yes) - logit(no), in nats.
        mass: P(yes) + P(no) under the full softmax.
    """

    log_odds: float
    mass: float

    @property
    def p_yes(self) -> float:
        """P(yes) under the full softmax."""
        return self.mass / (1 + math.exp(min(-self.log_odds, 700)))

    @property
    def p_no(self) -> float:
        """P(no) under the full softmax."""
        return self.mass / (1 + math.exp(min(self.log_odds, 700)))


def read_rows(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Read the rows of ``predictions.jsonl``, or of the files of several processes."""
    for path in paths:
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)


def compare_directions(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compare the steered trials of every direction with the clean ones.

    Args:
        rows: Trials of a grid.

    Returns:
        A row for each condition (``info``), ``question`` (detection, clear yes, clear no), ``band``, ``strength`` and
        direction (``vectors``, ``vector``), with means over contexts and questions: ``p_yes_clean``, ``p_yes_steered``,
        ``p_yes_shift``, and the same of ``p_no``, ``log_odds`` and ``mass``; ``auroc``, how often a steered trial outscores
        a clean one, over contexts, averaged over questions; ``n``, the number of pairs.
    """
    clean: dict[tuple, AnswerScore] = {}
    steered: dict[tuple, dict[tuple, AnswerScore]] = defaultdict(dict)
    for row in rows:
        info = info_of(row["split"])
        answer = AnswerScore(row["log_odds"], row["mass"])
        trial = (info, row["role"], row["question_text"], row["context"])
        if row["steered"]:
            vectors = RANDOM if row["vectors"] in ("train", "heldout") else row["vectors"]
            cell = (info, row["role"], tuple(row["band"]), row["strength"], vectors, row["vector_name"])
            steered[cell][trial] = answer
        else:
            clean[trial] = answer
    compared = []
    for (info, role, band, strength, vectors, vector), answers in steered.items():
        by_question = defaultdict(list)
        for trial, answer in answers.items():
            by_question[trial[2]].append((clean[trial], answer))
        labels = {
            "info": info,
            "question": role,
            "band": list(band),
            "strength": strength,
            "vectors": vectors,
            "vector": vector,
        }
        compared.append(labels | _shifts(list(by_question.values())))
    return compared


MEANS = ("p_yes", "p_no", "log_odds", "mass")


def _shifts(by_question: Sequence[Sequence[tuple[AnswerScore, AnswerScore]]]) -> dict[str, float | int]:
    """Means, shifts and AUROC of one direction, from pairs of a clean and a steered answer for each question."""
    pairs = [pair for pairs in by_question for pair in pairs]
    row: dict[str, float | int] = {}
    for name in MEANS:
        first, second = (float(np.mean([getattr(pair[side], name) for pair in pairs])) for side in (0, 1))
        row |= {f"{name}_clean": first, f"{name}_steered": second, f"{name}_shift": second - first}
    # Log-odds differ between questions also without steering: one AUROC for each.
    aurocs = []
    for group in by_question:
        scores = torch.tensor([pair[side].log_odds for side in (0, 1) for pair in group], dtype=torch.float64)
        aurocs.append(auroc(scores, torch.arange(2 * len(group)) >= len(group)))
    return row | {"auroc": float(np.mean(aurocs)), "n": len(pairs)}


def average_directions(compared: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Average over the directions of each type of vectors.

    Args:
        compared: From :func:`compare_directions`.

    Returns:
        A row for each condition, question, band, strength and type of vectors: the means of all numbers over
        ``directions`` directions, and the lowest and highest AUROC (``auroc_lowest``, ``auroc_highest``).
    """
    groups = defaultdict(list)
    for row in compared:
        groups[row["info"], row["question"], tuple(row["band"]), row["strength"], row["vectors"]].append(row)
    summary = []
    for (info, question, band, strength, vectors), rows in groups.items():
        numbers = [key for key, value in rows[0].items() if isinstance(value, float) and key != "strength"]
        means = {key: float(np.mean([row[key] for row in rows])) for key in numbers}
        aurocs = [row["auroc"] for row in rows]
        labels = {"info": info, "question": question, "band": list(band), "strength": strength, "vectors": vectors}
        extremes = {"auroc_lowest": min(aurocs), "auroc_highest": max(aurocs), "directions": len(rows)}
        summary.append(labels | means | extremes)
    return summary


def format_probability(share: float) -> str:
    """A probability in percent with three significant digits."""
    return f"{100 * share:.3g} %" if share < 0.9995 else "100 %"


def format_change(row: dict[str, Any], name: str) -> str:
    """A probability, clean → steered, in percent."""
    return f"{100 * row[f'{name}_clean']:.3g} → {100 * row[f'{name}_steered']:.3g}"


def direction_table(compared: Sequence[dict[str, Any]], summary: Sequence[dict[str, Any]]) -> Table:
    """A table of the detection question, clean → steered, for every concept and averaged over each type of vectors.

    Several conditions get a column each; with several bands or strengths only the averages are shown.
    """
    infos = list(dict.fromkeys(row["info"] for row in summary))
    several = len({cell_of(row)[1:] for row in summary}) > 1
    alone = [row | {"label": row["vector"]} for row in compared if row["vectors"] == "concept" and not several]
    together = [row | {"label": f"{row['vectors']}, mean of {row['directions']}"} for row in summary]
    lines: dict[tuple[str, ...], dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in [*alone, *together]:
        if row["question"] == DETECTION:
            place = (f"{row['band'][0]}..{row['band'][1]}", f"{row['strength']:g}") if several else ()
            lines[row["label"], *place][row["info"]] = row
    table = Table(title="Was it steered? Clean → steered, probabilities in %", padding=(0, 1))
    for column in ("direction", *(("layers", "strength") if several else ())):
        table.add_column(column, no_wrap=True)
    if len(infos) == 1:
        for column in ("P(yes)", "P(no)", "log-odds", "AUROC", "mass"):
            table.add_column(column, justify="right", no_wrap=True)
    else:
        for info in infos:
            table.add_column(f"info: {Path(info).name}\nP(yes)  AUROC", justify="right", no_wrap=True)
    for labels, rows in lines.items():
        cells = [f"{format_change(rows[info], 'p_yes')} {rows[info]['auroc']:.2f}" for info in infos]
        if len(infos) == 1:
            row = rows[infos[0]]
            shift, area, share = f"{row['log_odds_shift']:+.2f}", f"{row['auroc']:.2f}", f"{row['mass_steered']:.2f}"
            cells = [format_change(row, "p_yes"), format_change(row, "p_no"), shift, area, share]
        table.add_row(*labels, *cells)
    return table


def control_table(summary: Sequence[dict[str, Any]]) -> Table:
    """A table of the shifts of the log-odds by question; equal shifts of control questions mean a push toward yes."""
    cells = {(*cell_of(row), row["vectors"], row["question"]): row for row in summary}
    keys = list(dict.fromkeys(key[:-1] for key in cells))
    shown = [column for column in range(3) if len({key[column] for key in keys}) > 1]
    table = Table(title="Log-odds: clean, and shift by steering", padding=(0, 1))
    for column in [*(("info", "layers", "strength")[place] for place in shown), "vectors"]:
        table.add_column(column, no_wrap=True)
    for column in (DETECTION, CLEAR_YES, CLEAR_NO):
        table.add_column(column, justify="right", no_wrap=True)
    for key in keys:
        rows = [cells.get((*key, question)) for question in (DETECTION, CLEAR_YES, CLEAR_NO)]
        moved = [f"{row['log_odds_clean']:+.2f} {row['log_odds_shift']:+.2f}" if row else "" for row in rows]
        names = (Path(key[0]).name, f"{key[1][0]}..{key[1][1]}", f"{key[2]:g}")
        table.add_row(*(names[place] for place in shown), key[3], *moved)
    return table


def cell_of(row: dict[str, Any]) -> tuple[str, tuple[int, ...], float]:
    """The condition, band and strength of a row."""
    return row["info"], tuple(row["band"]), row["strength"]
