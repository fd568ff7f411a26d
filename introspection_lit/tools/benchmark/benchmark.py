"""Speed and memory of the training step at several batch sizes, beside training on one trial at a time.

**Work.** With N weights in the matrices of the decoder layers, a trial of c context and q question tokens nominally costs
2·N·c (prefill) + 2·N·q (question pass) + 2·N·q (backward: gradients of activations only, as the weights are frozen)
floating point operations; attention, head and adapter are left out, and padding does not count. ``tflops`` is this nominal
work of the plain path over the time, for every row alike: reuse shows up as a higher rate, which may exceed the hardware's.
``tflops_run`` counts what really went through the decoder layers, padding included.
"""

from __future__ import annotations

import itertools
import logging
import statistics
import tempfile
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch

from introspection_lit.tools.benchmark.hardware import matmul_ceiling, matrix_weights
from introspection_lit.tools.benchmark.measurement import (
    CLEAN,
    LAYERS,
    ONE_AT_A_TIME,
    PATHS,
    PLAIN,
    REUSE,
    TASKS,
    Amount,
    Chunk,
    FirstStep,
    Measurement,
    Setting,
)
from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.memory_errors import free_unused, give_back, is_out_of_memory

if TYPE_CHECKING:
    from introspection_lit.cli import IntrospectionCLI
    from introspection_lit.training.datamodule import IntrospectionDataModule
    from introspection_lit.training.options import Reuse


# More than any measurement takes; the schedules of learning rate and reuse behave as in a long training.
EPOCHS = 10_000
# The dtype of arithmetic under a precision, by its first part.
DTYPES = {"bf16": "bfloat16", "16": "float16", "32": "float32"}


def compare(
    cli: IntrospectionCLI,
    sizes: Sequence[int],
    amount: Amount,
    rounds: int,
    sweep_limit: int | None = None,
    each_saving: bool = False,
    tasks: bool = False,
) -> dict[str, Any]:
    """Measure training at several batch sizes, nothing reused and everything, and on one trial at a time.

    Args:
        cli: Put together by :func:`~introspection_lit.cli.attach`.
        sizes: Even batch sizes.
        amount: How much is measured.
        rounds: How often each row is measured.
        sweep_limit: Look for the largest batch that fits, up to this one, and measure it, too; None: do not.
        each_saving: Measure each saving of ``data.reuse`` alone, too.
        tasks: Measure training with four questions for each cache, too; sizes are multiples of eight then.

    Returns:
        ``rows`` (see :func:`rows`), the best ``ratio``, and all that they depend on.

    Raises:
        ConfigurationError: There are several processes, or memory is not enough for a single trial.
    """
    module, data = cli.model, cli.datamodule
    if cli.trainer.world_size > 1:
        raise ConfigurationError(["--trainer.devices: the benchmark measures one process. Leave it at 1."])
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # repeats the hardware for every fit
    seconds: dict[str, float | None] = dict.fromkeys(("setup", "model", "bank"))
    timed(data, "setup", seconds, "setup")  # the model and the bank are made in it
    timed(module, "configure_model", seconds, "model")
    timed(data, "make_bank", seconds, "bank")
    size = data.run.batch_size  # set for each measurement
    data.run.options = replace(data.options, batch_size=size, effective_batch=None)
    first, largest_batch, reuse = Setting(PLAIN, min(sizes, default=2)), None, data.options.reuse
    *_, begun = measure(cli, [first], replace(amount, steps=1, warmup=1), reuse)
    if sweep_limit is not None:
        largest_batch = sweep(cli, amount, reuse, first.batch, sweep_limit)
        sizes = sorted({*sizes, largest_batch} - {0})
    paths = [PLAIN, LAYERS, CLEAN, REUSE] if each_saving else [PLAIN, REUSE]
    paths += [TASKS] if tasks else []
    once = [Setting(ONE_AT_A_TIME, 1), *(Setting(path, size) for path in paths for size in sizes)]
    queue = [*once * rounds, Setting(ONE_AT_A_TIME, 1)]
    dtype = getattr(torch, DTYPES.get(str(cli.trainer.precision).split("-")[0], module.base.dtype))
    ceiling = matmul_ceiling(module.device, dtype)
    done = itertools.count(1)

    def report(setting: Setting, chunk: Chunk) -> None:
        rate = f"{chunk.trials / chunk.seconds:.3g} trials/s"
        print(f"{next(done)} of {len(queue)}: {setting.path}, batch {setting.batch}: {rate}", flush=True)

    chunks, too_large, _ = measure(cli, queue, amount, reuse, report)
    ceiling = max(ceiling, matmul_ceiling(module.device, dtype))
    table = rows(chunks, too_large, ceiling)
    return {
        **module.identity(),
        "device": module.device.type,
        "precision": str(cli.trainer.precision),
        "threads": torch.get_num_threads(),
        "amount": asdict(amount),
        "reuse": asdict(reuse),
        "matrix_weights": matrix_weights(module.layers),
        **lengths(data),
        "ceiling_tflops": ceiling,
        "ceiling_dtype": str(dtype).removeprefix("torch."),
        "seconds_to_start": {**seconds, "first_step": begun.seconds, "total": begun.since_start},
        "largest_batch": largest_batch,
        "rows": table,
        "ratio": max((row["ratio"] for row in table if row["ratio"] is not None), default=None),
    }


