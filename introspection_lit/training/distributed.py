"""Collective operations, and helpers that differ between one process, DDP and FSDP."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn

from introspection_lit.utils.errors import ConfigurationError, RunError

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule


T = TypeVar("T")

# The size that a process reports if its search has failed.
FAILED = -1


def in_process_group() -> bool:
    """Whether there may be other processes, which must make the same forward passes."""
    return dist.is_available() and dist.is_initialized()


def smallest_of_all(find: Callable[[], int]) -> int:
    """Collective: the smallest of the sizes that all ranks find. If the search fails on one rank, all ranks fail.

    Raises:
        RunError: The search of another rank has failed.
        Exception: Raised by this rank's own search.
    """
    if not in_process_group():
        return find()
    failure: Exception | None = None
    try:
        size = find()
    except Exception as error:
        size, failure = FAILED, error
    sizes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(sizes, size)
    if failure is not None:
        raise failure
    if FAILED in sizes:
        raise RunError([f"data.batch_size auto: process {sizes.index(FAILED)} has failed; its own message says why."])
    return int(min(sizes))


def gather_objects(own: T) -> list[T]:
    """Collective: the picklable objects of all processes, in the order of their ranks."""
    if not in_process_group():
        return [own]
    objects: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(objects, own)
    return objects


def broadcast_object(value: Any) -> Any:
    """Collective: the first rank's picklable object, on every rank."""
    objects = [value]
    dist.broadcast_object_list(objects, src=0)
    return objects[0]


def fail_together(action: Callable[[], T]) -> T:
    """Collective: run an action on every rank; if it fails on one, all ranks fail instead of waiting for each other.

    Args:
        action: Must not contain a collective operation.

    Raises:
        ConfigurationError: It failed on some rank; all problems of all ranks. An error that is no ``ValueError`` is raised
            unchanged on the rank where it came up.
    """
    problems: list[str] = []
    cause: Exception | None = None
    try:
        result = action()
    except Exception as error:
        cause = error
        if isinstance(error, ConfigurationError):
            problems = error.problems
        elif isinstance(error, ValueError):
            problems = [str(error)]
        else:
            problems = [f"process {dist.get_rank()} failed: {type(error).__name__}: {error}"]
    reports = gather_objects(problems)
    if cause is not None and not isinstance(cause, ValueError):
        raise cause
    if distinct := list(dict.fromkeys(chain(*reports))):
        raise ConfigurationError(distinct) from cause
    return result


def is_sharded(trainer: Trainer) -> bool:
    """True if no rank holds the whole model: then all ranks must run the same forward passes."""
    return isinstance(trainer.strategy, FSDPStrategy)


def one_loads_for_all(trainer: Trainer) -> bool:
    """True if the first rank loads the model and sends the other ranks their shards."""
    return is_sharded(trainer) and trainer.world_size > 1


def through_wrapper(trainer: Trainer, function: Callable[[], T]) -> T:
    """Run a function that calls the module inside the forward of the strategy's wrapper around the module.

    FSDP gathers weights outside the decoder layers in the outermost forward only. Lightning does the same for its steps.

    Args:
        trainer: With its strategy set up.
        function: The function.

    Returns:
        The function's result.
    """
    wrapper, module = cast("nn.Module", trainer.model), trainer.lightning_module
    if not is_sharded(trainer):
        return function()
    forward, found, failures = module.forward, list[T](), list[Exception]()

    def once(_: None) -> None:
        module.forward = forward  # type: ignore[method-assign]
        try:
            found.append(function())
        except Exception as error:  # raised here, it would leave the wrapper in the middle of a forward
            failures.append(error)

    module.forward = once  # type: ignore[method-assign]
    try:
        wrapper(None)  # torch 2.6 cannot do without an argument
    finally:
        module.forward = forward  # type: ignore[method-assign]
    if failures:
        raise failures[0]
    return found[0]


def leave_base_alone(module: LightningModule) -> None:
    """Limit DDP to the adapter: it would send the frozen model at the start, and its buffers before every forward pass.

    Args:
        module: Before it is wrapped.
    """
    frozen = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
    buffers = [name for name, _ in module.named_buffers()]
    module._ddp_params_and_buffers_to_ignore = [*frozen, *buffers]  # type: ignore[assignment]
