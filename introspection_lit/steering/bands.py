"""Bands of decoder layers: their names, checks, and the length that a strength adds at each layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from introspection_lit.steering.limits import LEAST_STRENGTH, MOST_STRENGTH
from introspection_lit.utils.errors import ConfigurationError


def resolve_bands(
    bands: Sequence[str | Sequence[int]], n_layers: int, option: str = "bands", reach: int | None = None
) -> Bands:
    """Convert the bands of a configuration to layer numbers.

    Args:
        bands: ``early``, ``middle``, ``late``, ``all``, or [first, last], both inclusive.
        n_layers: Number of decoder layers of the model.
        option: Name of the option, for messages.
        reach: Number of the first layers whose output reaches the cache; None: of all but the last.

    Returns:
        (first, last) layer of each band, inclusive.

    Raises:
        ConfigurationError: A band is malformed, outside the model, or cannot reach the cache.
    """
    problems = [] if bands else [f"data.{option}: got none. Expected at least one, such as 'middle' or [21, 42]."]
    resolved = []
    for band in bands:
        if isinstance(band, str):
            if band not in BAND_NAMES:
                problems.append(f"data.{option}: got {band!r}. Expected one of {', '.join(BAND_NAMES)}, or [first, last].")
                continue
            if n_layers < 4 or (reach is not None and reach < 3):
                has = n_layers if reach in (None, n_layers - 1) else reach + 1
                problems.append(f"data.{option}: {band!r} needs a model of at least 4 layers with a cache; it has {has}.")
                continue
            resolved.append(named_band(band, n_layers, reach))
        elif len(band) != 2:
            problems.append(f"data.{option}: got {list(band)}. Expected [first, last], both inclusive.")
        else:
            first_last = (int(band[0]), int(band[1]))
            problem = band_problem(first_last, n_layers, reach)
            if problem:
                problems.append(f"data.{option}: {problem}")
            resolved.append(first_last)
    if problems:
        raise ConfigurationError(problems)
    return tuple(resolved)


def strength_problems(option: str, strengths: Sequence[float]) -> list[str]:
    """Check a range of strengths, 0 < lowest <= highest; a sentence for each problem."""
    low, high = strengths
    if not LEAST_STRENGTH <= low <= high <= MOST_STRENGTH:
        return [
            f"data.{option}: got {[low, high]}. Expected [lowest, highest] with 0 < lowest <= highest: a strength of "
            f"zero, or below {LEAST_STRENGTH:g}, is a clean trial with the wrong label, and one above {MOST_STRENGTH:g} "
            "leaves nothing of the text."
        ]
    return []


def band_problem(band: tuple[int, int], n_layers: int, reach: int | None = None) -> str | None:
    """Check a band (first and last decoder layer, inclusive): the problem as a sentence, or None."""
    reach = n_layers - 1 if reach is None else reach
    first, last = band
    if not 0 <= first <= last < n_layers:
        return (
            f"the band {list(band)} is not inside the model's layers 0..{n_layers - 1}. Expected [first, last], "
            "both inclusive."
        )
    if reach < n_layers - 1 and last >= reach:
        return (
            f"the band {list(band)} has layers above {reach - 1}, whose output reaches no key or value: the layers above "
            f"{reach} write none in this model, they take those of earlier layers or mix no tokens. Expected a band inside "
            f"0..{reach - 1}."
        )
    if first == n_layers - 1:
        return (
            f"the band {list(band)} is the last layer alone: its output reaches no key or value, so a steered trial "
            f"would be identical to a clean one. Start the band at layer {n_layers - 2} or below."
        )
    return None


def named_band(name: str, n_layers: int, reach: int | None = None) -> tuple[int, int]:
    """Resolve ``early``, ``middle``, ``late`` (thirds of the layers that can reach the cache) or ``all``.

    Args:
        name: One of the four.
        n_layers: Number of decoder layers of the model, at least 4.
        reach: Number of the first layers whose output reaches the cache; None: of all but the last.

    Returns:
        First and last layer, inclusive.
    """
    reachable = n_layers - 1 if reach is None else reach
    edges = [round(reachable * third / 3) for third in range(4)]
    if name == "all":
        return 0, reachable - 1
    third = ("early", "middle", "late").index(name)
    return edges[third], edges[third + 1] - 1


BAND_NAMES = ("early", "middle", "late", "all")


def layer_scale(strength: float, band: tuple[int, int], residual_norms: Tensor, unit: str = "relative") -> Tensor:
    """Convert a strength to the length that is added at each layer.

    Args:
        strength: In ``unit``.
        band: First and last layer steered, inclusive.
        residual_norms: Median norm of the residual stream after each layer, ``(layers,)``.
        unit: ``absolute``: the strength is the length added at each layer of the band, as in the literature.
            ``relative``: it is a fraction of the layer's median residual norm, divided by the square root of the number of
            layers in the band that reach the cache (the last one does not), so that bands of all widths are comparable.

    Returns:
        Lengths in the units of the residual stream, ``(layers,)`` float32; 0 outside the band.
    """
    first, last = band
    scale = torch.zeros_like(residual_norms, dtype=torch.float32)
    if unit == "absolute":
        scale[first : last + 1] = strength
    else:
        reaching = min(last, len(scale) - 2) - first + 1  # the last layer's output reaches no cache
        scale[first : last + 1] = strength * residual_norms[first : last + 1] / reaching**0.5
    return scale


Bands = tuple[tuple[int, int], ...]
