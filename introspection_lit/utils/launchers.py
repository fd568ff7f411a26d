"""Variables by which launchers of several processes number them."""

from __future__ import annotations

import os
from collections.abc import Mapping

# Each with what its name may go on with.
LAUNCHERS = ("LOCAL_RANK", "NODE_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_")


def without_launcher(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for a program that is no part of a group of processes, whoever started this one.

    With these variables Lightning waits for processes that nobody starts, and Accelerate joins a group that is not there.
    They need not come from a launcher: Lightning 2.6.6 leaves them behind after ``fit`` with DDP or FSDP, one process too.

    Args:
        environment: Default: that of this process.
    """
    environment = os.environ if environment is None else environment
    return {name: value for name, value in environment.items() if not name.startswith(LAUNCHERS)}
