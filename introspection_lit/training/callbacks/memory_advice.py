"""What to change when memory was not enough: as the user would type it, the most useful first, only what applies."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from lightning.pytorch import Trainer

from introspection_lit.models.decoder_shape import decoder_shape
from introspection_lit.models.loading import load_config
from introspection_lit.models.memory_estimate import Load, Memory, Strategy, estimate
from introspection_lit.steering.clean_caches import GIB
from introspection_lit.training.batch_size import free_memory, largest_part, needed
from introspection_lit.training.distributed import is_sharded
from introspection_lit.training.run_context import data_of, module_of

if TYPE_CHECKING:
    from introspection_lit.models.decoder_shape import Shape
    from introspection_lit.trials.batch import TrialBatch


# Of a GPU's memory: gaps between tensors that are worth doing something about.
GAPS = 0.1
# GiB of kept caches that are not worth a thought.
LITTLE_KEPT = 0.25


class Situation(NamedTuple):
    """What is known of a run whose memory was not enough.

    Attributes:
        fitting: It is a fit.
        step: It came in a step of training.
        standing: It came before the first batch: the model was loaded or measured.
        evidence: It came while evidence was gathered.
        cuda: The model is on a GPU.
        host: It was the host's memory.
        batch_size: ``data.batch_size``, as it was found if it was ``auto``.
        parts: Batches that make a step, of each process.
        world: Processes.
        auto: ``data.batch_size auto`` was given.
        accumulate: ``trainer.accumulate_grad_batches`` was given, instead of ``data.effective_batch``.
        eval_batch_size: ``data.eval_batch_size``.
        recompute: ``model.recompute``.
        context_tokens: ``data.max_context_tokens``.
        kept_gib: Clean caches that are kept in host memory, GiB.
        unquantised: The base is not quantised.
        float32: The base is loaded in float32.
        sharded: FSDP.
        workers: ``data.num_workers``.
        gaps: Of the GPU's memory, what torch holds and no tensor uses.
        last: The last checkpoint to go on from.
    """

    fitting: bool = True
    step: bool = True
    standing: bool = False
    evidence: bool = False
    cuda: bool = True
    host: bool = False
    batch_size: int = 16
    parts: int = 1
    world: int = 1
    auto: bool = False
    accumulate: bool = False
    eval_batch_size: int = 32
    recompute: bool = False
    context_tokens: int = 128
    kept_gib: float = 0.0
    unquantised: bool = False
    float32: bool = False
    sharded: bool = False
    workers: int = 0
    gaps: float = 0.0
    last: str | None = None


class Change(NamedTuple):
    """Something to change.

    Attributes:
        typed: What to add to the command.
        effect: What comes of it.
    """

    typed: str
    effect: str


def changes(now: Situation) -> list[Change]:
    """What to change, the most useful first; what can be gone on with has the checkpoint in it."""
    resume = f" --ckpt_path {now.last}" if now.last and now.fitting else ""
    found = _host(now, resume) if now.host and now.cuda else []
    if now.step:
        found += _smaller_batches(now, resume)
        if not now.recompute:
            found.append(
                Change(f"--model.recompute true{resume}", "fewer activations are kept; steps take longer, and are the same")
            )
    elif not now.standing and now.eval_batch_size > 2:
        size = now.eval_batch_size // 4 * 2
        found.append(Change(f"--data.eval_batch_size {size}{resume}", "scores are the same but for rounding"))
    if now.evidence:
        found.append(Change("--evidence.enabled false", "the test without other observers and side effects"))
    if not now.cuda:
        found += _host(now, resume)
    if now.cuda and now.gaps > GAPS:
        setting = "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
        found.append(Change(f"{setting} before the command", f"{now.gaps:.0%} of the GPU are gaps between tensors"))
    return found + _smaller_experiment(now)


def _smaller_batches(now: Situation, resume: str) -> list[Change]:
    """The same step in smaller parts."""
    share, found = now.batch_size * now.parts, []
    step = f" --data.effective_batch {share * now.world}"
    step += " --trainer.accumulate_grad_batches 1" if now.accumulate else ""
    same = "steps have the same trials, in smaller parts; sums are rounded and dropout is drawn otherwise"
    if not now.auto and now.batch_size > 2:
        found.append(Change(f"--data.batch_size auto{step}{resume}", f"the largest that fits is looked for; {same}"))
    smaller = largest_part(share, lambda size: size < now.batch_size)
    if smaller:
        found.append(Change(f"--data.batch_size {smaller}{step}{resume}", same))
    return found


def _host(now: Situation, resume: str) -> list[Change]:
    """Less of what lies in the host's memory."""
    found = []
    if now.kept_gib > LITTLE_KEPT and now.fitting:
        effect = "half of the clean caches are kept in host memory; steps take longer"
        found.append(Change(f"--data.reuse.gib {now.kept_gib / 2:.2g}{resume}", effect))
    if now.workers:
        found.append(Change(f"--data.num_workers 0{resume}", "no worker processes, each with a copy of the texts"))
    return found


def _smaller_experiment(now: Situation) -> list[Change]:
    """What makes another experiment of it, or needs other hardware: from the beginning."""
    found = []
    if not now.standing and now.context_tokens > 16:
        typed = f"--data.max_context_tokens {now.context_tokens // 2}"
        found.append(Change(typed, "longer contexts are left out: another experiment, from the beginning"))
    if now.standing and now.unquantised and now.float32:
        typed = "--model.base.dtype bfloat16"
        found.append(Change(typed, "weights take half as much: another base model, from the beginning"))
    if now.cuda and not now.host:
        if now.unquantised:
            typed = "--model.base.quantization nf4"
            found.append(Change(typed, "weights take about a quarter of bfloat16: another base model, from the beginning"))
        if now.sharded:
            found.append(Change("more GPUs (--trainer.devices)", "each holds a smaller share of the model"))
        else:
            typed = "--config configs/fsdp.yaml after the experiment's own, with two GPUs or more"
            found.append(Change(typed, "they share one copy of the model"))
    return found


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
