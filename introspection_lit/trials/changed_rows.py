"""The changes of the caches of a batch, as what :func:`~introspection_lit.steering.cache_changes.change_caches` takes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from introspection_lit.steering.cache_changes import CacheChange
from introspection_lit.trials.trial import Trial
from introspection_lit.utils.seeds import generator

SPLICED, NEIGHBOURS = "spliced", "neighbours"
# A batch with ``neighbours`` is as wide as if one of its contexts were so many times as long.
LONGER = 4
# Contexts, of those that are at least as long, among which the other conversation of ``spliced`` is drawn.
PARTNERS = 8


def partner_of(trial: Trial, pair: int, lengths: Sequence[int], seed: int) -> Trial:
    """The trial whose cache gives a spliced one its second half: another context under the same intervention.

    Args:
        trial: The trial.
        pair: Number of its pair: both caches of a pair have the same partner.
        lengths: Tokens of the contexts that it may be.
        seed: The experiment's seed.
    """
    order = sorted((length, context) for context, length in enumerate(lengths) if context != trial.context)
    longer = [context for length, context in order if length >= lengths[trial.context]][:PARTNERS]
    among = longer or [context for _, context in order[-PARTNERS:]] or [trial.context]
    drawn = int(generator(seed, SPLICED, trial.split, pair).integers(len(among)))
    return trial._replace(context=among[drawn], change="")


def cache_changes(
    trials: Sequence[Trial], pairs: Sequence[int], partners: Sequence[int], seed: int
) -> list[CacheChange] | None:
    """The change of each cache of a batch; None if there is none.

    Args:
        trials: A trial of each cache.
        pairs: Number of each trial's pair.
        partners: Index of the cache that gives each its second half; -1: none.
        seed: The experiment's seed.
    """
    if not any(trial.change for trial in trials):
        return None
    return [
        CacheChange(trial.change, int(generator(seed, "noise", trial.split, pair).integers(2**63)), partner)
        for trial, pair, partner in zip(trials, pairs, partners, strict=True)
    ]


def widened(ids: Tensor, mask: Tensor, pad_token: int) -> tuple[Tensor, Tensor]:
    """Left-padded ids and mask, ``(caches, context)``, padded further, as beside a context :data:`LONGER` times as long."""
    more = (LONGER - 1) * ids.shape[1]
    return functional.pad(ids, (more, 0), value=pad_token), functional.pad(mask, (more, 0), value=0)


def as_wide_as_needed(ids: Tensor, mask: Tensor, pad_token: int, trials: Sequence[Trial]) -> tuple[Tensor, Tensor]:
    """:func:`widened` where any of the trials asks for ``neighbours``; otherwise the same tensors."""
    return widened(ids, mask, pad_token) if any(trial.change == NEIGHBOURS for trial in trials) else (ids, mask)
