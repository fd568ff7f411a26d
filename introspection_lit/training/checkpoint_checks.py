"""What a checkpoint must hold, checked before a model is loaded: what it is, what it was trained on, how far it was.

Lightning believes a checkpoint: it passes over what is missing (a resumed run would begin its epoch again, or its optimiser
from nothing), and what is of another type fails deep inside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from packaging.version import InvalidVersion, Version
from torch import Tensor

from introspection_lit.models.recorded_settings import RECORD
from introspection_lit.training.checkpoint_files import plain, read_checkpoint
from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.validators import faults

RECORD_KEY = "IntrospectionDataModule"
# The loop that each of the trainer's functions goes on with.
LOOPS = {"fit": "fit_loop", "validate": "validate_loop", "test": "test_loop", "predict": "predict_loop"}
# What of torch's schedule is restored; anything else would be written over its methods.
SCHEDULE = {"base_lrs", "last_epoch", "_step_count", "_last_lr", "lr_lambdas"}
FLAGS = ("_is_initial", "_get_lr_called_within_step", "verbose")
SCHEDULE |= set(FLAGS)
COUNTS = (torch.int32, torch.int64)
OLDEST = 2  # Lightning's major version; it would rewrite older checkpoints


def content_problems(checkpoint: Mapping[str, Any], function: str, loops: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say what is wrong with what a checkpoint holds, of a file that is whole.

    Args:
        checkpoint: Its content, as it was read.
        function: What the trainer is about to do: fit, validate, test or predict.
        loops: The state of the trainer's own loops, by name: that of a checkpoint must be like it.

    Returns:
        The first five problems.
    """
    found = [*_identity(checkpoint), *_record(checkpoint), *_progress(checkpoint, function, loops)]
    if function == "fit" and not found:
        found = [*_optimizer(checkpoint), *_schedule(checkpoint), *_callbacks(checkpoint)]
    return [
        f"ckpt_path: the checkpoint is damaged, or not one of ours: {problem}. Try another one." for problem in found[:5]
    ]


