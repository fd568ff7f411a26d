"""Settings that files bring along: an adapter's ``introspection.json``, a manifest's header. Only known ones are believed.

Such a file may come from somebody else. What it says becomes arguments of the command line, which could load any class and
write anywhere, so that each setting must be one of these, and of the right kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from introspection_lit.errors import ConfigurationError
from introspection_lit.questions import INFO_CHOICES


def _text(value: object) -> bool:
    return isinstance(value, str)


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_text, value))


def _two_texts(value: object) -> bool:
    return _texts(value) and len(value) == 2  # type: ignore[arg-type]


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _range(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_number, value))


def _bands(value: object) -> bool:
    return isinstance(value, list) and all(_text(b) or (isinstance(b, list) and all(map(_whole, b))) for b in value)


def _flag(value: object) -> bool:
    return isinstance(value, bool)


def _contexts(value: object) -> bool:
    named = isinstance(value, str) and (value == "builtin" or value.startswith("hub:"))
    return named or (isinstance(value, str) and value.endswith((".json", ".jsonl")))


def _info(value: object) -> bool:
    return isinstance(value, str) and (value in INFO_CHOICES or value.endswith(".txt"))


def _unit(value: object) -> bool:
    return value in ("relative", "absolute")


def _control(value: object) -> bool:
    return value in ("none", "random_labels", "no_steering")


# What may be there, and what it must look like; None stands for "nothing was said".
SETTINGS: dict[str, Callable[[object], bool]] = {
    "seed_everything": _whole,
    "model.base.revision": _text,
    "data.contexts": _contexts,
    "data.validation_kinds": _texts,
    "data.test_kinds": _texts,
    "data.max_context_tokens": _whole,
    "data.system_prompt": _text,
    "data.questions": _texts,
    "data.heldout_questions": _texts,
    "data.info": _info,
    "data.answers": _two_texts,
    "data.answer_prefix": _text,
    "data.train_vectors": _whole,
    "data.bands": _bands,
    "data.strengths": _range,
    "data.strength_unit": _unit,
    "data.control": _control,
    "data.prefill_adapter": _flag,
    "data.seed": _whole,
}
# The training record, as leaks.training_record makes it.
RECORD: dict[str, Callable[[object], bool]] = {
    "messages": _texts,
    "kinds": _texts,
    "vectors": _texts,
    "questions": _texts,
    "prefill_adapter": _flag,
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
