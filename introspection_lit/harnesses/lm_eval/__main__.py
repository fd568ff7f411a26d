"""The command line of lm-evaluation-harness with the model and the tasks of this project (docs/where-people-work.md).

Its options are those of ``lm_eval``; ``--include_path`` is given. The harness (0.4.13) does not look for tasks and models
in installed packages.
"""

from __future__ import annotations

import sys
from pathlib import Path

import introspection_lit.harnesses.lm_eval.model  # noqa: F401 - registers the model


def main() -> None:
    """Run the harness."""
    from lm_eval.__main__ import cli_evaluate

    if sys.argv[1:2] in (["run"], ["validate"], ["ls"]):
        sys.argv[2:2] = ["--include_path", str(Path(__file__).parent)]
    cli_evaluate()


if __name__ == "__main__":
    main()