def whole_number(value: object) -> bool:
    """Whether it is a whole number of 0 or more, no boolean, and no more than anybody can count to."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**12


def finite(value: object) -> bool:
    """Whether it is a number that is finite, also as a plain tensor of one."""
    if isinstance(value, Tensor):
        count = type(value) is Tensor and value.dtype in COUNTS and value.layout == torch.strided and value.is_cpu
        return (plain(value) or count) and value.numel() == 1 and bool(value.isfinite().all())
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _identity(checkpoint: Mapping[str, Any]) -> Iterator[str]:
    saved = checkpoint.get("introspection")
    validated = saved.get("validation") if isinstance(saved, dict) else None
    if not isinstance(validated, dict) or not all(isinstance(n, str) and finite(v) for n, v in validated.items()):
        yield "its validation is not made of numbers by name"
    adapter = checkpoint.get("state_dict")
    if not isinstance(adapter, dict) or not adapter or not all(isinstance(tensor, Tensor) for tensor in adapter.values()):
        yield "it has no adapter ('state_dict')"
    version = str(checkpoint.get("pytorch-lightning_version"))[:40]
    try:
        known = Version(version).major >= OLDEST
    except InvalidVersion:
        known = False
    if not known:
        yield f"it was made by Lightning {version!r}, expected {OLDEST}.0 or later"


def _record(checkpoint: Mapping[str, Any]) -> Iterator[str]:
    """What it was trained on: without it, nobody would know whether a test is of unseen data."""
    if RECORD_KEY not in checkpoint:
        yield f"it does not say what it was trained on ({RECORD_KEY!r} is missing)"
        return
    yield from (f"what it was trained on: {fault}" for fault in faults(checkpoint[RECORD_KEY], RECORD, required=True))


def _progress(checkpoint: Mapping[str, Any], function: str, loops: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """How far it was; a checkpoint of weights alone has none of it, and can be tested."""
    for name in ("epoch", "global_step"):
        if not whole_number(checkpoint.get(name)):
            yield f"{name!r} is {str(checkpoint.get(name))[:40]!r}, expected a whole number"
    saved, name = checkpoint.get("loops"), LOOPS.get(function, "fit_loop")
    if saved is None and function != "fit":
        return
    if not isinstance(saved, dict) or not isinstance(saved.get(name), dict):
        yield f"it does not say how far the {name} was"
        return
    wrong = list(unlike(saved[name], loops[name], name))
    yield from wrong
    done = saved[name].get("epoch_loop.automatic_optimization.optim_progress") if name == "fit_loop" else None
    step = checkpoint.get("global_step")
    if done and not wrong and whole_number(step) and done["optimizer"]["step"]["total"]["completed"] != step:
        yield "its loops are not at the step that it says"


def unlike(saved: Any, expected: Any, place: str) -> Iterator[str]:
    """Say where a nested state is not like one that Lightning has just made: the same names, values of the same type."""
    if isinstance(expected, Mapping):
        if not isinstance(saved, Mapping):
            yield f"{place} is of type {type(saved).__name__}"
            return
        for name, inner in expected.items():
            if name in saved:
                yield from unlike(saved[name], inner, f"{place}.{name}")
            else:
                yield f"{place}.{name} is missing"
    elif isinstance(expected, bool):
        if not isinstance(saved, bool):
            yield f"{place} is {str(saved)[:40]!r}, expected true or false"
    elif isinstance(expected, int) and not whole_number(saved):
        yield f"{place} is {str(saved)[:40]!r}, expected a whole number"


def _optimizer(checkpoint: Mapping[str, Any]) -> Iterator[str]:
    """AdamW's two means of every tensor of the adapter, in its order."""
    states, adapter = checkpoint.get("optimizer_states"), list(checkpoint["state_dict"].items())
    if states is None:
        yield "it holds weights alone, without the optimiser's state: it can be tested, but training cannot go on from it"
        return
    if not isinstance(states, list) or len(states) != 1 or not isinstance(states[0], dict):
        yield "it does not have the state of one optimiser"
        return
    state, groups = states[0].get("state"), states[0].get("param_groups")
    if not isinstance(state, dict) or not isinstance(groups, list) or len(groups) != 1 or not isinstance(groups[0], dict):
        yield "the optimiser's state has no tensors, or not one group of them"
        return
    params = groups[0].get("params")
    if not isinstance(params, list) or not all(map(whole_number, params)) or params != list(range(len(adapter))):
        yield f"the optimiser does not have the adapter's {len(adapter)} tensors"
    if odd := _odd_settings(groups[0]):
        yield f"the optimiser's setting {odd!r} is not one of ours"
    if set(state) != (set(range(len(adapter))) if state or checkpoint["global_step"] else set()):
        yield f"the optimiser's state is there of {len(state)} tensors, the adapter has {len(adapter)}"
        return
    for number, (name, weights) in enumerate(adapter if state else ()):
        of_tensor: dict[str, Any] = state[number] if isinstance(state[number], dict) else {}
        means = [of_tensor.get(mean) for mean in ("exp_avg", "exp_avg_sq")]
        fine = finite(of_tensor.get("step")) and of_tensor["step"] >= 1 and all(_like(mean, weights) for mean in means)
        if not fine or (of_tensor["exp_avg_sq"] < 0).any():
            yield f"the optimiser's state of {name} is missing, not finite or of another shape"
            return


