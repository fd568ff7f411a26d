"""What the scripts of the research pipeline share: options, folders, and the way to the command line's code.

A script turns its few options into arguments of ``python -m introspection_lit`` and runs that code in its own process. What
a step leaves behind lies in one folder for each model, where the next step looks for it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from introspection_lit.errors import ConfigurationError
from introspection_lit.model import SHORT_NAMES

DEFAULT_MODEL = "Qwen/Qwen2.5-Coder-32B-Instruct"
# The experiment of each model that has one: its precision, quantisation, bands, strengths and sizes.
EXPERIMENTS = {
    DEFAULT_MODEL: "qwen2.5-coder-32b.yaml",
    "Qwen/Qwen2.5-7B-Instruct": "qwen2.5-7b.yaml",
    "smollm2-135m": "smollm2-135m.yaml",
}


class Steps(NamedTuple):
    """What a script was asked for.

    Attributes:
        options: Its own options.
        shared: Arguments for the command line that all steps share: configuration, model, folders.
        chosen: What the user gave, as arguments for the command line.
        folder: Where the steps of this model leave their files.
    """

    options: argparse.Namespace
    shared: list[str]
    chosen: list[str]
    folder: Path

    @property
    def bank(self) -> Path:
        """The vector bank."""
        return Path(self.options.vectors or self.folder / "vectors.safetensors")

    @property
    def manifest(self) -> Path:
        """The training trials."""
        return self.folder / "train.jsonl"

    def command(self, *arguments: str) -> list[str]:
        """Arguments for the command line: those that are shared, a step's own, and the user's last, so that they win."""
        return [*self.shared, *arguments, *self.chosen]


def parser(description: str | None, root: Path) -> argparse.ArgumentParser:
    """Make the parser of a script, with the options that every script has.

    Args:
        description: The script's docstring, with an example.
        root: The project's folder.
    """
    made = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Any other option is one of `python -m introspection_lit`, such as --data.bands '[middle]' or "
        "--trainer.accelerator cpu.",
        allow_abbrev=False,
    )
    made.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help=f"hub id, folder, .gguf file, or {', '.join(SHORT_NAMES)} (the embedded one); default: %(default)s",
    )
    made.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="YAML",
        help="more settings, over those of the model's experiment in configs/; may be repeated",
    )
    made.add_argument("--seed", type=int, help="seed of vectors, contexts and trials (default: that of the experiment)")
    made.add_argument(
        "--folder",
        type=Path,
        help="where this model's steps leave their files (default: lightning_logs/pipeline/MODEL in the project)",
    )
    made.add_argument("--vectors", type=Path, help="the vector bank (default: vectors.safetensors in the folder)")
    made.add_argument(
        "--conversations", metavar="FILE", help="contexts of your own, .json or .jsonl, instead of the built-in ones"
    )
    made.add_argument("--answers", nargs=2, metavar=("STEERED", "CLEAN"), help="answer words (default: yes no)")
    made.add_argument("--question", action="append", help="the question, instead of ours; may be repeated")
    made.set_defaults(root=root)
    return made


def parse(made: argparse.ArgumentParser, args: Sequence[str] | None, step: str) -> Steps:
    """Read a script's command line.

    Args:
        made: From :func:`parser`.
        args: The command line, without the program's name; default: ``sys.argv``.
        step: Names the step; its runs land in a folder of this name.
    """
    options, more = made.parse_known_args(args)
    slug = options.model.rstrip("/").split("/")[-1].removesuffix(".gguf").lower()
    folder = (options.folder or options.root / "lightning_logs" / "pipeline" / slug).expanduser().resolve()
    shared = []
    if options.model in EXPERIMENTS:
        shared += ["--config", str(options.root / "configs" / EXPERIMENTS[options.model])]
    for config in options.config:
        shared += ["--config", config]
    shared += ["--model.base.name_or_path", options.model]
    logger = "--trainer.logger.init_args"
    shared += [f"{logger}.save_dir={folder}", f"{logger}.name={step}"]
    chosen = []
    if options.seed is not None:
        chosen += ["--seed_everything", str(options.seed), "--data.seed", str(options.seed)]
    if options.conversations is not None:
        chosen += ["--data.contexts", options.conversations]
    if options.answers is not None:
        chosen += ["--data.answers", quoted(options.answers)]
    if options.question is not None:
        chosen += ["--data.questions", quoted(options.question)]
    return Steps(options, shared, [*chosen, *more], folder)


def quoted(values: Sequence[object]) -> str:
    """A YAML list on one line; texts are quoted, so that a bare ``no`` is not "false"."""
    return json.dumps(list(values))


def same_as(subcommand: str, arguments: Sequence[str]) -> str:
    """The command that does the same without the script."""
    return f"the same as: python -m introspection_lit {subcommand} {shlex.join(arguments)}"


def stop(problem: str) -> NoReturn:
    """End a script with a problem on stderr.

    Raises:
        SystemExit: 2.
    """
    sys.stderr.write(f"error: {problem}\n")
    raise SystemExit(2)


def guarded(action: Callable[[], None]) -> None:
    """Run a script's main part; problems of the configuration and Ctrl-C end it without a traceback.

    Raises:
        SystemExit: 2 if something cannot work, 130 after Ctrl-C.
    """
    try:
        action()
    except ConfigurationError as error:
        stop(str(error))
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: nothing half-finished was left behind\n")
        raise SystemExit(130) from None
