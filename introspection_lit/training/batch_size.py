"""The micro-batch: trials that are computed at once, and how many micro-batches make an optimiser step."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor

from introspection_lit.models.decoder_shape import decoder_shape
from introspection_lit.models.memory_estimate import USABLE, Load, Strategy, estimate, largest_batch
from introspection_lit.models.whole_model import whole_config
from introspection_lit.steering.clean_caches import GIB
from introspection_lit.tasks.scoring import answer_loss
from introspection_lit.training.cache_reuse import batch_cache
from introspection_lit.training.distributed import is_sharded, smallest_of_all
from introspection_lit.training.options import DEFAULT_BATCH_SIZE
from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.memory_errors import free_unused, give_back, is_out_of_memory

if TYPE_CHECKING:
    from introspection_lit.models.decoder_shape import Shape
    from introspection_lit.training.run_context import RunContext
    from introspection_lit.trials.batch import TrialBatch
    from introspection_lit.trials.split import Split


AUTO = "auto"


def step_problems(batch_size: int | str, effective: int | None, world: int, accumulated: int) -> list[str]:
    """Check the sizes of micro-batches and steps against each other.

    Args:
        batch_size: Trials in a micro-batch, or ``auto``.
        effective: Trials in a step over all processes; None: as many as come together over processes and accumulation.
        world: Processes.
        accumulated: ``trainer.accumulate_grad_batches``.
    """
    if batch_size != AUTO and (not isinstance(batch_size, int) or batch_size < 2 or batch_size % 2):
        expected = "Expected an even number, at least 2 (half of every batch is steered), or auto"
        return [f"data.batch_size: got {batch_size}. {expected}."]
    if effective is None:
        return []
    if accumulated != 1:
        return ["data.effective_batch: says how many batches are accumulated: leave trainer.accumulate_grad_batches at 1."]
    least = 2 if isinstance(batch_size, str) else batch_size
    if effective < 1 or effective % (world * least):
        whole = f"{world} processes times {'an even number' if least == 2 else least}" if world > 1 else f"{least}"
        return [f"data.effective_batch: got {effective}. Expected a multiple of {whole}, so that steps are shared evenly."]
    return []


def choose_batch_size(run: RunContext) -> None:
    """Set the run's batch size and the trainer's accumulation for a fit. The model must be loaded.

    Raises:
        ConfigurationError: Not even two trials fit.
    """
    trainer = run.trainer
    effective = run.options.effective_batch
    if run.options.batch_size == AUTO:
        if run.trials_per_process is None:  # a second fit would find the accumulation that the first has set
            run.trials_per_process = (
                effective // trainer.world_size if effective else DEFAULT_BATCH_SIZE * trainer.accumulate_grad_batches
            )
        share = run.trials_per_process
        found = smallest_of_all(lambda: _largest(run, share))
        if not found:
            raise ConfigurationError([_no_room(run)])
        run.batch_size = found
        effective = share * trainer.world_size
        rank_zero_info(f"data.batch_size auto: {run.batch_size}, for steps of {effective} trials")
    if effective:
        trainer.accumulate_grad_batches = effective // (trainer.world_size * run.batch_size)


def _largest(run: RunContext, share: int) -> int:
    """The largest even part of a process's share of a step that fits; 0 if none does."""
    trainer, pair = run.trainer, 2 * run.options.questions_of_cache
    if trainer.strategy.root_device.type == "cuda" and not is_sharded(trainer):
        return largest_part(share, lambda size: fits(run, size), pair)
    # A process of FSDP cannot try alone, and on the CPU there is no error to be caught: the system ends the process.
    most = _largest_by_estimate(run)
    return largest_part(share, lambda size: size <= most, pair)


def largest_part(share: int, fits: Callable[[int], bool], pair: int = 2) -> int:
    """The largest multiple of the trials of a pair that divides a process's share of a step and fits; 0 if none does."""
    parts = [size for size in range(share, 1, -1) if share % size == 0 and size % pair == 0]
    return next((size for size in parts if fits(size)), 0)


def fits(run: RunContext, size: int) -> bool:
    """Try a step on the longest contexts; adapter, gradients and all randomness are as they were, whatever happens."""
    trained = [parameter for parameter in run.module.parameters() if parameter.requires_grad]
    gradients = [parameter.grad for parameter in trained]
    try:
        for parameter in trained:
            parameter.grad = None
        _try_step(run, size, trained)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        give_back(error)
        return False
    finally:
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.grad = gradient
        free_unused()
    return True


