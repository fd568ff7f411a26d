"""What a run says when memory is not enough: where, what was tried, what it takes by computation, what to change.

A callback looks at the run while everything is still there, and pins what it has seen to the error; whoever runs the
command line makes a :class:`~introspection_lit.errors.RunError` of it. On the CPU the system may end the process instead,
and nothing can be said.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from introspection_lit.steering.clean_caches import GIB
from introspection_lit.training.batch_size import AUTO
from introspection_lit.training.callbacks.memory_advice import Situation, changes, question_tokens, room, taken
from introspection_lit.training.distributed import is_sharded
from introspection_lit.training.run_context import data_of, module_of
from introspection_lit.trials.batch import TrialBatch
from introspection_lit.utils.errors import RunError
from introspection_lit.utils.memory_errors import is_out_of_memory, on_host

BEGINNING = "memory was not enough"
LOADING, MEASURING = "loading the model", "measuring norms and concepts"
EVIDENCE = "gathering evidence"
# Which function says what was going on: its file, its name, and what is said. The first that is among those that were
# running counts. The optimiser's step is around forward and backward: it comes last.
PLACES = (
    ("introspection_lit/training/module.py", "configure_model", LOADING),
    ("introspection_lit/training/datamodule.py", "make_bank", MEASURING),
    ("introspection_lit/training/batch_size.py", "settle", "looking for a batch size"),
    ("introspection_lit/training/callbacks/evidence.py", None, EVIDENCE),
    ("", "backward", "the backward pass"),
    ("introspection_lit/steering/clean_caches.py", None, "reading clean contexts that are kept"),
    ("introspection_lit/training/datamodule.py", "on_after_batch_transfer", "reading the contexts (prefill)"),
    ("introspection_lit/training/module.py", "answer_logits", "the detection pass"),
    ("introspection_lit/training/module.py", "_step", "loss and scores"),
    ("", "save_checkpoint", "saving a checkpoint"),
    ("introspection_lit/training/datamodule.py", "setup", "preparing the data"),
    ("optim/adam.py", "step", "the optimiser's step"),
    ("optim/adamw.py", "step", "the optimiser's step"),  # of torch 2.6
)
LONGEST_SAYING = 300


class OutOfMemory(Callback):
    """Looks at a run whose memory was not enough, before anything of it is let go."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Pin to the error what is known; a note that any traceback shows, too."""
        if is_out_of_memory(exception):
            exception.add_note(story(trainer, exception))


