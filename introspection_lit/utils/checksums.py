"""Checksums: the SHA-256 of a file's content, kept in the file, by which damage and changes are detected when it is read.

A checksum is no signature: who changes a file on purpose can remove it, and the message says so.
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
    """Write a JSON file with a checksum, atomically.

    Raises:
        RunError: The system does not let it be written.
        ValueError: A number is NaN or infinite.
    """
    write_file(path, json.dumps(with_checksum(content), indent=2, allow_nan=False) + "\n")


def with_checksum(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a JSON file with its checksum."""
    return {**content, CHECKSUM: _hash(json.loads(json.dumps(content, allow_nan=False)))}


def checksum_problem(content: Mapping[str, Any]) -> str | None:
    """Say that a JSON file does not have the content of its checksum; None if it has, or has no checksum (older files)."""
    return None if content.get(CHECKSUM, _hash(content)) == _hash(content) else mismatch(f"its field {CHECKSUM!r}")


def _hash(content: Mapping[str, Any]) -> str:
    """A hash that depends neither on layout nor on the order of fields."""
    hashed = {name: value for name, value in content.items() if name != CHECKSUM}
    return hashlib.sha256(json.dumps(hashed, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def mismatch(checksum: str) -> str:
    """The message for a file whose content is not that of its checksum.

    Args:
        checksum: What to remove if the change is meant.
    """
    return f"it was changed or damaged after it was written. Take another copy; if the change is meant, remove {checksum}"


def file_hash(path: Path) -> str:
    """The SHA-256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