def _odd_settings(group: Mapping[str, Any]) -> str | None:
    """A setting of the optimiser that is not a number, or not as ours is made: one could have it go uphill."""
    rates = ("lr", "weight_decay", "initial_lr")
    odd = [name for name in rates if name in group and not (finite(group[name]) and group[name] >= 0)]
    expected = torch.optim.AdamW([torch.zeros(1)]).state_dict()["param_groups"][0]
    for name in expected.keys() - {*rates, "params"}:
        value = list(group[name]) if name == "betas" and isinstance(group.get(name), tuple | list) else group.get(name)
        wanted = list(expected[name]) if name == "betas" else expected[name]
        if name in group and (isinstance(value, Tensor) or type(value) is not type(wanted) or value != wanted):
            odd.append(name)
    missing = [name for name in ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize") if name not in group]
    return next(iter([*odd, *missing]), None)


def _like(mean: object, weights: Tensor) -> bool:
    return plain(mean) and isinstance(mean, Tensor) and mean.shape == weights.shape and bool(mean.float().isfinite().all())


def _schedule(checkpoint: Mapping[str, Any]) -> Iterator[str]:
    states = checkpoint.get("lr_schedulers")
    state = states[0] if isinstance(states, list) and len(states) == 1 else None
    if not isinstance(state, dict):
        yield "it does not have the state of one schedule of the learning rate"
        return
    rates = [state.get(name) for name in ("base_lrs", "_last_lr")]
    fine = all(isinstance(rate, list) and len(rate) == 1 and finite(rate[0]) for rate in rates)
    counts = all(whole_number(state.get(name)) for name in ("last_epoch", "_step_count"))
    flags = all(isinstance(state.get(name, False), bool) for name in FLAGS)
    lambdas = state.get("lr_lambdas")
    plain = isinstance(lambdas, list) and len(lambdas) == 1 and (lambdas[0] is None or lambdas[0] == {})
    if not (fine and counts and flags and plain and set(state) <= SCHEDULE):
        yield "the state of the learning rate's schedule is not one of ours"


def _callbacks(checkpoint: Mapping[str, Any]) -> Iterator[str]:
    """What is known of the best checkpoints so far."""
    states = checkpoint.get("callbacks")
    if not isinstance(states, dict):
        yield "it has no state of callbacks"
        return
    for name, state in states.items():
        if not str(name).startswith(("BestCheckpoint", "ModelCheckpoint")):
            continue
        if not isinstance(state, dict):
            yield f"the state of {str(name)[:40]} is of type {type(state).__name__}"
            continue
        best, scores = state.get("best_k_models"), [state.get(key) for key in ("best_model_score", "current_score")]
        paths = [state.get(key) for key in ("best_model_path", "kth_best_model_path", "last_model_path")]
        kept = isinstance(best, dict) and all(isinstance(path, str) and finite(score) for path, score in best.items())
        known = isinstance(state.get("kth_value"), int | float | Tensor)  # infinite as long as there is none
        known = known and isinstance(state.get("dirpath"), str | None)
        if not kept or not known or not all(isinstance(path, str) for path in paths):
            yield "what it says of the best checkpoints so far is not made of paths and scores"
        elif "best_model_score" not in state or not all(score is None or finite(score) for score in scores):
            yield "the score of the best checkpoint so far is not a number"


def identity_problems(saved: dict[str, Any] | None, identity: dict[str, Any]) -> list[str]:
    """Check that a checkpoint belongs to the configuration it is loaded into.

    Args:
        saved: What the checkpoint says it belongs to; None or empty if it says nothing.
        identity: What the configuration says.
    """
    threshold = saved.get("threshold") if isinstance(saved, dict) else None
    if not isinstance(saved, dict) or isinstance(threshold, Tensor) or not finite(threshold):
        return ["ckpt_path: the file is a checkpoint, but not one of introspection_lit."]
    said = {name: repr(saved.get(name))[:300] for name in identity}
    return [
        f"ckpt_path: the checkpoint has {name} {said[name]}, the configuration {value!r}. Use the configuration "
        "saved beside the checkpoint (config.yaml)."
        for name, value in identity.items()
        if not _equal(saved.get(name), value)
    ]


def _equal(one: object, other: object) -> bool:
    try:
        return bool(one == other)
    except (RuntimeError, TypeError, ValueError):
        return False


def checkpoint_problems(
    path: str | None, identity: dict[str, Any], function: str = "test", loops: Mapping[str, Mapping[str, Any]] | None = None
) -> list[str]:
    """Check that the checkpoint that is to be loaded exists, can be read, fits, and holds what is needed.

    Args:
        path: What the command line names; None if nothing.
        identity: What the configuration says the checkpoint must belong to.
        function: What it is loaded for: fit, validate, test or predict.
        loops: The state of the trainer's own loops, by name: that of the checkpoint must be like it. None: of no trainer.
    """
    if path is None:
        return []
    try:
        checkpoint = read_checkpoint(path)
    except ConfigurationError as error:
        return error.problems
    except OSError as error:
        return [f"ckpt_path: {str(path)[:200]} cannot be read ({error.strerror})."]
    problems = identity_problems(checkpoint.get("introspection"), identity)
    return problems or ([] if loops is None else content_problems(checkpoint, function, loops))
