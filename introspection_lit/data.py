"""The data module: contexts, questions and vectors in, batches with steered KV caches out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from lightning.pytorch import LightningDataModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.utils.data import DataLoader

from introspection_lit import leaks
from introspection_lit.batches import BatchesOfSplit, EpochBatches, Split, TrialBatch
from introspection_lit.contexts import BUILTIN
from introspection_lit.conversations import (
    HELDOUT_QUESTIONS,
    QUESTION,
    Phrasing,
)
from introspection_lit.errors import ConfigurationError
from introspection_lit.measure import CONCEPTS, build_bank
from introspection_lit.prefill import Forward, steered_cache
from introspection_lit.preparation import prepare
from introspection_lit.trials import DEFAULT_TEST_SETS, SOURCES, Trial
from introspection_lit.vectors import VectorBank

if TYPE_CHECKING:
    from introspection_lit.module import IntrospectionModule

# Of the contexts that come with the package: kinds that the threshold is set on, and kinds that only the test sees.
VALIDATION_KINDS = ("csv", "dutch", "java", "reviews")
TEST_KINDS = ("capitals", "italian", "japanese", "latex", "logs", "rust", "turkish", "typos")
# Clean contexts on which the residual norms are measured.
NORM_CONTEXTS = 32
# Training batches that are sorted by length together; a validation or test set is sorted as a whole.
TRAINING_POOL = 8


class IntrospectionDataModule(LightningDataModule):
    """Builds trials and their steered KV caches on the fly.

    Args:
        contexts: ``builtin``, a ``.jsonl`` file, or ``hub:NAME`` (see :func:`~introspection_lit.contexts.load_contexts`).
        validation_kinds: Kinds of context that only validation sees. Default: four kinds of the built-in contexts.
        test_kinds: Kinds that only the test set ``newkinds`` sees. Default: eight kinds of the built-in contexts.
        max_context_tokens: Longer contexts are left out.
        system_prompt: The system prompt; empty by default, which is not the same as the template's default.
        questions: What is asked in training and in most tests.
        heldout_questions: What only the test set ``newquestions`` asks.
        answers: The words for "steered" and "not steered", each one token. Quote them in YAML: a bare ``no`` is "false".
        answer_prefix: How the answer starts, without a space at the end.
        bank: A vector bank made for this model. By default one is made, and saved in the run's folder.
        train_vectors: Random directions to train on.
        validation_vectors: Random directions to validate on.
        heldout_vectors: Random directions to test on.
        concepts: Words or phrases whose directions are extracted from the model.
        bands: Decoder layers that are steered: ``early``, ``middle``, ``late`` (thirds), ``all``, or [first, last], both
            inclusive. One that is named twice is drawn twice as often.
        strengths: Lowest and highest strength; drawn log-uniformly between them.
        test_bands: The same for the test sets, if other than in training.
        test_strengths: The same for the test sets, if other than in training.
        strength_unit: ``relative`` (to the layer's median residual norm, over the square root of the number of layers in
            the band) or ``absolute`` (the length added at each layer).
        seed: Decides splits, vectors and trials.
        batch_size: Trials in a training batch of one process; even.
        eval_batch_size: Trials in a validation or test batch of one process; even.
        trials_per_epoch: Trials between two validations, over all processes.
        validation_trials: Trials in validation.
        test_trials: Trials in each test set; the sets that are not named are left out.
        prefill_adapter: Leave the adapter on while caches are written.
        num_workers: Worker processes of each data loader.
    """

    def __init__(
        self,
        contexts: str = BUILTIN,
        validation_kinds: list[str] | None = None,
        test_kinds: list[str] | None = None,
        max_context_tokens: int = 128,
        system_prompt: str = "",
        questions: list[str] = [QUESTION],
        heldout_questions: list[str] = list(HELDOUT_QUESTIONS),
        answers: tuple[str, str] = ("yes", "no"),
        answer_prefix: str = "The answer is",
        bank: str | None = None,
        train_vectors: int = 100,
        validation_vectors: int = 50,
        heldout_vectors: int = 100,
        concepts: list[str] = list(CONCEPTS),
        bands: list[str | list[int]] = ["early", "middle", "late"],
        strengths: tuple[float, float] = (0.3, 2.0),
        test_bands: list[str | list[int]] | None = None,
        test_strengths: tuple[float, float] | None = None,
        strength_unit: Literal["relative", "absolute"] = "relative",
        seed: int = 0,
        batch_size: int = 16,
        eval_batch_size: int = 32,
        trials_per_epoch: int = 480,
        validation_trials: int = 128,
        test_trials: dict[str, int] = dict.fromkeys(DEFAULT_TEST_SETS, 256),
        prefill_adapter: bool = False,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        builtin = contexts == BUILTIN
        self.contexts_source = contexts
        self.validation_kinds = list(VALIDATION_KINDS if builtin and validation_kinds is None else validation_kinds or ())
        self.test_kinds = list(TEST_KINDS if builtin and test_kinds is None else test_kinds or ())
        self.max_context_tokens = max_context_tokens
        self.phrasing = Phrasing(system_prompt, (answers[0], answers[1]), answer_prefix)
        self.questions = {"train": list(questions), "heldout": list(heldout_questions)}
        self.bank_path = Path(bank).expanduser() if bank else None
        self.vector_counts = {"train": train_vectors, "validation": validation_vectors, "heldout": heldout_vectors}
        self.concepts = list(concepts)
        self.bands = list(bands)
        self.test_bands = list(bands if test_bands is None else test_bands)
        self.strengths = strengths
        self.test_strengths = test_strengths or strengths
        self.strength_unit = strength_unit
        self.seed = seed
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.trials = {"train": trials_per_epoch, "validation": validation_trials, **test_trials}
        self.test_sets = list(test_trials)
        self.prefill_adapter = prefill_adapter
        self.num_workers = num_workers
        self.checkpoint: str | None = None  # what the command line will load: checked with the rest, before the model
        self.splits: dict[str, Split] = {}
        self.bank: VectorBank | None = None

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
        """
        if self.bank is not None:
            return
        self.splits, given = prepare(self)
        self.module.configure_model()
        bank = given or self._make_bank()
        problems = leaks.between_splits(bank)
        if problems:
            raise ConfigurationError(problems)
        self.bank = bank
        log_dir = self.running.log_dir  # asked for on every process: the answer is broadcast
        if self.running.logger is not None and log_dir is not None and self.running.is_global_zero:
            bank.save(Path(log_dir) / "vectors.safetensors")

    def _make_bank(self) -> VectorBank:
        module, train = self.module, self.splits["train"]
        contexts = [train.encoded(number).context_ids for number in range(min(NORM_CONTEXTS, len(train.contexts)))]
        base = {"base_model": module.base.name, "revision": module.base.revision or ""}
        return build_bank(
            module,
            module.model,
            module.layers,
            train.tokenizer,
            contexts,
            self.vector_counts,
            self.concepts,
            self.seed,
            base,
        )

    def _loader(self, name: str, batch_size: int) -> DataLoader[TrialBatch]:
        assert self.bank is not None
        training, each_epoch = name == "train", -(-self.trials[name] // batch_size)
        pool = TRAINING_POOL if training else each_epoch
        batches = BatchesOfSplit(self.splits[name], self.bank, SOURCES[name].vectors, batch_size, pool)
        trainer = self.running
        sampler = EpochBatches(
            each_epoch, trainer.global_rank, trainer.world_size, lambda: trainer.current_epoch if training else 0
        )
        return DataLoader(batches, batch_size=None, sampler=sampler, num_workers=self.num_workers)

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
        """The test sets again: ``predict`` writes down each of their trials."""
        return self.test_dataloader()

    def on_after_batch_transfer(self, batch: TrialBatch, dataloader_idx: int) -> TrialBatch:
        """Run the steered prefill: the batch leaves with the KV cache of its contexts.

        It runs through the strategy's wrapper (as DDP and FSDP need) and under the precision of the step.
        """
        module = self.module
        forward = cast("Forward", self.running.model or module)
        with self.running.precision_plugin.forward_context():
            batch.cache = steered_cache(
                forward,
                module.model,
                module.layers,
                batch.context_ids,
                batch.context_mask,
                batch.intervention,
                adapter=self.prefill_adapter,
            )
        return batch

    def describe(self, trial: Trial) -> dict[str, Any]:
        """Everything that defines a trial, in words, for a table of predictions."""
        assert self.bank is not None
        return self.splits[trial.split].describe(trial, self.bank, SOURCES[trial.split].vectors)

    def state_dict(self) -> dict[str, Any]:
        """What training has seen, for the checkpoint; see :func:`~introspection_lit.leaks.training_record`."""
        assert self.bank is not None
        return leaks.training_record(self.splits, self.bank, self.prefill_adapter)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that nothing that is about to be tested was seen in the training of the checkpoint.

        Raises:
            ConfigurationError: Something was; or, on resuming, training would go on with other data.
        """
        assert self.bank is not None
        if self.running.training and state_dict != self.state_dict():
            raise ConfigurationError([leaks.OTHER_DATA])
        if not self.running.training:
            for difference in leaks.trained_otherwise(state_dict, self.splits["train"], self.prefill_adapter):
                rank_zero_warn(difference)
            problems = leaks.trained_on(state_dict, {name: self.splits[name] for name in self.test_sets}, self.bank)
            if problems:
                raise ConfigurationError(problems)
