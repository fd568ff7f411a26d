"""Checks of Trainer options, counts and the precision, before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from introspection_lit.models.base_model import MAX_COUNT, SAFE_PRECISIONS, BaseModel
from introspection_lit.steering.vector_bank import name_problem, shown
from introspection_lit.trials.test_sets import TEST_SETS

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


# Metrics that checkpoint.monitor accepts.
FIGURES = ("auroc", "accuracy", "tpr", "fpr", "mass", "loss")
OTHERS = ("validation/selection", "step", "epoch")
MONITORED = (*OTHERS, *(f"{split}/{name}" for split in ("validation", "train") for name in FIGURES))
SHARDED_PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")


def trainer_problems(trainer: Trainer) -> list[str]:
    """Reject Trainer options that Lightning accepts but that break a run later."""
    clip, interval = trainer.gradient_clip_val, getattr(trainer, "val_check_interval", None)
    every = trainer.check_val_every_n_epoch
    problems = []
    if trainer.accumulate_grad_batches < 1:
        problems.append(f"trainer.accumulate_grad_batches: got {trainer.accumulate_grad_batches}. Expected at least 1.")
    if clip is not None and not 0 <= clip < float("inf"):
        problems.append(f"trainer.gradient_clip_val: got {clip}. Expected a number, at least 0 (0: no clipping).")
    if getattr(trainer, "_val_check_time_interval", None) is not None:
        problems.append(
            "trainer.val_check_interval: got a time. Expected batches, or a part of an epoch: by the clock, no two runs "
            "would be alike, and processes would not agree."
        )
    elif interval is not None and not interval > 0:
        problems.append(f"trainer.val_check_interval: got {interval}. Expected a number above 0.")
    if every is not None and every < 1:
        problems.append(f"trainer.check_val_every_n_epoch: got {every}. Expected at least 1.")
    logged: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    if logged < 0:
        problems.append(f"trainer.log_every_n_steps: got {logged}. Expected 0 or more.")
    if trainer.num_sanity_val_steps < 0:
        given = trainer.num_sanity_val_steps
        problems.append(f"trainer.num_sanity_val_steps: got {given}. Expected 0 or more, or -1 for all of validation.")
    if trainer.overfit_batches > 0:  # type: ignore[attr-defined]
        problems.append("trainer.overfit_batches: trials are drawn anew, there is no set to repeat. Leave it out.")
    if trainer.limit_train_batches == 0:
        problems.append("trainer.limit_train_batches: got 0, so nothing would be trained. Leave it out.")
    if trainer.state.fn == "fit":
        problems += [*half_problems(str(trainer.precision)), *averaging_problems(trainer)]
    if trainer.state.fn == "fit" and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        monitored = [getattr(saver, "monitor", None) for saver in trainer.checkpoint_callbacks]
        unknown = [name for name in monitored if name is not None and name not in MONITORED]
        problems += [f"checkpoint.monitor: got {name!r}. Expected one of {', '.join(MONITORED)}." for name in unknown]
        if trainer.limit_val_batches == 0 and any(str(name).startswith("validation") for name in monitored):
            problems.append("trainer.limit_val_batches: got 0, so no threshold and no best checkpoint would be found.")
    return problems


def averaging_problems(trainer: Trainer) -> list[str]:
    """Reject callbacks that average weights: a run could not be resumed, with SWA once it has begun."""
    from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging

    averaging = {
        WeightAveraging: "it keeps the frozen base, which checkpoints leave out",
        StochasticWeightAveraging: "it replaces the schedule of the learning rate",
    }
    return [
        f"trainer.callbacks: got {type(callback).__name__}. A run with it could not be resumed: {why}. Leave it out."
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        for kind, why in averaging.items()
        if isinstance(callback, kind)
    ]


def half_problems(precision: str) -> list[str]:
    """Check that the trainer's precision can train: in float16 AdamW's eps, 1e-8, is 0, and a gradient of 0 gives 0 / 0.

    Args:
        precision: The trainer's, such as ``bf16-mixed``.
    """
    if precision != "16-true":
        return []
    return [
        "trainer.precision: got '16-true', which cannot train: it casts the adapter to float16, where AdamW's eps (1e-8) "
        "is 0, and the first step divides by 0. Use 16-mixed on a GPU, bf16-true, bf16-mixed, or 32-true with "
        "model.base.dtype float16: the model then has two bytes for a weight, and the adapter four. 16-true is for tests."
    ]


def count_problems(counts: dict[str, int], sizes: dict[str, int], test_sets: Sequence[str]) -> list[str]:
    """Check the numbers of vectors, trials and rows.

    Args:
        counts: Numbers that must be at least 1, by option.
        sizes: Numbers of trials or rows that must be even and at least 2, by option.
        test_sets: Names of test sets.
    """
    problems = [f"data.{option}: got {count}. Expected at least 1." for option, count in counts.items() if count < 1]
    problems += [
        f"data.{option}: got {count}. Expected at most {MAX_COUNT}: more could not be held in memory, or not be run."
        for option, count in (counts | sizes).items()
        if count > MAX_COUNT
    ]
    if not test_sets:
        problems.append(f"data.test_trials: got none. Expected some of: {', '.join(TEST_SETS)}.")
    problems += [
        f"data.{option}: got {size}. Expected an even number, at least 2: half of every batch is steered."
        for option, size in sizes.items()
        if size < 2 or size % 2
    ]
    problems += [
        f"data.test_trials: {name!r} is no test set. Expected some of: {', '.join(TEST_SETS)}."
        for name in test_sets
        if name not in TEST_SETS
    ]
    return problems


def precision_problems(base: BaseModel, precision: str, sharded: bool = False) -> list[str]:
    """Check that the trainer's precision does not change packed NF4 bytes, and that FSDP can shard the model.

    Args:
        base: The model.
        precision: The trainer's, such as ``bf16-mixed``.
        sharded: It is trained with FSDP.
    """
    if sharded and (problems := sharding_problems(base, precision)):
        return problems
    if base.quantization != "nf4" or base.quant_storage == "uint8":
        return []
    safe = SAFE_PRECISIONS[base.quant_storage]
    if precision in safe:
        return []
    return [
        f"base.quant_storage: {base.quant_storage!r} with trainer.precision {precision!r} would cast the packed NF4 bytes "
        f"and destroy the weights. Expected trainer.precision {' or '.join(safe)}, or base.quant_storage 'uint8'."
        + (" (16-true can test, not train.)" if "16-true" in safe else "")
    ]


def sharding_problems(base: BaseModel, precision: str) -> list[str]:
    """Check that FSDP can shard a model: it puts all weights of a decoder layer into one tensor of a floating dtype.

    Args:
        base: The model.
        precision: The trainer's, such as ``bf16-mixed``.
    """
    problems = []
    if base.quantization == "int8":
        problems.append("base.quantization: FSDP cannot shard int8 weights. Use nf4 or none, or trainer.strategy ddp.")
    if base.quantization == "nf4" and base.quant_storage == "uint8":
        problems.append(
            "base.quant_storage: FSDP cannot shard uint8. Use bfloat16 with trainer.precision bf16-mixed or bf16-true, or "
            "float32 with 32-true."
        )
    elif base.quantization == "nf4" and base.quant_storage != base.dtype and precision != "bf16-true":
        problems.append(
            f"base.quant_storage: {base.quant_storage!r} differs from base.dtype {base.dtype!r}. FSDP shards a decoder "
            "layer's packed weights together with its norms: give both the same dtype."
        )
    if precision not in SHARDED_PRECISIONS:
        problems.append(
            f"trainer.precision: got {precision!r} with FSDP. Expected {', '.join(SHARDED_PRECISIONS)}: float16 would need "
            "a scaled loss."
        )
    return problems


def concept_list_problems(option: str, concepts: list[str], fewest: int, reason: str) -> list[str]:
    """Errors in a list of concepts (option ``data.OPTION``)."""
    problems = []
    if any(not concept.strip() for concept in concepts):
        problems.append(f"data.{option}: got an empty one. Expected words or phrases.")
    problems += [
        f"data.{option}: {shown(concept)!r}: {text}" for concept in concepts if concept and (text := name_problem(concept))
    ]
    if len(concepts) < fewest or len(set(concepts)) < len(concepts):
        number = "three" if fewest == 3 else fewest
        problems.append(f"data.{option}: got {concepts}. Expected at least {number} different ones: {reason}.")
    return problems
