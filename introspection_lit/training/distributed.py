"""Collective operations, and helpers that differ between one process, DDP and FSDP."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn

from introspection_lit.utils.errors import RunError

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule


T = TypeVar("T")

# The size that a process reports if its search has failed.
FAILED = -1


def smallest_of_all(find: Callable[[], int]) -> int:
    """Find a size in every process; the smallest counts.

    A process that fails tells the others before it ends: they would wait for it.

    Raises:
        RunError: Another process has failed.
        Exception: What this process's own search has raised.
    """
    if not (dist.is_available() and dist.is_initialized()):
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
    if not (dist.is_available() and dist.is_initialized()):
        return [own]
    objects: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(objects, own)
    return objects


def is_sharded(trainer: Trainer) -> bool:
    """True if no process has a whole model: then all of them must make the same forward passes."""
    return isinstance(trainer.strategy, FSDPStrategy)


def one_loads_for_all(trainer: Trainer) -> bool:
    """True if the first process loads the model and the others get their shards from it."""
    return is_sharded(trainer) and trainer.world_size > 1


def through_wrapper(trainer: Trainer, function: Callable[[], T]) -> T:
    """Run something that calls the module, inside the forward of what the strategy has wrapped around the module.

    FSDP gathers weights outside the decoder layers in the outermost forward only. Lightning does the same for its steps.

    Args:
        trainer: With its strategy set up.
        function: What to run.

    Returns:
        What the function returns; what it raises is raised.
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
    """Let DDP send and watch nothing but the adapter.

    It would send the whole frozen model at the start, and its buffers again before every forward pass.

    Args:
        module: Before it is wrapped.
    """
    frozen = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
    buffers = [name for name, _ in module.named_buffers()]
    module._ddp_params_and_buffers_to_ignore = [*frozen, *buffers]  # type: ignore[assignment]