def timed(owner: object, name: str, seconds: dict[str, float | None], key: str) -> None:
    """Add the time of a method's calls to ``seconds[key]``."""
    method = getattr(owner, name)

    def wrapper(*args: Any, **options: Any) -> Any:
        start = time.perf_counter()
        result = method(*args, **options)
        seconds[key] = (seconds[key] or 0.0) + time.perf_counter() - start
        return result

    setattr(owner, name, wrapper)


def measure(
    cli: IntrospectionCLI,
    queue: Sequence[Setting],
    amount: Amount,
    reuse: Reuse,
    report: Callable[[Setting, Chunk], None] = lambda _setting, _chunk: None,
) -> tuple[list[tuple[Setting, Chunk]], set[Setting], FirstStep]:
    """Measure settings in the training loop.

    Args:
        cli: Put together by :func:`~introspection_lit.cli.attach`; its model is loaded the first time.
        queue: What to measure, in order; at least one batched setting.
        amount: How much of each.
        reuse: What ``batched, reuse`` reuses.
        report: Called with each chunk.

    Returns:
        The chunks; the settings for which memory was not enough; and the first step of all.

    Raises:
        ConfigurationError: Memory is not enough for a single trial.
    """
    data, module = cli.datamodule, cli.model
    # At the end of a fit Lightning moves the model to the CPU; here the next one begins at once.
    setattr(module, "cpu", lambda: module)  # noqa: B010 - it is a method, for mypy
    left, chunks, too_large, first_step = list(queue), list[tuple[Setting, Chunk]](), set[Setting](), FirstStep(None, None)
    while left:
        measurement = Measurement(data, module, left, amount, reuse, report)
        try:
            _fit(cli, measurement)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            give_back(error)
            too_large.add(measurement.queue[0])
        finally:
            if measurement.tokens is not None:
                measurement.tokens.remove()
        chunks += measurement.chunks
        first_step = first_step if first_step.seconds else measurement.first_step
        left = [setting for setting in measurement.queue if setting not in too_large]
        if too_large:
            module.zero_grad(set_to_none=True)
            module.trainer = None
            free_unused()
    if any(setting.path == ONE_AT_A_TIME for setting in too_large):
        raise ConfigurationError(["memory: not even one trial fits. Use quantization nf4, or a smaller model."])
    return chunks, too_large, first_step


