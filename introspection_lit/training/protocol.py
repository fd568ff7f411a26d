"""The protocol of a test or a grid, for its results file: everything that a number depends on."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from introspection_lit.trials.grid import info_of

if TYPE_CHECKING:
    from introspection_lit.training.datamodule import IntrospectionDataModule


def grid_protocol(data: IntrospectionDataModule) -> dict[str, Any]:
    """Describe everything about a grid that a number depends on, for results files.

    Args:
        data: After its set-up.
    """
    assert data.bank is not None
    first = next(iter(data.splits.values()))
    return {
        "seed": data.seed,
        "contexts": data.contexts_source,
        "context_keys": [context.key for context in first.contexts],
        "questions": list(first.questions),
        **asdict(data.phrasing),
        "infos": {info_of(name): split.phrasing.info for name, split in data.splits.items()},
        "strength_unit": data.strength_unit,
        "prefill_adapter": data.prefill_adapter,
        "bank": data.bank.fingerprint,
    }


def protocol(data: IntrospectionDataModule) -> dict[str, Any]:
    """Describe everything about the trials of a test that a number depends on, for results files.

    Args:
        data: After its set-up.
    """
    assert data.bank is not None
    test = data.splits[data.test_sets[0]].plan
    return {
        "seed": data.seed,
        "contexts": data.contexts_source,
        "max_context_tokens": data.max_context_tokens,
        "kinds": {name: sorted({c.kind for c in split.contexts}) for name, split in data.splits.items()},
        "questions": data.wording.questions,
        **asdict(data.phrasing),
        "bands": [list(band) for band in test.bands],
        "strengths": list(test.strengths),
        "strength_unit": data.strength_unit,
        "prefill_adapter": data.prefill_adapter,
        "bank": data.bank.fingerprint,
        "vectors": {split: len(rows) for split, rows in data.bank.directions.items()},
        "concepts": data.bank.names["concept"],
        "concept_cosines": [[round(c, 3) for c in row] for row in data.bank.concept_cosines().tolist()],
    }
