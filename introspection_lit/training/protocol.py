"""The protocol of a test or a grid, for its results file: everything that a number depends on."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from introspection_lit.trials.grid import info_of
from introspection_lit.trials.test_sets import LONG_SETS

if TYPE_CHECKING:
    from introspection_lit.training.run_context import RunContext


def grid_protocol(run: RunContext) -> dict[str, Any]:
    """Describe everything about a grid that a number depends on, for results files.

    Args:
        run: After its set-up.
    """
    first = next(iter(run.splits.values()))
    return {
        "seed": run.options.seed,
        "contexts": run.options.contexts,
        "context_keys": [context.key for context in first.contexts],
        "questions": list(first.questions),
        **run.phrasing.describe(),
        "infos": {info_of(name): split.phrasing.info for name, split in run.splits.items()},
        "strength_unit": run.options.strength_unit,
        "prefill_adapter": run.options.prefill_adapter,
        "bank": run.vector_bank.fingerprint,
        "other_base": other_base(run),
    }


def other_base(run: RunContext) -> str | None:
    """Differences of the base model that the user accepts (``model.adapter_base any``), in words; None: there are none."""
    return " ".join(f"{sentence}." for sentence in run.module.base_identity.accepted) or None


def protocol(run: RunContext) -> dict[str, Any]:
    """Describe everything about the trials of a test that a number depends on, for results files.

    Args:
        run: After its set-up.
    """
    test, long = run.splits[run.options.test_sets[0]].plan, run.options.long_options
    return {
        "seed": run.options.seed,
        "contexts": run.options.contexts,
        "max_context_tokens": run.options.max_context_tokens,
        **({"long": asdict(long)} if long.share or set(LONG_SETS) & set(run.splits) else {}),
        "kinds": {name: sorted({c.kind for c in split.contexts}) for name, split in run.splits.items()},
        "questions": run.wording.questions,
        **run.phrasing.describe(),
        "bands": [list(band) for band in test.bands],
        "strengths": list(test.strengths),
        "strength_unit": run.options.strength_unit,
        "prefill_adapter": run.options.prefill_adapter,
        "bank": run.vector_bank.fingerprint,
        "other_base": other_base(run),
        "vectors": {split: len(rows) for split, rows in run.vector_bank.directions.items()},
        "concepts": run.vector_bank.names["concept"],
        "concept_cosines": [[round(c, 3) for c in row] for row in run.vector_bank.concept_cosines().tolist()],
    }
