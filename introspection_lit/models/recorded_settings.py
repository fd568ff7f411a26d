"""Settings that files bring along: an adapter's ``introspection.json``, a manifest's header. Only known ones are believed.

Such a file may come from somebody else. What it says becomes arguments of the command line, which could load any class and
write anywhere, so that each setting must be one of these, and of the right kind. A path in it is only followed inside the
folder of the file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from introspection_lit.contexts.context import BUILTIN, LARGE
from introspection_lit.tasks.questions import INFO_CHOICES
from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.paths import inside_folder
from introspection_lit.utils.validators import faults, finite, flag, text, texts, whole


def _two_texts(value: object) -> bool:
    return texts(value) and len(value) == 2  # type: ignore[arg-type]


def _range(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(finite, value))


def _bands(value: object) -> bool:
    return isinstance(value, list) and all(text(b) or (isinstance(b, list) and all(map(whole, b))) for b in value)


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


def validate_settings(options: object, source: str) -> dict[str, Any]:
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


def resolve_paths(settings: dict[str, Any], source: Path, given: Collection[str]) -> dict[str, Any]:
    """The settings of a file, those that name a file beside it with the whole path.

    Args:
        settings: From :func:`validate_settings`.
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
        beside = ".." not in path.parts and bool(inside_folder([path], source.parent))
        if value.startswith("hub:") or not beside or not os.path.isfile(path):  # Path.is_file may raise
            problems.append(
                f"{source}: made with {name} {value[:200]!r}, which is no file in its folder. What such files name "
                f"elsewhere is not followed: give it with {option}."
            )
        kept[name] = str(path)
    if problems:
        raise ConfigurationError(problems)
    return kept
