"""The set-up of an experiment: reads and checks everything before a model is loaded, and builds the splits."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING

import torch
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from introspection_lit.contexts.context import BUILTIN, LARGE, Context
from introspection_lit.contexts.conversations import encode
from introspection_lit.contexts.generation.build import large_contexts
from introspection_lit.contexts.loading import load_contexts
from introspection_lit.contexts.splits import evenly_spaced, mix_by_kind, odd_contexts, split_contexts, split_problems
from introspection_lit.contexts.template_notes import template_notes
from introspection_lit.contexts.usable import ContextLengths
from introspection_lit.models.adapters import adapter_problems
from introspection_lit.models.architectures import Architecture, examine
from introspection_lit.models.base_model import lora_problems, nf4_on_cpu_problems
from introspection_lit.models.loading import load_config, load_tokenizer, read_template
from introspection_lit.models.lora_checks import adapter_shapes_of
from introspection_lit.steering.bands import resolve_bands
from introspection_lit.steering.vector_bank import OPTIONAL_SPLITS, REMEDY, VectorBank, bank_size_problems
from introspection_lit.tasks.questionnaire import OPTIONS
from introspection_lit.tasks.wording import WordingOptions, build_wording, heldout_problems
from introspection_lit.training import checks
from introspection_lit.training.batch_size import step_problems
from introspection_lit.training.changed_caches import change_problems_of_model
from introspection_lit.training.checkpoint_checks import LOOPS, checkpoint_problems, tensor_problems
from introspection_lit.training.checkpoint_files import read_checkpoint
from introspection_lit.training.distributed import is_sharded
from introspection_lit.training.fsdp import strategy_problems
from introspection_lit.training.option_checks import option_problems
from introspection_lit.training.options import DataOptions
from introspection_lit.training.run_context import Experiment, RunContext
from introspection_lit.training.run_folders import taken_problems
from introspection_lit.training.slurm import unnamed_checkpoints
from introspection_lit.training.split_builder import BandSets, SplitBuilder, concept_names, vector_counts
from introspection_lit.training.window_checks import check_windows
from introspection_lit.trials import leaks
from introspection_lit.trials.manifest import manifest_settings, setting_problems
from introspection_lit.trials.manifest_plan import Manifest, ManifestPlan
from introspection_lit.trials.replay import chosen_trials, first_steered
from introspection_lit.trials.shown import print_trial
from introspection_lit.trials.split import Split
from introspection_lit.trials.test_sets import LONG_SETS, OF_CONCEPTS, SOURCES
from introspection_lit.utils.errors import ConfigurationError, Problems

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


# Clean contexts on which the residual norms are measured.
NORM_CONTEXTS = 32


def prepare(run: RunContext) -> Experiment:
    """Read contexts, tokenizer, vector bank and manifest, check everything, and build the splits.

    Args:
        run: The run: its options, and the module and trainer that it is attached to.

    Raises:
        ConfigurationError: Anything is wrong; all problems at once.
    """
    with torch.random.fork_rng(devices=[]):  # models without weights are built on the way, and draw numbers for theirs
        return _prepare(run)


def _prepare(run: RunContext) -> Experiment:
    options, base, problems = run.options, run.module.base, Problems()
    _check_subcommand(run, problems)
    config = problems.attempt(load_config, base)
    if config:
        run.architecture = _examine(run, config, problems)
    _check_run(run, problems)
    bank = problems.attempt(VectorBank.load, options.bank_path) if options.bank_path else None
    template = problems.attempt(read_template, options.template_path) if options.template_path else None
    has_template = options.template_path is None or template is not None
    tokenizer = problems.attempt(load_tokenizer, base, template) if config and has_template else None
    contexts = _deal_contexts(run, tokenizer, problems)
    bands = _check_model(run, config, bank, problems) if config and run.architecture else None
    wording = None
    if config and tokenizer and contexts:
        every_context = [context for group in contexts.values() for context in group]
        wording = problems.attempt(build_wording, _wording_options(options), every_context, config, tokenizer)
    problems.raise_if_any()
    assert config and contexts and bands and wording  # noqa: PT018 - a missing one is a problem, and raised by now
    lengths = ContextLengths(wording.tokenizer, wording.questions["train"][0], wording.phrasing)
    usable = _usable_contexts(run, contexts, lengths)
    names, several = concept_names(options, bank), run.trainer.world_size > 1
    joinable = {} if _runs_grid(run) else _joinable_contexts(run, contexts, usable, lengths)
    builder = SplitBuilder(options, usable, vector_counts(options, bank), names, wording, bands, joinable, several)
    splits = (
        builder.grid(config, share_question_prefix=not is_sharded(run.trainer))
        if _runs_grid(run)
        else _splits(run, builder, bank)
    )
    check_windows(run, config, splits, bands, _runs_grid(run))
    replayed = [] if options.replayed is None else chosen_trials(options.replayed, splits)
    clean = evenly_spaced(usable.get("train") or usable["all"], NORM_CONTEXTS)
    question = wording.questions["train"][0]
    for note in template_notes(wording.tokenizer, clean[0], question, wording.phrasing):
        rank_zero_info(note)
    if run.trainer.state.fn == "fit" and run.trainer.is_global_zero:
        print_trial(splits["train"], first_steered(splits["train"]))
    norm_contexts = [encode(wording.tokenizer, context, question, wording.phrasing).context_ids for context in clean]
    return Experiment(splits, bank, wording, norm_contexts, replayed)


def _runs_grid(run: RunContext) -> bool:
    return run.options.grid is not None and run.trainer.state.fn == "predict"


def _wording_options(options: DataOptions) -> WordingOptions:
    return WordingOptions(**{option.name: getattr(options, option.name) for option in fields(WordingOptions)})


def _splits(run: RunContext, builder: SplitBuilder, bank: VectorBank | None) -> dict[str, Split]:
    """Training, validation and the test sets; the training trials are those of the manifest, if there is one.

    Raises:
        ConfigurationError: A held-out question is trained on, or the manifest does not fit.
    """
    splits = {name: builder.split(name) for name in ("train", "validation", *run.options.test_sets)}
    problems = Problems()
    if "newquestions" in splits:
        problems.add(heldout_problems(splits["train"].question_texts(), splits["newquestions"].questions))
    if run.options.manifest_path and bank:
        _use_manifest(run, splits, bank, problems)
    problems.raise_if_any()
    return splits


def _deal_contexts(
    run: RunContext, tokenizer: PreTrainedTokenizerBase | None, problems: Problems
) -> dict[str, list[Context]] | None:
    """Contexts by context split; ``all`` for a grid, which takes the user's own conversations whole."""
    options = run.options
    if LARGE in (options.contexts, options.test_contexts) and (tokenizer is None or problems.found):
        return None  # building the set takes a while, and this run cannot start

    def load(source: str) -> list[Context]:
        if source == LARGE and tokenizer is not None:
            return large_contexts(tokenizer, options.max_context_tokens, verbose=run.trainer.is_global_zero)
        return load_contexts(source)

    contexts = problems.attempt(load, options.contexts)
    tests = problems.attempt(load, options.test_contexts) if options.test_contexts is not None else None
    if not contexts or options.seed < 0:
        return None
    kinds, tested = ({context.kind for context in group} for group in (contexts, tests or ()))
    run.options, left_out = options.for_own_contexts(kinds, tested)
    options = run.options
    for note in left_out:
        rank_zero_warn(f"left out: {note}")
    dealt = problems.attempt(split_contexts, contexts, options.seed, *options.held_out_kinds)
    if dealt and tests:
        dealt |= dict.fromkeys(("seen", "heldout", "concept", "newkinds"), tests)
    if dealt and "odd" in options.test_sets:
        dealt["odd"] = odd_contexts(dealt["heldout"], options.seed)
    if dealt and options.grid is not None:
        dealt["all"] = tests or (contexts if options.contexts not in (BUILTIN, LARGE) else dealt["heldout"])
    return dealt


