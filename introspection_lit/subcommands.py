"""What the command line answers without Lightning, whose import takes seconds: the list of subcommands, and reports."""

from __future__ import annotations

import sys
from collections.abc import Sequence

HELP = """\
usage: python -m introspection_lit [-c CONFIG] {fit,validate,test,predict,report} ...

Train a language model to notice when its activations are being steered, and measure whether it does.

options:
  -h, --help            Show this help message and exit.
  -c CONFIG, --config CONFIG
                        YAML with a section for a subcommand; each subcommand has a --config of its own, too.

subcommands:
  For more details of each subcommand, add it as an argument followed by --help. All but report take --print_config,
  which prints the configuration after applying all other arguments and exits.

    fit                 Train an adapter, with a validation every so often.
    validate            Run the validation set, and say which threshold it would set.
    test                Run the test sets and write results and report into the run's folder.
    predict             Score the trials of a grid, and write them down.
    report              Make an HTML page of the results of one run or several.
"""


def answer(words: Sequence[str]) -> None:
    """Answer a command line that needs no Lightning, and leave; come back from any other.

    Args:
        words: The command line, without the program's name.

    Raises:
        SystemExit: As :func:`introspection_lit.report.command.main` raises it; 0 once all is said.
    """
    if not words:
        return
    if words[0] in ("-h", "--help"):
        sys.stdout.write(HELP)
        raise SystemExit(0)
    if words[0] == "report":
        from introspection_lit import report  # matplotlib: not for --help

        report.main(words[1:])
        raise SystemExit(0)
