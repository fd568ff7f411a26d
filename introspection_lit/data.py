"""The data module: contexts, questions and vectors in, batches with steered KV caches out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only
from torch.utils.data import DataLoader

from introspection_lit import checks
from introspection_lit.batches import BatchesOfSplit, EpochBatches, Split, TrialBatch
from introspection_lit.contexts import BUILTIN, Context, load_contexts, split_contexts
from introspection_lit.conversations import HELDOUT_QUESTIONS, QUESTION, Phrasing, answer_ids, encode
from introspection_lit.errors import ConfigurationError
from introspection_lit.measure import CONCEPTS, build_bank
from introspection_lit.model import load_config, load_tokenizer
from introspection_lit.prefill import steered_cache
from introspection_lit.trials import SOURCES, TEST_SETS, Trial, TrialPlan
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
            inclusive.
        strengths: Lowest and highest strength; drawn log-uniformly between them.
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
        questions: list[str] = [QUESTION],  # noqa: B006 - shown by --help, never changed
        heldout_questions: list[str] = list(HELDOUT_QUESTIONS),  # noqa: B006
        answers: tuple[str, str] = ("yes", "no"),
        answer_prefix: str = "The answer is",
        bank: str | None = None,
        train_vectors: int = 100,
        validation_vectors: int = 50,
        heldout_vectors: int = 100,
        concepts: list[str] = list(CONCEPTS),  # noqa: B006
        bands: list[str | list[int]] = ["early", "middle", "late"],  # noqa: B006
        strengths: tuple[float, float] = (0.3, 2.0),
        test_strengths: tuple[float, float] | None = None,
        strength_unit: Literal["relative", "absolute"] = "relative",
        seed: int = 0,
        batch_size: int = 16,
        eval_batch_size: int = 32,
        trials_per_epoch: int = 480,
        validation_trials: int = 128,
        test_trials: dict[str, int] = dict.fromkeys(TEST_SETS, 256),  # noqa: B006
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
    def module(self) -> IntrospectionModule:
        """The module that this data module feeds."""
        return cast("IntrospectionModule", self.trainer.lightning_module)

    def setup(self, stage: str) -> None:  # noqa: ARG002 - all stages share one set-up, so that leaks cannot hide
        """Check everything, build the splits, then load the model and make the vector bank.

        Raises:
            ConfigurationError: Anything is wrong; all problems at once, before the model is loaded.
        """
        if self.bank is not None:
            return
        loaded_bank = self._check_and_split()
        self.module.configure_model()
        bank = loaded_bank or self._make_bank()
        leaks = bank.leaks()
        if leaks:
            raise ConfigurationError([f"data.bank: {leak}: what is tested has been trained on." for leak in leaks])
        self.bank = bank
        if self.trainer.log_dir is not None:
            self._save_bank(Path(self.trainer.log_dir) / "vectors.safetensors")

    def _check_and_split(self) -> VectorBank | None:
        """Find all problems that can be found without the model; fill ``splits``; return the bank if one is given."""
        found, module = checks.Problems(), self.module
        counts = {f"{split}_vectors": count for split, count in self.vector_counts.items()}
        sizes = {"batch_size": self.batch_size, "eval_batch_size": self.eval_batch_size}
        sizes |= {"trials_per_epoch": self.trials["train"], "validation_trials": self.trials["validation"]}
        sizes |= {f"test_trials.{name}": self.trials[name] for name in self.test_sets}
        found.add(checks.count_problems(counts, sizes, dict.fromkeys(self.test_sets, 0)))
        found.add(checks.strength_problems("strengths", self.strengths))
        if self.test_strengths != self.strengths:
            found.add(checks.strength_problems("test_strengths", self.test_strengths))
        found.add(checks.question_problems(self.questions["train"], self.questions["heldout"]))
        if len(set(self.concepts)) < 2:
            found.add([f"data.concepts: got {self.concepts}. Expected at least two: they are centred over each other."])
        found.add(checks.precision_problems(module.base, str(self.trainer.precision)))
        found.add(checks.checkpoint_problems(self.checkpoint, module.identity()))
        bank = found.attempt(VectorBank.load, self.bank_path) if self.bank_path else None
        contexts = found.attempt(load_contexts, self.contexts_source) or []
        groups = (
            found.attempt(split_contexts, contexts, self.seed, self.validation_kinds, self.test_kinds) if contexts else None
        )
        config = found.attempt(load_config, module.base)
        tokenizer = found.attempt(load_tokenizer, module.base) if config else None
        bands: Any = None
        if config:
            bands = found.attempt(checks.resolve_bands, self.bands, config.num_hidden_layers)
            found.add(checks.lora_problems(module.lora, config.num_hidden_layers))
            if bank:
                found.add(bank.misfits(module.base.name_or_path, config.hidden_size, config.num_hidden_layers))
        answers = (
            found.attempt(answer_ids, tokenizer, self.questions["train"][0], self.phrasing)
            if tokenizer and self.questions["train"]
            else None
        )
        found.raise_if_any()

        def fits(context: Context) -> bool:
            tokens = encode(tokenizer, context, self.questions["train"][0], self.phrasing).context_ids
            return len(tokens) <= self.max_context_tokens

        names = ["train", "validation", *self.test_sets]
        groups = {name: [context for context in group if fits(context)] for name, group in groups.items()}
        dropped = len(contexts) - sum(map(len, groups.values()))
        if dropped:
            rank_zero_info(f"{dropped} of {len(contexts)} contexts are longer than {self.max_context_tokens} tokens: left out")
        found.add(checks.split_problems(groups, [SOURCES[name].contexts for name in names]))
        found.raise_if_any()
        sizes = dict(self.vector_counts, concept=len(self.concepts))
        if bank:
            sizes = {split: len(rows) for split, rows in bank.directions.items()}
        for name in names:
            source = SOURCES[name]
            chosen, questions = groups[source.contexts], self.questions[source.questions]
            strengths = self.strengths if name in ("train", "validation") else self.test_strengths
            plan = TrialPlan(
                self.seed, name, len(chosen), len(questions), sizes[source.vectors], bands, tuple(strengths)
            )
            self.splits[name] = Split(
                name, plan, chosen, questions, tokenizer, self.phrasing, answers, self.strength_unit
            )
        return bank

    def _make_bank(self) -> VectorBank:
        module, train = self.module, self.splits["train"]
        contexts = [train.encoded(number).context_ids for number in range(min(NORM_CONTEXTS, len(train.contexts)))]
        base = {"base_model": module.base.name_or_path, "revision": module.base.revision or ""}
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

    @rank_zero_only
    def _save_bank(self, path: Path) -> None:
        assert self.bank is not None
        self.bank.save(path)

    def _loader(self, name: str, batch_size: int) -> DataLoader[TrialBatch]:
        assert self.bank is not None
        training, each_epoch = name == "train", -(-self.trials[name] // batch_size)
        pool = TRAINING_POOL if training else each_epoch
        batches = BatchesOfSplit(self.splits[name], self.bank, SOURCES[name].vectors, batch_size, pool)
        trainer = self.trainer
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

    def on_after_batch_transfer(self, batch: TrialBatch, dataloader_idx: int) -> TrialBatch:  # noqa: ARG002
        """Run the steered prefill: the batch leaves with the KV cache of its contexts.

        It runs through the strategy's wrapper (as DDP and FSDP need) and under the precision of the step.
        """
        module = self.module
        forward = self.trainer.model if self.trainer.model is not None else module
        with self.trainer.precision_plugin.forward_context():
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
        """What training has seen, for the checkpoint: fingerprints of contexts, vectors and questions."""
        assert self.bank is not None
        return {
            "contexts": sorted(context.key for name in ("train", "validation") for context in self.splits[name].contexts),
            "vectors": sorted(key for split in ("train", "validation") for key in self.bank.keys(split)),
            "questions": list(self.questions["train"]),
            "prefill_adapter": self.prefill_adapter,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that nothing that is about to be tested was seen in the training of the checkpoint.

        Raises:
            ConfigurationError: A test set holds a context, vector or question that the adapter was trained or validated on.
        """
        assert self.bank is not None
        if self.trainer.training:
            if state_dict != self.state_dict():
                raise ConfigurationError(
                    [
                        "ckpt_path: the checkpoint was trained on other contexts, vectors or questions than this "
                        "configuration holds. Resume with the data.* settings (data.seed above all) that it began with."
                    ]
                )
            return
        seen_contexts, seen_vectors = set(state_dict["contexts"]), set(state_dict["vectors"])
        problems = []
        for name in self.test_sets:
            source = SOURCES[name]
            shared = [context.user for context in self.splits[name].contexts if context.key in seen_contexts]
            if shared:
                problems.append(
                    f"ckpt_path: {len(shared)} contexts of the test set {name!r} were trained on (such as "
                    f"{shared[0][:50]!r}). Test with the data.* settings, data.seed above all, of the training."
                )
            if source.vectors != "train" and seen_vectors & set(self.bank.keys(source.vectors)):
                problems.append(f"ckpt_path: vectors of the test set {name!r} were trained on. Use the bank of the training.")
            if source.questions != "train" and set(state_dict["questions"]) & set(self.questions[source.questions]):
                problems.append(f"ckpt_path: questions of the test set {name!r} were trained on.")
        if problems:
            raise ConfigurationError(problems)


