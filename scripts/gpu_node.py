"""Compare DDP, FSDP and one GPU on one node of two to eight: losses, scores, trials a second and peak memory.

    python gpu_node.py --minutes 20
    python gpu_node.py --minutes 20 --tiny --processes 2               # a rehearsal with tiny models, without a GPU, too
    python gpu_node.py --tables ../docs/results/gpu-node               # writes the table in docs

The embedded model and the 32B with random weights, in NF4, each with the same trials in every step; and whether packed
weights survive FSDP and FSDP2 between GPUs. Each step runs in processes of its own with a limit of time, and writes
FOLDER/STEP.json: the same command skips what is done. With these files copied to docs/results/gpu-node, --tables fills
docs/clusters.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from introspection_lit.tools.gpu_day import programme

ROOT = Path(__file__).resolve().parent.parent


def main(args: Sequence[str] | None = None) -> None:
    """Run the script.

    Args:
        args: The command line, without the program's name; default: ``sys.argv``.

    Raises:
        SystemExit: 1 if a step failed, 2 if the command cannot work, 128 + n after signal n.
    """
    programme.main(programme.Programme("gpu_node", __doc__, ROOT, minutes=20, least=2), args)


if __name__ == "__main__":
    main()
