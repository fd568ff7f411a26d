"""Settings that files bring along: an adapter's ``introspection.json``, a manifest's header. Only known ones are believed.

Such a file may come from somebody else. What it says becomes arguments of the command line, which could load any class and
write anywhere, so that each setting must be one of these, and of the right kind. A path in it is only followed inside the
folder of the file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from introspection_lit.contexts import BUILTIN, LARGE
from introspection_lit.errors import ConfigurationError
from introspection_lit.questions import INFO_CHOICES

# math.isfinite fails for integers beyond it.
LARGEST = 1e308


def text(value: object) -> bool:
    """Whether it is a text."""
    return isinstance(value, str)


def texts(value: object) -> bool:
    """Whether it is a list of texts."""
    return isinstance(value, list) and all(map(text, value))


def _two_texts(value: object) -> bool:
    return texts(value) and len(value) == 2  # type: ignore[arg-type]


def whole(value: object) -> bool:
    """Whether it is a whole number from 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def finite(value: object) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST


def _range(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(finite, value))


def _bands(value: object) -> bool:
    return isinstance(value, list) and all(text(b) or (isinstance(b, list) and all(map(whole, b))) for b in value)


def flag(value: object) -> bool:
    """Whether it is true or false."""
    return isinstance(value, bool)


def _contexts(value: object) -> bool:
    named = isinstance(value, str) and (value in (BUILTIN, LARGE) or value.startswith("hub:"))
    return named or (isinstance(value, str) and value.endswith((".json", ".jsonl")))


def _info(value: object) -> bool:
    return isinstance(value, str) and (value in INFO_CHOICES or value.endswith(".txt"))


def _revision(value: object) -> bool:
    """A branch, a tag or a commit; not one of the hub's ``refs/``, which anybody can add to anybody's repository."""
    return isinstance(value, str) and re.fullmatch(r"(?!refs/)\w[\w.-]*(/\w[\w.-]*)*", value) is not None


def _unit(value: object) -> bool:
    return value in ("relative", "absolute")


def _control(value: object) -> bool:
    return value in ("none", "random_labels", "no_steering")


# What may be there, and what it must look like; None stands for "nothing was said".
SETTINGS: dict[str, Callable[[object], bool]] = {
    "seed_everything": whole,
    "model.base.revision": _revision,
    "data.contexts": _contexts,
    "data.validation_kinds": texts,
    "data.test_kinds": texts,
    "data.max_context_tokens": whole,
    "data.system_prompt": text,
    "data.questions": texts,
    "data.heldout_questions": texts,
    "data.info": _info,
    "data.answers": _two_texts,
    "data.answer_prefix": text,
    "data.train_vectors": whole,
    "data.bands": _bands,
    "data.strengths": _range,
    "data.strength_unit": _unit,
    "data.control": _control,
    "data.prefill_adapter": flag,
    "data.seed": whole,
}
# The training record, as leaks.training_record makes it.
RECORD: dict[str, Callable[[object], bool]] = {
    "messages": texts,
    "kinds": texts,
    "vectors": texts,
    "questions": texts,
    "prefill_adapter": flag,
    "phrasing": lambda value: isinstance(value, dict),
    "bands": _bands,
    "strengths": _range,
    "strength_unit": _unit,
}


def believed(options: object, source: str) -> dict[str, Any]:
    """The settings of a file, if all of them are known and look right.

    Args:
        options: What the file says.
        source: The file, for the message.

    Raises:
        ConfigurationError: They are not.
    """
    odd = faults(options, SETTINGS, required=False)
    if odd:
        raise ConfigurationError([f"{source}: its options are damaged, or not ours: {'; '.join(odd)}. They are not used."])
    assert isinstance(options, dict)
    return options


# Settings that can name a file, or a data set of the hub, and how users name their own.
NAMED_BY = {"data.contexts": "--conversations FILE (data.contexts)", "data.info": "--data.info FILE"}


def followed(settings: dict[str, Any], source: Path, given: Collection[str]) -> dict[str, Any]:
    """The settings of a file, those that name a file beside it with the whole path.

    Args:
        settings: From :func:`believed`.
        source: The file that they are from.
        given: Settings that the user gives himself: they are left out.

    Raises:
        ConfigurationError: Another file is named, or a data set of the hub, and the user does not give his own.
    """
    kept = {name: value for name, value in settings.items() if name not in given}
    problems = []
    for name, option in NAMED_BY.items():
        value = kept.get(name)
        if value is None or value in (BUILTIN, LARGE) or value in INFO_CHOICES:
            continue
        path = source.parent / value
        beside = ".." not in path.parts and bool(belonging([path], source.parent))
        if value.startswith("hub:") or not beside or not os.path.isfile(path):  # Path.is_file may raise
            problems.append(
                f"{source}: made with {name} {value[:200]!r}, which is no file in its folder. What such files name "
                f"elsewhere is not followed: give it with {option}."
            )
        kept[name] = str(path)
    if problems:
        raise ConfigurationError(problems)
    return kept


def belonging(paths: Iterable[str | Path], folder: str | Path) -> list[Path]:
    """Those of some paths that are inside a folder, links followed; whether there is anything does not matter.

    Args:
        paths: Some may be anything that a file says.
        folder: The folder. A snapshot in the hub's cache has its files in the cache's ``blobs``.
    """
    home = Path(folder).resolve()
    homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    kept = []
    for path in paths:
        try:
            resolved = Path(path).resolve()
        except (OSError, ValueError, RuntimeError, TypeError):  # a null character, a circle of links
            continue
        if any(resolved.is_relative_to(each) for each in homes):
            kept.append(Path(path))
    return kept


def faults(content: object, expected: dict[str, Callable[[object], bool]], required: bool) -> list[str]:
    """Say what is wrong with the fields of a file.

    Args:
        content: The fields.
        expected: What each must look like.
        required: All must be there and none be None; more are allowed. Else none must, and others are not allowed.
    """
    if not isinstance(content, dict):
        return [f"expected fields by name, got {type(content).__name__}"]
    odd = [] if required else [f"{str(name)[:60]!r} is unknown" for name in content if name not in expected]
    for name, looks_right in expected.items():
        if name not in content:
            odd += [f"{name!r} is missing"] * required
        elif not looks_right(content[name]) and (required or content[name] is not None):
            odd.append(f"{name!r} is {str(content[name])[:60]!r}")
    return odd[:5]