def _check_subcommand(run: RunContext, problems: Problems) -> None:
    """Check the options of the data by themselves, and against the subcommand and the number of processes."""
    options, trainer, subcommand = run.options, run.trainer, run.trainer.state.fn
    problems.add(option_problems(options))
    if options.replay is not None and (options.grid is not None or subcommand not in (None, "predict")):
        problems.add([f"data.replay: got {options.replayed}. Expected it with predict alone, and without data.grid."])
    if subcommand in (None, "fit") and options.control == "visible" and options.tasks is None:
        problems.add(["data.control: got visible, which puts into the text what is right. Expected it with data.tasks."])
    if subcommand in (None, "fit"):
        accumulated = trainer.accumulate_grad_batches
        problems.add(step_problems(options.batch_size, options.effective_batch, trainer.world_size, accumulated))
    if options.grid is not None and subcommand not in (None, "predict"):
        rank_zero_warn("data.grid: only predict runs through it.")
    if options.curriculum is not None and subcommand == "fit" and trainer.max_steps < 0:
        moves, trained = options.curriculum.trials, (trainer.max_epochs or 0) * options.trials_per_epoch
        if 0 < trained < moves:
            early = f"the training ends after {trained}, before its trials are those of the other data options"
            rank_zero_warn(f"data.curriculum.trials: got {moves}; {early}. Give fewer, or raise trainer.max_epochs.")


