"""What takes long to measure and is the same in every run is kept in the cache, and measured again if anything differs."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from introspection_lit.utils.checksums import CHECKSUM
from introspection_lit.utils.errors import RunError
from introspection_lit.utils.files import cache_folder, write_file
from introspection_lit.utils.tensor_hash import content_hash

# Seconds: what is measured faster than this is not kept, such as all of tiny models.
WORTH_KEEPING = 1.0
PACKAGES = ("torch", "transformers", "numpy", "scikit-learn")


def kept_tensors(
    name: str, depends_on: Mapping[str, Any] | None, measure: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Tensors from the cache, or measured and, if that took long, written there.

    The file's name is a hash of everything that the tensors depend on, and of the versions of the packages that compute
    them; a file that is damaged is measured again and replaced. Several processes may measure at once: they write the same
    content, atomically. A cache that cannot be written is a warning. The files can be deleted at any time.

    Args:
        name: What is measured, the beginning of the file's name.
        depends_on: What the tensors depend on, as JSON can hold it. None: they are not kept.
        measure: Measures them; on the CPU.

    Returns:
        What ``measure`` returns, bit for bit.
    """
    if depends_on is None:
        return measure()
    versions = {package: version(package) for package in PACKAGES}
    identity = json.dumps({"name": name, "versions": versions, **depends_on}, sort_keys=True)
    path = cache_folder() / f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.safetensors"
    kept = _read(path, identity)
    if kept is not None:
        return kept
    start = time.monotonic()
    tensors = {part: tensor.contiguous() for part, tensor in measure().items()}
    if time.monotonic() - start >= WORTH_KEEPING:
        try:
            write_file(path, save(tensors, metadata={CHECKSUM: content_hash([identity, dict(sorted(tensors.items()))])}))
        except (RunError, OSError) as error:
            reason = error.problems[0] if isinstance(error, RunError) else str(error)
            warnings.warn(f"{name} are not kept for other runs: INTROSPECTION_LIT_CACHE: {reason}", stacklevel=2)
    return tensors


def _read(path: Path, identity: str) -> dict[str, Tensor] | None:
    """The tensors of a file that was written for this identity; None: there is none, or it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {part: file.get_tensor(part) for part in sorted(file.keys())}
            checksum = (file.metadata() or {}).get(CHECKSUM)
    except (SafetensorError, OSError, ValueError, RuntimeError):
        return None
    return tensors if checksum == content_hash([identity, tensors]) else None
