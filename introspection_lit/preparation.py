"""From options to splits: all that is read and checked before a model is loaded."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from lightning_utilities.core.rank_zero import rank_zero_info

from introspection_lit import checks, leaks
from introspection_lit.batches import Split
from introspection_lit.contexts import Context, load_contexts, split_contexts
from introspection_lit.conversations import answer_ids, control_tokens_in, encode, keep_usable
from introspection_lit.model import load_config, load_tokenizer
from introspection_lit.trials import SOURCES, TrialPlan
from introspection_lit.vectors import VectorBank

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from introspection_lit.data import IntrospectionDataModule

Bands = tuple[checks.Band, ...]


def prepare(data: IntrospectionDataModule) -> tuple[dict[str, Split], VectorBank | None]:
    """Read contexts, tokenizer and bank, check everything, and deal out the splits.

    Args:
        data: Its options, and the module and trainer that it is attached to.

    Returns:
        The splits by name, and the bank if one was given.

    Raises:
        ConfigurationError: Anything is wrong; all problems at once.
    """
    found, base, questions = checks.Problems(), data.module.base, data.questions["train"]
    _check_numbers(data, found)
    _check_run(data, found)
    bank = found.attempt(VectorBank.load, data.bank_path) if data.bank_path else None
    contexts = found.attempt(load_contexts, data.contexts_source)
    dealt = None
    if contexts and data.seed >= 0:
        dealt = found.attempt(split_contexts, contexts, data.seed, data.validation_kinds, data.test_kinds)
    config = found.attempt(load_config, base)
    tokenizer = found.attempt(load_tokenizer, base) if config else None
    bands = _check_model(data, config, bank, found) if config else None
    answers = _check_words(data, config, tokenizer, found) if config and tokenizer and questions else None
    found.raise_if_any()
    assert dealt and tokenizer and answers and bands  # noqa: PT018 - a missing one is a problem, and raised by now
    usable = {
        name: keep_usable(tokenizer, c, questions[0], data.phrasing, data.max_context_tokens) for name, c in dealt.items()
    }
    before, after = (sum(map(len, groups.values())) for groups in (dealt, usable))
    if after < before:
        reason = f"longer than {data.max_context_tokens} tokens or with control tokens"
        rank_zero_info(f"left out: {before - after} of {before} contexts, {reason}")
    names = ["train", "validation", *data.test_sets]
    found.add(checks.split_problems(usable, [SOURCES[name].contexts for name in names], before - after))
    found.raise_if_any()
    sizes = dict(data.vector_counts, concept=len(data.concepts))
    if bank:
        sizes = {split: len(rows) for split, rows in bank.directions.items()}
    splits = {name: _build_split(data, name, usable, sizes, tokenizer, bands, answers) for name in names}
    return splits, bank


def _check_numbers(data: IntrospectionDataModule, found: checks.Problems) -> None:
    """Counts, sizes and ranges, and that there are questions and concepts."""
    counts = {f"{split}_vectors": count for split, count in data.vector_counts.items()}
    counts |= {"max_context_tokens": data.max_context_tokens}
    sizes = {"batch_size": data.batch_size, "eval_batch_size": data.eval_batch_size}
    sizes |= {"trials_per_epoch": data.trials["train"], "validation_trials": data.trials["validation"]}
    sizes |= {f"test_trials.{name}": data.trials[name] for name in data.test_sets}
    found.add(checks.count_problems(counts, sizes, data.test_sets))
    found.add(checks.strength_problems("strengths", data.strengths))
    if data.test_strengths != data.strengths:
        found.add(checks.strength_problems("test_strengths", data.test_strengths))
    if data.seed < 0 or data.num_workers < 0:
        found.add([f"data.seed, data.num_workers: got {data.seed} and {data.num_workers}. Expected 0 or more."])
    if len(data.concepts) < 3 or len(set(data.concepts)) < len(data.concepts):
        wanted = "Expected at least three different ones: they are centred over each other, and two would be opposites"
        found.add([f"data.concepts: got {data.concepts}. {wanted}."])
    found.add(checks.question_problems(data.questions["train"], data.questions["heldout"], data.test_sets))


def _check_run(data: IntrospectionDataModule, found: checks.Problems) -> None:
    """Optimiser, precision, the checkpoint to be loaded and the folder to be written."""
    trainer, module = data.running, data.module
    found.add(module.problems())
    found.add(checks.precision_problems(module.base, str(trainer.precision)))
    found.add(checks.checkpoint_problems(data.checkpoint, module.identity()))
    if trainer.state.fn == "fit" and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        # A job that SLURM has requeued goes on in its folder, from the checkpoint that Lightning finds by itself.
        resuming = data.checkpoint is not None or "SLURM_RESTART_COUNT" in os.environ
        found.add(checks.run_folder_problems(trainer.log_dir, resuming))


def _check_model(
    data: IntrospectionDataModule, config: PretrainedConfig, bank: VectorBank | None, found: checks.Problems
) -> tuple[Bands, Bands] | None:
    """What depends on the model's shape; returns the bands of training and of the tests as layer numbers."""
    base, layers = data.module.base, config.num_hidden_layers
    found.add(checks.lora_problems(data.module.lora, layers))
    found.add(checks.nf4_on_cpu_problems(base, config, data.running.strategy.root_device.type))
    if bank:
        misfits = bank.misfits(base.name, base.revision or "", config.hidden_size, layers)
        found.add(misfits or leaks.between_splits(bank))
    bands = test_bands = found.attempt(checks.resolve_bands, data.bands, layers)
    if data.test_bands != data.bands:
        test_bands = found.attempt(checks.resolve_bands, data.test_bands, layers, "test_bands")
    return (bands, test_bands) if bands and test_bands else None


def _check_words(
    data: IntrospectionDataModule, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, found: checks.Problems
) -> tuple[int, int] | None:
    """What depends on the tokenizer; returns the tokens of the answers."""
    question, phrasing = data.questions["train"][0], data.phrasing
    texts = [*data.questions["train"], *data.questions["heldout"], phrasing.system, phrasing.answer_prefix]
    found.add(control_tokens_in(tokenizer, texts))
    tokens = found.attempt(encode, tokenizer, Context("probe", "Hello", "Hello"), question, phrasing)
    if tokens:
        found.add(checks.window_problems(data.max_context_tokens, len(tokens.question_ids), config))
    return found.attempt(answer_ids, tokenizer, question, phrasing)


def _build_split(
    data: IntrospectionDataModule,
    name: str,
    usable: dict[str, list[Context]],
    sizes: dict[str, int],
    tokenizer: PreTrainedTokenizerBase,
    bands: tuple[Bands, Bands],
    answers: tuple[int, int],
) -> Split:
    """Make one split; validation draws bands and strengths as training does, since the threshold is set on it."""
    source, tested = SOURCES[name], name in data.test_sets
    contexts, questions = usable[source.contexts], data.questions[source.questions]
    plan = TrialPlan(
        data.seed,
        name,
        len(contexts),
        len(questions),
        sizes[source.vectors],
        bands[tested],
        data.test_strengths if tested else data.strengths,
    )
    total = None if name == "train" else data.trials[name]
    return Split(name, plan, contexts, questions, tokenizer, data.phrasing, answers, data.strength_unit, total)