def _check_run(run: RunContext, problems: Problems) -> None:
    """Optimiser, precision, the checkpoint to be loaded and the folder to be written."""
    trainer, module = run.trainer, run.module
    problems.add(module.problems())
    problems.add(checks.trainer_problems(trainer))
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if hasattr(callback, "problems") and trainer.state.fn in ("fit", "test"):
            problems.add(callback.problems())
    problems.add(strategy_problems(trainer.strategy, module.base, str(trainer.precision), trainer.world_size))
    loops = {name: getattr(trainer, name).state_dict() for name in LOOPS.values()} if run.checkpoint else None
    identity, function = module.base_identity, trainer.state.fn or "fit"
    checkpoint = run.checkpoint if module.adapter is None else None  # both together are refused below
    problems.add(checkpoint_problems(checkpoint, module.identity(), identity, function, loops))
    if checkpoint and identity.accepted and run.architecture:
        shapes = adapter_shapes_of(module.base, module.lora)
        problems.add(tensor_problems(read_checkpoint(checkpoint)["state_dict"], shapes))
    if module.adapter is not None:
        problems.add(adapter_problems(module.adapter, identity, run.checkpoint, function == "fit"))
    problems.add(unnamed_checkpoints(trainer, run.checkpoint))
    if trainer.state.fn is not None and trainer.is_global_zero:  # the others may come when it has written there
        problems.add(taken_problems(run))


def _examine(run: RunContext, config: PretrainedConfig, problems: Problems) -> Architecture | None:
    """Decide what the architecture can do, and tell the module; None if it cannot be used."""
    module = run.module
    found = examine(module.base, config, module.lora if module.adapter is None else None)
    problems.add(found.problems)
    if found.problems:
        return None
    module.adapt_to(found)
    for note in found.notes:
        rank_zero_info(f"{note}.")
    return found


def _check_model(run: RunContext, config: PretrainedConfig, bank: VectorBank | None, problems: Problems) -> BandSets | None:
    """Check what depends on the model's shape; returns the steered bands as layer numbers."""
    assert run.architecture is not None
    base, layers, reach = run.module.base, run.architecture.layers, run.architecture.reach
    problems.add(lora_problems(run.module.lora, layers))
    problems.add(nf4_on_cpu_problems(base, config, run.trainer.strategy.root_device.type))
    problems.add(change_problems_of_model(run.options, config, run.architecture.usual, is_sharded(run.trainer)))
    if bank:
        misfits = bank.misfits(base.name, config.hidden_size, layers)
        misfits += run.module.base_identity.problems("data.bank: it", bank.metadata, REMEDY.rstrip("."))
        problems.add(misfits or leaks.bank_leak_problems(bank))
        bank = None if misfits else bank  # what does not fit cannot be looked into
    if bank:
        problems.add(bank_size_problems(bank, run.options.vector_counts))
    wanted = [SOURCES[name].vectors for name in run.options.test_sets if name in SOURCES]
    wanted += run.options.grid.vectors if run.options.grid is not None else []
    wanted += ["concept_train"] if run.options.concepts_to_train else []
    have = bank.directions if bank else ("train", "validation", "heldout", "concept", "concept_pca", "concept_train")
    problems.add(
        f"data.bank: has no directions of {split!r}, which a task, a test set or the grid asks for. Make it with "
        "scripts/generate_vectors.py (concept_train: with data.tasks, too), or leave the test set or task out."
        for split in dict.fromkeys(wanted)
        if split in OPTIONAL_SPLITS and split not in have
    )
    if bank:
        problems.add(_concept_problems(run.options, bank))
    bands = test_bands = problems.attempt(resolve_bands, run.options.bands, layers, "bands", reach)
    if run.options.bands_of_tests != run.options.bands:
        test_bands = problems.attempt(resolve_bands, run.options.bands_of_tests, layers, "test_bands", reach)
    grid_bands = bands
    if run.options.grid is not None:
        grid_bands = problems.attempt(resolve_bands, run.options.grid.bands, layers, "grid.bands", reach)
    steered = test_bands if "imported" in run.options.test_sets else ()
    steered = grid_bands if run.options.grid is not None and "imported" in run.options.grid.vectors else steered
    if bank and "imported" in bank.directions:
        problems.add(bank.unreached(steered or ()))
    return BandSets(bands, test_bands, grid_bands) if bands and test_bands and grid_bands else None