@contextmanager
def explained_memory() -> Iterator[None]:
    """Turn an error of memory into one that says what to do.

    Raises:
        RunError: Memory was not enough.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        found = run_error(error)
        if found is None:
            raise
        raise found from error


def run_error(error: BaseException) -> RunError | None:
    """What is told of an error, if memory was not enough; None if it is another."""
    if not is_out_of_memory(error):
        return None
    told = [note for note in getattr(error, "__notes__", ()) if note.startswith(BEGINNING)]
    return RunError(told[:1] or [f"{BEGINNING}{_during(place(error))}.\n    it said: {_saying(error)}"])


def story(trainer: Trainer, error: BaseException) -> str:
    """All that can be said; less if even that fails: memory is short.

    Args:
        trainer: Before its teardown.
        error: With its traceback.
    """
    where = place(error)
    lines = [f"{BEGINNING}{_process(trainer)}{_during(where, moment(trainer))}.", f"it said: {_saying(error)}"]
    batch = batch_of(error)
    told: tuple[Callable[[], list[str]], ...] = (
        lambda: tried(trainer, batch),
        lambda: taken(trainer, batch),
        lambda: room(trainer),
    )
    for part in told:
        with suppress(Exception):
            lines += part()
    with suppress(Exception):
        now = situation(trainer, error, where)
        lines.append("what to change, the most useful first:")
        lines += [f"  {change.typed}\n          {change.effect}" for change in changes(now)]
        lines += [_kept(now)] if now.fitting else []
    return "\n    ".join(lines)


def place(error: BaseException) -> str | None:
    """What was going on, by the functions that were running; None: something else."""
    codes = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    running = [(Path(code.co_filename).as_posix(), code.co_name) for code in codes]
    for file, function, said in PLACES:
        if any(path.endswith(file) and function in (None, name) for path, name in running):
            return said
    return None


def batch_of(error: BaseException) -> TrialBatch | None:
    """The batch that the innermost function had in hand, if any had one."""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        for value in frame.f_locals.values():
            if type(value) is TrialBatch:
                return value
    return None


def moment(trainer: Trainer) -> str:
    """Which part of the run, and which batch of it."""
    function, fit = trainer.state.fn, trainer.fit_loop
    if function == "fit" and trainer.training:
        begun = trainer.num_training_batches != float("inf")
        stage = f"training, epoch {trainer.current_epoch}, after {trainer.global_step} steps" if begun else "training"
        return _numbered(stage, fit.epoch_loop, [trainer.num_training_batches] if begun else [])
    if function == "fit":
        return _numbered("a validation of training", fit.epoch_loop.val_loop, trainer.num_val_batches)
    if function == "validate":
        return _numbered("validation", trainer.validate_loop, trainer.num_val_batches)
    if function == "test":
        return _numbered("the test", trainer.test_loop, trainer.num_test_batches)
    return _numbered("predictions", trainer.predict_loop, trainer.num_predict_batches)


def _numbered(stage: str, loop: Any, batches: Sequence[float]) -> str:
    """A stage with the number of the batch that had begun, if any had."""
    total, done = sum(batches), loop.batch_progress.current.completed
    return f"{stage}, batch {done + 1} of {total:.0f}" if done < total else stage


def tried(trainer: Trainer, batch: TrialBatch | None) -> list[str]:
    """The batch size, what makes a step of it, and how large the batch was."""
    data = data_of(trainer)
    if trainer.state.fn == "fit" and trainer.training:
        parts, world = trainer.accumulate_grad_batches, trainer.world_size
        size = f"data.batch_size {data.batch_size}" + (" (auto)" if data.given_batch_size == AUTO else "")
        size += f", {parts} accumulated, {world} processes: steps of {data.batch_size * parts * world} trials"
    else:
        size = f"data.eval_batch_size {data.eval_batch_size}, {trainer.world_size} processes"
    if batch is not None:
        size += (
            f"; {len(batch.trials)} trials of {batch.split}, contexts of {batch.context_ids.shape[1]} tokens, questions of "
            f"{question_tokens(batch)}"
        )
    return [f"tried: {size.replace(', 1 processes', ', 1 process').replace(', 1 accumulated', '')}"]


def situation(trainer: Trainer, error: BaseException, where: str | None) -> Situation:
    """What decides about the advice."""
    data, module = data_of(trainer), module_of(trainer.lightning_module)
    device, fitting = trainer.strategy.root_device, trainer.state.fn == "fit"
    saver = trainer.checkpoint_callback
    last = saver.last_model_path if isinstance(saver, ModelCheckpoint) else ""
    gaps = 0.0
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        gaps = unused / torch.cuda.mem_get_info(device)[1]
    auto, parts_of_step = data.given_batch_size == AUTO, trainer.accumulate_grad_batches
    return Situation(
        fitting=fitting,
        step=fitting and trainer.training and where not in (LOADING, MEASURING),
        standing=where in (LOADING, MEASURING),
        evidence=where == EVIDENCE,
        cuda=device.type == "cuda",
        host=on_host(error),
        batch_size=data.batch_size,
        parts=parts_of_step,
        world=trainer.world_size,
        auto=auto,
        accumulate=data.effective_batch is None and (auto or parts_of_step > 1),
        eval_batch_size=data.eval_batch_size,
        recompute=module.recompute,
        context_tokens=data.max_context_tokens,
        kept_gib=data.prefill.kept.nbytes / GIB if data.prefill.kept is not None else 0.0,
        unquantised=module.base.quantization == "none",
        float32=module.base.dtype == "float32",
        sharded=is_sharded(trainer),
        workers=data.num_workers,
        gaps=gaps,
        last=last or data.checkpoint,
    )


def _kept(now: Situation) -> str:
    if now.last is None:
        return "no checkpoint has been written yet: the run begins anew"
    return (
        f"the checkpoints so far are good; the last one is {now.last} (one from the middle of an epoch goes on with the "
        "same data.batch_size only)"
    )


def _process(trainer: Trainer) -> str:
    return f" in process {trainer.global_rank} of {trainer.world_size}" if trainer.world_size > 1 else ""


def _during(where: str | None, when: str | None = None) -> str:
    parts = [f"{word} {part}" for word, part in (("in", when), ("during", where)) if part]
    return " " + ", ".join(parts) if parts else ""


def _saying(error: BaseException) -> str:
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= LONGEST_SAYING else f"{said[:LONGEST_SAYING]} ..."
