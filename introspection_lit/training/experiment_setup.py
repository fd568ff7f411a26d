"""From options to splits: all that is read and checked before a model is loaded."""

from __future__ import annotations

import os
from dataclasses import fields, replace
from typing import TYPE_CHECKING

from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from introspection_lit.contexts.context import BUILTIN, LARGE, Context
from introspection_lit.contexts.conversations import control_token_problems, encode, fakes_turns, usable_contexts
from introspection_lit.contexts.generation.build import large_contexts
from introspection_lit.contexts.loading import load_contexts
from introspection_lit.contexts.splits import evenly_spaced, mix_by_kind, odd_contexts, split_contexts, split_problems
from introspection_lit.models.adapters import adapter_problems
from introspection_lit.models.base_model import lora_problems, nf4_on_cpu_problems
from introspection_lit.models.loading import load_config, load_tokenizer
from introspection_lit.steering.bands import Bands, resolve_bands
from introspection_lit.steering.vector_bank import (
    OPTIONAL_SPLITS,
    RANDOM_SPLITS,
    VectorBank,
    bank_size_problems,
)
from introspection_lit.tasks.questions import FALSE_QUESTIONS, TRUE_QUESTIONS, builtin_questions, info_text
from introspection_lit.tasks.wording import (
    Wording,
    WordingOptions,
    build_wording,
    heldout_problems,
    longest_question,
    window_problems,
)
from introspection_lit.training import checks
from introspection_lit.training.batch_size import step_problems
from introspection_lit.training.checkpoint_checks import LOOPS, checkpoint_problems
from introspection_lit.training.distributed import is_sharded
from introspection_lit.training.fsdp import strategy_problems
from introspection_lit.training.options import DEFAULT_VECTORS
from introspection_lit.training.run_context import Experiment, RunContext
from introspection_lit.trials import leaks
from introspection_lit.trials.grid import CLEAR_NO, CLEAR_YES, GridPlan, split_name
from introspection_lit.trials.manifest import manifest_settings, setting_problems
from introspection_lit.trials.manifest_plan import Manifest, ManifestPlan
from introspection_lit.trials.plans import OncePlan, TrialPlan
from introspection_lit.trials.replay import chosen_trials
from introspection_lit.trials.split import Split
from introspection_lit.trials.test_sets import SOURCES, Source
from introspection_lit.utils.errors import Problems

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


# Clean contexts on which the residual norms are measured.
NORM_CONTEXTS = 32


def prepare(run: RunContext) -> Experiment:
    """Read contexts, tokenizer, bank and manifest, check everything, and deal out the splits.

    Args:
        run: Its options, and the module and trainer that it is attached to.

    Raises:
        ConfigurationError: Anything is wrong; all problems at once.
    """
    found, base = Problems(), run.module.base
    _check_subcommand(run, found)
    _check_run(run, found)
    bank = found.attempt(VectorBank.load, run.options.bank_path) if run.options.bank_path else None
    config = found.attempt(load_config, base)
    tokenizer = found.attempt(load_tokenizer, base) if config else None
    dealt = _deal_contexts(run, tokenizer, found)
    bands = _check_model(run, config, bank, found) if config else None
    words = None
    if config and tokenizer and dealt:
        every_context = [context for group in dealt.values() for context in group]
        words = found.attempt(build_wording, _wording_options(run), every_context, config, tokenizer)
    found.raise_if_any()
    assert dealt and bands and words  # noqa: PT018 - a missing one is a problem, and raised by now
    usable = _leave_out(run, dealt, words, found)
    sizes = {split: count or DEFAULT_VECTORS[split] for split, count in run.options.vector_counts.items()}
    sizes |= dict.fromkeys(("concept", "concept_pca"), len(run.options.concepts))
    if bank:
        sizes = {
            split: min(run.options.vector_counts.get(split) or len(rows), len(rows))
            for split, rows in bank.directions.items()
        }
    if run.options.grid is not None and run.trainer.state.fn == "predict":
        splits = _build_grid(run, usable, sizes, words, bands, found)
    else:
        names = ["train", "validation", *run.options.test_sets]
        splits = {name: _build_split(run, name, usable, sizes, words, bands) for name in names}
        if "newquestions" in splits:
            found.add(heldout_problems(splits["train"].question_texts(), splits["newquestions"].questions))
        if run.options.manifest_path and bank:
            _take_manifest(run, splits, bank, found)
    found.raise_if_any()
    replayed = found.attempt(chosen_trials, run.options.replayed, splits) if run.options.replayed is not None else []
    found.raise_if_any()
    source = usable.get("train") or usable["all"]
    norm_contexts = evenly_spaced(source, NORM_CONTEXTS)
    clean = [encode(words.tokenizer, c, words.questions["train"][0], words.phrasing) for c in norm_contexts]
    return Experiment(splits, bank, words, [encoded.context_ids for encoded in clean], replayed or [])


