"""What to change in a run that is out of memory: options as the user would type them, the most useful first."""

from __future__ import annotations

from typing import Literal, NamedTuple

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from introspection_lit.steering.clean_caches import GIB
from introspection_lit.training.batch_size import AUTO, largest_part
from introspection_lit.training.distributed import is_sharded
from introspection_lit.training.run_context import module_of, run_of

# Clean caches in host memory below this size, in GiB, are ignored.
LITTLE_KEPT = 0.25
# Where memory was used up: before the first batch (the model is loaded and measured), in a training step, in a batch that
# is only scored, or while the evidence of a test is gathered.
Stage = Literal["start", "step", "scoring", "evidence"]


class Situation(NamedTuple):
    """The facts about a run that decide what is advised."""

    stage: Stage = "step"
    fitting: bool = True
    cuda: bool = True
    host: bool = False  # the host's memory was used up, not the GPU's
    batch_size: int = 16  # data.batch_size, or what `auto` has chosen
    parts: int = 1  # batches that each process accumulates for a step
    world: int = 1  # processes
    auto: bool = False  # data.batch_size is `auto`
    accumulate: bool = False  # trainer.accumulate_grad_batches is set, and not data.effective_batch
    eval_batch_size: int = 32
    recompute: bool = False
    context_tokens: int = 128  # data.max_context_tokens
    kept_gib: float = 0.0  # clean caches in host memory
    quantised: bool = True
    float32: bool = False  # the base model's dtype
    sharded: bool = False  # FSDP
    workers: int = 0  # data.num_workers
    pair: int = 2  # trials of a clean and a steered cache, which stay together
    last: str | None = None  # the newest checkpoint


class Change(NamedTuple):
    """An option to add to the command, and its effect."""

    typed: str
    effect: str


def situation(trainer: Trainer, stage: Stage, host: bool) -> Situation:
    """Collect the facts about a run.

    Args:
        trainer: Before its teardown.
        stage: Where memory was used up.
        host: Whether it was the host's.
    """
    run, module = run_of(trainer), module_of(trainer.lightning_module)
    saver, auto, parts = trainer.checkpoint_callback, run.options.batch_size == AUTO, trainer.accumulate_grad_batches
    return Situation(
        stage=stage,
        fitting=trainer.state.fn == "fit",
        cuda=trainer.strategy.root_device.type == "cuda",
        host=host,
        batch_size=run.batch_size,
        parts=parts,
        world=trainer.world_size,
        auto=auto,
        accumulate=run.options.effective_batch is None and (auto or parts > 1),
        eval_batch_size=run.options.eval_batch_size,
        recompute=module.recompute,
        context_tokens=run.options.longest_trained,
        kept_gib=run.clean_caches.nbytes / GIB if run.clean_caches is not None else 0.0,
        quantised=module.base.quantization != "none",
        float32=module.base.dtype == "float32",
        sharded=is_sharded(trainer),
        workers=run.options.num_workers,
        pair=2 * run.options.questions_of_cache,
        last=(saver.last_model_path if isinstance(saver, ModelCheckpoint) else "") or run.checkpoint,
    )


def changes(now: Situation) -> list[Change]:
    """List the changes that apply, the most useful first; those that keep the experiment resume from the checkpoint."""
    resume = f" --ckpt_path {now.last}" if now.last and now.fitting else ""
    share, accumulate = now.batch_size * now.parts, " --trainer.accumulate_grad_batches 1" * now.accumulate
    step = f"--data.effective_batch {share * now.world}{accumulate}{resume}"
    smaller = largest_part(share, lambda size: size < now.batch_size, now.pair)
    fewer = now.eval_batch_size // 2 // now.pair * now.pair
    in_step, starting, scoring = now.stage == "step", now.stage == "start", now.stage in ("scoring", "evidence")
    auto, cut = in_step and not now.auto and now.batch_size > now.pair, not starting and now.context_tokens > 16
    full, on_gpu = not now.quantised, now.cuda and not now.host
    same = "steps have the same trials, in smaller parts; sums are rounded and dropout is drawn otherwise"
    half = "half of the clean caches are kept in host memory; steps take longer"
    slower = "fewer activations are kept; steps take longer, and are the same"
    shorter = "longer contexts are left out: another experiment, from the beginning"
    another = "another base model, from the beginning"
    fsdp = "--config configs/fsdp.yaml after the experiment's own, with two GPUs or more"
    host = [
        (now.kept_gib > LITTLE_KEPT and now.fitting, f"--data.reuse.gib {now.kept_gib / 2:.2g}{resume}", half),
        (now.workers, f"--data.num_workers 0{resume}", "no worker processes, each with a copy of the texts"),
    ]
    candidates = [
        *(host if now.host and now.cuda else []),
        (auto, f"--data.batch_size auto {step}", f"the largest that fits is looked for; {same}"),
        (in_step and smaller, f"--data.batch_size {smaller} {step}", same),
        (in_step and not now.recompute, f"--model.recompute true{resume}", slower),
        (scoring and fewer, f"--data.eval_batch_size {fewer}{resume}", "scores are the same but for rounding"),
        (now.stage == "evidence", "--evidence.enabled false", "the test without other observers and side effects"),
        *(host if not now.cuda else []),
        (cut, f"--data.max_context_tokens {now.context_tokens // 2}", shorter),
        (starting and full and now.float32, "--model.base.dtype bfloat16", f"weights take half as much: {another}"),
        (on_gpu and full, "--model.base.quantization nf4", f"weights take about a quarter of bfloat16: {another}"),
        (on_gpu and now.sharded, "more GPUs (--trainer.devices)", "each holds a smaller share of the model"),
        (on_gpu and not now.sharded, fsdp, "they share one copy of the model"),
    ]
    return [Change(typed, effect) for applies, typed, effect in candidates if applies]
