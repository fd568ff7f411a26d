"""Batches of trials: from plans and texts to padded tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from introspection_lit.contexts.context import Context, fingerprint
from introspection_lit.contexts.conversations import Encoded, Phrasing, encode
from introspection_lit.steering.bands import layer_scale
from introspection_lit.steering.intervention import Intervention
from introspection_lit.steering.prefill import pad
from introspection_lit.steering.vector_bank import VectorBank
from introspection_lit.trials.batch import TrialBatch
from introspection_lit.trials.plans import Plan
from introspection_lit.trials.test_sets import Source
from introspection_lit.trials.trial import Trial
from introspection_lit.utils.seeds import generator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
    share_question_prefix: bool = False
    _encoded: dict[tuple[int, int], Encoded] = field(default_factory=dict)
    _lengths: list[int] = field(default_factory=list)

    def question(self, context: int, question: int) -> str | None:
        """What is asked: text of the experiment's, or None for what the context itself asks."""
        detection = not self.roles or self.roles[question] == self.roles[0]
        own = self.source.questions == "train" and detection and self.contexts[context].question_turns
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

    def question_text(self, trial: Trial) -> str:
        """What is asked in a trial, in words."""
        question = self.question(trial.context, trial.question)
        own = [message.content for message in self.contexts[trial.context].question_turns if message.role == "user"]
        return question if question is not None else own[-1]

    def question_texts(self) -> list[str]:
        """Every question that trials of the split may ask, in words."""
        own = [
            context.question_turns
            for context in self.contexts
            if context.question_turns and self.source.questions == "train"
        ]
        texts = [[message.content for message in asked if message.role == "user"][-1] for asked in own]
        return list(dict.fromkeys([*texts, *(self.questions if len(own) < len(self.contexts) else ())]))

    def describe(self, trial: Trial, bank: VectorBank) -> dict[str, Any]:
        """Everything that defines a trial, in words, for a table of predictions."""
        context = self.contexts[trial.context]
        names = {
            "context_key": context.key,
            "kind": context.kind,
            "question_text": self.question_text(trial),
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
        shared = self.share_question_prefix and cache_of is not None
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
            question_prefix_ids=torch.tensor(questions[0][:lead]) if lead else None,
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
