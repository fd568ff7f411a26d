"""The data module: contexts, questions and vectors in, batches with steered KV caches out."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningDataModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.utils.data import DataLoader

from introspection_lit.contexts.context import fingerprint
from introspection_lit.models.adapters import read_adapter
from introspection_lit.steering.extraction import build_bank, require_finite_norms
from introspection_lit.steering.vector_bank import VectorBank
from introspection_lit.training.batch_size import choose_batch_size
from introspection_lit.training.cache_reuse import Prefills
from introspection_lit.training.distributed import one_loads_for_all
from introspection_lit.training.experiment_setup import prepare
from introspection_lit.training.kept_measurements import measured_with
from introspection_lit.training.options import DEFAULT_VECTORS, DataOptions
from introspection_lit.training.run_context import RunContext
from introspection_lit.training.run_folders import share_folder
from introspection_lit.trials import leaks
from introspection_lit.trials.batch import TrialBatch
from introspection_lit.trials.loaders import EpochSampler, SplitBatches, TrainingLoader
from introspection_lit.trials.replay import SingleTrials
from introspection_lit.trials.split import Split
from introspection_lit.trials.test_sets import OTHER_QUESTIONS
from introspection_lit.utils.errors import ConfigurationError

# Steps of training that are sorted by length together; a validation or test set is sorted as a whole.
TRAINING_POOL = 8


class IntrospectionDataModule(LightningDataModule):
    """Builds trials and their steered KV caches on the fly.

    Args:
        options: Those of :class:`~introspection_lit.training.options.DataOptions`, by name.

    Attributes:
        run: The state that the parts of the run share; its ``options`` are the options given here.
        prefill: Makes the steered caches of a batch.
    """

    def __init__(self, **options: Any) -> None:
        typed = DataOptions(**options)
        self.run = RunContext(typed)
        super().__init__()
        if not isinstance(typed.batch_size, str):  # auto: decided when a fit is set up
            self.run.batch_size = typed.batch_size
        self.run.trial_counts = typed.trial_counts
        self.run.prefill = self.prefill = Prefills(self.run)

    @property
    def trainer(self) -> Trainer | None:
        """The trainer; Lightning sets it."""
        return self.run.attached_trainer

    @trainer.setter
    def trainer(self, trainer: Trainer | None) -> None:
        self.run.attached_trainer = trainer

    @property
    def options(self) -> DataOptions:
        """The options as they were given."""
        return self.run.options

    @property
    def bank(self) -> VectorBank | None:
        """The vector bank; None before the set-up."""
        return self.run.bank

    @property
    def splits(self) -> dict[str, Split]:
        """Training, validation and test sets, or the parts of a grid, by name; empty before the set-up."""
        return self.run.splits

    def setup(self, stage: str) -> None:
        """Check everything, build the splits, then load the model and make the vector bank.

        Raises:
            ConfigurationError: Anything is wrong; all problems at once, before the model is loaded.
            RunError: The model's own activations are not finite.
        """
        if self.run.bank is None:
            self._set_up()
        if self.run.trainer.state.fn == "fit":
            choose_batch_size(self.run)

    def _set_up(self) -> None:
        run = self.run
        if run.experiment is None:
            run.experiment = prepare(run)
        run.splits = run.experiment.splits
        adapter, bank = run.module.adapter, run.experiment.bank
        if adapter is not None and bank is not None:  # else once the bank has been made
            self._check_training(read_adapter(adapter).description, bank)
        run.module.configure_model()
        if bank is None:
            bank = self._make_shared_bank() if one_loads_for_all(run.trainer) else self.make_bank()
            require_finite_norms(bank)
            if adapter is not None:
                self._check_training(read_adapter(adapter).description, bank)
        problems = leaks.bank_leak_problems(bank)
        if problems:
            raise ConfigurationError(problems)
        run.bank = bank
        if run.trainer.state.fn is None:  # attached without a run
            return
        run.folder = share_folder(run)
        if run.trainer.is_global_zero and not run.trainer.fast_dev_run:  # type: ignore[attr-defined]
            bank.save(run.folder / "vectors.safetensors")

    def make_bank(self) -> VectorBank:
        """Measure a vector bank on the model, which must be loaded."""
        run, options = self.run, self.run.options
        assert run.experiment is not None, "the data module is not set up"
        wanted = [*options.test_sets, *(options.grid.vectors if options.grid else ())]
        return build_bank(
            run.module,
            run.module.model,
            run.module.layers,
            run.wording.tokenizer,
            run.experiment.norm_contexts,
            {split: count or DEFAULT_VECTORS[split] for split, count in options.vector_counts.items()},
            options.concepts,
            options.seed,
            run.module.base_identity.as_texts(),
            components="concept_pca" in wanted,
            trained_concepts=options.concepts_to_train,
            measured_with=measured_with(run),
        )

    def _make_shared_bank(self) -> VectorBank:
        """Measure a bank in the one process that has weights, on its device though the model has no room there."""
        from introspection_lit.training.fsdp_loading import one_layer_at_a_time, shared_bank

        run = self.run

        def make() -> VectorBank:
            with one_layer_at_a_time(run.module.model, run.module.layers, run.trainer.strategy.root_device):
                return self.make_bank()

        return shared_bank(make, run.trainer.global_rank)

    def _loader(self, name: str, batch_size: int) -> DataLoader[TrialBatch]:
        run, split, trainer = self.run, self.run.splits[name], self.run.trainer
        longest = self.options.longest_tested if split.source.long else self.options.max_context_tokens
        longest = self.options.longest_validated if name == "validation" else longest
        if longest > self.options.max_context_tokens:  # as many tokens as in other batches, but at least a pair
            pair = 2 if split.questionnaire is None else 2 * split.questionnaire.each
            batch_size = max(pair, batch_size * self.options.max_context_tokens // longest // pair * pair)
        training, workers = name == "train", run.options.num_workers
        parts = trainer.world_size * trainer.accumulate_grad_batches if training else 1
        total = run.trial_counts["train"] if split.total is None else split.total
        steps = -(-total // (batch_size * parts))
        batches = SplitBatches(split, run.vector_bank, batch_size, TRAINING_POOL if training else steps, parts)
        sampler = EpochSampler(
            steps * parts, trainer.global_rank, trainer.world_size, lambda: trainer.current_epoch if training else 0
        )
        if not training:
            return DataLoader(batches, batch_size=None, sampler=sampler, num_workers=workers)
        progress = trainer.fit_loop.epoch_loop.batch_progress
        return TrainingLoader(batches, sampler, lambda: progress.current.ready, workers)

    def train_dataloader(self) -> DataLoader[TrialBatch]:
        """Batches of the split ``train``, new ones in every epoch."""
        return self._loader("train", self.run.batch_size)

    def val_dataloader(self) -> DataLoader[TrialBatch]:
        """Batches of the split ``validation``, the same every time."""
        return self._loader("validation", self.options.eval_batch_size)

    def test_dataloader(self) -> list[DataLoader[TrialBatch]]:
        """A loader for each test set."""
        return [self._loader(name, self.options.eval_batch_size) for name in self.options.test_sets]

    def predict_dataloader(self) -> list[DataLoader[TrialBatch]]:
        """What ``predict`` scores: the trials of ``data.replay``, each alone, the grid, or else the test sets."""
        run, trainer = self.run, self.run.trainer
        if run.options.replay is not None:
            assert run.experiment is not None, "the data module is not set up"
            batches = SingleTrials(run.experiment.replayed, run.splits, run.vector_bank)
            sampler = EpochSampler(len(batches), trainer.global_rank, trainer.world_size, lambda: 0)
            return [DataLoader(batches, batch_size=None, sampler=sampler)]
        names = run.options.test_sets if run.options.grid is None else list(run.splits)
        return [self._loader(name, run.options.eval_batch_size) for name in names]

    def on_after_batch_transfer(self, batch: TrialBatch, dataloader_idx: int) -> TrialBatch:
        """Run the steered prefill: the batch leaves with the KV cache of its contexts.

        It runs through the strategy's wrapper (as DDP and FSDP need) and under the precision of the step.
        """
        return self.run.with_cache(batch)

    def teardown(self, stage: str) -> None:
        """Free the clean caches once training has ended."""
        if stage == "fit":
            self.prefill.release()

    def state_dict(self) -> dict[str, Any]:
        """What training has seen, for the checkpoint."""
        return self.run.training_record()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that nothing that is about to be tested was seen in the training of the checkpoint.

        Raises:
            ConfigurationError: Something was; or, on resuming, training would go on with other data.
        """
        if not self.run.trainer.training:
            self._check_training(state_dict, self.run.vector_bank)
        elif state_dict != self.state_dict():
            raise ConfigurationError([leaks.OTHER_DATA])

    def _check_training(self, record: dict[str, Any] | None, bank: VectorBank) -> None:
        """Compare what is about to be tested with what an adapter was trained on."""
        if record is None:
            rank_zero_warn(
                "model.adapter: comes without introspection.json, so what it was trained on is not known: whether vectors "
                "or contexts of the test were among it cannot be checked."
            )
            return
        record = record.get("trained_on", record)
        tests = {name: split for name, split in self.run.splits.items() if name not in ("train", "validation")}
        usual = [split for split in tests.values() if split.source.questions not in OTHER_QUESTIONS]
        for difference in leaks.training_differences(record, usual[0], self.options.prefill_adapter) if usual else ():
            rank_zero_warn(difference)
        template, source = record.get("chat_template"), str(self.run.wording.tokenizer.chat_template)
        if template not in (None, fingerprint(source)) or (template is None and self.options.chat_template is not None):
            rank_zero_warn("data.chat_template: training had another chat template; the threshold was set under that one.")
        problems = leaks.training_leak_problems(record, tests, bank)
        if problems:
            raise ConfigurationError(problems)
