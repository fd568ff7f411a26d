"""Changes the caches of a batch after its prefill, and splits and options of runs whose caches are changed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from introspection_lit.contexts.context import Context
from introspection_lit.contexts.variants import VARIANTS, add_variants
from introspection_lit.models.architecture import rotary_frequencies
from introspection_lit.steering.cache_changes import OF_CACHES, change_caches, rotated, with_tensors
from introspection_lit.steering.change_names import BENIGN, CHANGES
from introspection_lit.steering.other_adapter import other_adapter
from introspection_lit.steering.prefill import steered_cache
from introspection_lit.steering.rewritten_caches import chunked_cache, received_attention
from introspection_lit.training.options import DataOptions
from introspection_lit.trials.changed_plans import STRENGTH, BenignPlan, DeployedPlan
from introspection_lit.trials.plans import TrialPlan
from introspection_lit.trials.test_sets import DEPLOYED
from introspection_lit.utils.errors import ConfigurationError, RunError

if TYPE_CHECKING:
    from transformers import Cache, PretrainedConfig

    from introspection_lit.steering.bands import Bands
    from introspection_lit.tasks.questionnaire import PairKinds
    from introspection_lit.tasks.wording import Wording
    from introspection_lit.training.module import IntrospectionModule
    from introspection_lit.trials.batch import TrialBatch

SHIFTED = "shifted"
# Changes that run the model once more over the contexts.
PASSES = OTHER_ADAPTER, CHUNKS, HEAVY_HITTERS = "other_adapter", "chunks", "heavy_hitters"


def changes_used(options: DataOptions) -> list[str]:
    """Names of the changes that a run makes, in training or in its test sets."""
    tested = options.changes_of_tests if set(DEPLOYED) & set(options.test_sets) else []
    return list(dict.fromkeys([*tested, *(options.benign or ())]))


def change_problems(options: DataOptions) -> list[str]:
    """Errors in ``data.test_changes``, ``data.benign`` and ``data.benign_share``."""
    known = ", ".join(CHANGES)
    problems = [
        f"data.{option}: {name!r} is no change of a cache. Expected some of: {known}."
        for option in ("test_changes", "benign")
        for name in getattr(options, option) or ()
        if name not in CHANGES
    ]
    problems += [
        f"data.benign: {name!r} is tampering, which is not to be called clean. Expected some of: {', '.join(BENIGN)}."
        for name in options.benign or ()
        if name in CHANGES and not CHANGES[name].benign
    ]
    if not 0 <= options.benign_share <= 1:
        problems.append(f"data.benign_share: got {options.benign_share}. Expected a share of the pairs, in [0, 1].")
    if options.benign and options.manifest is not None:
        problems.append("data.benign: a manifest lists trials without changes. Leave data.manifest or data.benign out.")
    problems += [
        f"data.{option}: names a change twice: {getattr(options, option)}. Name each once."
        for option in ("test_changes", "benign")
        if len(set(getattr(options, option) or ())) < len(getattr(options, option) or ())
    ]
    least = 2 * (1 + len(options.changes_of_tests))
    problems += [
        f"data.test_trials.{name}: got {options.test_trials[name]}. Expected at least {least}: a clean and a steered trial "
        f"for each of {len(options.changes_of_tests)} changes (data.test_changes) and for untouched caches."
        for name in options.test_sets
        if name in DEPLOYED and options.test_trials[name] < least
    ]
    return problems


def change_problems_of_model(
    options: DataOptions, config: PretrainedConfig, targets: Sequence[str], sharded: bool
) -> list[str]:
    """Changes that a model or a strategy cannot make, found before the model is loaded.

    Args:
        options: Of the data.
        config: The decoder's configuration.
        targets: Names of the modules that get an adapter by default.
        sharded: The model is trained with FSDP.
    """
    used, problems = changes_used(options), []
    if OTHER_ADAPTER in used and not targets:
        expected = "puts matrices where adapters are put by default, and for this architecture nothing is known"
        problems.append(f"data.test_changes, data.benign: {OTHER_ADAPTER} {expected}. Leave it out.")
    rotary = getattr(config, "rope_parameters", None)
    if SHIFTED in used and not (isinstance(rotary, dict) and "rope_theta" in rotary):
        expected = "needs rotary positions with one set of frequencies for all layers, and the model has none"
        problems.append(f"data.test_changes, data.benign: {SHIFTED} {expected}. Leave it out.")
    if (of_caches := [name for name in used if name in OF_CACHES or name in PASSES]) and not _plain(config):
        expected = "need keys and values of one shape in every layer, which this architecture does not keep"
        problems.append(f"data.test_changes, data.benign: {', '.join(of_caches)} {expected}. Leave them out.")
    if sharded:
        unmade = ", ".join(name for name in PASSES if name in used)
        advice = "Leave out what is named, or use one device."
        problems += [f"data.test_changes, data.benign: {unmade} cannot be made with FSDP. {advice}"] if unmade else []
    return problems


def _plain(config: PretrainedConfig) -> bool:
    """Whether every layer of a model keeps keys and values of the same shape, and nothing else."""
    kinds = set(getattr(config, "layer_types", None) or ())
    others = ("kv_lora_rank", "num_kv_shared_layers", "global_head_dim", "index_topk")
    return kinds <= {"full_attention", "sliding_attention", "chunked_attention"} and not any(
        getattr(config, name, None) for name in others
    )


def deployed_split(
    options: DataOptions, name: str, contexts: list[Context], wording: Wording, counts: tuple[int, int], bands: Bands
) -> tuple[DeployedPlan, list[Context]]:
    """The plan of a test set with every change in turn, and its contexts with those that are variants of others.

    Args:
        options: Of the data.
        name: The test set.
        contexts: Its contexts.
        wording: Questions and answers.
        counts: Numbers of questions and of directions.
        bands: Steered bands.

    Raises:
        ConfigurationError: A change cannot be made.
    """
    contexts, more, variants = _with_variants(options, contexts, wording, options.changes_of_tests, 0)
    changes = ("", *options.changes_of_tests)
    plan = DeployedPlan(options.seed, name, len(contexts), *counts, bands, (STRENGTH, STRENGTH), changes, variants)
    return plan, [*contexts, *more]


def with_benign_changes(
    options: DataOptions, plan: TrialPlan, contexts: list[Context], wording: Wording, kinds: PairKinds | None, others: int
) -> tuple[TrialPlan, list[Context], list[Context]]:
    """Let a share of the pairs of training or validation have benign changes; all stays as it is without ``data.benign``.

    Args:
        options: Of the data.
        plan: Of the pairs.
        contexts: Those that the plan draws from.
        wording: Questions and answers.
        kinds: Kinds of the pairs, with several tasks.
        others: How many other contexts come between these and their variants in the split's list.

    Returns:
        The plan; its contexts, which may be fewer; and variants of them, for the end of the list.

    Raises:
        ConfigurationError: A change cannot be made.
    """
    if not options.benign or not options.benign_share:
        return plan, contexts, []
    before = contexts
    contexts, more, variants = _with_variants(options, before, wording, options.benign, others)
    values = {field.name: getattr(plan, field.name) for field in fields(TrialPlan) if field.init}
    kept = set(map(id, contexts))
    values |= {"contexts": len(contexts), "single": sum(id(context) in kept for context in before[: plan.single])}
    changed = BenignPlan(
        **values, changes=tuple(options.benign), share=options.benign_share, kinds_of=kinds, variants=variants
    )
    return changed, contexts, more


def _with_variants(
    options: DataOptions, contexts: list[Context], wording: Wording, changes: Sequence[str], others: int
) -> tuple[list[Context], list[Context], tuple[tuple[str, int], ...]]:
    """The contexts of which all variants exist, these variants, and how far each variant is from its context."""
    names = [name for name in changes if name in VARIANTS]
    if not names:
        return contexts, [], ()
    question = wording.questions["train"][0]
    kept, made = add_variants(wording.tokenizer, contexts, names, options.seed, question, wording.phrasing)
    if not kept:
        problem = "no context has the variants that these changes need"
        raise ConfigurationError([f"data.test_changes, data.benign: {problem} ({', '.join(names)}). Leave them out."])
    places = tuple((name, (number + 1) * len(kept) + others) for number, name in enumerate(names))
    return kept, [variant for name in names for variant in made[name]], places


def apply_changes(module: IntrospectionModule, batch: TrialBatch, targets: Sequence[str]) -> None:
    """Change the caches of a batch; sets its cache, the mask of what may be read, and the next positions.

    Args:
        module: The module.
        batch: With its cache.
        targets: Names of the modules that get an adapter by default.

    Raises:
        RunError: The model's caches or rotary positions are of a kind that cannot be changed.
    """
    if batch.changes is None:
        return
    assert batch.cache is not None, "the prefill has not run"
    rows_of = {name: [row for row, change in enumerate(batch.changes) if change.name == name] for name in PASSES}
    for name in (CHUNKS, OTHER_ADAPTER):
        if rows_of[name]:
            batch.cache = _written_again(module, batch, name, rows_of[name], targets)
    attention: dict[int, Tensor] = {}
    if rows := rows_of[HEAVY_HITTERS]:
        inputs = batch.context_ids[rows], batch.context_mask[rows], batch.intervention.select(rows)
        attention = dict(zip(rows, received_attention(module.model, module.layers, *inputs), strict=True))
    shifted = any(change.name == SHIFTED for change in batch.changes)
    frequencies = checked_frequencies(module) if shifted else None
    changed = change_caches(batch.cache, batch.context_mask, batch.changes, frequencies, attention)
    batch.cache, batch.cache_mask, batch.next_positions = changed


def _written_again(
    module: IntrospectionModule, batch: TrialBatch, name: str, rows: list[int], targets: Sequence[str]
) -> Cache:
    """The caches of a batch, of which some rows are written again in another way."""
    assert batch.cache is not None, "the prefill has not run"
    index = torch.tensor(rows, device=batch.context_ids.device)
    inputs = batch.context_ids[index], batch.context_mask[index], batch.intervention.select(rows)
    if name == CHUNKS:
        again = chunked_cache(module.model, module.layers, *inputs)
    else:
        like, seed = module.model.get_input_embeddings().weight, 0  # the same adapter in every run
        with other_adapter(module.layers, targets, seed, like):
            again = steered_cache(module.model, module.model, module.layers, *inputs)
    tensors = []
    for part in ("keys", "values"):
        whole = torch.stack([getattr(layer, part) for layer in batch.cache.layers])
        whole[:, index] = torch.stack([getattr(layer, part) for layer in again.layers]).to(whole)
        tensors.append(whole)
    return with_tensors(batch.cache, *tensors)


def checked_frequencies(module: IntrospectionModule) -> Tensor:
    """The model's rotary frequencies, ``(rotated channels / 2,)``, if turning keys with them is what the model does.

    Raises:
        RunError: The model pairs its channels in another way, or has no such frequencies.
    """
    frequencies = rotary_frequencies(module.model)
    decoder = module.model.get_base_model().get_decoder()
    own = getattr(sys.modules[type(decoder).__module__], "apply_rotary_pos_emb", None)
    problem = f"data.test_changes, data.benign: the rotary positions of this model are unknown to us. Leave {SHIFTED} out."
    if frequencies is None or own is None:
        raise RunError([problem])
    keys = torch.randn(1, 1, 1, 2 * len(frequencies), generator=torch.Generator().manual_seed(0)).to(frequencies.device)
    late, early = (_at(decoder, own, keys, position) for position in (9, 4))
    if late.shape != keys.shape or not torch.allclose(rotated(late, 4 - 9, frequencies), early, atol=1e-4):
        raise RunError([problem])
    return frequencies


def _at(decoder: torch.nn.Module, own: object, keys: Tensor, position: int) -> Tensor:
    """Keys at a position, by the model's own functions."""
    places = torch.tensor([[position]], device=keys.device)
    cosines, sines = decoder.rotary_emb(keys, places)  # type: ignore[operator]
    turned: Tensor = own(keys, keys, cosines, sines)[1]  # type: ignore[operator]
    return turned
