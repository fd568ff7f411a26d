"""Measure everything that one GPU must show, in the order of its worth: one command that goes on where it was cut off.

    python gpu_day.py --minutes 25
    python gpu_day.py --minutes 25 --tiny                              # a rehearsal with tiny models, without a GPU, too
    python gpu_day.py --tables ../docs/results/gpu-day                 # writes the tables in docs

The steps: the tests marked gpu; speed and memory of the 32B and the 7B in NF4, with random weights; the full experiment
with three seeds; whether packed weights survive FSDP and FSDP2; NF4 quantised on the CPU and on the GPU; the same training
twice; data.batch_size auto. Each runs in processes of its own with a limit of time, and writes FOLDER/STEP.json: the same
command skips what is done. A step is not begun with less time left than it takes. It needs no network, and one card of
80 GB. With FOLDER/*.json copied to docs/results/gpu-day, --tables fills docs/performance.md and docs/clusters.md.
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
    programme.main(programme.Programme("gpu_day", __doc__, ROOT, minutes=25, least=1), args)


if __name__ == "__main__":
    main()
