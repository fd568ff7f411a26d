"""What a batch of a run takes of memory by computation, and what the device has, as lines of text."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from lightning.pytorch import Trainer

from introspection_lit.batch_size import free_memory, needed
from introspection_lit.collector import data_of, module_of
from introspection_lit.decoder_shape import decoder_shape
from introspection_lit.kept_caches import GIB
from introspection_lit.memory import Load, Memory, Strategy, estimate
from introspection_lit.model import load_config
from introspection_lit.strategies import is_sharded

if TYPE_CHECKING:
    from introspection_lit.batches import TrialBatch
    from introspection_lit.decoder_shape import Shape


def taken(trainer: Trainer, batch: TrialBatch | None) -> list[str]:
    """What it takes by computation, part by part, a line each."""
    module, fitting = module_of(trainer.lightning_module), trainer.state.fn == "fit"
    shape, load = load_of(trainer, batch)
    memory = estimate(shape, module.base, module.lora, load)
    named = parts(memory, fitting, fitting and trainer.training) if load.batch else {"weights": memory.weights}
    lines = [f"  {name:<34}{size / GIB:>8.2f}" for name, size in [*named.items(), ("together", sum(named.values()))]]
    kept = data_of(trainer).prefill.kept
    kept_gib = f" (and {kept.nbytes / GIB:.2f} of kept clean caches, in host memory)" if kept is not None else ""
    return [f"by computation it takes, in GiB{kept_gib}:", *lines]


def parts(memory: Memory, fitting: bool, step: bool) -> dict[str, int]:
    """An estimate as parts that add up to the peak.

    Args:
        memory: Of a training step.
        fitting: The optimiser is there.
        step: With a backward pass.
    """
    if not step:
        memory = replace(memory, activations=0, gradients=memory.gradients if fitting else 0)
    if not fitting:
        memory = replace(memory, optimizer=0)
    found = {
        "weights": memory.weights,
        "layers that are gathered (FSDP)": memory.gathered,
        "adapter, gradients and optimiser" if fitting else "adapter": memory.adapter + memory.gradients + memory.optimizer,
        "caches of the contexts": memory.cache,
    }
    passing = {
        "caches with the questions": memory.appended,
        "logits and loss": memory.logits,
        "a layer at work": memory.backward,
    }
    name = max(passing, key=lambda each: passing[each])
    if memory.prefill > memory.activations + passing[name]:
        found["a layer that reads contexts"] = memory.prefill
    else:
        found |= {"activations": memory.activations, name: passing[name]}
    return {each: size for each, size in found.items() if size}


def room(trainer: Trainer) -> list[str]:
    """What the device has, and what of it is free."""
    device = trainer.strategy.root_device
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        reserved, used = torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device)
        sizes = [f"{size / GIB:.2f}" for size in (total, free, reserved, used)]
        name = torch.cuda.get_device_name(device)
        return [
            f"the GPU ({name}) has {sizes[0]} GiB: {sizes[1]} free, {sizes[2]} held by torch, {sizes[3]} of them in use"
        ]
    whole, left = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB, free_memory(device) / GIB
    return [f"the machine has {whole:.2f} GiB: {left:.2f} free; this process may have less (ulimit -v, a container)"]


def load_of(trainer: Trainer, batch: TrialBatch | None) -> tuple[Shape, Load]:
    """What memory is computed from: the batch at hand, or the largest one; before there is any, the weights alone."""
    data, module = data_of(trainer), module_of(trainer.lightning_module)
    if data.bank is None:  # the model is being loaded or measured
        strategy: Strategy = "fsdp" if is_sharded(trainer) else "one"
        load = Load(0, 0, 0, str(trainer.precision), strategy, trainer.world_size)
        return decoder_shape(load_config(module.base)), load
    training = trainer.state.fn == "fit" and trainer.training
    shape, load = needed(data, data.batch_size if training else data.eval_batch_size)
    if batch is not None:
        load = replace(load, batch=len(batch.trials), context=batch.context_ids.shape[1], question=question_tokens(batch))
    return shape, load if training else replace(load, kept_contexts=0)


def question_tokens(batch: TrialBatch) -> int:
    """Tokens of the longest question of a batch, its beginning included if that is read first."""
    return batch.question_ids.shape[1] + (len(batch.lead_ids) if batch.lead_ids is not None else 0)
