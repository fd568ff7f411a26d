"""Seals: the SHA-256 of a file's content, kept in the file, by which damage and changes are found when it is read.

A seal is no signature: whoever changes a file on purpose can remove it, and is told so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from introspection_lit.utils.files import write_file

CHECKSUM = "sha256"  # the field that holds it


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file with a seal, complete or not at all.

    Args:
        path: Where to.
        content: What JSON can say; numbers must be finite.

    Raises:
        RunError: The system does not let it be written.
        ValueError: A number is not finite.
    """
    write_file(path, json.dumps(with_checksum(content), indent=2, allow_nan=False) + "\n")


def with_checksum(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a JSON file with its seal."""
    plain = {name: value for name, value in content.items() if name != CHECKSUM}
    return {**plain, CHECKSUM: _hash(json.loads(json.dumps(plain, allow_nan=False)))}


def checksum_problem(content: Mapping[str, Any]) -> str | None:
    """Say what is wrong with the seal of a JSON file that was read; None if it is right, or there is none (older files)."""
    plain = {name: value for name, value in content.items() if name != CHECKSUM}
    return None if CHECKSUM not in content or content[CHECKSUM] == _hash(plain) else mismatch(f"its field {CHECKSUM!r}")


def mismatch(seal: str) -> str:
    """What is said of a file whose seal is broken.

    Args:
        seal: What to remove if the change is meant.
    """
    return f"it was changed or damaged after it was written. Take another copy; if the change is meant, remove {seal}"


def file_hash(path: Path) -> str:
    """The SHA-256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash(plain: dict[str, Any]) -> str:
    """The hash of JSON content, whatever its layout and the order of its fields."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