# How many contexts a grid has, if they are not the user's own and nobody says how many.
DEFAULT_CONTEXTS = 8


def _wording_options(run: RunContext) -> WordingOptions:
    return WordingOptions(**{option.name: getattr(run.options, option.name) for option in fields(WordingOptions)})


def _deal_contexts(
    run: RunContext, tokenizer: PreTrainedTokenizerBase | None, found: Problems
) -> dict[str, list[Context]] | None:
    """Contexts by split; in a grid, conversations of the user's own are all taken, as ``all``."""
    if LARGE in (run.options.contexts, run.options.test_contexts) and (tokenizer is None or found.found):
        return None  # making it takes a while, and this run cannot start

    def load(source: str) -> list[Context]:
        if source == LARGE and tokenizer is not None:
            return large_contexts(tokenizer, run.options.max_context_tokens, told=run.trainer.is_global_zero)
        return load_contexts(source)

    contexts = found.attempt(load, run.options.contexts)
    tests = found.attempt(load, run.options.test_contexts) if run.options.test_contexts is not None else None
    if not contexts or run.options.seed < 0:
        return None
    dealt = found.attempt(split_contexts, contexts, run.options.seed, *run.options.held_out_kinds)
    if dealt and tests:
        dealt |= dict.fromkeys(("seen", "heldout", "concept", "newkinds"), tests)
    if dealt and "odd" in run.options.test_sets:
        dealt["odd"] = odd_contexts(dealt["heldout"], run.options.seed)
    if dealt and run.options.grid is not None:
        dealt["all"] = tests or (contexts if run.options.contexts not in (BUILTIN, LARGE) else dealt["heldout"])
    return dealt


def _check_subcommand(run: RunContext, problems: Problems) -> None:
    """Check the options of the data by themselves, and against the subcommand and the number of processes."""
    options, trainer, subcommand = run.options, run.trainer, run.trainer.state.fn
    problems.add(options.problems())
    if options.replay is not None and (options.grid is not None or subcommand not in (None, "predict")):
        problems.add([f"data.replay: got {options.replayed}. Expected it with predict alone, and without data.grid."])
    if subcommand in (None, "fit"):
        accumulated = trainer.accumulate_grad_batches
        problems.add(step_problems(options.batch_size, options.effective_batch, trainer.world_size, accumulated))
    if options.grid is not None and subcommand not in (None, "predict"):
        rank_zero_warn("data.grid: only predict runs through it.")


def _check_run(run: RunContext, found: Problems) -> None:
    """Optimiser, precision, the checkpoint to be loaded and the folder to be written."""
    trainer, module = run.trainer, run.module
    found.add(module.problems())
    found.add(checks.trainer_problems(trainer))
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if hasattr(callback, "problems") and trainer.state.fn in ("fit", "test"):
            found.add(callback.problems())
    found.add(strategy_problems(trainer.strategy, module.base, str(trainer.precision), trainer.world_size))
    loops = {name: getattr(trainer, name).state_dict() for name in LOOPS.values()} if run.checkpoint else None
    found.add(checkpoint_problems(run.checkpoint, module.identity(), trainer.state.fn or "fit", loops))
    if module.adapter is not None:
        found.add(adapter_problems(module.adapter, module.base, run.checkpoint, trainer.state.fn == "fit"))
    if trainer.state.fn == "fit" and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        # A job that SLURM has requeued goes on in its folder, from the checkpoint that Lightning finds by itself.
        resuming = run.checkpoint is not None or "SLURM_RESTART_COUNT" in os.environ
        found.add(checks.run_folder_problems(trainer.log_dir, resuming))


