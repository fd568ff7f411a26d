"""The callback that gathers evidence during a test: scores of reference observers on the same trials, and side effects."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from introspection_lit.evaluation import analysis
from introspection_lit.evaluation.as_exported import EXPORTED
from introspection_lit.evaluation.cache_reader import READER, CacheReader
from introspection_lit.evaluation.learning_curves import learning_curves
from introspection_lit.evaluation.logit_lens import log_odds_by_layer, summarise_lens
from introspection_lit.evaluation.observers import Observers
from introspection_lit.evaluation.scored_trials import analyse_rows, write_trials
from introspection_lit.evaluation.side_effects import side_effects
from introspection_lit.evaluation.trial_table import ADAPTER, TrialTable
from introspection_lit.steering.prefill import pad
from introspection_lit.tasks.questions import info_text, load_facts
from introspection_lit.tasks.scoring import Answers, read
from introspection_lit.training import exported_adapter
from introspection_lit.training.distributed import gather_objects, is_sharded, through_wrapper
from introspection_lit.training.outside_observers import cache_reader_scores, features_of, fit_cache_reader, fit_observers
from introspection_lit.training.run_context import module_of, run_of
from introspection_lit.trials import leaks
from introspection_lit.trials.batch import TrialBatch
from introspection_lit.trials.split import Split
from introspection_lit.trials.test_sets import AS_EXPORTED, CHOICES, TEST_SETS
from introspection_lit.utils.errors import ConfigurationError

if TYPE_CHECKING:
    from introspection_lit.training.module import IntrospectionModule
    from introspection_lit.training.run_context import RunContext


UNTRAINED, WITH_INFO = "untrained", "with info"
# The test set in which the log-odds are read after every layer.
LENS_SET = "heldout"


class Evidence(Callback):
    """Gathers the evidence behind a test's numbers for ``results.json`` and the report.

    Args:
        enabled: Gather evidence.
        sets: Test sets whose trials the reference observers score, too.
        untrained: Score them with the model without its adapter.
        info_trials: Trials of each of those sets that it scores with the info prompt, too; the prompt is long.
        probe_trials: Training trials on which the outside observers (probe, norms, text) are fitted; 0: none.
        reader_trials: Training trials on which the cache reader, a network that reads whole caches, is trained; 0: none.
        lens_trials: Trials of ``heldout`` in which the log-odds are read after every layer.
        texts: Held-out texts whose perplexity is measured with and without the adapter; 0: no side effects at all.
        facts: Questions of fact that are asked with and without the adapter; an even number.
        report: Write ``report.html``.
    """

    def __init__(
        self,
        enabled: bool = True,
        sets: list[str] = list(analysis.REFERENCE_SETS),
        untrained: bool = True,
        info_trials: int = 0,
        probe_trials: int = 256,
        reader_trials: int = 0,
        lens_trials: int = 32,
        texts: int = 32,
        facts: int = 80,
        report: bool = True,
    ) -> None:
        self.enabled, self.sets, self.untrained = enabled, list(sets), untrained
        self.info_trials, self.probe_trials, self.lens_trials = info_trials, probe_trials, lens_trials
        self.texts, self.facts, self.report = texts, facts, report
        self.reader_trials = reader_trials
        self.observers: Observers | None = None
        self.reader: CacheReader | None = None
        self.scores: dict[tuple[str, int], dict[str, float]] = {}
        self.given: dict[tuple[str, int], dict[str, int]] = {}
        self.lens: dict[int, tuple[np.ndarray, bool]] = {}
        self.informed: dict[str, set[int]] = {}
        self.lens_numbers: set[int] = set()
        self.found: dict[str, Any] | None = None
        self.exported = ExitStack()  # holds the exported adapter beside the tested one
        self.not_compared: str | None = None

    def problems(self) -> list[str]:
        """Errors in the options."""
        counts = (self.info_trials, self.probe_trials, self.reader_trials, self.lens_trials, self.texts, self.facts)
        most = len(load_facts())
        found = [
            f"evidence.sets: {name!r} is no test set. Expected some of: {', '.join(TEST_SETS)}."
            for name in self.sets
            if name not in TEST_SETS
        ]
        if min(counts) < 0 or self.facts % 2 or self.facts > most or 0 < self.probe_trials < 32:
            found.append(
                f"evidence: got info_trials, probe_trials, reader_trials, lens_trials, texts and facts {counts}. Expected "
                f"none below 0, probe_trials 0 or at least 32, and an even number of facts up to {most}."
            )
        return found if self.enabled else []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset, and fit the outside observers on training trials."""
        self.scores, self.given, self.lens, self.observers, self.reader, self.found = {}, {}, {}, None, None, None
        self.exported.close()
        if not self.enabled:
            return
        module, run = module_of(pl_module), run_of(trainer)
        self.informed = {
            name: first_trials(run.splits[name], self.info_trials) for name in run.options.test_sets if name in self.sets
        }
        self.lens_numbers = (
            first_trials(run.splits[LENS_SET], self.lens_trials) if LENS_SET in run.options.test_sets else set()
        )
        device = trainer.strategy.root_device
        try:
            if self.probe_trials and self.informed:
                rank_zero_info(f"outside observers: prefilling {self.probe_trials} training trials")
                self.observers = fit_observers(run, self.probe_trials, device)
            if self.reader_trials and self.informed:
                rank_zero_info(f"cache reader: prefilling {self.reader_trials} training trials")
                with trainer.precision_plugin.forward_context():
                    self.reader = fit_cache_reader(run, self.reader_trials, device)
        except ConfigurationError as error:  # too few contexts, a model without keys: no reason to lose the test
            rank_zero_warn(f"no outside observers: {error}")
        if AS_EXPORTED in run.options.test_sets:
            folder = exported_adapter.exported_folder(run)
            self.not_compared = exported_adapter.why_not_compared(run, folder)
            if self.not_compared is None:
                self.exported.enter_context(exported_adapter.loaded(module.model, folder))
            else:
                rank_zero_warn(f"{AS_EXPORTED}: scored by the protocol alone, since {self.not_compared}.")

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: TrialBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Let the reference observers score the batch."""
        if not self.enabled:
            return
        module, run = module_of(pl_module), run_of(trainer)
        self._note(batch, ADAPTER, outputs["log_odds"], outputs["given"])
        with trainer.precision_plugin.forward_context():  # Lightning leaves it before this hook
            if batch.split == LENS_SET:
                self._read_layers(trainer, module, batch)
            if batch.split == AS_EXPORTED and self.not_compared is None:
                self._note(batch, EXPORTED, exported_adapter.log_odds_in_one_pass(module, batch))
            if batch.split not in self.sets:
                return
            if self.observers is not None:
                for name, scores in self.observers.scores(features_of(run, batch)).items():
                    self._note(batch, name, scores)
            if self.reader is not None:
                self._note(batch, READER, cache_reader_scores(self.reader, batch))
            with torch.no_grad(), module.model.disable_adapter():
                if run.options.prefill_adapter:  # these caches were written with the adapter on: compute them again
                    batch = run.with_cache(replace(batch, cache=None))
                if self.untrained:
                    untrained = answers_of(trainer, module, batch)
                    self._note(batch, UNTRAINED, untrained.log_odds, untrained.given)
                some, wanted = rows_to_run(trainer, batch, self.informed[batch.split])
                if some is not None:
                    informed = answers_of(trainer, module, with_info(run, some)).log_odds
                    self._note(some if wanted else replace(some, trials=[]), WITH_INFO, informed)

    def _note(self, batch: TrialBatch, observer: str, scores: Any, given: torch.Tensor | None = None) -> None:
        for row, trial in enumerate(batch.trials):
            if batch.total is None or trial.number < batch.total:
                self.scores.setdefault((batch.split, trial.number), {})[observer] = float(scores[row])
                if given is not None and batch.split in CHOICES:
                    self.given.setdefault((batch.split, trial.number), {})[observer] = int(given[row])

    def _read_layers(self, trainer: Trainer, module: IntrospectionModule, batch: TrialBatch) -> None:
        some, wanted = rows_to_run(trainer, batch, self.lens_numbers)
        if some is None:
            return
        try:
            layers = through_wrapper(trainer, lambda: log_odds_by_layer(module, some)).cpu().numpy()
        except ValueError as error:
            rank_zero_warn(f"no logit lens: {error}")
            self.lens_numbers = set()
            return
        for row, trial in enumerate(some.trials if wanted else ()):
            self.lens[trial.number] = (layers[:, row], trial.steered)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the exported adapter from the model."""
        self.exported.close()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the evidence together in ``found``, on the first rank."""
        if not self.enabled:
            return
        self.exported.close()
        module, run = module_of(pl_module), run_of(trainer)
        effects = None
        if self.texts and self.facts:
            effects = through_wrapper(trainer, lambda: measured_side_effects(module, run, self.texts, self.facts))
        for scores, given, lens in gather_objects((self.scores, self.given, self.lens)):
            self.scores |= scores
            self.given |= given
            self.lens |= lens
        folder, run_folder = training_folder(run, module), run.folder
        if not trainer.is_global_zero:
            return
        rank_zero_info("evidence: intervals by bootstrap")
        rows, trained = trial_rows(run, self.scores, self.given), trained_kinds(run)
        write_trials(run_folder / "trials.jsonl", rows)
        trials, classes = TrialTable.from_rows(rows, trained), run.options.long_options.classes()
        found = analyse_rows(
            rows,
            trials,
            trained,
            module.threshold,
            run.options.strengths[0],
            module.summaries,
            classes,
            run.options.longest_trained,
            run.options.both_signs,
            context_tokens(run),
            run.splits["train"].lengths(),
        )
        self.found = found | {
            "lens": summarise_lens(self.lens),
            "side_effects": effects,
            "leaks": leaks.audit(run.splits, run.vector_bank) | {"distinct_clean": trials.distinct_clean()},
            "training": learning_curves(folder),
            "probe_trials": self.observers.trials if self.observers else None,
            "reader_trials": self.reader_trials if self.reader else None,
        }


def first_trials(split: Split, n: int) -> set[int]:
    """Numbers of the first clean and the first steered trials of a test set, n in all."""
    numbers: dict[bool, list[int]] = {False: [], True: []}
    for number in range(split.total or 0):
        numbers[split.plan.trial(number).steered].append(number)
    return {*numbers[False][: n // 2], *numbers[True][: n - n // 2]}


def rows_of(batch: TrialBatch, numbers: set[int]) -> TrialBatch | None:
    """The rows of a batch whose trials have one of these numbers, with the same caches; None if there are none."""
    rows = [row for row, trial in enumerate(batch.trials) if trial.number in numbers]
    return batch.select(rows) if rows else None


def rows_to_run(trainer: Trainer, batch: TrialBatch, numbers: set[int]) -> tuple[TrialBatch | None, bool]:
    """:func:`rows_of`, and whether their scores count: sharded, all ranks run rows if one must."""
    own = rows_of(batch, numbers)
    if not is_sharded(trainer):
        return own, own is not None
    if not trainer.strategy.reduce_boolean_decision(own is not None, all=False):
        return None, False
    return own or rows_of(batch, {batch.trials[0].number}), own is not None


def answers_of(trainer: Trainer, module: IntrospectionModule, batch: TrialBatch) -> Answers:
    """The answers to a batch outside a step, with the model as it is now."""
    return read(through_wrapper(trainer, lambda: module.answer_logits(batch)), batch.answer_ids, batch.targets)


def with_info(run: RunContext, batch: TrialBatch) -> TrialBatch:
    """The same batch and caches, with the info prompt before the question."""
    split = run.splits[batch.split]
    phrasing = replace(split.phrasing, info=info_text("explained", split.tokenizer))
    informed = replace(split, phrasing=phrasing, _encoded={}, _lengths=[])
    fill = split.tokenizer.pad_token_id or 0
    ids, mask = pad([informed.encoded_trial(trial).question_ids for trial in batch.trials], fill, "right")
    device = batch.question_ids.device
    return replace(batch, question_prefix_ids=None, question_ids=ids.to(device), question_mask=mask.to(device))


def measured_side_effects(module: IntrospectionModule, run: RunContext, texts: int, facts: int) -> Any:
    """Perplexity and facts with the adapter off and on, on held-out texts."""
    words = run.wording
    sources = [
        run.splits[name].contexts for name in ("heldout", *run.options.test_sets) if name in run.splits and name != "odd"
    ]
    contexts = sources[0] if sources else run.splits["validation"].contexts
    arguments = (module, words.tokenizer, words.phrasing, words.answer_ids, contexts, texts, run.options.eval_batch_size)
    with run.trainer.precision_plugin.forward_context():
        return side_effects(*arguments, n_facts=facts)


def trial_rows(
    run: RunContext, scores: dict[tuple[str, int], dict[str, float]], given: dict[tuple[str, int], dict[str, int]]
) -> list[dict[str, Any]]:
    """Rows of ``trials.jsonl``: each trial of the test sets, in order, with the score of every observer.

    Where the question is which part or which concept, also the index of the answer that each observer has ``given``.
    """
    rows = []
    for (name, number), by_observer in sorted(scores.items()):
        row = run.describe(run.splits[name].plan.trial(number)) | {"scores": by_observer}
        rows.append(row | ({"given": given[name, number]} if (name, number) in given else {}))
    return rows


def trained_kinds(run: RunContext) -> set[str]:
    """Kinds of context of training and validation."""
    return {context.kind for name in ("train", "validation") for context in run.splits[name].contexts}


def context_tokens(run: RunContext) -> dict[str, int]:
    """Length of each context of the test sets, by its fingerprint."""
    tested = [run.splits[name] for name in run.options.test_sets]
    return {context.key: n for split in tested for context, n in zip(split.contexts, split.lengths(), strict=True)}


def training_folder(run: RunContext, module: IntrospectionModule) -> Path:
    """The folder of the run that trained the tested weights."""
    if run.trainer.ckpt_path:
        return Path(run.trainer.ckpt_path).parent.parent
    return run.folder if module.adapter is None else Path(module.adapter).expanduser().parent
