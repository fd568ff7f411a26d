"""Learning curves from TensorBoard files."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from introspection_lit.evaluation.learning_curves import learning_curves


def test_learning_curves_of_nothing(tmp_path: Path) -> None:
    """A folder without a TensorBoard file is no run."""
    assert learning_curves(tmp_path) is None


def test_learning_curves_of_a_run_that_was_too_short_to_log_its_loss(tmp_path: Path) -> None:
    """Lightning logs every 50 steps unless told otherwise; the validations are there all the same."""
    with SummaryWriter(str(tmp_path)) as writer:
        for step in (3, 7):
            for name in ("auroc", "tpr", "fpr", "mass", "threshold"):
                writer.add_scalar(f"validation/{name}", step / 10, step)
    found = learning_curves(tmp_path)
    assert found is not None
    assert (found["steps"], found["auroc"], found["loss"]) == ([3, 7], pytest.approx([0.3, 0.7]), [])
