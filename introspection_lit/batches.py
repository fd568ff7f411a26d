"""Batches of trials: from plans and texts to padded tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler
from transformers import Cache

from introspection_lit.contexts import Context, fingerprint
from introspection_lit.conversations import Encoded, Phrasing, encode
from introspection_lit.errors import ConfigurationError
from introspection_lit.prefill import pad
from introspection_lit.seeds import generator
from introspection_lit.steering import Intervention, layer_scale
from introspection_lit.trials import Plan, Source, Trial
from introspection_lit.vectors import VectorBank

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class TrialBatch:
    """A batch on its way from the data loader through the prefill to the step.

    Attributes:
        trials: What each row is.
        context_ids: Left-padded, ``(caches, context)``: one for each context and intervention.
        context_mask: 1 at tokens, ``(caches, context)``.
        contexts: The number of each cache's context in the split.
        cache_of: Which of the caches each row reads, ``(batch,)``; None: each row has its own, in order.
        lead_ids: Tokens with which every question of the batch begins, ``(lead,)``, if caches are shared: they are read
            once for each cache. None: there are none.
        question_ids: Right-padded, ``(batch, question)``, without the lead.
        question_mask: 1 at tokens, ``(batch, question)``.
        intervention: What is added to the residual stream of each cache.
        labels: True where steered, ``(batch,)``.
        inputs: A number for each distinct context and question, ``(batch,)`` int64.
        numbers: The number of each trial in its split, ``(batch,)`` int64.
        kinds: A number for each kind of context, ``(batch,)`` int64.
        answer_ids: Tokens of yes and no, ``(2,)``.
        total: Trials in the set: rows with this number or a higher one only fill up the last batches. None: no end.
        cache: The KV cache of the contexts, once the prefill has run.
    """

    trials: list[Trial]
    context_ids: Tensor
    context_mask: Tensor
    contexts: list[int]
    cache_of: Tensor | None
    lead_ids: Tensor | None
    question_ids: Tensor
    question_mask: Tensor
    intervention: Intervention
    labels: Tensor
    inputs: Tensor
    numbers: Tensor
    kinds: Tensor
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
        source: Which vectors, contexts and questions it is made of; if the training questions, contexts that ask a question
            of their own ask that one instead.
        roles: What each question is, if they are not all the question of the experiment; for a table of predictions.
        total: How many trials are wanted of it; None: no end.
        seed: The experiment's seed, for what is drawn trial by trial.
        control: What is wrong with its trials on purpose: ``random_labels`` or ``no_steering``; or ``none``.
        leads: Questions of a batch that begin alike are read once for each cache as far as they do. For grids, where many
            are asked of each; it takes another pass, which processes of FSDP could not each make for themselves.
    """

    name: str
    plan: Plan
    contexts: Sequence[Context]
    questions: Sequence[str]
    tokenizer: PreTrainedTokenizerBase
    phrasing: Phrasing
    answer_ids: tuple[int, int]
    strength_unit: str
    source: Source
    roles: Sequence[str] = ()
    total: int | None = None
    seed: int = 0
    control: str = "none"
    leads: bool = False
    _encoded: dict[tuple[int, int], Encoded] = field(default_factory=dict)
    _lengths: list[int] = field(default_factory=list)

    def question(self, context: int, question: int) -> str | None:
        """What is asked: text of the experiment's, or None for what the context itself asks."""
        detection = not self.roles or self.roles[question] == self.roles[0]
        own = self.source.questions == "train" and detection and self.contexts[context].asked
        return None if own else self.questions[question]

    def encoded(self, context: int, question: int = 0) -> Encoded:
        """Tokens of a conversation of the split, by number."""
        key = (context, question)
        if key not in self._encoded:
            asked = self.question(context, question)
            self._encoded[key] = encode(self.tokenizer, self.contexts[context], asked, self.phrasing)
        return self._encoded[key]

    def lengths(self) -> list[int]:
        """Tokens of each context."""
        if not self._lengths:
            self._lengths = [len(self.encoded(context).context_ids) for context in range(len(self.contexts))]
        return self._lengths

    def asked(self, trial: Trial) -> str:
        """What is asked in a trial, in words."""
        question = self.question(trial.context, trial.question)
        own = [message.content for message in self.contexts[trial.context].asked if message.role == "user"]
        return question if question is not None else own[-1]

    def all_asked(self) -> list[str]:
        """Every question that trials of the split may ask, in words."""
        own = [context.asked for context in self.contexts if context.asked and self.source.questions == "train"]
        texts = [[message.content for message in asked if message.role == "user"][-1] for asked in own]
        return list(dict.fromkeys([*texts, *(self.questions if len(own) < len(self.contexts) else ())]))

    def describe(self, trial: Trial, bank: VectorBank) -> dict[str, Any]:
        """Everything that defines a trial, in words, for a table of predictions."""
        context = self.contexts[trial.context]
        names = {
            "context_key": context.key,
            "kind": context.kind,
            "question_text": self.asked(trial),
            "role": self.roles[trial.question] if self.roles else "detection",
            "vectors": self.source.vectors,
            "vector_name": bank.names[self.source.vectors][trial.vector] if trial.steered else None,
        }
        return trial.as_row() | names

    def collate(self, trials: list[Trial], bank: VectorBank) -> TrialBatch:
        """Make the tensors of a batch; trials that share context and intervention share a cache.

        Args:
            trials: Its trials, all of this split.
            bank: Directions and residual norms.
        """
        encoded = [self.encoded(trial.context, trial.question) for trial in trials]
        fill = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        steered_as = [self._steered_as(trial) for trial in trials]
        first = {key: row for row, key in reversed(list(enumerate(steered_as)))}
        kept = sorted(first.values())
        place = {steered_as[row]: number for number, row in enumerate(kept)}
        cache_of = torch.tensor([place[key] for key in steered_as]) if len(kept) < len(trials) else None
        questions = [row.question_ids for row in encoded]
        # Long texts before the questions of a grid would otherwise be read again with every question.
        shared = self.leads and cache_of is not None
        lead = min(len(commonprefix(questions)), min(map(len, questions)) - 1) if shared else 0
        context_ids, context_mask = pad([encoded[row].context_ids for row in kept], fill, "left")
        question_ids, question_mask = pad([question[lead:] for question in questions], fill, "right")
        direction, scale = self._added([trials[row] for row in kept], bank)
        return TrialBatch(
            trials=trials,
            context_ids=context_ids,
            context_mask=context_mask,
            contexts=[trials[row].context for row in kept],
            cache_of=cache_of,
            lead_ids=torch.tensor(questions[0][:lead]) if lead else None,
            question_ids=question_ids,
            question_mask=question_mask,
            intervention=Intervention(direction, scale, self._positions([trials[row] for row in kept], context_mask)),
            labels=torch.tensor([self._label(trial) for trial in trials]),
            inputs=torch.tensor([self._input_number(trial) for trial in trials]),
            numbers=torch.tensor([trial.number for trial in trials]),
            kinds=torch.tensor([int(fingerprint(self.contexts[trial.context].kind)[:15], 16) for trial in trials]),
            answer_ids=torch.tensor(self.answer_ids),
            total=self.total,
        )

    def _added(self, trials: list[Trial], bank: VectorBank) -> tuple[Tensor, Tensor]:
        """Directions, ``(batch, layers or 1, hidden)``, and lengths, ``(batch, layers)``."""
        rows, norms = bank.directions[self.source.vectors], bank.residual_norms
        rows = rows if rows.dim() == 3 else rows[:, None]
        nothing = torch.zeros_like(rows[0]), torch.zeros_like(norms)
        added = [
            (self.source.sign * rows[trial.vector], layer_scale(trial.strength, trial.band, norms, self.strength_unit))
            if trial.steered and self.control != "no_steering"
            else nothing
            for trial in trials
        ]
        return torch.stack([direction for direction, _ in added]), torch.stack([scale for _, scale in added])

    def _steered_as(self, trial: Trial) -> tuple[Any, ...]:
        """What tells the cache of a trial from that of another."""
        drawn = trial.number if trial.steered and self.source.positions < 1 else None
        return trial.context, trial.vector, trial.band, trial.strength, drawn

    def _positions(self, trials: list[Trial], mask: Tensor) -> Tensor:
        """Which tokens are steered, ``(batch, context)``: all, or a share of them drawn at random, but at least one."""
        everywhere = mask.bool()
        if self.source.positions >= 1:
            return everywhere
        chosen = torch.zeros_like(everywhere)
        for row, trial in enumerate(trials):
            tokens = everywhere[row].nonzero()[:, 0]
            order = generator(self.seed, "positions", self.name, trial.number).permutation(len(tokens))
            chosen[row, tokens[order[: max(1, round(self.source.positions * len(tokens)))]]] = True
        return chosen

    def _label(self, trial: Trial) -> bool:
        if self.control != "random_labels":
            return trial.steered
        return bool(generator(self.seed, "label", self.name, trial.number).integers(2))

    def _input_number(self, trial: Trial) -> int:
        context = self.contexts[trial.context]
        question = self.question(trial.context, trial.question)
        return int(fingerprint(context.key, question or "")[:15], 16)


