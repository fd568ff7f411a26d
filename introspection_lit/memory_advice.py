"""What to change when memory was not enough: as the user would type it, the most useful first, only what applies."""

from __future__ import annotations

from typing import NamedTuple

from introspection_lit.batch_size import largest_part

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
