"""The prefill of a run: what of it is computed once, decided by the run's options and its place among other processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from lightning_utilities.core.rank_zero import rank_zero_info
from transformers import Cache

from introspection_lit.steering.clean_caches import GIB, KeptCaches, reader, state_of
from introspection_lit.steering.prefill import Forward
from introspection_lit.steering.shared_prefill import shared_cache
from introspection_lit.training.distributed import is_sharded

if TYPE_CHECKING:
    from introspection_lit.training.datamodule import IntrospectionDataModule
    from introspection_lit.training.module import IntrospectionModule
    from introspection_lit.trials.batch import TrialBatch
    from introspection_lit.trials.split import Split


# Keeping a clean context costs one pass over it: it pays if training needs it more often.
USES_THAT_PAY = 2


@dataclass(frozen=True)
class Reuse:
    """What of the prefill is computed once instead of again and again. Scores stay the same but for rounding.

    Attributes:
        layers: Of rows with the same context, one runs through the layers below the steering, for all of them.
        clean: In training, keep the caches of clean contexts in host memory, if the run needs each at least twice. Off if
            the adapter writes caches (``data.prefill_adapter``), since these change with every step.
        gib: Host memory for kept caches, of each process, in GiB; contexts that do not fit are computed each time.
        group: Contexts that are read at once to be kept.
    """

    layers: bool = True
    clean: bool = True
    gib: float = 8.0
    group: int = 16

    def problems(self) -> list[str]:
        """What is wrong with the settings."""
        if self.gib >= 0 and self.group >= 1:
            return []
        return [f"data.reuse: got gib {self.gib} and group {self.group}. Expected gib >= 0 and group >= 1."]


def batch_cache(
    forward: Forward, module: IntrospectionModule, batch: TrialBatch, kept: KeptCaches | None = None, **options: bool
) -> Cache:
    """The steered caches of a batch; options as of :func:`~introspection_lit.steering.shared_prefill.shared_cache`."""
    ids, mask = batch.context_ids, batch.context_mask
    return shared_cache(
        forward, module.model, module.layers, ids, mask, batch.intervention, batch.contexts, kept, **options
    )


class Prefills:
    """Makes the caches of a run's batches.

    Args:
        data: The data module that the batches come from.

    Attributes:
        kept: The clean caches that are kept, while training.
        contexts_kept: How many contexts the last training has kept.
    """

    def __init__(self, data: IntrospectionDataModule) -> None:
        self.data = data
        self.kept: KeptCaches | None = None
        self.contexts_kept = 0
        self.kept_of: tuple[Split, Reuse] | None = None  # what ``kept`` was decided for

    def __call__(self, batch: TrialBatch) -> Cache:
        """Run the prefill of a batch, through the strategy's wrapper and under the precision of the step."""
        data, trainer, module = self.data, self.data.running, self.data.module
        forward = cast("Forward", trainer.model or module)
        with trainer.precision_plugin.forward_context():
            kept = self._kept_for(batch, forward)
            share, always = data.reuse.layers, trainer.world_size > 1
            return batch_cache(forward, module, batch, kept, share=share, adapter=data.prefill_adapter, always=always)

    def _kept_for(self, batch: TrialBatch, forward: Forward) -> KeptCaches | None:
        """The clean caches that are kept, those of a batch's contexts among them; None if none are."""
        data, trainer, module = self.data, self.data.running, self.data.module
        # Tests compute everything in the same batch, so that clean and steered caches differ in nothing but the steering.
        if batch.split != "train" or not trainer.training or data.prefill_adapter or not data.reuse.clean:
            return None
        split = data.splits["train"]
        if self.kept_of is None or self.kept_of[0] is not split or self.kept_of[1] != data.reuse:
            self.kept_of, self.kept = (split, data.reuse), self._worth_keeping(split)
        if self.kept is not None:
            alone = not is_sharded(trainer)
            # DDP synchronises buffers in every forward pass of its wrapper: what one process reads alone goes past it.
            read = reader(module if alone else forward, module.model, module.layers, self.kept.layers)
            made_with = state_of(module.model, module.layers, sharded=not alone)
            self.kept.prepare(batch.contexts, made_with, read, everything=not alone)
        return self.kept

    def _worth_keeping(self, split: Split) -> KeptCaches | None:
        trainer, reuse = self.data.running, self.data.reuse
        steps = trainer.estimated_stepping_batches
        pairs = steps * trainer.accumulate_grad_batches * trainer.world_size * self.data.batch_size / 2
        if pairs < USES_THAT_PAY * len(split.contexts):
            return None
        tokens = [split.encoded(context).context_ids for context in range(len(split.contexts))]
        first_layers = [first for first, _ in split.plan.bands] if reuse.layers else []
        return KeptCaches(tokens, first_layers, reuse.gib, reuse.group)

    def release(self) -> None:
        """Say what has been kept, and give its memory back."""
        if self.kept is not None and self.kept.entries:
            self.contexts_kept = len(self.kept.entries)
            size = self.kept.nbytes / GIB
            rank_zero_info(f"kept the clean caches of {self.contexts_kept} contexts ({size:.2f} GiB of host memory)")
        self.kept = self.kept_of = None