def _check_model(
    run: RunContext, config: PretrainedConfig, bank: VectorBank | None, found: Problems
) -> tuple[Bands, Bands, Bands] | None:
    """What depends on the model's shape; returns the bands of training, of the tests and of the grid as layer numbers."""
    base, layers = run.module.base, config.num_hidden_layers
    found.add(lora_problems(run.module.lora, layers))
    found.add(nf4_on_cpu_problems(base, config, run.trainer.strategy.root_device.type))
    if bank:
        misfits = bank.misfits(base.name, base.revision or "", config.hidden_size, layers)
        found.add(misfits or leaks.bank_leak_problems(bank))
        bank = None if misfits else bank  # what does not fit cannot be looked into
    if bank:
        found.add(bank_size_problems(bank, run.options.vector_counts))
    wanted = [SOURCES[name].vectors for name in run.options.test_sets if name in SOURCES]
    wanted += run.options.grid.vectors if run.options.grid is not None else []
    have = bank.directions if bank else ("train", "validation", "heldout", "concept", "concept_pca")
    found.add(
        f"data.bank: has no directions of {split!r}, which a test set or the grid asks for. Make it with "
        "scripts/generate_vectors.py, or leave the test set out."
        for split in dict.fromkeys(wanted)
        if split in OPTIONAL_SPLITS and split not in have
    )
    bands = test_bands = found.attempt(resolve_bands, run.options.bands, layers)
    if run.options.bands_of_tests != run.options.bands:
        test_bands = found.attempt(resolve_bands, run.options.bands_of_tests, layers, "test_bands")
    grid_bands = bands
    if run.options.grid is not None:
        grid_bands = found.attempt(resolve_bands, run.options.grid.bands, layers, "grid.bands")
    steered = test_bands if "imported" in run.options.test_sets else ()
    steered = grid_bands if run.options.grid is not None and "imported" in run.options.grid.vectors else steered
    if bank and "imported" in bank.directions:
        found.add(bank.unreached(steered or ()))
    return (bands, test_bands, grid_bands) if bands and test_bands and grid_bands else None


def _leave_out(
    run: RunContext, dealt: dict[str, list[Context]], words: Wording, found: Problems
) -> dict[str, list[Context]]:
    """Contexts by split without those that are too long or would fake turns; of a grid, the ones that it runs in."""
    in_grid = run.options.grid is not None and run.trainer.state.fn == "predict"
    first = words.questions["train"][0]
    parts = {name: group for name, group in dealt.items() if in_grid == (name == "all")}
    usable = {
        name: usable_contexts(words.tokenizer, group, first, words.phrasing, run.options.max_context_tokens)
        for name, group in parts.items()
    }
    before, after = (sum(len(part) for name, part in groups.items() if name != "odd") for groups in (parts, usable))
    if after < before:
        given = [context for name, group in parts.items() if name != "odd" for context in group]
        controlled = sum(fakes_turns(words.tokenizer, context, first, words.phrasing) for context in given)
        long = f"{before - after - controlled} longer than {run.options.max_context_tokens} tokens"
        reason = f"{long}, {controlled} with control tokens or other text that the chat template would not leave as text"
        rank_zero_info(f"left out: {before - after} of {before} contexts ({reason})")
    for source in SOURCES.values():
        if "+" in source.contexts and not in_grid:
            usable[source.contexts] = mix_by_kind([usable[part] for part in source.contexts.split("+")])
    needed = ["all"] if in_grid else [SOURCES[name].contexts for name in ("train", "validation", *run.options.test_sets)]
    found.add(split_problems(usable, needed, before - after))
    found.raise_if_any()
    return usable


