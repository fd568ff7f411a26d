"""Checkpoint files: written atomically, with a checksum over their content, and checked whenever they are read."""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import Tensor

from introspection_lit.utils.checksums import CHECKSUM, mismatch
from introspection_lit.utils.errors import ConfigurationError, RunError
from introspection_lit.utils.files import write_file
from introspection_lit.utils.resource_limits import room_for
from introspection_lit.utils.tensor_hash import content_hash

DIVERGED = "diverged.ckpt"  # weights of a training that has diverged; training cannot go on from them


class CheckpointFiles(TorchCheckpointIO):
    """Writes and reads the checkpoints of Lightning's trainer.

    Differs from Lightning's: a checkpoint is written beside its place (Lightning goes through the folder for temporary
    files, which may be another disk); it has a checksum; nothing is ever unpickled.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint atomically.

        Args:
            checkpoint: Tensors, plain values, and dictionaries and lists of them.
            path: Where to; addresses (``s3://...``) are left to Lightning.
            storage_options: Of addresses.

        Raises:
            RunError: The system does not let it be written, or it could not be read back.
        """
        checkpoint = {**checkpoint, CHECKSUM: content_hash(checkpoint)}
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path, content = Path(path), io.BytesIO()
        torch.save(checkpoint, content)  # torch's own writer of files hides the system's error
        try:
            write_file(path, content.getbuffer())
        except RunError as error:
            earlier = (file for file in path.parent.glob("*.ckpt") if file.name != DIVERGED)
            newest = max(earlier, key=lambda file: file.stat().st_mtime, default=None)
            advice = (
                f"Go on from the newest checkpoint with ckpt_path: {newest}" if newest else "There is no checkpoint yet."
            )
            raise RunError([f"{problem} {advice}" for problem in error.problems]) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read and check a checkpoint, see :func:`read_with_checksum`; tensors are on the CPU, whatever is asked for."""
        return read_checkpoint(path)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of :func:`read_with_checksum`."""
    return read_with_checksum(path)[0]


def read_with_checksum(path: str | Path) -> tuple[dict[str, Any], bool]:
    """Read a checkpoint without running anything that it contains, and check that it is what was written.

    Args:
        path: A file; one without a checksum (older versions) is checked by the sums that its archive has of each part.

    Returns:
        Its content, on the CPU, without the checksum, and whether it had one.

    Raises:
        ConfigurationError: It is not there, cut off, damaged, no checkpoint, or its adapter has impossible tensors.
    """
    path = Path(path)
    if not path.is_file():
        expected = "Expected a checkpoint written by fit, such as .../checkpoints/last.ckpt"
        raise ConfigurationError([f"ckpt_path: no such file: {path}. {expected}."])
    problem, checkpoint = None, None
    try:
        if not zipfile.is_zipfile(path):
            empty = path.stat().st_size == 0
            problem = "it is empty" if empty else "it is cut off, or no checkpoint at all (no zip archive)"
        else:
            with warnings.catch_warnings(), room_for(path):
                warnings.simplefilter("ignore")  # also those of damage
                checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises errors of many types for a file that is damaged, or not one of its own
        problem = _reason(error)
    if problem:
        raise ConfigurationError([f"ckpt_path: {path} cannot be read as a checkpoint: {problem}. Try another one."])
    if not isinstance(checkpoint, dict):
        raise ConfigurationError(["ckpt_path: the file is a checkpoint, but not one of introspection_lit."])
    checksum = checkpoint.pop(CHECKSUM, None)
    try:
        with room_for(path):
            sound = checksum in (None, content_hash(checkpoint)) and (checksum is not None or _archive_is_sound(path))
    except (RuntimeError, TypeError, ValueError, MemoryError):  # RecursionError is a RuntimeError
        sound = False  # no checkpoint of ours has such content
    if not sound:
        advice = mismatch(f"its entry {CHECKSUM!r}") if checksum is not None else "it is damaged, or not one of ours"
        raise ConfigurationError([f"ckpt_path: {path} does not hold what was written: {advice}."])
    if problems := adapter_tensor_problems(checkpoint):
        raise ConfigurationError([f"ckpt_path: {path}: {problem}." for problem in problems])
    return checkpoint, checksum is not None


def _archive_is_sound(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:  # zipfile raises errors of many types for a damaged archive
        return False


def _reason(error: Exception) -> str:
    """Torch's reason, without its advice to unpickle the file all the same."""
    if asked := re.search(r"(?:Unsupported global: GLOBAL|Trying to load unsupported GLOBAL) (\S+)", str(error)):
        return f"it asks for {asked[1]}, which no checkpoint needs: loading it could run somebody's code"
    return f"{type(error).__name__}; it may be cut off or damaged"


def adapter_tensor_problems(checkpoint: Mapping[str, Any]) -> list[str]:
    """Check the adapter of a checkpoint of ours by itself: its numbers are finite and its shapes those of its rank.

    Args:
        checkpoint: Any; one that is not ours is not checked.
    """
    identity, adapter = checkpoint.get("introspection"), checkpoint.get("state_dict")
    if not isinstance(identity, dict):
        return []
    if not isinstance(adapter, dict) or not all(
        isinstance(name, str) and is_dense_float(adapter[name]) for name in adapter
    ):
        return ["it has no adapter: 'state_dict' is not made of plain tensors of floating-point numbers"]
    lora = identity.get("lora")
    rank = lora.get("r") if isinstance(lora, dict) and isinstance(lora.get("r"), int) else None
    problems = []
    for name, tensor in adapter.items():
        side = 0 if ".lora_A." in name else 1 if ".lora_B." in name else None
        if not tensor.float().isfinite().all():
            problems.append(f"it has numbers that are not finite in {name}")
        elif rank is not None and side is not None and not _of_rank(tensor, side, rank, several=".experts." in name):
            problems.append(f"{name} has shape {tuple(tensor.shape)}, which is not of rank {rank}")
    more = [f"it has {len(problems) - 3} more tensors like this"] if len(problems) > 3 else []
    return [*problems[:3], *more]


def _of_rank(tensor: Tensor, side: int, rank: int, several: bool) -> bool:
    """Whether a matrix of LoRA has its rank; that of a mixture's experts, several times (the model says how often)."""
    ranks = tensor.shape[side] if tensor.dim() == 2 else 0
    return ranks == rank or (several and rank > 0 and ranks > 0 and ranks % rank == 0)


def is_dense_float(tensor: Any) -> bool:
    """Whether a value is a floating-point tensor on the CPU that stores all its numbers (a view can repeat one of them)."""
    return (
        isinstance(tensor, Tensor)
        and tensor.is_floating_point()
        and not tensor.is_nested
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()
    )