def _concept_problems(options: DataOptions, bank: VectorBank) -> list[str]:
    """Check that a bank has as many concepts as a question names, and none that is both trained on and tested."""
    asked = ["concept"] * bool({*OF_CONCEPTS} & {*options.test_sets}) + ["concept_train"] * bool(options.concepts_to_train)
    problems = [
        f"data.bank: has {len(names)} directions of {split!r}. Expected at least {OPTIONS}, which a question of "
        "identification names. Make it with more concepts."
        for split in asked
        if len(names := bank.names.get(split, [])) < OPTIONS and names
    ]
    tested, trained = ({name.casefold() for name in bank.names.get(split, [])} for split in ("concept", "concept_train"))
    both = tested & trained
    if options.concepts_to_train and both:
        problems.append(f"data.bank: the concepts {sorted(both)} are trained on and tested. Make one without.")
    return problems


def _usable_contexts(
    run: RunContext, contexts: dict[str, list[Context]], lengths: ContextLengths
) -> dict[str, list[Context]]:
    """The contexts of the run that are short enough and cannot be read as several turns, by context split.

    Raises:
        ConfigurationError: A context split that is needed is empty, or two splits share a text.
    """
    options = run.options
    groups = {name: group for name, group in contexts.items() if _runs_grid(run) == (name == "all")}
    usable = {name: lengths.usable(group, options.max_context_tokens) for name, group in groups.items()}
    # Corrupted texts are made of others, which are counted already.
    before, after = (sum(len(part) for name, part in parts.items() if name != "odd") for parts in (groups, usable))
    if after < before:
        every_context = [context for name, group in groups.items() if name != "odd" for context in group]
        as_turns = sum(lengths.of(context) is None for context in every_context)
        long = f"{before - after - as_turns} longer than {options.max_context_tokens} tokens"
        reason = f"{long}, {as_turns} with control tokens or other text that the chat template would not leave as text"
        rank_zero_info(f"left out: {before - after} of {before} contexts ({reason})")
    needed = ["all"]
    if not _runs_grid(run):
        for source in SOURCES.values():
            if "+" in source.contexts:
                usable[source.contexts] = mix_by_kind([usable[part] for part in source.contexts.split("+")])
        needed = [SOURCES[name].contexts for name in ("train", "validation", *options.test_sets)]
    problems = Problems()
    problems.add(split_problems(usable, needed, before - after))
    problems.raise_if_any()
    return usable


def _joinable_contexts(
    run: RunContext,
    contexts: dict[str, list[Context]],
    usable: dict[str, list[Context]],
    lengths: ContextLengths,
) -> dict[str, list[Context]]:
    """Contexts that long conversations are joined from, by context split: also those that are too long by themselves.

    Raises:
        ConfigurationError: Two splits share a text.
    """
    options = run.options
    limits = {"train": options.longest_trained, "validation": options.longest_validated} if options.trains_long else {}
    limits |= {SOURCES[name].contexts: options.longest_tested for name in LONG_SETS if name in options.test_sets}
    joinable = {name: lengths.usable(contexts[name], limit) for name, limit in limits.items()}
    if problems := split_problems({name: [*group, *joinable.get(name, ())] for name, group in usable.items()}, (), 0):
        raise ConfigurationError(problems)
    return joinable


def _use_manifest(run: RunContext, splits: dict[str, Split], bank: VectorBank, problems: Problems) -> None:
    """Replace the plan of the training split by the trials of the manifest."""
    manifest = problems.attempt(Manifest, run.options.manifest_path)
    if manifest is None:
        return
    train, seed = splits["train"], run.options.seed
    advice = "Use that model, or run scripts/generate_training_data.py again with this one"
    differences = run.module.base_identity.problems("data.manifest: it", manifest.header, advice)
    differences += setting_problems(manifest.header, manifest_settings(train, bank, seed))
    problems.add(differences)
    if not differences:
        plan = ManifestPlan(manifest, train, bank, seed)
        problems.add(plan.problems())
        splits["train"] = replace(train, plan=plan)
        run.trial_counts["train"] = manifest.total
