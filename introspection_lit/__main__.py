"""``python -m introspection_lit fit|validate|test|predict --config FILE``, or ``introspection-lit fit ...``."""

from __future__ import annotations

import gc
import sys

from introspection_lit.subcommands import answer


def main() -> None:
    """Run the command line, with imports as late and as fast as can be."""
    answer(sys.argv[1:])
    # What is imported stays. Looking for garbage among a million such objects would take as long as half of the imports.
    gc.disable()
    from introspection_lit import cli

    gc.freeze()
    gc.enable()
    cli.main()


if __name__ == "__main__":
    main()
