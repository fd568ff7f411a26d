"""The prefill of a run: which caches are computed once and reused, by the run's options and number of processes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

from lightning_utilities.core.rank_zero import rank_zero_info
from transformers import Cache

from introspection_lit.steering.clean_caches import GIB, CleanCaches, make_reader, model_state
from introspection_lit.steering.prefill import Forward, prefill_mode
from introspection_lit.steering.question_pass import answer_positions, read_texts
from introspection_lit.steering.shared_prefill import shared_cache
from introspection_lit.training.changed_caches import apply_changes
from introspection_lit.training.distributed import is_sharded
from introspection_lit.training.reading import question_attention, read_batch

if TYPE_CHECKING:
    from introspection_lit.training.module import IntrospectionModule
    from introspection_lit.training.options import Reuse
    from introspection_lit.training.run_context import RunContext
    from introspection_lit.trials.batch import TrialBatch
    from introspection_lit.trials.split import Split


# Keeping a clean context costs one pass over it: it pays if training needs it more often.
USES_THAT_PAY = 2


def batch_cache(
    forward: Forward, module: IntrospectionModule, batch: TrialBatch, kept: CleanCaches | None = None, **options: bool
) -> Cache:
    """The steered caches of a batch; options as of :func:`~introspection_lit.steering.shared_prefill.shared_cache`."""
    ids, mask = batch.context_ids, batch.context_mask
    return shared_cache(
        forward, module.model, module.layers, ids, mask, batch.intervention, batch.contexts, kept, **options
    )


def answer_references(forward: Forward, module: IntrospectionModule, batch: TrialBatch) -> None:
    """Let the untrained model answer the references of a batch with its caches, and read its plain texts."""
    references, texts = batch.references, batch.texts
    if references is None and texts is None:
        return
    reading = question_attention(module.base, module.model)
    with prefill_mode(module.model, adapter=False), reading:
        if references is not None:
            asked = replace(
                batch,
                cache_of=references.cache_of,
                question_prefix_ids=None,
                question_ids=references.question_ids,
                question_mask=references.question_mask,
            )
            marks = None
            if batch.early is not None:
                marks = references.marks.where(references.marks >= 0, answer_positions(asked))
            read = read_batch(module, asked, marks, forward)
            references.log_probabilities = read[:, 0].float().log_softmax(dim=-1)
            if batch.early is not None:
                references.early_log_probabilities = read[:, 1].float().log_softmax(dim=-1)
        if texts is not None:
            ids, mask = batch.context_ids[texts.caches], batch.context_mask[texts.caches]
            texts.log_probabilities = read_texts(forward, ids, mask).float().log_softmax(dim=-1)


class Prefills:
    """Makes the caches of a run's batches.

    Args:
        run: The run; while training, its ``clean_caches`` are filled here.

    Attributes:
        contexts_kept: How many clean contexts the last training has kept.
    """

    def __init__(self, run: RunContext) -> None:
        self.run = run
        self.contexts_kept = 0
        self._kept_of: tuple[Split, Reuse] | None = None  # what ``run.clean_caches`` was decided for

    def __call__(self, batch: TrialBatch) -> Cache:
        """Run the prefill of a batch, through the strategy's wrapper and under the precision of the step."""
        options, trainer, module = self.run.options, self.run.trainer, self.run.module
        forward = cast("Forward", trainer.model or module)
        with trainer.precision_plugin.forward_context():
            kept = self._clean_caches(batch, forward)
            share, always = self.run.share_layers, trainer.world_size > 1
            adapter = options.prefill_adapter
            batch.cache = batch_cache(forward, module, batch, kept, share=share, adapter=adapter, always=always)
            apply_changes(module, batch, self.run.usual_targets)
            answer_references(forward, module, batch)
            return batch.cache

    def _clean_caches(self, batch: TrialBatch, forward: Forward) -> CleanCaches | None:
        """The clean caches that are kept, those of the batch's contexts among them; None: none are kept."""
        run, trainer, module = self.run, self.run.trainer, self.run.module
        reuse = run.options.reuse
        # Tests compute everything in the same batch, so that clean and steered caches differ in nothing but the steering.
        if batch.split != "train" or not trainer.training or run.options.prefill_adapter or not reuse.clean:
            return None
        split = run.splits["train"]
        if self._kept_of is None or self._kept_of[0] is not split or self._kept_of[1] != reuse:
            self._kept_of, run.clean_caches = (split, reuse), self._worth_keeping(split)
        if run.clean_caches is not None:
            alone = not is_sharded(trainer)
            # DDP synchronises buffers in every forward pass of its wrapper: what one process reads alone goes past it.
            read = make_reader(module if alone else forward, module.model, module.layers, run.clean_caches.layers)
            made_with = model_state(module.model, module.layers, sharded=not alone)
            run.clean_caches.prepare(batch.contexts, made_with, read, everything=not alone)
        return run.clean_caches

    def _worth_keeping(self, split: Split) -> CleanCaches | None:
        """An empty store of clean caches, if training needs each context often enough."""
        trainer, reuse = self.run.trainer, self.run.options.reuse
        steps = trainer.estimated_stepping_batches
        trials = steps * trainer.accumulate_grad_batches * trainer.world_size * self.run.batch_size
        pairs = trials / (2 if split.questionnaire is None else 2 * split.questionnaire.each)
        if pairs < USES_THAT_PAY * len(split.contexts):
            return None
        tokens = [split.encoded(context).context_ids for context in range(len(split.contexts))]
        first_layers = [first for first, _ in split.plan.bands] if self.run.share_layers else []
        return CleanCaches(tokens, first_layers, reuse.gib, reuse.group)

    def release(self) -> None:
        """Report how many clean caches were kept, and free their memory."""
        kept = self.run.clean_caches
        if kept is not None and kept.truncated:
            rank_zero_info("data.reuse.clean is off for this model: a sliding window drops tokens of long contexts")
        if kept is not None and kept.entries:
            self.contexts_kept = len(kept.entries)
            size = kept.nbytes / GIB
            rank_zero_info(f"kept the clean caches of {self.contexts_kept} contexts ({size:.2f} GiB of host memory)")
        self.run.clean_caches = self._kept_of = None
