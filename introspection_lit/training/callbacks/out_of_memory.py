"""The message of a run that is out of memory: where, what was tried, the estimate by part, and what to change.

A callback composes it while the run still exists, and attaches it to the error as a note; the command line makes a
:class:`~introspection_lit.utils.errors.RunError` of it. On the CPU the system may kill the process instead.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from introspection_lit.models.decoder_shape import decoder_shape
from introspection_lit.models.memory_estimate import PARTS, Load, estimate
from introspection_lit.models.whole_model import whole_config
from introspection_lit.steering.clean_caches import GIB
from introspection_lit.training.batch_size import AUTO, free_memory, step_load
from introspection_lit.training.callbacks.memory_advice import Stage, changes, situation
from introspection_lit.training.distributed import is_sharded
from introspection_lit.training.run_context import module_of, run_of
from introspection_lit.trials.batch import TrialBatch
from introspection_lit.utils.errors import RunError
from introspection_lit.utils.memory_errors import is_out_of_memory, on_host

BEGINNING = "memory was not enough"
LONGEST_QUOTE = 800  # characters of the error's own message; torch's ends with a hint on fragmentation
LOADING, SETUP, EVIDENCE = "loading the model", "setting up (norms and concepts are measured)", "gathering evidence"
# Lightning's hooks, and the backward pass: what a function in the traceback says about the part of the run. The first entry
# with a function in the traceback counts; Lightning runs forward and backward within optimizer_step, so it is the last.
HOOKS = {
    "configure_model": LOADING,
    "setup": SETUP,
    **dict.fromkeys(("on_test_start", "on_test_batch_end", "on_test_end"), EVIDENCE),
    "backward": "the backward pass",
    "on_after_batch_transfer": "reading the contexts (prefill)",
    **dict.fromkeys(("training_step", "validation_step", "test_step", "predict_step"), "the question pass"),
    "save_checkpoint": "saving a checkpoint",
    "optimizer_step": "the optimiser's step",
}


class OutOfMemory(Callback):
    """Composes the message before anything of the run is freed."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Attach the message to the error as a note, which tracebacks show too."""
        if is_out_of_memory(exception):
            exception.add_note(message(trainer, exception))


