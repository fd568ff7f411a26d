"""What the scripts of the research pipeline share: options, folders, and the way to the command line's code.

A script turns its few options into arguments of ``python -m introspection_lit`` and runs that code in its own process. What
a step leaves behind lies in one folder for each model, where the next step looks for it.
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
        experiment: The configuration of the model's experiment, as arguments for the command line.
        configs: The user's configurations, likewise.
        always: Model and folders, likewise.
        chosen: What the user gave on the command line beyond that, likewise.
        folder: Where the steps of this model leave their files.
    """

    options: argparse.Namespace
    experiment: list[str]
    configs: list[str]
    always: list[str]
    chosen: list[str]
    folder: Path

    @property
    def bank(self) -> Path:
        """The vector bank."""
        return Path(self.options.vectors or self.folder / "vectors.safetensors").expanduser()

    @property
    def manifest(self) -> Path:
        """The training trials."""
        return self.folder / "train.jsonl"

    def command(self, defaults: Sequence[str] = (), settled: Sequence[str] = ()) -> list[str]:
        """Arguments for the command line; what comes later wins.

        Args:
            defaults: A step's own defaults: over those of the experiment, under the user's configurations.
            settled: What a step knows better than any configuration; only the user's own options are over it.
        """
        return [*self.experiment, *defaults, *self.configs, *self.always, *settled, *self.chosen]

    def gives(self, name: str) -> bool:
        """Whether the user gives a setting, on the command line or in a configuration."""
        typed = any(word.split("=")[0] == f"--{name}" for word in self.chosen)
        return typed or _named_in(self.options.config, *name.split(".")) is not None


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
        help=f"hub id, folder, .gguf file, or {', '.join(SHORT_NAMES)} (the embedded one); default: that of --config, or "
        f"{DEFAULT_MODEL}",
    )
    made.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="YAML",
        help="settings over those of the model's experiment in configs/ and the script's defaults; may be repeated",
    )
    made.add_argument(
        "--seed", type=option_types.seed, help="seed of vectors, contexts and trials (default: that of the experiment)"
    )
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
    options.model = options.model or _named_in(options.config, "model", "base", "name_or_path") or DEFAULT_MODEL
    slug = options.model.rstrip("/").split("/")[-1].removesuffix(".gguf").lower()
    folder = (options.folder or options.root / "lightning_logs" / "pipeline" / slug).expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    known = options.model in EXPERIMENTS
    experiment = ["--config", str(options.root / "configs" / EXPERIMENTS[options.model])] if known else []
    configs = [word for config in options.config for word in ("--config", config)]
    logger = "--trainer.logger.init_args"
    always = ["--model.base.name_or_path", options.model, f"{logger}.save_dir={folder}", f"{logger}.name={step}"]
    chosen = {
        "seed_everything": options.seed,
        "data.seed": options.seed,
        "data.contexts": options.conversations,
        "data.answers": options.answers,
        "data.questions": options.question,
    }
    return Steps(options, experiment, configs, always, [*as_arguments(chosen), *more], folder)


def _named_in(configs: Sequence[str], *place: str) -> str | None:
    """The setting at a place of configurations, of the last one if several have it."""
    named = None
    for config in configs:
        try:
            content = yaml.safe_load(Path(config).expanduser().read_text(encoding="utf-8"))
            for name in place:
                content = content[name]
            named = content
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, yaml.YAMLError):
            continue  # it names none, or the command line will say what is wrong with it
    return str(named) if named else None


def as_arguments(settings: Mapping[str, Any]) -> list[str]:
    """Settings as arguments for the command line; those that are None are left out.

    Lists are written as YAML on one line with texts quoted, so that a bare ``no`` is not "false". Signs beyond ASCII are
    written as YAML escapes them: JSON's pairs of surrogates for the rarer ones it does not read.
    """
    words = []
    for name, value in settings.items():
        if value is not None:
            words.append(f"--{name}={value if isinstance(value, str) else _on_one_line(value)}")
    return words


def _on_one_line(value: object) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return re.sub(r"[^ -~]", lambda sign: f"\\U{ord(sign[0]):08x}", text)


def as_trained(adapter: str | None, steps: Steps) -> list[str]:
    """The settings that an adapter was trained with, if it says so, as arguments for the command line.

    Args:
        adapter: A folder or hub id.
        steps: What the user gives; see :func:`~introspection_lit.models.recorded_settings.followed`.

    Raises:
        ConfigurationError: It says what no adapter of ours says, or names a file elsewhere.
    """
    if adapter is None:
        return []
    found = read_adapter(adapter)
    return settings_of((found.description or {}).get("options", {}), found.folder / DESCRIPTION, steps)


def settings_of(options: object, source: Path, steps: Steps) -> list[str]:
    """The settings that a file brings along, as arguments for the command line.

    Args:
        options: What the file says.
        source: The file.
        steps: What the user gives himself: those files are not looked for.

    Raises:
        ConfigurationError: They are not known ones of the right kind, or name a file outside of the file's folder.
    """
    settings = validate_settings(options, str(source))
    return as_arguments(resolve_paths(settings, source.absolute(), [name for name in NAMED_BY if steps.gives(name)]))


def writable(path: Path) -> Path:
    """Make sure that a file can be written before the work begins; its folder is made.

    Raises:
        ConfigurationError: It is a folder.
        OSError: Its folder cannot be made or written to.
    """
    path = path.expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise ConfigurationError([f"{path} is a folder. Expected the name of a file."])
    if not os.access(path.parent, os.W_OK):
        raise ConfigurationError([f"{path.parent} cannot be written to. Name another folder."])
    return path


def same_as(subcommand: str, arguments: Sequence[str]) -> str:
    """The command that does the same without the script."""
    return visible(f"the same as: python -m introspection_lit {subcommand} {shlex.join(arguments)}")


def stop(problem: str, status: int = 2) -> NoReturn:
    """End a script with a problem on stderr.

    Raises:
        SystemExit: With this status.
    """
    sys.stderr.write(f"error: {visible(problem)}\n")
    raise SystemExit(status)


def guarded(action: Callable[[], None]) -> None:
    """Run a script's main part; problems of the configuration and Ctrl-C end it without a traceback.

    Raises:
        SystemExit: 2 if something cannot work, 1 if something stopped it in the middle, 128 and its number after a signal.
    """
    try:
        action()
    except RunError as error:
        stop(str(error), 1)
    except ConfigurationError as error:
        stop(str(error))
    except (RuntimeError, MemoryError, OSError) as error:
        from introspection_lit.training.callbacks.out_of_memory import (
            run_error,  # with the whole of the project: not for --help
        )

        found = run_error(error)
        if found is None and isinstance(error, OSError):
            stop(str(error))
        if found is None:
            raise
        stop(str(found), 1)
    except (KeyboardInterrupt, SystemExit) as error:
        status = 130 if isinstance(error, KeyboardInterrupt) else error.code
        if isinstance(status, int) and status > 128:
            sys.stderr.write("interrupted: no file of this step is left half-written\n")
        raise SystemExit(status) from None
