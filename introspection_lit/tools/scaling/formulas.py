"""Formulas for the cost of a training step, a fit of them to measurements, and the price of a run (docs/scaling.md).

An operation is a multiplication or an addition; rates are per second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from introspection_lit.models.decoder_shape import Shape
    from introspection_lit.steering.bands import Bands


# Operations of a backward pass over those of its forward pass. The weights are frozen, so matrix products have gradients of
# activations only; in attention, queries, keys and values all have gradients, and the scores are computed again.
BACKWARD, ATTENTION_BACKWARD = 1.0, 2.5
# Passes over all weights in a training step: prefill, question pass, backward.
PASSES = 3


class Operations(NamedTuple):
    """Operations of one training trial.

    Attributes:
        prefill: Matrix products over the context.
        detection: Matrix products over the question, forward and backward.
        attention: Scores and their products with the values, in both.
    """

    prefill: float
    detection: float
    attention: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.prefill + self.detection + self.attention


def trial_operations(shape: Shape, context: int, question: int, prefill_share: float = 1.0) -> Operations:
    """Count a trial's operations.

    With N weights in the matrices of the decoder layers, c context and q question tokens, L layers and queries of width w:
    prefill 2·N·c, detection 2·N·q forward and as many backward (weights are frozen, so no gradient of theirs is computed);
    attention 4·L·w·c² in the prefill and 4·L·w·q·(c + q) · (1 + 2.5) in the question pass. Embeddings, the head at one
    position, norms and the adapter are left out: below 3 % together in the models of the configs.

    Args:
        shape: The model's.
        context: Tokens of the context, padding included.
        question: Tokens of the question, padding included.
        prefill_share: Share of the prefill that is computed (see :func:`prefill_share`).
    """
    weights = sum(matrix.weights for matrix in shape.matrices)
    scores = 4.0 * shape.layers * shape.queries
    read = question * (context + question) * (1 + ATTENTION_BACKWARD)
    return Operations(
        prefill=2.0 * weights * context * prefill_share,
        detection=2.0 * weights * question * (1 + BACKWARD),
        attention=scores * (context**2 * prefill_share + read),
    )


def prefill_share(bands: Bands, layers: int, share_layers: bool, kept: float) -> float:
    """Share of the prefill that is computed when work is reused, averaged over trials, half of which are steered.

    A clean context whose cache is kept costs nothing. A steered row runs from the layer after its first steered one: the
    layers below come from the clean row of its pair, or from the kept cache.

    Args:
        bands: First and last steered layer of each band; they are drawn equally often.
        layers: Decoder layers.
        share_layers: ``data.reuse.layers``.
        kept: Share of the trials whose clean cache is kept (``data.reuse.clean``), in [0, 1].

    Returns:
        In [0, 1]; 1: nothing is saved.
    """
    above = sum(layers - 1 - first for first, _ in bands) / (len(bands) * layers)
    steered = above if share_layers else 1.0
    return (1 - kept + steered) / 2


class Speed(NamedTuple):
    """The speed of a machine, as fitted.

    Attributes:
        rate: Operations a second in the long run.
        overhead: Seconds of a step that do not depend on the batch: starting kernels, dequantising, the optimiser.
        worst: The largest relative error of the fit, in [0, inf); 0 if nothing was fitted.
    """

    rate: float
    overhead: float = 0.0
    worst: float = 0.0

    def seconds(self, operations: float) -> float:
        """Predict a step."""
        return self.overhead + operations / self.rate


def fit(operations: Sequence[float], seconds: Sequence[float]) -> Speed:
    """Fit rate and overhead: seconds = overhead + operations / rate, by least squares of the relative errors.

    Args:
        operations: Of each measured step.
        seconds: That each took.

    Raises:
        ValueError: Fewer than two different steps, or a step with more work took less time.
    """
    work, times = np.asarray(operations, dtype=float), np.asarray(seconds, dtype=float)
    if len(work) != len(times) or len(set(work)) < 2 or (times <= 0).any():
        raise ValueError(
            f"scaling: got {len(work)} steps, {len(set(work))} of them different, and {len(times)} times. Expected at "
            "least two steps of different work, each with a time above 0: measure several batch sizes."
        )
    scale = work.max()  # operations are some 1e15: columns of one size
    columns = np.stack([np.ones_like(work), work / scale], axis=1) / times[:, None]
    overhead, slope = np.linalg.lstsq(columns, np.ones_like(times), rcond=None)[0]
    if slope <= 0:
        raise ValueError("scaling: steps with more work took less time. Measure on a quiet machine, or larger batches.")
    predicted = overhead + slope * work / scale
    return Speed(float(scale / slope), float(overhead), float(np.abs(predicted / times - 1).max()))


def fit_rows(rows: Sequence[Mapping[str, Any]], per_trial: float) -> Speed:
    """Fit to rows of a benchmark.

    Args:
        rows: Each with ``batch`` and ``trials_per_second``, of one model, one machine and one path.
        per_trial: Operations of a trial.

    Raises:
        ValueError: As :func:`fit`.
    """
    return fit([row["batch"] * per_trial for row in rows], [row["batch"] / row["trials_per_second"] for row in rows])


def gathering_seconds(sharded: float, processes: int, bandwidth: float) -> float:
    """Seconds that FSDP adds to a step without overlap: each pass gathers the shards of all other processes.

    Args:
        sharded: Bytes of the sharded weights, over all processes.
        processes: How many share them.
        bandwidth: Bytes a second into each process.
    """
    return PASSES * sharded * (processes - 1) / processes / bandwidth


class Cost(NamedTuple):
    """The cost of a run.

    Attributes:
        steps: Optimiser steps, if nothing is accumulated.
        hours: From the first step to the last.
        gpu_hours: Hours times GPUs.
        price: In the currency of the price of an hour.
    """

    steps: int
    hours: float
    gpu_hours: float
    price: float


def run_cost(
    speed: Speed, per_trial: float, trials: int, batch: int, gpus: int = 1, hourly: float = 0.0, sending: float = 0.0
) -> Cost:
    """Predict a training run; validation and tests come on top.

    Args:
        speed: Of one GPU.
        per_trial: Operations of a trial.
        trials: Of the whole training.
        batch: Trials of one GPU in a step.
        gpus: How many; all in step.
        hourly: Price of a GPU for an hour.
        sending: Seconds of a step for communication that does not overlap with computation.
    """
    steps = -(-trials // (batch * gpus))
    hours = steps * (speed.seconds(batch * per_trial) + sending) / 3600
    return Cost(steps, hours, hours * gpus, hours * gpus * hourly)
