"""The command ``serve``: checks what it is given, loads an adapter with its model, serves the page until stopped."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from introspection_lit.page.server import FIRST_PORT, LOCAL, address, application, is_local, listen, run, use_folder
from introspection_lit.utils.errors import ConfigurationError, IntrospectionError

if TYPE_CHECKING:
    from introspection_lit.detector import Detector

EXTRA = "The page needs Gradio, which is not installed. Install it: pip install 'introspection_lit[page]'"
OPEN = "Whoever can reach this address can use the page: there is no password."


def main(args: Sequence[str]) -> None:
    """Run ``python -m introspection_lit serve``.

    Args:
        args: Options, without the subcommand.

    Raises:
        SystemExit: 0 once it is stopped; 2, with the problems on stderr, if it cannot be served.
    """
    about = "Serve a page to try a detector in a browser, from this machine alone, until Ctrl-C."
    parser = argparse.ArgumentParser("python -m introspection_lit serve", description=about, allow_abbrev=False)
    named = "an adapter, as fit exports it (RUN/adapter), or a hub id; default: %(default)s, which comes with this package"
    parser.add_argument("--adapter", default="smollm2-135m", metavar="FOLDER", help=named)
    parser.add_argument("--base", metavar="NAME", help="another place to load its base model from")
    beside = "directions to choose from; default: the vectors.safetensors in the adapter's folder or the one above"
    parser.add_argument("--vectors", type=Path, metavar="FILE", help=beside)
    parser.add_argument("--host", default=LOCAL[0], help="default: %(default)s, which only this machine can reach")
    parser.add_argument("--port", type=int, help=f"default: the first free one from {FIRST_PORT}")
    options = parser.parse_args(args)
    signal.signal(signal.SIGTERM, _stop)
    try:
        _serve(options)
    except IntrospectionError as error:
        sys.stderr.write(f"error: the page cannot be served. {error}\n")
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        raise SystemExit(0) from None


def _stop(*_: Any) -> None:
    """End as usual, so that the folder of uploads is removed."""
    raise SystemExit(0)


def _serve(options: argparse.Namespace) -> None:
    if find_spec("gradio") is None:
        raise ConfigurationError([EXTRA])
    with listen(options.host, options.port) as taken, tempfile.TemporaryDirectory(prefix="introspection-lit-") as uploads:
        use_folder(Path(uploads))
        detector = _detector(options)
        from introspection_lit.page.examiner import Examiner
        from introspection_lit.page.functions import Page
        from introspection_lit.page.layout import build

        local = is_local(options.host)
        app = application(build(Page(Examiner(detector))), Path(uploads), (*LOCAL, options.host) if local else None)
        taken.listen(128)
        sys.stdout.write(f"{address(taken)}\n{'' if local else OPEN + chr(10)}Ctrl-C stops it.\n")
        sys.stdout.flush()
        run(app, taken)


def _detector(options: argparse.Namespace) -> Detector:
    """The detector, with a bank.

    Raises:
        ConfigurationError: The adapter, its model or the vectors cannot be used.
    """
    from introspection_lit.detector import Detector
    from introspection_lit.models.adapters import BANK, read_adapter
    from introspection_lit.steering.vector_bank import VectorBank
    from introspection_lit.training.quiet import quieten

    quieten()
    adapter = read_adapter(options.adapter)
    try:
        bank = VectorBank.load(options.vectors) if options.vectors else None
    except ConfigurationError as error:
        raise ConfigurationError([_of_vectors(problem) for problem in error.problems]) from error
    if bank is None and not any((folder / BANK).is_file() for folder in (adapter.folder, adapter.folder.parent)):
        missing = f"there is no {BANK} in {adapter.folder} or the folder above, so there is no direction to choose"
        raise ConfigurationError(
            [f"--adapter: {missing}. Give the run's own, or one of scripts/generate_vectors.py, as --vectors."]
        )
    detector = Detector.from_pretrained(options.adapter, options.base)
    if bank is not None:
        problems = bank.misfits(options.adapter, int(detector.config.hidden_size), len(detector.layers))
        if problems:
            raise ConfigurationError([_of_vectors(problem) for problem in problems])
        detector.bank = bank
    if detector.bank is None:
        raise ConfigurationError([f"--adapter: its {BANK} cannot be used, as said above. Give another as --vectors."])
    return detector


def _of_vectors(problem: str) -> str:
    """A problem of a bank, named as the option; only ``fit`` can make one for the run."""
    return problem.replace("data.bank", "--vectors", 1).replace(", or leave data.bank out to have one made for the run", "")
