"""Checks what a checkpoint holds before a model is loaded.

Lightning accepts any checkpoint: it skips what is missing (a resumed run would begin its epoch again, or its optimiser from
nothing), and fails deep inside where a value has another type. A checkpoint with a valid checksum is what ``fit`` wrote, so
only what depends on the run is checked; of older ones without a checksum, the state of the training is checked as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from packaging.version import InvalidVersion, Version
from torch import Tensor

from introspection_lit.models.base_identity import BASE_FIELDS, BaseIdentity
from introspection_lit.models.recorded_settings import RECORD
from introspection_lit.training.checkpoint_files import is_dense_float, read_with_checksum
from introspection_lit.utils import schema
from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.schema import Check, fields, listed, named, number, problems, required, single

RECORD_KEY = "IntrospectionDataModule"
# The loop that each of the trainer's functions goes on with.
LOOPS = {"fit": "fit_loop", "validate": "validate_loop", "test": "test_loop", "predict": "predict_loop"}
OLDEST = 2  # Lightning's major version; it would rewrite older checkpoints
TRAINING = ("loops", "optimizer_states", "lr_schedulers", "callbacks")  # what a checkpoint of weights alone lacks


def content_problems(
    checkpoint: Mapping[str, Any], function: str, loops: Mapping[str, Mapping[str, Any]], with_checksum: bool = False
) -> list[str]:
    """Check what a checkpoint holds.

    Args:
        checkpoint: Its content.
        function: What the trainer is about to do: fit, validate, test or predict.
        loops: The state of the trainer's own loops, by name: that of a checkpoint must be like it.
        with_checksum: It had a valid checksum.

    Returns:
        The first five problems.
    """
    missing = [name for name in TRAINING if checkpoint.get(name) is None]
    if function == "fit" and missing:
        alone = f"it holds weights alone, without {missing[0]!r}: it can be tested, but training cannot go on from it"
        return [f"ckpt_path: the checkpoint is not complete: {alone}. Try another one."]
    loop = LOOPS.get(function, "fit_loop")
    shape: dict[str, Check] = {
        "introspection": fields("validation", validation=named(required(SCORE))),
        "state_dict": single("the tensors of an adapter", lambda adapter: isinstance(adapter, dict) and len(adapter) > 0),
        "callbacks": fields(),
        "pytorch-lightning_version": single(f"{OLDEST}.0 or later", _is_recent),
        "epoch": COUNT,
        "global_step": COUNT,
        RECORD_KEY: lambda value, _: RECORD(value, "the record of what it was trained on"),
    }
    if checkpoint.get("loops") is not None:
        shape["loops"] = fields(loop, **{loop: _like(loops[loop])})
    found = problems(fields(" ".join(shape.keys() - {"callbacks", RECORD_KEY}), **shape), checkpoint)
    if function == "fit" and not found and not with_checksum:
        found = problems(_training(checkpoint), checkpoint)
    return [f"ckpt_path: the checkpoint is damaged, or not one of ours: {problem}. Try another one." for problem in found]


def is_number(value: object) -> bool:
    """Whether a value is a finite number, also as a plain tensor of one."""
    if isinstance(value, Tensor):
        count = type(value) is Tensor and value.dtype in (torch.int32, torch.int64)
        dense = is_dense_float(value) or (count and value.layout == torch.strided and value.is_cpu)
        return dense and value.numel() == 1 and bool(value.isfinite().all())
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


COUNT, RATE, SCORE = number(0, 10**12, whole=True), number(0, 10**6), single("a number", is_number)


def _is_recent(version: object) -> bool:
    try:
        return Version(str(version)[:40]).major >= OLDEST
    except InvalidVersion:
        return False


def _like(example: object) -> Check:
    """A nested state with the names of an example, and values of the same type."""
    if isinstance(example, Mapping):
        return required(fields(**{name: _like(inner) for name, inner in example.items()}))
    return required(schema.FLAG if isinstance(example, bool) else COUNT) if isinstance(example, int) else schema.ANYTHING


def _training(checkpoint: Mapping[str, Any]) -> Check:
    """The state of optimiser, schedule and best checkpoints for an adapter: names, types and shapes."""
    adapter = checkpoint["state_dict"]

    def moments(value: Any, place: str) -> Iterator[str]:
        expected = set(range(len(adapter))) if value or checkpoint["global_step"] else set()
        if not isinstance(value, dict) or set(value) != expected:
            yield f"{place} is not that of the adapter's {len(adapter)} tensors"
            return
        for index, (name, weights) in enumerate(adapter.items() if value else ()):
            mean = _tensor_of(weights.shape)
            each = fields("exp_avg exp_avg_sq step", exp_avg=mean, exp_avg_sq=mean, step=SCORE)
            yield from required(each)(value[index], f"{place} of {name}")

    group = torch.optim.AdamW([torch.zeros(1)]).state_dict()["param_groups"][0] | {"params": list(range(len(adapter)))}
    settings = {name: _exactly(value) for name, value in group.items()} | dict.fromkeys(
        ("lr", "initial_lr", "weight_decay"), RATE
    )
    groups = listed(required(fields("params lr betas eps weight_decay amsgrad maximize", **settings)), 1)
    schedule = fields(
        "base_lrs _last_lr last_epoch _step_count lr_lambdas",
        others=schema.unknown,
        **dict.fromkeys(("base_lrs", "_last_lr"), listed(required(RATE), 1)),
        **dict.fromkeys(("last_epoch", "_step_count"), COUNT),
        **dict.fromkeys(("_is_initial", "_get_lr_called_within_step", "verbose"), schema.FLAG),
        lr_lambdas=listed(fields(others=schema.unknown), 1),
    )
    best = fields(
        "best_model_path kth_best_model_path last_model_path best_k_models kth_value best_model_score",
        **dict.fromkeys(("best_model_path", "kth_best_model_path", "last_model_path", "dirpath"), schema.TEXT),
        **dict.fromkeys(("best_model_score", "current_score"), SCORE),
        best_k_models=named(required(SCORE)),
        kth_value=single("a number", lambda value: isinstance(value, int | float | Tensor)),  # infinite where there is none
    )
    savers = [name for name in checkpoint["callbacks"] if str(name).startswith(("BestCheckpoint", "ModelCheckpoint"))]
    return fields(
        optimizer_states=listed(required(fields("state param_groups", state=moments, param_groups=groups)), 1),
        lr_schedulers=listed(required(schedule), 1),
        callbacks=fields(**{str(name): required(best) for name in savers}),
    )


def _tensor_of(shape: torch.Size) -> Check:
    def accepts(tensor: Any) -> bool:
        return is_dense_float(tensor) and tensor.shape == shape and bool(tensor.isfinite().all())

    return single(f"finite numbers of shape {tuple(shape)}", accepts)


def _exactly(expected: Any) -> Check:
    return single(repr(expected), lambda value: repr(value) == repr(expected))


def identity_problems(saved: dict[str, Any] | None, identity: Mapping[str, Any], base: BaseIdentity) -> list[str]:
    """Check that a checkpoint belongs to the configuration it is loaded into.

    Args:
        saved: What the checkpoint says it belongs to; None or empty if it says nothing.
        identity: What the configuration says.
        base: The base model, of which names and hashes are not compared one by one.
    """
    threshold = saved.get("threshold") if isinstance(saved, dict) else None
    if not isinstance(saved, dict) or isinstance(threshold, Tensor) or not is_number(threshold):
        return ["ckpt_path: the file is a checkpoint, but not one of introspection_lit."]
    problems = base.problems("ckpt_path: the checkpoint", saved)
    for name, value in identity.items():
        if name in BASE_FIELDS or _equal(saved.get(name), value):
            continue
        differs = f"ckpt_path: the checkpoint has {name} {repr(saved.get(name))[:300]}, the configuration {value!r}"
        of_base = base.accepts_any and name in ("dtype", "quantization")
        problems += base.differs(
            differs, "" if of_base else "Use the configuration saved beside the checkpoint (config.yaml)"
        )
    return problems


def _equal(one: object, other: object) -> bool:
    try:
        return bool(one == other)
    except (RuntimeError, TypeError, ValueError):  # of tensors
        return False


def checkpoint_problems(
    path: str | None,
    identity: Mapping[str, Any],
    base: BaseIdentity,
    function: str = "test",
    loops: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[str]:
    """Check that the checkpoint that is to be loaded exists, can be read, fits, and holds what is needed.

    Args:
        path: What the command line names; None if nothing.
        identity: What the configuration says the checkpoint must belong to.
        base: The base model that will be loaded.
        function: What it is loaded for: fit, validate, test or predict.
        loops: The state of the trainer's own loops, by name: that of the checkpoint must be like it. None: of no trainer.
    """
    if path is None:
        return []
    try:
        checkpoint, with_checksum = read_with_checksum(path)
    except ConfigurationError as error:
        return error.problems
    except OSError as error:
        return [f"ckpt_path: {str(path)[:200]} cannot be read ({error.strerror})."]
    if wrong := identity_problems(checkpoint.get("introspection"), identity, base):
        return wrong
    return [] if loops is None else content_problems(checkpoint, function, loops, with_checksum)


def tensor_problems(tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> list[str]:
    """Check that a checkpoint holds the adapter's tensors, each in its shape; at most one sentence.

    Args:
        tensors: Of the checkpoint, by name.
        shapes: Of the model's adapter, by name.
    """
    if set(tensors) != set(shapes):
        return [
            f"ckpt_path: the checkpoint holds {len(set(tensors) & set(shapes))} of the adapter's {len(shapes)} tensors."
        ]
    for name, tensor in tensors.items():
        if tensor.shape != shapes[name]:
            expected = f"has shape {tuple(tensor.shape)}, in the model {tuple(shapes[name])}"
            return [f"ckpt_path: the checkpoint does not fit the model: {name} {expected}."]
    return []