@contextmanager
def explained_memory() -> Iterator[None]:
    """Turn an out-of-memory error into one that says what to do.

    Raises:
        RunError: Memory was not enough.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if explained := run_error(error):
            raise explained from error
        raise


def run_error(error: BaseException) -> RunError | None:
    """The explanation of an out-of-memory error: that of the callback, or a shorter one; None of any other error."""
    if not is_out_of_memory(error):
        return None
    notes = [note for note in getattr(error, "__notes__", ()) if note.startswith(BEGINNING)]
    return RunError(notes[:1] or [f"{BEGINNING}{_during(part_of_run(error), '')}.\n    it said: {_quote(error)}"])


def message(trainer: Trainer, error: BaseException) -> str:
    """Compose the message; a part that fails, since memory is short, is left out.

    Args:
        trainer: Before its teardown.
        error: With its traceback.
    """
    part, batch = part_of_run(error), batch_of(error)
    process = f" in process {trainer.global_rank} of {trainer.world_size}" if trainer.world_size > 1 else ""
    lines = [f"{BEGINNING}{process} in {moment(trainer)}{_during(part)}.", f"it said: {_quote(error)}"]
    sections: tuple[Callable[[], list[str]], ...] = (
        lambda: tried(trainer, batch),
        lambda: estimated(trainer, batch),
        lambda: available(trainer),
        lambda: advice(trainer, part, on_host(error)),
    )
    for section in sections:
        with suppress(Exception):
            lines += section()
    return "\n    ".join(lines)


def part_of_run(error: BaseException) -> str | None:
    """The part of the run that failed, by the functions in the traceback; None: unknown."""
    running = {frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)}
    return next((part for function, part in HOOKS.items() if function in running), None)


def batch_of(error: BaseException) -> TrialBatch | None:
    """The batch in the innermost frame of the traceback that has one."""
    values = [value for frame, _ in traceback.walk_tb(error.__traceback__) for value in frame.f_locals.values()]
    return next((value for value in reversed(values) if type(value) is TrialBatch), None)


def moment(trainer: Trainer) -> str:
    """The stage of the run, and the batch that had begun."""
    fit = trainer.fit_loop
    stages: dict[str, tuple[str, Any, Sequence[float]]] = {
        "fit": ("a validation of training", fit.epoch_loop.val_loop, trainer.num_val_batches),
        "validate": ("validation", trainer.validate_loop, trainer.num_val_batches),
        "test": ("the test", trainer.test_loop, trainer.num_test_batches),
        "predict": ("predictions", trainer.predict_loop, trainer.num_predict_batches),
    }
    stage, loop, batches = stages[trainer.state.fn or "fit"]
    if trainer.state.fn == "fit" and trainer.training:
        loop, batches = fit.epoch_loop, [trainer.num_training_batches]
        stage = f"training, epoch {trainer.current_epoch}, after {trainer.global_step} steps"
    total, done = sum(batches), loop.batch_progress.current.completed
    return f"{stage}, batch {done + 1} of {total:.0f}" if done < total < float("inf") else stage


def tried(trainer: Trainer, batch: TrialBatch | None) -> list[str]:
    """The batch size, what makes a step of it, and the size of the batch."""
    run, world = run_of(trainer), trainer.world_size
    size, end = f"data.eval_batch_size {run.options.eval_batch_size}", ""
    if trainer.state.fn == "fit" and trainer.training:
        count = trainer.accumulate_grad_batches
        size = f"data.batch_size {run.batch_size}{' (auto)' * (run.options.batch_size == AUTO)}"
        size += f", {count} accumulated" * (count > 1)
        end = f": steps of {run.batch_size * count * world} trials"
    if batch is not None:
        end += f"; {len(batch.trials)} trials of {batch.split}, contexts of {batch.context_ids.shape[1]} tokens, questions "
        end += f"of {question_tokens(batch)}"
    return [f"tried: {size}, {world} process{'es' * (world > 1)}{end}"]


def estimated(trainer: Trainer, batch: TrialBatch | None) -> list[str]:
    """The estimate by part, a line each: of the batch, or the largest one; before there is any, of the weights alone."""
    run, module = run_of(trainer), module_of(trainer.lightning_module)
    fitting = trainer.state.fn == "fit"
    step = fitting and trainer.training
    if run.bank is None:  # the model is being loaded or measured
        shape, strategy = decoder_shape(whole_config(module.base)), "fsdp" if is_sharded(trainer) else "one"
        load = Load(0, 0, 0, str(trainer.precision), strategy, trainer.world_size)  # type: ignore[arg-type]
        sizes = {"weights": estimate(shape, module.base, module.lora, load).weights}
    else:
        shape, load = step_load(run, run.batch_size if step else run.options.eval_batch_size)
        if batch is not None:
            width = batch.context_ids.shape[1]
            load = replace(load, batch=len(batch.trials), context=width, question=question_tokens(batch))
        memory = estimate(shape, module.base, module.lora, load if step else replace(load, kept_contexts=0))
        memory = memory if step else replace(memory, activations=0)
        memory = memory if fitting else replace(memory, gradients=0, optimizer=0)
        sizes = {title.strip("*"): getattr(memory, name) for name, title in PARTS.items()}
    kept = run.clean_caches
    kept_gib = f" (and {kept.nbytes / GIB:.2f} of kept clean caches, in host memory)" if kept is not None else ""
    rows = [f"  {title:<34}{size / GIB:>8.2f}" for title, size in sizes.items() if size]
    return [f"by computation it takes, in GiB{kept_gib}; of (a) to (d) the largest counts:", *rows]


def question_tokens(batch: TrialBatch) -> int:
    """Tokens of the longest question of a batch, with the shared beginning that is read first."""
    return batch.question_ids.shape[1] + (len(batch.question_prefix_ids) if batch.question_prefix_ids is not None else 0)


def available(trainer: Trainer) -> list[str]:
    """The memory of the device, and how much of it is free."""
    device = trainer.strategy.root_device
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        reserved, used = torch.cuda.memory_reserved(device) / GIB, torch.cuda.memory_allocated(device) / GIB
        name, more = (
            f"GPU ({torch.cuda.get_device_name(device)})",
            f", {reserved:.2f} held by torch, {used:.2f} of them in use",
        )
    else:
        free, total = free_memory(device), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        name, more = "machine", "; this process may have less (ulimit -v, a container)"
    return [f"the {name} has {total / GIB:.2f} GiB: {free / GIB:.2f} free{more}"]


def advice(trainer: Trainer, part: str | None, host: bool) -> list[str]:
    """What to change, and the checkpoint to resume from."""
    scored: Stage = "step" if trainer.state.fn == "fit" and trainer.training else "scoring"
    stages: dict[str | None, Stage] = {LOADING: "start", SETUP: "start", EVIDENCE: "evidence"}
    now = situation(trainer, stages.get(part, scored), host)
    lines = [f"  {change.typed}\n          {change.effect}" for change in changes(now)]
    resume = "no checkpoint has been written yet: the run begins anew"
    if now.last:
        same = "one from the middle of an epoch goes on with the same data.batch_size only"
        resume = f"the checkpoints so far are good; the last one is {now.last} ({same})"
    return ["what to change, the most useful first:", *lines, *([resume] if now.fitting else [])]


def _during(part: str | None, comma: str = ",") -> str:
    return f"{comma} during {part}" if part else ""


def _quote(error: BaseException) -> str:
    quote = " ".join(str(error).split()) or type(error).__name__
    return quote if len(quote) <= LONGEST_QUOTE else f"{quote[:LONGEST_QUOTE]} ..."
