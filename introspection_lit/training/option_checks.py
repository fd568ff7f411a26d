"""Checks of the options of the data that need nothing but these options."""

from __future__ import annotations

from introspection_lit.models.base_model import MAX_ROWS, MAX_WORKERS
from introspection_lit.steering.bands import strength_problems
from introspection_lit.steering.limits import LEAST_STRENGTH, MOST_STRENGTH
from introspection_lit.tasks.questionnaire import (
    OPTIONS,
    OWN_CACHES,
    PAIRS_IN_ROUND,
    QUESTIONS_OF_TEST_SETS,
    task_problems,
)
from introspection_lit.training.changed_caches import change_problems
from introspection_lit.training.checks import concept_list_problems, count_problems
from introspection_lit.training.options import DataOptions
from introspection_lit.trials.test_sets import OF_CONCEPTS, QUESTIONNAIRES


def option_problems(options: DataOptions) -> list[str]:
    """Errors in counts, sizes, ranges and concepts; what depends on model or trainer is checked elsewhere."""
    counts = {f"{split}_vectors": count for split, count in options.vector_counts.items() if count is not None}
    counts |= {"max_context_tokens": options.max_context_tokens}
    sizes = {"eval_batch_size": options.eval_batch_size}
    sizes |= {"trials_per_epoch": options.trials_per_epoch, "validation_trials": options.validation_trials}
    sizes |= {f"test_trials.{name}": count for name, count in options.test_trials.items()}
    problems = count_problems(counts, sizes, options.test_sets) + strength_problems("strengths", options.strengths)
    if not options.test_doses or any(strength_problems("test_doses", (dose, dose)) for dose in options.test_doses):
        expected = f"Expected some strengths, each above 0, from {LEAST_STRENGTH:g} to {MOST_STRENGTH:g}"
        problems.append(f"data.test_doses: got {options.test_doses}. {expected}.")
    if options.strengths_of_tests != options.strengths:
        problems += strength_problems("test_strengths", options.strengths_of_tests)
    if options.curriculum is not None:
        problems += options.curriculum.problems(options.manifest is not None, options.merged)
    if options.both_signs and options.manifest is not None:
        found = "a manifest lists directions that are added"
        problems.append(f"data.both_signs: {found}. Leave data.manifest or data.both_signs out.")
    if options.dither and not LEAST_STRENGTH <= options.dither < min(options.strengths):
        expected = f"Expected 0, or a strength from {LEAST_STRENGTH:g} to below all of data.strengths"
        problems.append(f"data.dither: got {options.dither}. {expected}.")
    if not 0 <= options.merged < 1:
        problems.append(f"data.merged: got {options.merged}. Expected a share from 0 to below 1.")
    problems += options.grid.problems() if options.grid is not None else []
    problems += options.reuse.problems()
    problems += options.long_options.problems()
    problems += _task_problems(options) + change_problems(options)
    if options.seed < 0 or options.num_workers < 0:
        problems.append(f"data.seed, data.num_workers: got {options.seed} and {options.num_workers}. Expected 0 or more.")
    limits = {"num_workers": MAX_WORKERS, "eval_batch_size": MAX_ROWS, "batch_size": MAX_ROWS}
    problems += [
        f"data.{option}: got {size}. Expected at most {most}."
        for option, most in limits.items()
        if not isinstance(size := getattr(options, option), str) and size > most
    ]
    return problems + _concept_problems(options)


def _task_problems(options: DataOptions) -> list[str]:
    each = 2 * QUESTIONS_OF_TEST_SETS
    counts = {f"test_trials.{name}": count for name, count in options.test_trials.items() if name in QUESTIONNAIRES}
    counts |= {"eval_batch_size": options.eval_batch_size} if counts else {}
    problems = [
        f"data.{name}: got {count}. Expected a multiple of {each}: {', '.join(QUESTIONNAIRES)} ask a clean and a "
        f"steered cache {QUESTIONS_OF_TEST_SETS} questions each, which stay together."
        for name, count in counts.items()
        if count % each
    ]
    if options.tasks is None:
        return problems
    if wrong := task_problems(options.tasks):
        return problems + wrong
    each = 2 * options.questions_of_cache
    names = ("batch_size", "effective_batch", "eval_batch_size", "validation_trials")
    sizes = {name: getattr(options, name) for name in names}
    problems += [
        f"data.{name}: got {size}. Expected a multiple of {each}: data.tasks asks a clean and a steered cache "
        f"{options.questions_of_cache} questions each, which stay together."
        for name, size in sizes.items()
        if isinstance(size, int) and size % each
    ]
    if set(OWN_CACHES) & set(options.tasks) and options.validation_trials < PAIRS_IN_ROUND * each:
        problems.append(
            f"data.validation_trials: got {options.validation_trials}. Expected at least {PAIRS_IN_ROUND * each}: "
            f"{PAIRS_IN_ROUND} pairs of caches, among which every task has its own."
        )
    if options.batch_size == "auto" and options.effective_batch is None:
        problems.append(f"data.effective_batch: got none, with data.tasks and auto. Expected a multiple of {each}.")
    if options.manifest is not None:
        problems.append("data.manifest: lists single questions. Leave data.tasks out, or draw the trials.")
    if options.prefill_adapter:
        expected = "the answers of the untrained model need caches that it has written itself"
        problems.append(f"data.prefill_adapter: got true with data.tasks; {expected}.")
    return problems


def _concept_problems(options: DataOptions) -> list[str]:
    problems = concept_list_problems(
        "concepts", options.concepts, 3, "they are centred over each other, and two would be opposites"
    )
    reason = "a question names nine and nothing"
    if options.concepts_to_train:
        problems += concept_list_problems("trained_concepts", options.concepts_to_train, OPTIONS, reason)
        tested = {concept.casefold() for concept in options.concepts}
        if both := sorted(concept for concept in options.concepts_to_train if concept.casefold() in tested):
            problems.append(f"data.trained_concepts: {both} are in data.concepts too, which are tested. Leave them out.")
    asked = [name for name in OF_CONCEPTS if name in options.test_sets]
    if asked and len(options.concepts) < OPTIONS:
        problems.append(f"data.concepts: got {len(options.concepts)}. Expected {OPTIONS} for the test set {asked[0]}.")
    if options.manifest is not None and options.bank is None:
        problems.append("data.manifest: needs data.bank too, the bank whose vectors it names.")
    return problems
