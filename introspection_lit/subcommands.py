"""The parts of the command line that do not import Lightning, which takes seconds: list of subcommands, reports, page."""

from __future__ import annotations

import sys
from collections.abc import Sequence

HELP = """\
usage: python -m introspection_lit [-c CONFIG] {fit,validate,test,predict,show,report,serve,push,gguf} ...

Train a language model to notice when its activations are being steered, and measure whether it does.

options:
  -h, --help            Show this help message and exit.
  -c CONFIG, --config CONFIG
                        YAML with a section for each subcommand; each subcommand also has its own --config.

subcommands:
  For the options of a subcommand, add --help after it. All before show accept --print_config, which prints the
  configuration after applying all other arguments, and exits.

    fit                 Train an adapter, with regular validations.
    validate            Run the validation set and print the threshold that it would set.
    test                Run the test sets and write results and a report into the run's folder.
    predict             Score the trials of a grid and write them to a file.
    show                Print trials as the model reads them: what is steered, and where the answer is read.
    report              Make an HTML page from the results of one run or several.
    serve               Serve a page to try a detector in a browser.
    push                Publish a run's adapter, vectors, results and report on the Hugging Face hub.
    gguf                Write an exported adapter as a GGUF file for llama.cpp.
"""


def answer(words: Sequence[str]) -> None:
    """Handle a command line that needs no Lightning, then exit; return for any other.

    Args:
        words: The command line, without the program's name.

    Raises:
        SystemExit: As :func:`introspection_lit.report.command.main` raises it; 0 on success.
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
    if words[0] == "serve":
        from introspection_lit import page  # nothing heavy, but not needed by the others

        page.main(words[1:])
        raise SystemExit(0)
    if words[0] == "push":
        from introspection_lit.publishing import command  # torch, peft

        command.main(words[1:])
        raise SystemExit(0)
    if words[0] == "gguf":
        from introspection_lit.publishing import gguf_adapter

        gguf_adapter.main(words[1:])
        raise SystemExit(0)
