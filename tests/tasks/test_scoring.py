"""Log-odds, mass and loss against independent computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from introspection_lit.tasks.scoring import answer_loss, kl_divergence, log_odds, mass, task_losses

LOGITS = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)) * 4
ANSWERS = torch.tensor([7, 3])
LABELS = torch.tensor([True, False, True, True, False, False])
TARGETS = (~LABELS).long()  # index into the answers


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
    assert answer_loss(LOGITS, ANSWERS, TARGETS).item() == pytest.approx(expected, rel=1e-5)


def test_pairwise_loss_is_blind_to_the_mass_and_the_full_one_is_not() -> None:
    """Raising every other logit leaves the pairwise loss alone: the mass can collapse unseen."""
    raised = LOGITS + 5
    raised[:, ANSWERS] -= 5
    pair = [answer_loss(logits, ANSWERS, TARGETS, "pairwise").item() for logits in (LOGITS, raised)]
    full = [answer_loss(logits, ANSWERS, TARGETS, "full").item() for logits in (LOGITS, raised)]
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


def test_each_row_has_its_own_answer_words() -> None:
    """The same as row by row with the words of that row."""
    words = torch.tensor([[7, 3], [3, 7], [1, 2], [2, 1], [40, 41], [0, 49]])
    expected = torch.cat([log_odds(LOGITS[[row]], words[row]) for row in range(6)])
    torch.testing.assert_close(log_odds(LOGITS, words), expected, rtol=0, atol=0)
    assert log_odds(LOGITS, words)[0] == -log_odds(LOGITS[[0]], words[1])[0]
    losses = [answer_loss(LOGITS[[row]], words[row], TARGETS[[row]]) for row in range(6)]
    torch.testing.assert_close(answer_loss(LOGITS, words, TARGETS), torch.stack(losses).mean())


def test_task_losses_are_cross_entropy_or_divergence() -> None:
    """By scipy in float64: rows with a target, and rows whose right answer is a distribution."""
    words = torch.tensor([[7, 3]] * 6)
    targets = torch.tensor([0, -1, 1, -1, -1, 0])
    place = torch.tensor([-1, 1, -1, 0, 1, -1])
    other = torch.randn(2, 50, generator=torch.Generator().manual_seed(1))
    found = task_losses(LOGITS, words, targets, other.log_softmax(-1), place)
    predicted = log_softmax(LOGITS.double().numpy(), axis=1)
    reference = log_softmax(other.double().numpy(), axis=1)
    for row, (target, which) in enumerate(zip(targets.tolist(), place.tolist(), strict=True)):
        if target >= 0:
            expected = -predicted[row, words[row, target]]
        else:
            expected = np.sum(np.exp(reference[which]) * (reference[which] - predicted[row]))
        assert found[row].item() == pytest.approx(expected, rel=1e-4)


def test_divergence_from_itself_is_zero() -> None:
    """And positive from anything else."""
    own = LOGITS.log_softmax(-1)
    torch.testing.assert_close(kl_divergence(LOGITS, own), torch.zeros(6), atol=1e-5, rtol=0)
    assert (kl_divergence(LOGITS, own.flip(0)) > 0.1).all()
