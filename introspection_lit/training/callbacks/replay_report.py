"""Replay: scores single trials of a run alone and reports where their values become NaN or infinite."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from torch import Tensor, nn

from introspection_lit.steering.prefill import Forward
from introspection_lit.steering.residual import residual
from introspection_lit.training.cache_reuse import answer_references, batch_cache
from introspection_lit.training.distributed import is_sharded
from introspection_lit.training.run_context import run_of
from introspection_lit.trials.batch import TrialBatch
from introspection_lit.trials.replay import format_trial
from introspection_lit.trials.trial import Trial

if TYPE_CHECKING:
    from introspection_lit.training.run_context import RunContext


def loss_and_gradients(run: RunContext, trial: Trial) -> tuple[Tensor, dict[str, Tensor]]:
    """Score one trial alone, without dropout, and differentiate; the module's own gradients stay as they are.

    Args:
        run: Of the run; its model is not sharded.
        trial: Of one of its splits.

    Returns:
        The loss, and the gradient of each trained tensor by name; none if nothing is trained.
    """
    module, trainer, bank = run.module, run.trainer, run.vector_bank
    assert bank is not None
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    batch = run.splits[trial.split].collate([trial], bank)
    batch = trainer.precision_plugin.convert_input(batch).to(trainer.strategy.root_device)
    training = module.model.training
    module.model.eval()
    try:
        with torch.enable_grad(), trainer.precision_plugin.forward_context():
            forward = cast("Forward", module)
            batch.cache = batch_cache(forward, module, batch, share=run.share_layers, adapter=run.options.prefill_adapter)
            answer_references(forward, module, batch)
            loss = module._step(batch, gather=False)[0]
            found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True) if trained else ()
    finally:
        module.model.train(training)
    named = zip(trained, found, strict=True)
    return loss.detach(), {name: gradient for name, gradient in named if gradient is not None}


class Place(NamedTuple):
    """The values at one place of a pass.

    Attributes:
        name: The place.
        finite: No value is NaN or infinite.
        largest: The largest absolute value; NaN if one is NaN.
        dtype: Of the values.
    """

    name: str
    finite: bool
    largest: float
    dtype: torch.dtype


@dataclass
class Trace:
    """Hooks that look at the residual stream before and after every decoder layer.

    Steering is added to a layer's output by a hook that runs after these: it shows in the input of the next layer.

    Attributes:
        places: The places in order, by the name of the pass.
        current: The pass that is running; None: nothing is recorded.
    """

    places: dict[str, list[Place]] = field(default_factory=dict)
    current: str | None = None

    @contextmanager
    def on(self, layers: Sequence[nn.Module]) -> Iterator[Trace]:
        """Register the hooks while the block runs."""
        handles = []
        try:
            for number, layer in enumerate(layers):
                handles.append(layer.register_forward_pre_hook(self._before(number), with_kwargs=True))
                handles.append(layer.register_forward_hook(self._after(number)))
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, layer: int) -> Any:
        name = "the embeddings" if layer == 0 else f"what steering makes of the output of layer {layer - 1}"

        def hook(module: nn.Module, args: Any, options: dict[str, Any]) -> None:
            self._note(name, args[0] if args else options["hidden_states"])

        return hook

    def _after(self, layer: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self._note(f"the output of layer {layer}", residual(module, output))

        return hook

    def _note(self, name: str, values: Tensor) -> None:
        if self.current is None:
            return
        values = values.detach()
        largest, finite = float(values.abs().max()), bool(values.isfinite().all())
        self.places.setdefault(self.current, []).append(Place(name, finite, largest, values.dtype))

    def summary(self, name: str) -> str:
        """A line of text: the first place of a pass with NaN or infinite values, or that there is none."""
        places = self.places.get(name, [])
        first = next((number for number, place in enumerate(places) if not place.finite), len(places))
        before = max(places[:first], key=lambda place: place.largest, default=None)
        parts = [f"not finite from {places[first].name} on" if first < len(places) else "finite after every layer"]
        if before is not None:
            limit = torch.finfo(before.dtype).max
            until = "before that" if first < len(places) else "at most"
            kind = str(before.dtype).removeprefix("torch.")
            parts.append(f"{until} {before.largest:.3g} ({before.name}; {kind} ends at {limit:.3g})")
        return f"{name}: {'; '.join(parts)}"


PREFILL, QUESTION = "prefill", "question pass"


class ReplayReport(Callback):
    """While trials are replayed: prints the first place of each with NaN or infinite values."""

    def __init__(self) -> None:
        self.trace = Trace()
        self.hooks = ExitStack()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Register the hooks if trials are replayed."""
        run = run_of(trainer)
        if run.options.replay is not None:
            self.trace = Trace(current=PREFILL)
            self.hooks.enter_context(self.trace.on(run.module.layers))

    def on_predict_batch_start(self, trainer: Trainer, *args: Any, **options: Any) -> None:
        """The prefill is done: record the question pass."""
        self.trace.current = QUESTION

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: TrialBatch, *args: Any, **options: Any
    ) -> None:
        """Print the report on the trial, and reset for the next one."""
        run = run_of(trainer)
        if run.options.replay is None:
            return
        self.trace.current = None
        trial, (log_odds, mass) = batch.trials[0], (outputs[name][0].item() for name in ("log_odds", "mass"))
        lines = [
            f"replayed {format_trial(run.describe(trial))}",
            *(self.trace.summary(name) for name in (PREFILL, QUESTION)),
        ]
        lines.append(f"answer: log-odds {log_odds:.6g}, mass {mass:.6g}")
        if not is_sharded(trainer):  # else every process would have to take part
            lines.append(gradient_summary(run, trial))
        if batch.total is None:
            Console(highlight=False, markup=False, emoji=False).print("\n  ".join(lines), soft_wrap=True)
        self.trace.places, self.trace.current = {}, PREFILL

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the hooks."""
        self.hooks.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the hooks."""
        self.hooks.close()


def gradient_summary(run: RunContext, trial: Trial) -> str:
    """A line of text: the loss of a trial alone, and whether its gradient is finite."""
    with torch.inference_mode(False):
        loss, gradients = loss_and_gradients(run, trial)
    broken = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
    norm = torch.nn.utils.get_total_norm(list(gradients.values())).item() if gradients else 0.0
    found = f"of norm {norm:.3g}" if not broken else f"not finite in {len(broken)} of {len(gradients)} tensors"
    found += f", such as {broken[-1]}" if broken else ""
    return f"loss: {loss.item():.6g}" + (f"; gradient: {found}" if gradients else "")