def _build_split(
    run: RunContext,
    name: str,
    usable: dict[str, list[Context]],
    sizes: dict[str, int],
    words: Wording,
    bands: tuple[Bands, Bands, Bands],
) -> Split:
    """Make one split; validation draws bands and strengths as training does, since the threshold is set on it."""
    source, tested = SOURCES[name], name in run.options.test_sets
    contexts, questions = usable[source.contexts], words.questions[source.questions]
    counts = (run.options.seed, name, len(contexts), len(questions), sizes[source.vectors], bands[tested])
    plan: TrialPlan | OncePlan
    if source.doses:
        steps = tuple(run.options.test_doses)
        plan = OncePlan(*counts, (min(steps), max(steps)), run.trial_counts[name], steps)
    elif tested and run.options.test_clean == "once":
        plan = OncePlan(*counts, run.options.strengths_of_tests, run.trial_counts[name])
    else:
        plan = TrialPlan(*counts, run.options.strengths_of_tests if tested else run.options.strengths)
    total = None if name == "train" else run.trial_counts[name]
    phrasing, answer_ids = words.phrasing, words.answer_ids
    if source.questions == "swapped":
        phrasing, answer_ids = replace(phrasing, answers=phrasing.answers[::-1]), answer_ids[::-1]
    roles = [CLEAR_YES] * len(TRUE_QUESTIONS) + [CLEAR_NO] * len(FALSE_QUESTIONS) if source.questions == "factual" else ()
    asked = (contexts, questions, words.tokenizer, phrasing, answer_ids)
    control = run.options.control if name == "train" else "none"
    return Split(name, plan, *asked, run.options.strength_unit, source, roles, total, run.options.seed, control)


def _build_grid(
    run: RunContext,
    usable: dict[str, list[Context]],
    sizes: dict[str, int],
    words: Wording,
    bands: tuple[Bands, Bands, Bands],
    found: Problems,
) -> dict[str, Split]:
    """A split for each condition and kind of vector of the grid."""
    grid, splits = run.options.grid, {}
    assert grid is not None
    available = len(usable["all"])
    own = any(context.question_turns for context in usable["all"])
    if grid.contexts is not None and grid.contexts > available:
        found.add([f"data.grid.contexts: {grid.contexts} asked for, but there are {available}."])
    contexts = evenly_spaced(usable["all"], grid.contexts or (available if own else DEFAULT_CONTEXTS))
    detection = words.questions["train"]
    if "heldout" in grid.vectors and grid.random_vectors > sizes["heldout"]:
        found.add(
            [f"data.grid.random_vectors: {grid.random_vectors} asked for, but there are {sizes['heldout']} held out."]
        )
    controls = builtin_questions([*grid.true_questions, *grid.false_questions], words.phrasing.answers)
    questions = [*detection, *controls]
    controls_of = "data.grid.true_questions, data.grid.false_questions"
    found.add(control_token_problems(words.tokenizer, controls, controls_of))
    found.raise_if_any()
    for info in grid.info:
        text = found.attempt(info_text, info, words.tokenizer) or ""
        found.add(control_token_problems(words.tokenizer, [text], "data.grid.info"))
        phrasing = replace(words.phrasing, info=text)
        longest = longest_question(words.tokenizer, questions, phrasing)
        found.add(window_problems(run.options.max_context_tokens, longest, load_config(run.module.base)))
        for vectors in grid.vectors:
            name = split_name(info, vectors)
            count = min(grid.random_vectors, sizes[vectors]) if vectors in RANDOM_SPLITS else sizes[vectors]
            plan = GridPlan(name, len(contexts), len(questions), count, bands[2], tuple(grid.strengths))
            asked = (contexts, questions, words.tokenizer, phrasing, words.answer_ids)
            roles = grid.roles(len(detection))
            share_question_prefix = not is_sharded(run.trainer)
            source = Source(vectors, "all")
            splits[name] = Split(
                name,
                plan,
                *asked,
                run.options.strength_unit,
                source,
                roles,
                plan.total,
                share_question_prefix=share_question_prefix,
            )
    return splits


def _take_manifest(run: RunContext, splits: dict[str, Split], bank: VectorBank, found: Problems) -> None:
    """Let the training split have the trials of the manifest."""
    manifest = found.attempt(Manifest, run.options.manifest_path)
    if manifest is None:
        return
    base, train = run.module.base, splits["train"]
    wrong = setting_problems(
        manifest.header, manifest_settings(train, bank, base.name, base.revision or "", run.options.seed)
    )
    found.add(wrong)
    if not wrong:
        plan = ManifestPlan(manifest, train, bank, run.options.seed)
        found.add(plan.problems())
        splits["train"] = replace(train, plan=plan)
        run.trial_counts["train"] = manifest.total