def _try_step(run: RunContext, size: int, trained: Sequence[Tensor]) -> None:
    """Forward and backward while holding the memory that a step needs besides; all tensors are freed on return."""
    module, device = run.module, run.trainer.strategy.root_device
    # Unlike Lightning's isolate_rng (2.6), this gives the states back after an error, too.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        # AdamW's averages, the gradients in DDP's buckets, and what is left alone for gaps in the allocator.
        room = [torch.empty_like(parameter, dtype=torch.float32) for parameter in [*trained] * 3]
        room.append(ballast(device))
        with run.trainer.precision_plugin.forward_context():
            batch = longest(run, size).to(device)
            batch.cache = batch_cache(module, module, batch, share=False, adapter=run.options.prefill_adapter)
            loss = answer_loss(module.answer_logits(batch), batch.answer_ids, batch.targets, module.loss)
        loss.backward()  # type: ignore[no-untyped-call]


def ballast(device: torch.device) -> Tensor:
    """The share of a GPU's memory that is left free for gaps in the allocator."""
    total = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else 0
    return torch.empty(int((1 - USABLE) * total), dtype=torch.uint8, device=device)


def longest(run: RunContext, size: int) -> TrialBatch:
    """The training batch that takes the most memory: each trial with its own cache, the longest contexts and question."""
    split, bank = _largest_split(run), run.vector_bank
    if split.questionnaire is not None:
        split = replace(split.single_question(), questions=split.questionnaire.longest_texts(), _encoded={})
    lengths = split.lengths()
    question_lengths = {
        (context, question): len(split.encoded(context, question).question_ids)
        for context in range(len(lengths))
        for question in range(len(split.questions))
    }
    most = max(
        question_lengths, key=lambda place: (question_lengths[place], lengths[place[0]])
    )  # first the longest question
    contexts = sorted((context for context in range(len(lengths)) if context != most[0]), key=lambda c: -lengths[c])
    places = [most, *((context, most[1]) for context in contexts)]
    # Trials of odd numbers are steered: no two of them have the same cache.
    steered = [split.plan.trial(2 * number + 1) for number in range(size)]
    trials = [t._replace(context=places[n % len(places)][0], question=most[1]) for n, t in enumerate(steered)]
    return split.collate(trials, bank)


def _largest_split(run: RunContext) -> Split:
    """The training split; in a benchmark of ``predict``, one part of its grid."""
    return run.splits.get("train") or next(iter(run.splits.values()))


def step_load(run: RunContext, size: int) -> tuple[Shape, Load]:
    """Model shape and load from which the memory of a step is estimated, for micro-batches of a size."""
    trainer, split, module = run.trainer, _largest_split(run), run.module
    strategy: Strategy = "one" if trainer.world_size == 1 else "ddp"
    if is_sharded(trainer):
        strategy = "fsdp"
    each = 1 if split.questionnaire is None else split.questionnaire.each
    load = Load(
        batch=size,
        rows_of_cache=each,
        references=0 if split.questionnaire is None else size * split.questionnaire.references // (2 * each),
        texts=math.ceil(split.texts * size / (2 * each)),
        context=max(split.lengths()),
        question=longest(run, 2).question_ids.shape[1],
        precision=str(trainer.precision),
        strategy=strategy,
        world_size=trainer.world_size,
        recompute=module.recompute,
        kept_contexts=len(split.contexts) if run.options.reuse.clean else 0,
        kept_layers=len(set(split.plan.bands)),
        device="cuda" if trainer.strategy.root_device.type == "cuda" else "cpu",
    )
    return decoder_shape(whole_config(module.base)), load


def _largest_by_estimate(run: RunContext) -> int:
    """The largest micro-batch by the memory estimate, for the device's free memory."""
    module, strategy = run.module, run.trainer.strategy
    shape, load = step_load(run, 2)
    free = USABLE * free_memory(strategy.root_device)
    if not is_sharded(run.trainer):  # its weights are there already
        free += estimate(shape, module.base, module.lora, load).weights
    return largest_batch(shape, module.base, module.lora, load, free)


def free_memory(device: torch.device) -> int:
    """Free memory of a device, bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    with suppress(OSError):  # the file cache, which the system would give up, counts as free
        meminfo = Path("/proc/meminfo").read_text(encoding="utf-8")
        return int(meminfo.split("MemAvailable:")[1].split()[0]) * 1024
    return int(os.sysconf("SC_AVPHYS_PAGES")) * int(os.sysconf("SC_PAGE_SIZE"))


def _no_room(run: RunContext) -> str:
    shape, load = step_load(run, 2)
    parts = estimate(shape, run.module.base, run.module.lora, load)
    sharded = is_sharded(run.trainer)
    more = "take more GPUs" if sharded else "share the model out (configs/fsdp.yaml)"
    return (
        f"data.batch_size auto: not even two trials fit. By computation they need {parts.device / GIB:.1f} GiB, "
        f"{parts.weights / GIB:.1f} of them for the weights. Lower data.max_context_tokens, set model.recompute true, or "
        f"{more}."
    )
