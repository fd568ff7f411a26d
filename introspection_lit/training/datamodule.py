"""The data module: contexts, questions and vectors in, batches with steered KV caches out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from lightning.pytorch import LightningDataModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.utils.data import DataLoader

from introspection_lit.contexts.context import BUILTIN, LARGE
from introspection_lit.contexts.conversations import Phrasing
from introspection_lit.contexts.generation.sources import NEW
from introspection_lit.models.adapters import read_adapter
from introspection_lit.steering.extraction import CONCEPTS, build_bank, require_finite_norms
from introspection_lit.steering.vector_bank import VectorBank
from introspection_lit.tasks.wording import Wording
from introspection_lit.training.batch_size import settle
from introspection_lit.training.cache_reuse import Prefills, Reuse
from introspection_lit.training.distributed import one_loads_for_all
from introspection_lit.training.experiment_setup import DEFAULT_VECTORS, Prepared, prepare
from introspection_lit.training.options import DEFAULT, DOSES, TEST_KINDS, VALIDATION_KINDS
from introspection_lit.trials import leaks
from introspection_lit.trials.batch import TrialBatch
from introspection_lit.trials.grid import Grid
from introspection_lit.trials.loaders import BatchesOfSplit, EpochBatches, TrainingLoader
from introspection_lit.trials.manifest_plan import ManifestPlan
from introspection_lit.trials.replay import SingleTrials
from introspection_lit.trials.split import Split
from introspection_lit.trials.test_sets import DEFAULT_TEST_SETS, OTHER_QUESTIONS
from introspection_lit.trials.trial import Trial
from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.paths import parse_path

if TYPE_CHECKING:
    from introspection_lit.training.module import IntrospectionModule


# By source of the contexts: what validation and test keep for themselves where nobody says so.
KINDS = {BUILTIN: (VALIDATION_KINDS, TEST_KINDS), LARGE: (VALIDATION_KINDS, (*TEST_KINDS, *NEW))}
# Steps of training that are sorted by length together; a validation or test set is sorted as a whole.
TRAINING_POOL = 8


class IntrospectionDataModule(LightningDataModule):
    """Builds trials and their steered KV caches on the fly.

    Args:
        contexts: ``builtin``, ``large`` (the same and 320 of each unseen kind, made on first use: docs/contexts.md), a
            ``.jsonl`` or ``.json`` file, or ``hub:NAME`` (see :func:`~introspection_lit.contexts.loading.load_contexts`).
        test_contexts: The same; all of it is what every test set uses, instead of its share of ``contexts``.
        validation_kinds: Kinds of context that only validation sees. Default: four kinds of the built-in contexts.
        test_kinds: Kinds that only the test set ``newkinds`` sees. Default: eight kinds of the built-in contexts;
            of ``large`` six more.
        max_context_tokens: Longer contexts are left out.
        system_prompt: The system prompt; empty by default, which is not the same as the template's default.
        questions: What is asked in training and in most tests; ``{yes}`` and ``{no}`` stand for the answers. By default one
            question of ours, which explains the answers if they are not yes and no.
        heldout_questions: What only the test set ``newquestions`` asks. By default four of ours.
        info: What is said before every question: ``none``, ``explained`` (how a model could notice), ``neutral`` (a text
            about something else, as long), or a ``.txt`` file.
        answers: The words for "steered" and "not steered", each one token; yes and no by default, or what a conversation
            file says. Quote them in YAML: a bare ``no`` is "false".
        answer_prefix: How the answer starts, without a space at the end; by default "The answer is", or as the
            conversations of a file start theirs.
        bank: A vector bank made for this model. By default one is made, and saved in the run's folder.
        manifest: Train on the trials of this file instead of drawing them, in its order but for neighbours that are sorted
            by length; an epoch is a pass over it. Needs ``bank``.
        grid: What ``predict`` runs through instead of the test sets: a benchmark (see scripts/baseline_benchmark.py).
        replay: Trials that ``predict`` scores instead of the test sets, each alone, saying where their numbers stop being
            finite: ``SPLIT:NUMBER``, such as ``train:12``, or a list of these.
        train_vectors: Random directions to train on; by default 100, or all that a given bank has.
        validation_vectors: Random directions to validate on; by default 50, or all of a given bank.
        heldout_vectors: Random directions to test on; by default 100, or all of a given bank.
        concepts: Words or phrases whose directions are extracted from the model.
        bands: Decoder layers that are steered: ``early``, ``middle``, ``late`` (thirds), ``all``, or [first, last], both
            inclusive. One that is named twice is drawn twice as often.
        strengths: Lowest and highest strength; drawn log-uniformly between them.
        test_bands: The same for the test sets, if other than in training.
        test_strengths: The same for the test sets, if other than in training.
        test_doses: The strengths that the test sets ``doses`` and ``doses_concept`` run through, each as often in each
            band.
        test_clean: Clean trials in the test sets: ``paired``, one for each steered trial with the same context, or
            ``once``, one for each context and question, however many are steered (those that run through doses are so
            anyway).
        control: Train so that nothing can be learned: ``random_labels`` (a coin says what is right) or ``no_steering``
            (what is called steered is clean). What the tests then show is what the method itself brings about.
        strength_unit: ``relative`` (to the layer's median residual norm, over the square root of the number of layers in
            the band) or ``absolute`` (the length added at each layer).
        seed: Decides splits, vectors and trials.
        batch_size: Trials in a training batch of one process; even. ``auto``: as many as fit, for steps of
            ``effective_batch`` trials.
        effective_batch: Trials in a step of the optimiser, over all processes and accumulated batches; how many batches
            that takes is then worked out. By default as many as come together; with ``auto``, 16 for each process.
        eval_batch_size: Trials in a validation or test batch of one process; even.
        trials_per_epoch: Trials between two validations, over all processes; rounded up to whole steps.
        validation_trials: Trials in validation.
        test_trials: Trials in each test set; the sets that are not named are left out.
        prefill_adapter: Leave the adapter on while caches are written.
        reuse: What of the prefill is computed once instead of again and again.
        num_workers: Worker processes of each data loader.
    """

    def __init__(
        self,
        contexts: str = BUILTIN,
        test_contexts: str | None = None,
        validation_kinds: list[str] | None = None,
        test_kinds: list[str] | None = None,
        max_context_tokens: int = 128,
        system_prompt: str = "",
        questions: list[str] | None = None,
        heldout_questions: list[str] | None = None,
        info: str = "none",
        answers: tuple[str, str] | None = None,
        answer_prefix: str | None = None,
        bank: str | None = None,
        manifest: str | None = None,
        grid: Grid | None = None,
        replay: str | list[str] | None = None,
        train_vectors: int | None = None,
        validation_vectors: int | None = None,
        heldout_vectors: int | None = None,
        concepts: list[str] = list(CONCEPTS),
        bands: list[str | list[int]] = ["early", "middle", "late"],
        strengths: tuple[float, float] = (0.3, 2.0),
        test_bands: list[str | list[int]] | None = None,
        test_strengths: tuple[float, float] | None = None,
        test_doses: list[float] = list(DOSES),
        test_clean: Literal["paired", "once"] = "paired",
        control: Literal["none", "random_labels", "no_steering"] = "none",
        strength_unit: Literal["relative", "absolute"] = "relative",
        seed: int = 0,
        batch_size: int | Literal["auto"] = DEFAULT,
        effective_batch: int | None = None,
        eval_batch_size: int = 32,
        trials_per_epoch: int = 480,
        validation_trials: int = 128,
        test_trials: dict[str, int] = dict.fromkeys(DEFAULT_TEST_SETS, 256),
        prefill_adapter: bool = False,
        reuse: Reuse = Reuse(),
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.given_kinds = {"validation_kinds": validation_kinds, "test_kinds": test_kinds}
        usual_validation, usual_test = KINDS.get(contexts, ((), ()))
        self.contexts_source, self.test_contexts = contexts, test_contexts
        self.validation_kinds = list(usual_validation if validation_kinds is None else validation_kinds)
        self.test_kinds = list(usual_test if test_kinds is None else test_kinds)
        self.max_context_tokens = max_context_tokens
        self.system_prompt, self.answer_prefix, self.answers, self.info = system_prompt, answer_prefix, answers, info
        self.questions, self.heldout_questions = questions, heldout_questions
        self.bank_path = parse_path("data.bank", bank) if bank is not None else None
        self.manifest_path = parse_path("data.manifest", manifest) if manifest is not None else None
        self.grid = grid
        self.replay = [replay] if isinstance(replay, str) else replay
        self.vector_counts: dict[str, int | None] = {
            "train": train_vectors,
            "validation": validation_vectors,
            "heldout": heldout_vectors,
        }
        self.concepts = list(concepts)
        self.bands = list(bands)
        self.test_bands = list(bands if test_bands is None else test_bands)
        self.strengths = strengths
        self.test_strengths = test_strengths or strengths
        self.test_doses, self.test_clean, self.control = list(test_doses), test_clean, control
        self.strength_unit = strength_unit
        self.seed = seed
        self.given_batch_size = batch_size
        self.batch_size = DEFAULT if isinstance(batch_size, str) else batch_size  # auto: until a fit is set up
        self.effective_batch, self.eval_batch_size = effective_batch, eval_batch_size
        self.share: int | None = None  # trials of a step in each process, once a size was found for them
        self.trials = {"train": trials_per_epoch, "validation": validation_trials, **test_trials}
        self.test_sets = list(test_trials)
        self.prefill_adapter, self.reuse = prefill_adapter, reuse
        self.prefill = Prefills(self)
        self.num_workers = num_workers
        self.checkpoint: str | None = None  # what the command line will load: checked with the rest, before the model
        self.splits: dict[str, Split] = {}
        self.bank: VectorBank | None = None
        self.folder = Path()  # of the run, once it is set up
        self.prepared: Prepared | None = None

    @property
    def running(self) -> Trainer:
        """The trainer that this data module is attached to."""
        assert self.trainer is not None, "the data module works inside a Trainer"
        return self.trainer

    @property
    def module(self) -> IntrospectionModule:
        """The module that this data module feeds."""
        return cast("IntrospectionModule", self.running.lightning_module)

    def setup(self, stage: str) -> None:
        """Check everything, build the splits, then load the model and make the vector bank.

        Raises:
            ConfigurationError: Anything is wrong; all problems at once, before the model is loaded.
            RunError: The model's own activations are not finite.
        """
        if self.bank is None:
            self._set_up()
        if self.running.state.fn == "fit":
            settle(self)

    def _set_up(self) -> None:
        self.prepared = prepare(self)
        self.splits = self.prepared.splits
        adapter, bank = self.module.adapter, self.prepared.bank
        if adapter is not None and bank is not None:  # else once the bank has been made
            self._check_training(read_adapter(adapter).description, bank)
        self.module.configure_model()
        if bank is None:
            components = "concept_pca" in [*self.test_sets, *(self.grid.vectors if self.grid else ())]
            bank = self._make_shared_bank(components) if one_loads_for_all(self.running) else self.make_bank(components)
            require_finite_norms(bank)
            if adapter is not None:
                self._check_training(read_adapter(adapter).description, bank)
        problems = leaks.between_splits(bank)
        if problems:
            raise ConfigurationError(problems)
        self.bank = bank
        log_dir = self.running.log_dir  # asked for on every process: the answer is broadcast
        self.folder = Path(log_dir or self.running.default_root_dir)
        if self.running.logger is not None and log_dir is not None and self.running.is_global_zero:
            bank.save(Path(log_dir) / "vectors.safetensors")

    def training_options(self) -> dict[str, Any]:
        """The options that decide what is trained on and how it is asked, as on the command line.

        Of files there is only the name: whoever reads the description must give them, or lay them beside it. What is at
        its default because nothing was said is None.
        """
        source, info = Path(self.contexts_source).expanduser(), Path(self.info)
        options = {
            "contexts": source.name if source.is_file() else self.contexts_source,
            **self.given_kinds,
            "max_context_tokens": self.max_context_tokens,
            "system_prompt": self.system_prompt,
            "questions": self.questions,
            "heldout_questions": self.heldout_questions,
            "info": info.name if info.suffix == ".txt" else self.info,
            "answers": self.answers,
            "answer_prefix": self.answer_prefix,
            "train_vectors": self.vector_counts["train"],
            "bands": self.bands,
            "strengths": self.strengths,
            "control": self.control,
            "strength_unit": self.strength_unit,
            "prefill_adapter": self.prefill_adapter,
            "seed": self.seed,
        }
        named = {f"data.{name}": value for name, value in options.items()}
        return {"seed_everything": self.seed, "model.base.revision": self.module.base.revision} | named

    @property
    def wording(self) -> Wording:
        """In which words the experiment asks; known after the set-up."""
        assert self.prepared is not None, "the data module is not set up"
        return self.prepared.wording

    @property
    def phrasing(self) -> Phrasing:
        """System prompt, answers and answer prefix; known after the set-up."""
        return self.wording.phrasing

    def make_bank(self, components: bool) -> VectorBank:
        """Measure a bank on the model, which must be loaded.

        Args:
            components: Extract concepts by principal components, too.
        """
        assert self.prepared is not None, "the data module is not set up"
        module = self.module
        return build_bank(
            module,
            module.model,
            module.layers,
            self.prepared.wording.tokenizer,
            self.prepared.norm_contexts,
            {split: count or DEFAULT_VECTORS[split] for split, count in self.vector_counts.items()},
            self.concepts,
            self.seed,
            {"base_model": module.base.name, "revision": module.base.revision or ""},
            components,
        )

    def _make_shared_bank(self, components: bool) -> VectorBank:
        """Measure a bank in the one process that has weights, on its device though the model has no room there."""
        from introspection_lit.training.fsdp_loading import one_layer_at_a_time, shared_bank

        def make() -> VectorBank:
            with one_layer_at_a_time(self.module.model, self.module.layers, self.running.strategy.root_device):
                return self.make_bank(components)

        return shared_bank(make, self.running.global_rank)

    def _loader(self, name: str, batch_size: int) -> DataLoader[TrialBatch]:
        assert self.bank is not None
        training, total, trainer = name == "train", self.splits[name].total, self.running
        parts = trainer.world_size * trainer.accumulate_grad_batches if training else 1
        steps = -(-(self.trials["train"] if total is None else total) // (batch_size * parts))
        batches = BatchesOfSplit(self.splits[name], self.bank, batch_size, TRAINING_POOL if training else steps, parts)
        each_epoch = steps * parts
        sampler = EpochBatches(
            each_epoch, trainer.global_rank, trainer.world_size, lambda: trainer.current_epoch if training else 0
        )
        if not training:
            return DataLoader(batches, batch_size=None, sampler=sampler, num_workers=self.num_workers)
        progress = trainer.fit_loop.epoch_loop.batch_progress
        return TrainingLoader(batches, sampler, lambda: progress.current.ready, self.num_workers)

    def train_dataloader(self) -> DataLoader[TrialBatch]:
        """Batches of the split ``train``, new ones in every epoch."""
        return self._loader("train", self.batch_size)

    def val_dataloader(self) -> DataLoader[TrialBatch]:
        """Batches of the split ``validation``, the same every time."""
        return self._loader("validation", self.eval_batch_size)

    def test_dataloader(self) -> list[DataLoader[TrialBatch]]:
        """A loader for each test set."""
        return [self._loader(name, self.eval_batch_size) for name in self.test_sets]

    def predict_dataloader(self) -> list[DataLoader[TrialBatch]]:
        """The test sets again, the grid, or what is replayed: ``predict`` writes down each of their trials."""
        if self.replay is not None:
            assert self.bank is not None and self.prepared is not None  # noqa: PT018
            trainer, batches = self.running, SingleTrials(self.prepared.replayed, self.splits, self.bank)
            sampler = EpochBatches(len(batches), trainer.global_rank, trainer.world_size, lambda: 0)
            return [DataLoader(batches, batch_size=None, sampler=sampler)]
        names = self.test_sets if self.grid is None else list(self.splits)
        return [self._loader(name, self.eval_batch_size) for name in names]

    def on_after_batch_transfer(self, batch: TrialBatch, dataloader_idx: int) -> TrialBatch:
        """Run the steered prefill: the batch leaves with the KV cache of its contexts.

        It runs through the strategy's wrapper (as DDP and FSDP need) and under the precision of the step.
        """
        batch.cache = self.prefill(batch)
        return batch

    def teardown(self, stage: str) -> None:
        """Let go of what was kept, once training has ended."""
        if stage == "fit":
            self.prefill.release()

    def describe(self, trial: Trial) -> dict[str, Any]:
        """Everything that defines a trial, in words, for a table of predictions."""
        assert self.bank is not None
        return self.splits[trial.split].describe(trial, self.bank)

    def state_dict(self) -> dict[str, Any]:
        """What training has seen, for the checkpoint; see :func:`~introspection_lit.trials.leaks.training_record`."""
        assert self.bank is not None
        plan = self.splits["train"].plan
        manifest = plan.fingerprint if isinstance(plan, ManifestPlan) else None
        return leaks.training_record(self.splits, self.bank, self.prefill_adapter) | {"manifest": manifest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that nothing that is about to be tested was seen in the training of the checkpoint.

        Raises:
            ConfigurationError: Something was; or, on resuming, training would go on with other data.
        """
        assert self.bank is not None
        if self.running.training and state_dict != self.state_dict():
            raise ConfigurationError([leaks.OTHER_DATA])
        if not self.running.training:
            self._check_training(state_dict, self.bank)

    def _check_training(self, record: dict[str, Any] | None, bank: VectorBank) -> None:
        """Compare what is about to be tested with what an adapter was trained on."""
        if record is None:
            rank_zero_warn(
                "model.adapter: comes without introspection.json, so nobody knows what it was trained on: whether vectors "
                "or contexts of the test were among it cannot be checked."
            )
            return
        record = record.get("trained_on", record)
        tests = {name: split for name, split in self.splits.items() if name not in ("train", "validation")}
        usual = [split for split in tests.values() if split.source.questions not in OTHER_QUESTIONS]
        for difference in leaks.trained_otherwise(record, usual[0], self.prefill_adapter) if usual else ():
            rank_zero_warn(difference)
        problems = leaks.trained_on(record, tests, bank)
        if problems:
            raise ConfigurationError(problems)
