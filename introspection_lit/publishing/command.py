"""The command ``push``: a finished run becomes a repository on the Hugging Face hub, or a folder as it would be there."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from introspection_lit.models.adapters import check_replaceable
from introspection_lit.publishing.finished_run import WHERE, FinishedRun, read_run
from introspection_lit.publishing.folder import write_published
from introspection_lit.publishing.licence import licence_of
from introspection_lit.publishing.upload import upload, upload_problems
from introspection_lit.utils.errors import ConfigurationError, Problems, RunError
from introspection_lit.utils.files import atomic_folder, folder_problems
from introspection_lit.utils.paths import parse_path

ABOUT = "Publish a run's adapter, vectors, results, report and model card on the Hugging Face hub, in one commit."


def main(args: Sequence[str]) -> None:
    """Run ``python -m introspection_lit push``.

    Args:
        args: Options, without the subcommand.

    Raises:
        SystemExit: With the problems on stderr: 2 if the run cannot be published as asked, before anything is sent; 1 if
            the upload was stopped.
    """
    options = _parser().parse_args(args)
    try:
        print(_push(options))
    except ConfigurationError as error:
        sys.stderr.write(f"error: nothing was uploaded. {error}\n")
        raise SystemExit(2) from error
    except (RunError, OSError) as error:
        sys.stderr.write(f"error: the upload has stopped. {error}\n")
        raise SystemExit(1) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m introspection_lit push", description=ABOUT, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", help=f"a run's folder, such as {WHERE}")
    parser.add_argument("name", metavar="NAME", help="the repository, such as me/notices-steering; made if it is not there")
    parser.add_argument("--private", action="store_true", help="make a private repository; refuse one that is public")
    parser.add_argument(
        "--dry-run", metavar="FOLDER", help="write the files that would be uploaded into a folder; nothing is sent"
    )
    parser.add_argument("--results", metavar="FOLDER", help="the folder of the run's test, if it is not RUN")
    parser.add_argument("--base-model", metavar="ID", help="hub id of the base model, if it was loaded from somewhere else")
    parser.add_argument("--license", metavar="ID", help="such as apache-2.0; default: what the base model's files say")
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="NAME",
        help="your user's or machine's name is just a word in a file",
    )
    return parser


def _push(options: argparse.Namespace) -> str:
    """Check everything, then write the folder or upload it; what is said at the end.

    Raises:
        ConfigurationError: It cannot be published as asked; all problems, before anything is sent.
        RunError: The upload, or writing the folder, has failed.
    """
    problems = Problems()
    problems.add(_name_problems("NAME", options.name))
    if options.base_model is not None:
        problems.add(_name_problems("--base-model", options.base_model))
    run = problems.attempt(read_run, options.run, options.results)
    target = None if options.dry_run is None else parse_path("--dry-run", options.dry_run)
    if target is None:
        problems.add(upload_problems())
    else:
        problems.attempt(check_replaceable, target)
        problems.add(folder_problems(target, "--dry-run"))
    if run is not None:
        problems.add([_base_problem(run, options.base_model)])
    problems.raise_if_any()
    assert run
    licence = {"license": options.license} if options.license else licence_of(run.base)
    problems.add([None if licence else _no_licence(run)])
    problems.raise_if_any()
    if target is not None:
        with atomic_folder(target) as unfinished:
            _write(run, unfinished, options, licence)
        return f"{target}: what 'push {options.run} {options.name}' would upload; nothing was sent."
    with tempfile.TemporaryDirectory() as place:
        _write(run, Path(place), options, licence)
        commit = upload(Path(place), options.name, options.private)
    return f"{commit}\nread it back: Detector.from_pretrained({options.name!r}), or test --model.adapter {options.name}"


def _write(run: FinishedRun, folder: Path, options: argparse.Namespace, licence: Mapping[str, str]) -> None:
    on_hub = options.base_model or (run.base.name if run.base.on_hub else None)
    write_published(run, folder, options.name, on_hub, licence, tuple(options.allow))


def _name_problems(option: str, name: str) -> list[str]:
    """Check the id of a repository, as the hub does."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    expected = "Expected an id with its owner, such as me/notices-steering"
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        return [f"{option}: {str(error).rstrip('.')}. {expected}."]
    return [] if name.count("/") == 1 else [f"{option}: got {name!r}. {expected}."]


def _base_problem(run: FinishedRun, base_model: str | None) -> str | None:
    """Others cannot load a base model from a folder of this machine."""
    if not run.base.name.startswith("/") or base_model is not None:
        return None
    return (
        f"the base model was loaded from {run.base.name}, where nobody else can load it. Give its hub id with "
        "--base-model; who loads the adapter has it compared with the model there, by hashes."
    )


def _no_licence(run: FinishedRun) -> str:
    return (
        f"the licence of the base model {run.base.name!r} is not known: its files do not say it, or are not here. Give the "
        "one that the adapter is published under with --license, such as --license apache-2.0."
    )
