"""Where a number came from: command, code, versions, hardware, and what was tested."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from introspection_lit.grid import info_of

if TYPE_CHECKING:
    from introspection_lit.data import IntrospectionDataModule

PACKAGES = ("torch", "lightning", "transformers", "peft", "bitsandbytes", "torchmetrics", "numpy")


def provenance() -> dict[str, Any]:
    """Describe this run, for results files.

    Returns:
        ``command``, ``time`` (UTC), ``commit`` (with ``+changes`` if the tree is dirty; None outside git), ``python``,
        ``versions`` and ``hardware``.
    """
    program = "-m introspection_lit" if sys.argv[0].endswith("__main__.py") else sys.argv[0]
    return {
        "command": f"python {program} {shlex.join(sys.argv[1:])}".strip(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "hardware": _hardware(),
    }


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


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    def git(*words: str) -> str:
        folder = Path(__file__).parent
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # installed inside somebody else's repository?
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _hardware() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{os.cpu_count()} CPU cores ({platform.machine()})"
