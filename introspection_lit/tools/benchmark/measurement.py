"""Measures the training step while it trains: one setting after the other in one fit.

What is measured is the project's own training: its data module, prefill, question pass, backward, clipping and optimiser
step, in Lightning's loop. Each epoch of a fit is one measurement with a batch size of its own; between epochs the same
model trains on one trial at a time (:mod:`.single_trials`). Everything is measured in several rounds, each row once a
round, so that a machine that is slower for a minute is slower for all rows.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer

from introspection_lit.contexts.conversations import encode
from introspection_lit.tasks.questionnaire import DETECTION, FACTUAL, READING, Questionnaire, training_parts
from introspection_lit.tasks.task import LEAD_IN, TaskOptions
from introspection_lit.tools.benchmark.hardware import (
    TokensRun,
    matrix_weights,
    nominal_operations,
    peak,
    reset_peak,
    seconds_since_start,
    synchronise,
)
from introspection_lit.tools.benchmark.single_trials import SingleTrialLoop
from introspection_lit.training.options import Reuse
from introspection_lit.trials.composed_plans import SeveralQuestionsPlan
from introspection_lit.trials.plans import TrialPlan
from introspection_lit.trials.trial import Trial
from introspection_lit.utils.errors import ConfigurationError

if TYPE_CHECKING:
    from introspection_lit.training.datamodule import IntrospectionDataModule
    from introspection_lit.training.module import IntrospectionModule
    from introspection_lit.trials.split import Split


ONE_AT_A_TIME, PLAIN, REUSE = "one at a time", "batched", "batched, reuse"
# One saving of data.reuse alone; "batched" has none but for equal caches within a batch, which are always made once.
LAYERS, CLEAN = "batched, layers shared", "batched, clean kept"
# Everything reused, and four questions for each cache: a trial is a question.
TASKS = "several tasks, reuse"
PATHS = (ONE_AT_A_TIME, PLAIN, LAYERS, CLEAN, REUSE, TASKS)
QUESTIONS = {DETECTION: TaskOptions(questions=2), FACTUAL: TaskOptions(), READING: TaskOptions()}


class Setting(NamedTuple):
    """A row of the table: a path (one of :data:`PATHS`), and the trials in a batch."""

    path: str
    batch: int


class Chunk(NamedTuple):
    """One measurement."""

    trials: int
    seconds: float
    nominal: float  # floating point operations of the plain path, see :mod:`.benchmark`
    run: float  # those that went through the decoder layers
    memory: int  # peak, in bytes


class FirstStep(NamedTuple):
    """The time to the first step, in seconds; None where the system does not say."""

    seconds: float | None  # the step itself, with its batch
    since_start: float | None  # the age of the process at its end


@dataclass(frozen=True)
class Amount:
    """How much is measured."""

    steps: int = 3  # optimiser steps in each measurement of a batched row
    warmup: int = 2  # steps before each of them that are not measured; at least 1
    singles: int = 8  # trials in each measurement of one at a time, after two that are not measured
    contexts: int = 100  # different contexts in training
    context_tokens: int = 72  # their length, about
    question_tokens: int = 36  # the least length of questions: shorter ones get words without meaning
    tasks: Mapping[str, TaskOptions] = field(default_factory=lambda: QUESTIONS)  # that "several tasks" asks of each cache


def narrow(data: IntrospectionDataModule, amount: Amount) -> Split:
    """Give training contexts and questions of a length; a second call does nothing.

    Args:
        data: After its set-up.
        amount: Number and length of contexts (the nearest are taken), and the length of questions.

    Returns:
        The new training split of ``data``.

    Raises:
        ConfigurationError: The trials come from a manifest.
    """
    split = data.splits["train"]
    if not isinstance(split.plan, TrialPlan):
        raise ConfigurationError(["data.manifest: the benchmark draws its own trials. Leave it out."])
    lengths = split.lengths()
    nearest = sorted(range(len(lengths)), key=lambda context: (abs(lengths[context] - amount.context_tokens), context))
    contexts = [split.contexts[context] for context in sorted(nearest[: amount.contexts])]
    questions = [lengthened(split, question, amount.question_tokens) for question in split.questions]
    if (contexts, questions) != (list(split.contexts), list(split.questions)):
        plan = replace(split.plan, contexts=len(contexts))
        changed = replace(split, contexts=contexts, questions=questions, plan=plan, _encoded={}, _lengths=[])
        data.splits["train"] = changed
    return data.splits["train"]


def with_tasks(data: IntrospectionDataModule, split: Split, tasks: Mapping[str, TaskOptions]) -> Split:
    """The training split with several questions for each cache."""
    assert isinstance(split.plan, TrialPlan)
    parts, words = training_parts(tasks), data.run.wording.answer_words["trained"]
    questionnaire = Questionnaire(data.options.seed, split.name, parts, words, LEAD_IN)
    plan = SeveralQuestionsPlan(split.plan, questionnaire.each)
    return replace(split, plan=plan, questionnaire=questionnaire, _encoded={}, _lengths=[])


def lengthened(split: Split, question: str, tokens: int) -> str:
    """Put words before a question until it has so many tokens, chat template and answer prefix included."""
    while len(encode(split.tokenizer, split.contexts[0], question, split.phrasing).question_ids) < tokens:
        question = f"now {question}"
    return question


class Measurement(Callback):
    """Measures one setting after the other while a fit runs, and ends the fit.

    Args:
        data: The data module; its batch size and reuse change between epochs.
        module: The module.
        queue: What to measure, in order.
        amount: How much of each.
        reuse: What ``batched, reuse`` reuses.
        report: Called with each chunk.
    """

    tokens: TokensRun | None = None

    def __init__(
        self,
        data: IntrospectionDataModule,
        module: IntrospectionModule,
        queue: Sequence[Setting],
        amount: Amount,
        reuse: Reuse,
        report: Callable[[Setting, Chunk], None],
    ) -> None:
        self.data, self.module, self.amount, self.reuse, self.report = data, module, amount, reuse, report
        self.queue, self.chunks = list(queue), list[tuple[Setting, Chunk]]()
        self.steps, self.since, self.trials = 0, 0.0, list[Trial]()
        self.began, self.first_step = 0.0, FirstStep(None, None)
        self._configure()

    def _configure(self) -> None:
        """Set the data module to the next batched setting; loaders are made before an epoch begins."""
        batched = next((setting for setting in self.queue if setting.path != ONE_AT_A_TIME), Setting(PLAIN, 2))
        self.data.run.batch_size = batched.batch
        self.data.run.trial_counts["train"] = batched.batch * (self.amount.warmup + self.amount.steps)
        alone = {PLAIN: (False, False), LAYERS: (True, False), CLEAN: (False, True)}
        layers, clean = alone.get(batched.path, (self.reuse.layers, self.reuse.clean))
        run = self.data.run
        run.options = replace(run.options, reuse=replace(self.reuse, layers=layers, clean=clean))
        if run.splits:
            self._choose_split(batched.path == TASKS)

    def _choose_split(self, tasks: bool) -> None:
        """Ask each cache one question, or several."""
        split = self.data.splits["train"]
        if tasks and split.questionnaire is None:
            self.data.splits["train"] = with_tasks(self.data, split, self.amount.tasks)
        elif not tasks:
            self.data.splits["train"] = split.single_question()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose the contexts; the data module is set up by now."""
        self._choose_split(tasks=False)
        narrow(self.data, self.amount)
        self._configure()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        self.tokens, self.began = TokensRun(self.module), time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure one at a time where it is next; then prepare for the batches of this epoch."""
        self._singles(trainer)
        if self.queue:
            gc.collect()
            reset_peak(self.module.device)
            self.steps, self.trials = 0, []
            if self.data.options.reuse.clean and not self.data.options.prefill_adapter:
                self._read_all()

    def _read_all(self) -> None:
        """Read every context once, as the first epochs of a training do: the epochs after them are measured."""
        split, size = self.data.splits["train"], self.queue[0].batch
        assert self.data.bank is not None
        for start in range(0, len(split.contexts), size):
            numbers = range(start, min(start + size, len(split.contexts)))
            batch = split.collate([Trial("train", number, number, 0, False) for number in numbers], self.data.bank)
            self.data.prefill(batch.to(self.module.device))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock after the warm-up, and stop it after the last step; a step begins with its prefill."""
        if not self.queue:
            return
        self.steps += 1
        if self.first_step.seconds is None:
            synchronise(self.module.device)
            self.first_step = FirstStep(time.perf_counter() - self.began, seconds_since_start())
        if self.steps > self.amount.warmup:
            self.trials += batch.trials
        if self.steps == self.amount.warmup:
            self._start()
        if self.steps == self.amount.warmup + self.amount.steps:
            self._stop(self.trials)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the next setting, or end the fit."""
        assert self.steps in (0, self.amount.warmup + self.amount.steps), "an epoch is as long as what is measured"
        if not any(setting.path != ONE_AT_A_TIME for setting in self.queue):
            self._singles(trainer)
        self._configure()
        trainer.should_stop = not self.queue

    def _singles(self, trainer: Trainer) -> None:
        """Measure training on one trial at a time as often as it is next."""
        tasks = self.data.splits["train"].questionnaire is not None
        self._choose_split(tasks=False)
        while self.queue and self.queue[0].path == ONE_AT_A_TIME:
            gc.collect()
            reset_peak(self.module.device)
            loop = SingleTrialLoop(trainer, self.module, self.data)
            loop.run(range(2))
            self._start()
            self._stop(loop.run(range(2, 2 + self.amount.singles)))
        self._choose_split(tasks)

    def _start(self) -> None:
        assert self.tokens is not None
        synchronise(self.module.device)
        self.tokens.reset()
        self.since = time.perf_counter()

    def _stop(self, trials: Sequence[Trial]) -> None:
        assert self.tokens is not None
        synchronise(self.module.device)
        seconds = time.perf_counter() - self.since
        split, weights = self.data.splits["train"], matrix_weights(self.module.layers)
        encoded = [split.encoded_trial(trial) for trial in trials]
        nominal = sum(nominal_operations(weights, len(e.context_ids), len(e.question_ids)) for e in encoded)
        chunk = Chunk(len(trials), seconds, nominal, self.tokens.operations(), peak(self.module.device))
        self.chunks.append((self.queue.pop(0), chunk))
        self.report(*self.chunks[-1])
