"""What the trials of a batch add to the residual stream: directions, lengths and steered tokens as tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from introspection_lit.steering.bands import layer_scale
from introspection_lit.steering.change_names import DROPS
from introspection_lit.steering.intervention import Intervention
from introspection_lit.steering.vector_bank import VectorBank
from introspection_lit.trials.plans import Plan
from introspection_lit.trials.test_sets import Source
from introspection_lit.trials.trial import Trial
from introspection_lit.utils.seeds import generator


def clean_trial(trial: Trial) -> Trial:
    """The trial without its intervention, over the untouched cache; where tokens were dropped, without these.

    It is what questions that are not about steering are answered from: what was dropped cannot be asked for.
    """
    change = trial.change if trial.change in DROPS else ""
    clean = trial._replace(steered=False, vector=-1, band=(-1, -1), strength=0.0, parts=(), vectors="", divided="")
    return clean._replace(opposite=False, change=change)


def dithered(trial: Trial, strength: float, plan: Plan, seed: int) -> Trial:
    """The trial, or if nothing is added, the one that adds next to nothing: so that its rounding is that of steered trials.

    Args:
        trial: Stays as it is if it is steered.
        strength: Of what is added to a clean trial; 0: nothing is.
        plan: The trial's plan: band, direction and sign are drawn from its bands and vectors.
        seed: The experiment's seed.
    """
    if trial.strength or not strength:
        return trial
    random = generator(seed, "dither", trial.split, trial.number)
    vector, band, opposite = (int(random.integers(count)) for count in (plan.vectors, len(plan.bands), 2))
    return trial._replace(vector=vector, band=plan.bands[band], strength=strength, opposite=bool(opposite))


def make_intervention(
    trials: Sequence[Trial],
    mask: Tensor,
    bank: VectorBank,
    source: Source,
    strength_unit: str,
    part_spans: Callable[[Trial], list[tuple[int, int]]],
    seed: int,
) -> Intervention:
    """The intervention of some caches.

    Args:
        trials: A trial of each cache.
        mask: 1 at tokens, 0 at (left) padding, ``(caches, context)``.
        bank: Directions and residual norms.
        source: Where the vectors of the split come from, their sign, and the share of steered tokens.
        strength_unit: See :func:`~introspection_lit.steering.bands.layer_scale`.
        part_spans: The tokens of each part of a trial's context, (first, one after the last).
        seed: The experiment's seed, for random positions.
    """
    direction, scale = _direction_and_scale(trials, bank, source, strength_unit)
    return Intervention(direction, scale, steered_positions(trials, mask, source.positions, part_spans, seed))


def _direction_and_scale(
    trials: Sequence[Trial], bank: VectorBank, source: Source, strength_unit: str
) -> tuple[Tensor, Tensor]:
    """Unit directions, ``(caches, layers or 1, hidden)``, and lengths, ``(caches, layers)``; zero for clean trials."""
    norms = bank.residual_norms
    sets = {name: bank.directions[name] for name in {trial.vectors or source.vectors for trial in trials}}
    layers = max(len(rows[0]) if rows.dim() == 3 else 1 for rows in sets.values())
    directions = torch.zeros(len(trials), layers, next(iter(sets.values())).shape[-1])
    scales = torch.zeros(len(trials), len(norms))
    for row, trial in enumerate(trials):
        if trial.strength:
            sign = -source.sign if trial.opposite else source.sign
            directions[row] = sign * sets[trial.vectors or source.vectors][trial.vector]
            scales[row] = layer_scale(trial.strength, trial.band, norms, strength_unit)
    return directions, scales


def steered_positions(
    trials: Sequence[Trial],
    mask: Tensor,
    share: float,
    part_spans: Callable[[Trial], list[tuple[int, int]]],
    seed: int,
) -> Tensor:
    """Shares of the strength at each token, ``(caches, context)``: True or False, or numbers where parts differ.

    All of a context, some of its parts, or a random share of its tokens, at least one.
    """
    tokens_mask = mask.bool()
    if any(trial.parts for trial in trials):
        shares = tokens_mask.float()
        for row, trial in enumerate(trials):
            if not trial.parts:
                continue
            shares[row], start = 0, mask.shape[1] - int(mask[row].sum())  # padding is on the left
            for (first, end), part in zip(part_spans(trial), trial.parts, strict=True):
                shares[row, start + first : start + end] = part
        return shares
    if share >= 1:
        return tokens_mask
    positions = torch.zeros_like(tokens_mask)
    for row, trial in enumerate(trials):
        tokens = tokens_mask[row].nonzero()[:, 0]
        order = generator(seed, "positions", trial.split, trial.number).permutation(len(tokens))
        positions[row, tokens[order[: max(1, round(share * len(tokens)))]]] = True
    return positions