class BatchesOfSplit(Dataset[TrialBatch]):
    """Item ``b`` is batch number ``b`` of a split; there is no last one.

    In training, batches are parts of an optimiser's step: step ``s`` has the same trials however many processes and
    accumulated batches share them, as long as together they are as many.

    Args:
        split: The split.
        bank: Directions and residual norms.
        batch_size: Trials in a batch; even in training.
        pool: Steps that are sorted by length together.
        parts: Batches that make a step, over all processes.
    """

    def __init__(self, split: Split, bank: VectorBank, batch_size: int, pool: int, parts: int = 1) -> None:
        self.split, self.bank = split, bank
        self.batch_size, self.pool, self.parts = batch_size, pool, parts

    def __getitem__(self, number: int) -> TrialBatch:
        step, part = divmod(number, self.parts)
        size, lengths = self.batch_size * self.parts, self.split.lengths()
        return self.split.collate(self.split.plan.batch(step, size, lengths, self.pool, (part, self.parts)), self.bank)


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

    Attributes:
        begun: An epoch that was begun in an earlier run, and how many of this process's batches were done in it.
    """

    def __init__(self, batches: int, rank: int, world_size: int, epoch: Callable[[], int]) -> None:
        self.rank, self.world_size, self.current_epoch = rank, world_size, epoch
        self.each = -(-batches // world_size)
        self.begun = (-1, 0)

    def __len__(self) -> int:
        return self.each

    def __iter__(self) -> Iterator[int]:
        epoch = self.current_epoch()
        done = self.begun[1] if epoch == self.begun[0] else 0
        start = epoch * self.each * self.world_size
        return iter(range(start + self.rank + done * self.world_size, start + self.each * self.world_size, self.world_size))


class TrainingLoader(DataLoader[TrialBatch]):
    """A loader that goes on in the middle of an epoch. Lightning saves its state and gives it back.

    Args:
        batches: What is loaded.
        sampler: In which order.
        done: Says how many batches of the epoch this process has done.
        num_workers: Worker processes.
    """

    def __init__(self, batches: BatchesOfSplit, sampler: EpochBatches, done: Callable[[], int], num_workers: int) -> None:
        super().__init__(batches, batch_size=None, sampler=sampler, num_workers=num_workers)
        self.order, self.done = sampler, done
        self.cut = {"trials in a batch": batches.batch_size, "batches in a step": batches.parts, "batches": sampler.each}

    def state_dict(self) -> dict[str, Any]:
        """Where training is, and how its steps are cut."""
        return {"epoch": self.order.current_epoch(), "done": self.done(), "cut": self.cut}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on there.

        Raises:
            ConfigurationError: Steps are cut otherwise now: what is done of the epoch would be other trials.
        """
        if state["cut"] != self.cut:
            raise ConfigurationError(
                [
                    f"ckpt_path: the checkpoint is from the middle of an epoch, with {state['cut']}; the configuration "
                    f"gives {self.cut}. Use the data.batch_size, data.trials_per_epoch, accumulation and number of "
                    "processes that it was made with, or a checkpoint from the end of an epoch."
                ]
            )
        self.order.begun = (state["epoch"], state["done"])
