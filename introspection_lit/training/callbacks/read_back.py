"""Writes and reads a checkpoint before the first step, not after the last: whatever is wrong is known in time."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from introspection_lit.training.checkpoint_checks import LOOPS, checkpoint_problems, content_problems, tensor_problems
from introspection_lit.training.checkpoint_files import read_checkpoint
from introspection_lit.training.distributed import fail_together
from introspection_lit.training.fsdp import adapter_shapes
from introspection_lit.utils.errors import ConfigurationError

if TYPE_CHECKING:
    import torch

    from introspection_lit.training.module import IntrospectionModule


class ReadBack(Callback):
    """Reads the first checkpoint of a run as ``ckpt_path`` does; its file is removed."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a checkpoint and check it; every process takes part.

        Raises:
            ConfigurationError: It could not be loaded.
        """
        if not trainer.checkpoint_callbacks or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        shapes = adapter_shapes(pl_module)
        with tempfile.TemporaryDirectory() as folder:  # of each process; the first one writes
            path = Path(folder) / "first.ckpt"
            trainer.save_checkpoint(path)

            def check() -> None:
                if trainer.is_global_zero:
                    _check(path, cast("IntrospectionModule", pl_module), shapes)

            fail_together(check) if dist.is_available() and dist.is_initialized() else check()


def _check(path: Path, module: IntrospectionModule, shapes: Mapping[str, torch.Size]) -> None:
    loops = {name: getattr(module.trainer, name).state_dict() for name in LOOPS.values()}
    problems = checkpoint_problems(str(path), module.identity(), module.base_identity, "fit")
    content = read_checkpoint(path)
    # Nothing has been scored, so callbacks have no score to keep: their state is left out, as where there is a checksum.
    problems = problems or content_problems(content, "fit", loops, with_checksum=True)
    if problems := problems or tensor_problems(content["state_dict"], shapes):
        reason = " ".join(problems[:3])
        raise ConfigurationError([f"model.lora: checkpoints of this adapter could not be loaded again: {reason}"])
