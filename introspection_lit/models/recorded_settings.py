"""Validates settings from untrusted files: an adapter's ``introspection.json``, a manifest's header.

Such settings become arguments of the command line, which could load any class and write anywhere. So each must be one of
these and have the right form, and a path is only followed inside the folder of the file.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from introspection_lit.utils import schema
from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.paths import inside_folder

# Values of data.contexts and data.info that name no file; the packages that define them do not know this one.
CONTEXTS, INFO = ("builtin", "large"), ("none", "explained", "neutral")
BANDS = schema.listed(schema.required(schema.either("a name, or a list of layers", schema.TEXT, schema.COUNTS)))
STRENGTHS, UNIT = schema.listed(schema.required(schema.number()), 2), schema.choice("relative", "absolute")
SETTINGS = schema.fields(
    others=schema.unknown,
    **dict.fromkeys(("seed_everything", "data.seed", "data.max_context_tokens", "data.train_vectors"), schema.COUNT),
    **dict.fromkeys(("data.validation_kinds", "data.test_kinds", "data.questions", "data.heldout_questions"), schema.TEXTS),
    **{
        # A branch, a tag or a commit; not one of the hub's refs/, which anybody can add to anybody's repository.
        "model.base.revision": schema.text(r"(?!refs/)\w[\w.-]*(/\w[\w.-]*)*", "a branch, a tag or a commit"),
        "data.contexts": schema.text(r"(?s:builtin|large|hub:.*|.*\.jsonl?)", "builtin, large or a JSON file"),
        "data.system_prompt": schema.TEXT,
        "data.lead_in": schema.TEXT,
        "data.long": schema.fields(
            share=schema.number(0, 1),
            tokens=schema.listed(schema.required(schema.COUNT), 2),
            validation_tokens=schema.listed(schema.required(schema.COUNT), 2),
            exchanges=schema.COUNT,
            test_tokens=schema.COUNTS,
            test_strength=schema.number(),
        ),
        "data.info": schema.text(rf"(?s:{'|'.join(INFO)}|.*\.txt)", f"{', '.join(INFO)} or a .txt file"),
        "data.answers": schema.listed(schema.required(schema.TEXT), 2),
        "data.answer_prefix": schema.TEXT,
        "data.chat_template": schema.TEXT,
        "data.thinking": schema.choice("closed", "open"),
        "data.bands": BANDS,
        "data.strengths": STRENGTHS,
        "data.curriculum": schema.fields(strengths=STRENGTHS, trials=schema.COUNT, merged_after=schema.FLAG),
        "data.both_signs": schema.FLAG,
        "data.dither": schema.number(),
        "data.merged": schema.number(0, 1),
        "data.strength_unit": UNIT,
        "data.control": schema.choice("none", "random_labels", "no_steering", "visible"),
        "data.prefill_adapter": schema.FLAG,
    },
)
# What leaks.training_record makes.
RECORD = schema.required(
    schema.fields(
        "messages kinds vectors questions prefill_adapter phrasing bands strengths strength_unit",
        **dict.fromkeys(("messages", "kinds", "vectors", "questions", "concepts", "pairs"), schema.TEXTS),
        lead_in=schema.TEXT,
        prefill_adapter=schema.FLAG,
        phrasing=schema.fields(),
        bands=BANDS,
        strengths=STRENGTHS,
        strength_unit=UNIT,
    )
)
# Settings that can name a file or a data set of the hub, and how users name their own.
NAMED_BY = {
    "data.contexts": "--conversations FILE (data.contexts)",
    "data.info": "--data.info FILE",
    "data.chat_template": "--data.chat_template FILE",
}


def validate_settings(options: object, source: str) -> dict[str, Any]:
    """The settings of a file, if all of them are known and have the right form.

    Args:
        options: The settings as the file has them.
        source: The file, for the message.

    Raises:
        ConfigurationError: A setting is unknown or has another form.
    """
    if wrong := schema.problems(schema.required(SETTINGS), options, "options"):
        reason = f"its options are damaged, or not ours: {'; '.join(wrong)}"
        raise ConfigurationError([f"{source}: {reason}. They are not used."])
    assert isinstance(options, dict)
    return options


def resolve_paths(settings: dict[str, Any], source: Path, given: Collection[str]) -> dict[str, Any]:
    """Complete the paths in the settings of a file.

    Args:
        settings: From :func:`validate_settings`.
        source: The file that they are from.
        given: Settings that the user gives himself: they are left out.

    Returns:
        The settings; those that name a file beside ``source`` have the whole path.

    Raises:
        ConfigurationError: Another file or a data set of the hub is named, and the user does not give his own.
    """
    resolved = {name: value for name, value in settings.items() if name not in given}
    wrong = []
    for name in NAMED_BY.keys() & resolved.keys():
        value = resolved[name]
        if value is None or value in (*CONTEXTS, *INFO):
            continue
        path = source.parent / value
        beside = ".." not in path.parts and bool(inside_folder([path], source.parent))
        if value.startswith("hub:") or not beside or not os.path.isfile(path):  # Path.is_file may raise
            wrong.append(
                f"{source}: made with {name} {value[:200]!r}, which is no file in its folder. What such files name "
                f"elsewhere is not followed: give it with {NAMED_BY[name]}."
            )
        resolved[name] = str(path)
    if wrong:
        raise ConfigurationError(wrong)
    return resolved
