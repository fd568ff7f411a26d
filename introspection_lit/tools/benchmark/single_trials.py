"""Training on one trial at a time, as earlier implementations do: the baseline of the benchmark.

No batch, no padding, nothing reused: for each trial the whole context is read under the hooks with logits at every
position, then the question with logits at every position, then backward; an optimiser step after every eight trials. Model,
adapter, trials, precision, loss, clipping and optimiser are those of the run that this is compared with.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from introspection_lit.steering.prefill import steered_cache
from introspection_lit.steering.question_pass import read_answers
from introspection_lit.tasks.scoring import answer_loss

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from introspection_lit.training.datamodule import IntrospectionDataModule
    from introspection_lit.training.module import IntrospectionModule
    from introspection_lit.trials.batch import TrialBatch
    from introspection_lit.trials.trial import Trial


# Trials in an optimiser step, as published.
ACCUMULATED = 8


class SingleTrialLoop:
    """A training loop over single trials.

    Args:
        trainer: Fitting; its precision, optimiser and clipping are used.
        module: The module, in training mode.
        data: The data module that the trials come from.
    """

    def __init__(self, trainer: Trainer, module: IntrospectionModule, data: IntrospectionDataModule) -> None:
        self.trainer, self.module, self.data = trainer, module, data
        self.optimizer = trainer.optimizers[0]
        self.parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def run(self, numbers: Iterable[int]) -> list[Trial]:
        """Train on the trials of these numbers in the training split; returns them."""
        split, trials = self.data.splits["train"], []
        assert self.data.bank is not None
        for done, number in enumerate(numbers, start=1):
            trials.append(split.plan.trial(number))
            batch = split.collate(trials[-1:], self.data.bank).to(self.module.device)
            with self.trainer.precision_plugin.forward_context():
                loss = answer_loss(self.logits(batch), batch.answer_ids, batch.targets, self.module.loss) / ACCUMULATED
            torch.autograd.backward(loss)
            if done % ACCUMULATED == 0:
                self._step()
        self.optimizer.zero_grad(set_to_none=True)
        return trials

    def logits(self, batch: TrialBatch) -> Tensor:
        """Both passes over a batch of one trial; logits at the answer position, ``(1, vocabulary)``."""
        module = self.module

        def everywhere(**inputs: Any) -> Any:
            outputs = module(**(inputs | {"logits_to_keep": 0}))
            outputs.logits = outputs.logits[:, inputs["logits_to_keep"]]
            return outputs

        batch.cache = steered_cache(
            everywhere,
            module.model,
            module.layers,
            batch.context_ids,
            batch.context_mask,
            batch.intervention,
            adapter=self.data.options.prefill_adapter,
        )
        return read_answers(everywhere, batch)

    def _step(self) -> None:
        if self.trainer.gradient_clip_val:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.trainer.gradient_clip_val)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
