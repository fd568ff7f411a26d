"""Bands and strengths."""

from __future__ import annotations

import pytest
import torch

from introspection_lit.steering.bands import band_problem, layer_scale, named_band, resolve_bands
from introspection_lit.utils.errors import ConfigurationError

NORMS = torch.tensor([10.0, 20.0, 30.0, 40.0])


def test_relative_strength_is_a_fraction_of_the_norm_over_root_width() -> None:
    """Strength .5 on layers 1..2 adds .5 x norm / sqrt(2) there and nothing elsewhere."""
    expected = torch.tensor([0.0, 0.5 * 20 / 2**0.5, 0.5 * 30 / 2**0.5, 0.0])
    torch.testing.assert_close(layer_scale(0.5, (1, 2), NORMS), expected)


def test_last_layer_does_not_count_into_the_width() -> None:
    """Layers 2..3 of 4: only layer 2 reaches the cache, so it gets the whole strength."""
    assert layer_scale(0.5, (2, 3), NORMS)[2] == pytest.approx(0.5 * 30)
    assert layer_scale(0.5, (2, 2), NORMS)[2] == pytest.approx(0.5 * 30)


def test_absolute_strength_is_the_length_at_each_layer() -> None:
    """As in the literature: 20 at each of the 22 layers of 21..42, whatever the norms."""
    scale = layer_scale(20.0, (21, 42), torch.rand(64), "absolute")
    assert scale[21:43].tolist() == [20.0] * 22
    assert scale.sum() == 440.0


@pytest.mark.parametrize("layers", [4, 6, 28, 30, 64])
def test_thirds_tile_the_layers_that_reach_the_cache(layers: int) -> None:
    """Early, middle and late cover 0..layers-2 without gap or overlap."""
    bands = [named_band(name, layers) for name in ("early", "middle", "late")]
    covered = [layer for first, last in bands for layer in range(first, last + 1)]
    assert covered == list(range(layers - 1))
    assert named_band("all", layers) == (0, layers - 2)


@pytest.mark.parametrize(
    ("band", "message"),
    [((29, 29), "last layer alone"), ((28, 30), "not inside"), ((5, 3), "not inside"), ((-1, 3), "not inside")],
)
def test_bands_that_cannot_work_are_refused(band: tuple[int, int], message: str) -> None:
    """Outside the model, backwards, or unable to reach the cache."""
    assert message in (band_problem(band, 30) or "")
    with pytest.raises(ConfigurationError, match=message):
        resolve_bands([list(band)], 30)


def test_bands_that_work() -> None:
    """The last layer may be in a band that starts below it."""
    assert band_problem((28, 29), 30) is None
    assert resolve_bands(["middle", [21, 42]], 64) == (named_band("middle", 64), (21, 42))
