"""Batches of trials: from plans and texts to padded tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler
from transformers import Cache

from introspection_lit.contexts import Context, fingerprint
from introspection_lit.conversations import Encoded, Phrasing, encode
from introspection_lit.prefill import pad
from introspection_lit.steering import Intervention, layer_scale
from introspection_lit.trials import Trial, TrialPlan
from introspection_lit.vectors import VectorBank

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class TrialBatch:
    """A batch on its way from the data loader through the prefill to the step.

    Attributes:
        trials: What each row is.
        context_ids: Left-padded, ``(batch, context)``.
        context_mask: 1 at tokens, ``(batch, context)``.
        question_ids: Right-padded, ``(batch, question)``.
        question_mask: 1 at tokens, ``(batch, question)``.
        intervention: What is added to the residual stream of each row.
        labels: True where steered, ``(batch,)``.
        inputs: A number for each distinct context and question, ``(batch,)`` int64.
        numbers: The number of each trial in its split, ``(batch,)`` int64.
        answer_ids: Tokens of yes and no, ``(2,)``.
        total: Trials in the set: rows with this number or a higher one only fill up the last batches. None: no end.
        cache: The KV cache of the contexts, once the prefill has run.
    """

    trials: list[Trial]
    context_ids: Tensor
    context_mask: Tensor
    question_ids: Tensor
    question_mask: Tensor
    intervention: Intervention
    labels: Tensor
    inputs: Tensor
    numbers: Tensor
    answer_ids: Tensor
    total: int | None = None
    cache: Cache | None = None

    @property
    def split(self) -> str:
        """The split that all its trials belong to."""
        return self.trials[0].split

    def to(self, device: torch.device, **options: Any) -> TrialBatch:
        """Move every tensor, in place; Lightning calls this before the prefill."""
        for owner in (self, self.intervention):
            for name, value in vars(owner).items():
                if isinstance(value, Tensor):
                    setattr(owner, name, value.to(device, **options))
        return self


@dataclass
class Split:
    """A split's texts and its plan; the only place where a trial's numbers become texts and tensors.

    Attributes:
        name: The split.
        plan: Says what trial ``i`` is.
        contexts: Its contexts.
        questions: Its questions.
        tokenizer: The model's tokenizer.
        phrasing: How questions are put and answered.
        answer_ids: Tokens of yes and no.
        strength_unit: ``relative`` or ``absolute``.
        total: How many trials are wanted of it; None: no end.
    """

    name: str
    plan: TrialPlan
    contexts: Sequence[Context]
    questions: Sequence[str]
    tokenizer: PreTrainedTokenizerBase
    phrasing: Phrasing
    answer_ids: tuple[int, int]
    strength_unit: str
    total: int | None = None
    _encoded: dict[tuple[int, int], Encoded] = field(default_factory=dict)
    _lengths: list[int] = field(default_factory=list)

    def encoded(self, context: int, question: int = 0) -> Encoded:
        """Tokens of a conversation of the split, by number."""
        key = (context, question)
        if key not in self._encoded:
            self._encoded[key] = encode(self.tokenizer, self.contexts[context], self.questions[question], self.phrasing)
        return self._encoded[key]

    def lengths(self) -> list[int]:
        """Tokens of each context."""
        if not self._lengths:
            self._lengths = [len(self.encoded(context).context_ids) for context in range(len(self.contexts))]
        return self._lengths

    def describe(self, trial: Trial, bank: VectorBank, vectors: str) -> dict[str, Any]:
        """Everything that defines a trial, in words, for a table of predictions."""
        context = self.contexts[trial.context]
        names = {
            "context_key": context.key,
            "kind": context.kind,
            "question_text": self.questions[trial.question],
            "vector_name": bank.names[vectors][trial.vector] if trial.steered else None,
        }
        return trial.as_row() | names

    def collate(self, trials: list[Trial], bank: VectorBank, vectors: str) -> TrialBatch:
        """Make the tensors of a batch.

        Args:
            trials: Its trials, all of this split.
            bank: Directions and residual norms.
            vectors: The bank's split that directions come from.
        """
        encoded = [self.encoded(trial.context, trial.question) for trial in trials]
        fill = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        context_ids, context_mask = pad([row.context_ids for row in encoded], fill, "left")
        question_ids, question_mask = pad([row.question_ids for row in encoded], fill, "right")
        rows = bank.directions[vectors]
        rows = rows if rows.dim() == 3 else rows[:, None]
        direction = torch.stack([rows[trial.vector] if trial.steered else torch.zeros_like(rows[0]) for trial in trials])
        norms = bank.residual_norms
        scale = torch.stack(
            [
                layer_scale(trial.strength, trial.band, norms, self.strength_unit)
                if trial.steered
                else torch.zeros_like(norms)
                for trial in trials
            ]
        )
        return TrialBatch(
            trials=trials,
            context_ids=context_ids,
            context_mask=context_mask,
            question_ids=question_ids,
            question_mask=question_mask,
            intervention=Intervention(direction, scale, context_mask.bool()),
            labels=torch.tensor([trial.steered for trial in trials]),
            inputs=torch.tensor([self._input_number(trial) for trial in trials]),
            numbers=torch.tensor([trial.number for trial in trials]),
            answer_ids=torch.tensor(self.answer_ids),
            total=self.total,
        )

    def _input_number(self, trial: Trial) -> int:
        context = self.contexts[trial.context]
        return int(fingerprint(context.user, context.assistant, self.questions[trial.question])[:15], 16)


class BatchesOfSplit(Dataset[TrialBatch]):
    """Item ``b`` is batch number ``b`` of a split; there is no last one.

    Args:
        split: The split.
        bank: Directions and residual norms.
        vectors: The bank's split that directions come from.
        batch_size: Trials in a batch; even.
        pool: Batches that are sorted by length together.
    """

    def __init__(self, split: Split, bank: VectorBank, vectors: str, batch_size: int, pool: int) -> None:
        self.split, self.bank, self.vectors = split, bank, vectors
        self.batch_size, self.pool = batch_size, pool

    def __getitem__(self, number: int) -> TrialBatch:
        trials = self.split.plan.batch(number, self.batch_size, self.split.lengths(), self.pool)
        return self.split.collate(trials, self.bank, self.vectors)


class EpochBatches(DistributedSampler[int]):
    """Deals the batches of an epoch out to the processes: as many to each, none to two.

    Epoch ``e`` of ``n`` batches holds the numbers from ``e * n`` on, so that every epoch is new; if ``n`` does not divide
    by the number of processes, the last round goes on to the numbers that follow. It is a ``DistributedSampler`` in name
    only, so that Lightning does not put its own in its place.

    Args:
        batches: Batches in an epoch over all processes.
        rank: This process.
        world_size: All processes.
        epoch: Says which epoch is running. Lightning's ``set_epoch`` is not used: after a resume it starts again at 0
            (Lightning 2.6).
    """

    def __init__(self, batches: int, rank: int, world_size: int, epoch: Callable[[], int]) -> None:
        self.rank, self.world_size, self.current_epoch = rank, world_size, epoch
        self.each = -(-batches // world_size)

    def __len__(self) -> int:
        return self.each

    def __iter__(self) -> Iterator[int]:
        start = self.current_epoch() * self.each * self.world_size
        return iter(range(start + self.rank, start + self.each * self.world_size, self.world_size))
