"""Code shared by the scripts of the research pipeline: options, folders, and arguments for the command line.

A script turns its few options into arguments of ``python -m introspection_lit`` and runs that code in its own process. The
steps read and write files in one folder for each model.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import yaml

from introspection_lit.models.adapters import DESCRIPTION, read_adapter
from introspection_lit.models.base_model import SHORT_NAMES
from introspection_lit.models.recorded_settings import NAMED_BY, resolve_paths, validate_settings
from introspection_lit.tools import option_types
from introspection_lit.utils.errors import ConfigurationError, RunError, visible

DEFAULT_MODEL = "Qwen/Qwen2.5-Coder-32B-Instruct"
# Configurations in configs/ of the models that have one: precision, quantisation, bands, strengths and sizes.
EXPERIMENTS = {
    DEFAULT_MODEL: "qwen2.5-coder-32b.yaml",
    "Qwen/Qwen2.5-7B-Instruct": "qwen2.5-7b.yaml",
    "smollm2-135m": "smollm2-135m.yaml",
}


class Steps(NamedTuple):
    """The parsed command line of a script.

    Attributes:
        options: Options of the script.
        experiment: The configuration of the model's experiment, as arguments for the command line.
        configs: The user's configurations, as arguments.
        always: Model and folders, as arguments.
        user_options: All other options that the user typed, as arguments.
        folder: Of the files of this model's steps.
    """

    options: argparse.Namespace
    experiment: list[str]
    configs: list[str]
    always: list[str]
    user_options: list[str]
    folder: Path

    @property
    def bank(self) -> Path:
        """File of the vector bank."""
        return Path(self.options.vectors or self.folder / "vectors.safetensors").expanduser()

    @property
    def manifest(self) -> Path:
        """File of the training trials."""
        return self.folder / "train.jsonl"

    def command(self, defaults: Sequence[str] = (), fixed: Sequence[str] = ()) -> list[str]:
        """Arguments for the command line; later ones override earlier ones.

        Args:
            defaults: Defaults of the step: override the experiment, are overridden by the user's configurations.
            fixed: Settings of the step that override all configurations; only the user's options override them.
        """
        return [*self.experiment, *defaults, *self.configs, *self.always, *fixed, *self.user_options]

    def gives(self, name: str) -> bool:
        """Whether the user sets an option, on the command line or in a configuration."""
        typed = any(word.split("=")[0] == f"--{name}" for word in self.user_options)
        return typed or _setting_in(self.options.config, *name.split(".")) is not None


def make_parser(description: str | None, root: Path) -> argparse.ArgumentParser:
    """Make the parser of a script, with the options that every script has.

    Args:
        description: The script's docstring, with an example.
        root: The project's folder.
    """
    others = "Any other option is one of `python -m introspection_lit`, such as --data.bands '[middle]' or "
    parser = option_types.parser(description, f"{others}--trainer.accelerator cpu.")
    parser.add_argument(
        "--model",
        help=f"hub id, folder, .gguf file, or {', '.join(SHORT_NAMES)} (the embedded one); default: that of --config, or "
        f"{DEFAULT_MODEL}",
    )
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="YAML",
        help="settings over those of the model's experiment in configs/ and the script's defaults; may be repeated",
    )
    parser.add_argument(
        "--seed", type=option_types.seed, help="seed of vectors, contexts and trials (default: that of the experiment)"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        help="where this model's steps leave their files (default: lightning_logs/pipeline/MODEL in the project)",
    )
    parser.add_argument("--vectors", type=Path, help="the vector bank (default: vectors.safetensors in the folder)")
    parser.add_argument(
        "--conversations", metavar="FILE", help="contexts of your own, .json or .jsonl, instead of the built-in ones"
    )
    parser.add_argument("--answers", nargs=2, metavar=("STEERED", "CLEAN"), help="answer words (default: yes no)")
    parser.add_argument("--question", action="append", help="the question, instead of ours; may be repeated")
    parser.set_defaults(root=root)
    return parser


def parse(parser: argparse.ArgumentParser, args: Sequence[str] | None, step: str) -> Steps:
    """Parse a script's command line, and make the folder of its files.

    Args:
        parser: From :func:`make_parser`.
        args: The command line, without the program's name; default: ``sys.argv``.
        step: Name of the step, and of the folder of its runs.
    """
    options, more = parser.parse_known_args(args)
    options.model = options.model or _setting_in(options.config, "model", "base", "name_or_path") or DEFAULT_MODEL
    slug = options.model.rstrip("/").split("/")[-1].removesuffix(".gguf").lower()
    folder = (options.folder or options.root / "lightning_logs" / "pipeline" / slug).expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    known = options.model in EXPERIMENTS
    experiment = ["--config", str(options.root / "configs" / EXPERIMENTS[options.model])] if known else []
    configs = [word for config in options.config for word in ("--config", config)]
    logger = "--trainer.logger.init_args"
    always = ["--model.base.name_or_path", options.model, f"{logger}.save_dir={folder}", f"{logger}.name={step}"]
    user_options = {
        "seed_everything": options.seed,
        "data.seed": options.seed,
        "data.contexts": options.conversations,
        "data.answers": options.answers,
        "data.questions": options.question,
    }
    return Steps(options, experiment, configs, always, [*as_arguments(user_options), *more], folder)


def _setting_in(configs: Sequence[str], *place: str) -> str | None:
    """The value at a path of keys in YAML files, from the last file that has it; None if none has."""
    value = None
    for config in configs:
        try:
            content = yaml.safe_load(Path(config).expanduser().read_text(encoding="utf-8"))
            for name in place:
                content = content[name]
            value = content
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, yaml.YAMLError):
            continue  # no such key; the command line reports other problems of the file
    return str(value) if value else None


def as_arguments(settings: Mapping[str, Any]) -> list[str]:
    """Settings as arguments for the command line; those that are None are left out.

    Lists are written as YAML on one line with texts quoted, so that a bare ``no`` is not read as false. Characters beyond
    ASCII are written as YAML escapes, because YAML does not read JSON's surrogate pairs.
    """
    words = []
    for name, value in settings.items():
        if value is not None:
            words.append(f"--{name}={value if isinstance(value, str) else _on_one_line(value)}")
    return words


def _on_one_line(value: object) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return re.sub(r"[^ -~]", lambda sign: f"\\U{ord(sign[0]):08x}", text)


def training_options(adapter: str | None, steps: Steps) -> list[str]:
    """The options that an adapter was trained with, as arguments for the command line; none without introspection.json.

    Args:
        adapter: A folder or hub id.
        steps: The parsed command line.

    Raises:
        ConfigurationError: The adapter cannot be read; or as :func:`recorded_options`.
    """
    if adapter is None:
        return []
    files = read_adapter(adapter)
    return recorded_options((files.description or {}).get("options", {}), files.folder / DESCRIPTION, steps)


def recorded_options(options: object, source: Path, steps: Steps) -> list[str]:
    """The options recorded in a file (an adapter's description, a manifest), as arguments for the command line.

    Args:
        options: The recorded options.
        source: The file.
        steps: The parsed command line; recorded files that it replaces need not exist.

    Raises:
        ConfigurationError: An option is unknown or of a wrong type, or names a file outside of the source's folder.
    """
    settings = validate_settings(options, str(source))
    return as_arguments(resolve_paths(settings, source.absolute(), [name for name in NAMED_BY if steps.gives(name)]))


def writable(path: Path) -> Path:
    """Make the folder of a file and check that the file can be written.

    Raises:
        ConfigurationError: The path is a folder, or its parent cannot be written to.
        OSError: The folder cannot be made.
    """
    path = path.expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise ConfigurationError([f"{path} is a folder. Expected the name of a file."])
    if not os.access(path.parent, os.W_OK):
        raise ConfigurationError([f"{path.parent} cannot be written to. Name another folder."])
    return path


def equivalent_command(subcommand: str, arguments: Sequence[str]) -> str:
    """The equivalent command without the script, for the user."""
    return visible(f"the same as: python -m introspection_lit {subcommand} {shlex.join(arguments)}")


def stop(problem: str, status: int = 2) -> NoReturn:
    """End a script with a problem on stderr.

    Raises:
        SystemExit: With this status.
    """
    sys.stderr.write(f"error: {visible(problem)}\n")
    raise SystemExit(status)


def guarded_runs(trainings: Callable[[], Sequence[object]]) -> None:
    """Run a script's main part (see :func:`guarded`) that returns the trainings that failed.

    Raises:
        SystemExit: 1 if there are any; else as :func:`guarded`.
    """
    failed: list[object] = []
    guarded(lambda: failed.extend(trainings()))
    if failed:
        raise SystemExit(1)


def guarded(action: Callable[[], None]) -> None:
    """Run a script's main part; errors of the configuration, of memory and Ctrl-C end it without a traceback.

    Raises:
        SystemExit: 2 for a configuration that cannot work, 1 for an error during the run, 128 + n after signal n.
    """
    try:
        action()
    except RunError as error:
        stop(str(error), 1)
    except ConfigurationError as error:
        stop(str(error))
    except (RuntimeError, MemoryError, OSError) as error:
        from introspection_lit.training.callbacks.out_of_memory import run_error  # imports Lightning: not for --help

        if out_of_memory := run_error(error):
            stop(str(out_of_memory), 1)
        if isinstance(error, OSError):
            stop(str(error))
        raise
    except (KeyboardInterrupt, SystemExit) as error:
        status = 130 if isinstance(error, KeyboardInterrupt) else error.code
        if isinstance(status, int) and status > 128:
            sys.stderr.write("interrupted: no file of this step is left half-written\n")
        raise SystemExit(status) from None