def _fit(cli: IntrospectionCLI, measurement: Measurement) -> None:
    """Run the project's training loop with nothing around it: no validation, no files."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = cli.instantiate_trainer(
            max_epochs=EPOCHS,
            max_steps=-1,
            accumulate_grad_batches=1,
            limit_train_batches=1.0,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            reload_dataloaders_every_n_epochs=1,
            logger=False,
            default_root_dir=folder,
        )
        trainer.callbacks = [measurement]  # type: ignore[attr-defined]
        trainer.fit(cli.model, datamodule=cli.datamodule)


def largest(fits: Callable[[int], bool], start: int, most: int) -> int:
    """Find the largest even batch that fits: double until it does not, then halve the interval.

    Args:
        fits: Tries a batch size.
        start: The first one tried, even.
        most: The largest one tried.

    Returns:
        The batch size; 0 if not even two trials fit.
    """
    good, size = 0, start
    while size <= most and fits(size):
        good, size = size, 2 * size
    between = range(good + 2, min(size, most // 2 * 2 + 2), 2)
    return good + 2 * bisect_left(between, True, key=lambda each: not fits(each))


def sweep(cli: IntrospectionCLI, amount: Amount, reuse: Reuse, start: int, most: int) -> int:
    """Find the largest batch whose training steps fit into memory, with everything reused; two steps of each are run."""

    def fits(size: int) -> bool:
        queue, few = [Setting(REUSE, size)], replace(amount, steps=1, warmup=1)
        too_large = measure(cli, queue, few, reuse)[1]
        print(f"sweep: a batch of {size} {'does not fit' if too_large else 'fits'}", flush=True)
        return not too_large

    return largest(fits, start, most)


def rows(chunks: Sequence[tuple[Setting, Chunk]], too_large: set[Setting], ceiling: float) -> list[dict[str, Any]]:
    """Combine the chunks of each setting.

    Args:
        chunks: From :func:`measure`, those of ``one at a time`` among them.
        too_large: Settings for which memory was not enough.
        ceiling: Of the hardware, in TFLOP/s.

    Returns:
        For each setting ``path`` and ``batch``; the median over its chunks of ``trials_per_second`` (``lowest``,
        ``highest``: their range), ``tflops`` (nominal), ``of_ceiling`` and ``tflops_run``; ``peak_gib``; and ``ratio``, its
        trials per second over those of one at a time. All None (``out_of_memory`` true) where memory was not enough.
    """
    groups: dict[Setting, list[Chunk]] = {setting: [] for setting in (*(setting for setting, _ in chunks), *too_large)}
    for setting, chunk in chunks:
        if setting not in too_large:
            groups[setting].append(chunk)
    singles = statistics.median(chunk.trials / chunk.seconds for each, chunk in chunks if each.path == ONE_AT_A_TIME)
    table = []
    for setting in sorted(groups, key=lambda setting: (PATHS.index(setting.path), setting.batch)):
        row: dict[str, Any] = {"path": setting.path, "batch": setting.batch, "out_of_memory": setting in too_large}
        table.append(row | _numbers(groups[setting], singles, ceiling))
    return table


def _numbers(group: Sequence[Chunk], singles: float, ceiling: float) -> dict[str, float | None]:
    if not group:
        names = "trials_per_second lowest highest ratio tflops of_ceiling tflops_run peak_gib"
        return dict.fromkeys(names.split())
    rates = [chunk.trials / chunk.seconds for chunk in group]
    rate, tflops = statistics.median(rates), statistics.median(chunk.nominal / chunk.seconds for chunk in group) / 1e12
    return {
        "trials_per_second": rate,
        "lowest": min(rates),
        "highest": max(rates),
        "ratio": rate / singles,
        "tflops": tflops,
        "of_ceiling": tflops / ceiling,
        "tflops_run": statistics.median(chunk.run / chunk.seconds for chunk in group) / 1e12,
        "peak_gib": max(chunk.memory for chunk in group) / 2**30,
    }


def lengths(data: IntrospectionDataModule) -> dict[str, Any]:
    """The lengths of training's contexts and questions, in tokens: mean, shortest and longest; after a measurement."""
    split = data.splits["train"]
    places = itertools.product(range(len(split.contexts)), range(len(split.questions)))
    encoded = [split.encoded(context, question) for context, question in places]
    table: dict[str, Any] = {"contexts": len(split.contexts)}
    for name in ("context", "question"):
        group = [len(getattr(each, f"{name}_ids")) for each in encoded]
        table[f"{name}_tokens"] = {"mean": statistics.mean(group), "shortest": min(group), "longest": max(group)}
    return table
