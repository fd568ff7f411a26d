"""Log-odds, mass and loss against independent computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from introspection_lit.tasks.scoring import detection_loss, log_odds, mass

LOGITS = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)) * 4
ANSWERS = torch.tensor([7, 3])
LABELS = torch.tensor([True, False, True, True, False, False])


def test_log_odds_and_mass_match_numpy() -> None:
    """Also the definition by probabilities: log P(yes) / P(no)."""
    probabilities = softmax(LOGITS.double().numpy(), axis=1)
    expected = np.log(probabilities[:, 7] / probabilities[:, 3])
    np.testing.assert_allclose(log_odds(LOGITS, ANSWERS), expected, rtol=1e-4)
    np.testing.assert_allclose(mass(LOGITS, ANSWERS), probabilities[:, 7] + probabilities[:, 3], rtol=1e-5)


def test_full_loss_is_cross_entropy_over_the_vocabulary() -> None:
    """By scipy's log-softmax in float64."""
    rows = log_softmax(LOGITS.double().numpy(), axis=1)
    expected = -np.mean([rows[i, 7 if label else 3] for i, label in enumerate(LABELS)])
    assert detection_loss(LOGITS, ANSWERS, LABELS).item() == pytest.approx(expected, rel=1e-5)


def test_pairwise_loss_is_blind_to_the_mass_and_the_full_one_is_not() -> None:
    """Raising every other logit leaves the pairwise loss alone: the mass can collapse unseen."""
    raised = LOGITS + 5
    raised[:, ANSWERS] -= 5
    pair = [detection_loss(logits, ANSWERS, LABELS, "pairwise").item() for logits in (LOGITS, raised)]
    full = [detection_loss(logits, ANSWERS, LABELS, "full").item() for logits in (LOGITS, raised)]
    assert pair[0] == pytest.approx(pair[1], rel=1e-5)
    assert full[1] > full[0] + 1
    sign = np.where(LABELS, 1, -1)
    expected = np.mean(np.log1p(np.exp(-sign * log_odds(LOGITS, ANSWERS).numpy())))
    assert pair[0] == pytest.approx(expected, rel=1e-4)


def test_scores_are_float32_whatever_the_logits() -> None:
    """bfloat16 probabilities are multiples of 1/256; float32 ones of the same logits are not."""
    assert log_odds(LOGITS.bfloat16(), ANSWERS).dtype == torch.float32
    masses = mass(LOGITS.bfloat16(), ANSWERS)
    assert masses.dtype == torch.float32
    assert not torch.equal(masses, masses.bfloat16().float())
