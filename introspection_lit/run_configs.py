"""The ``config.yaml`` of a run's folder, where it is read though the user did not name it.

A configuration is a program: it may name any class. One that the user gives with ``--config`` is his own. One that lies in
a folder may be anybody's, so it is only read if it names no class but the loggers that runs have, and no place to write to.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from introspection_lit.given_options import values

SECTIONS = ("trainer", "model", "data", "checkpoint", "evidence")
PLAIN = ("seed_everything", "test_after_fit", "ckpt_path", "weights_only")
LOGGERS = ("TensorBoardLogger", "CSVLogger")
# Sections of options inside the sections; a text in their place would be the name of a file to read them from.
PARTS = {"model": ("base", "lora"), "data": ("grid", "reuse")}


def read_plain(text: str) -> Any:
    """Read YAML that is plain values, as many as there can be: by aliases, a few lines can become gigabytes.

    Raises:
        ValueError: A value is not what its tag says.
        yaml.YAMLError: It is not YAML, has tags of others, a key twice, too many values, or one that is inside itself.
    """
    values(yaml.compose(text, Loader=yaml.SafeLoader), {})
    try:
        return yaml.safe_load(text)
    except (LookupError, AttributeError) as error:  # PyYAML's, of tags such as !!int
        raise ValueError(f"a value is not what its tag says ({error})") from error


def foreign_parts(config: object) -> list[str]:
    """Say what of a run's configuration is not read unless the user gives it himself.

    Args:
        config: The content of ``config.yaml``.
    """
    if not isinstance(config, dict) or not all(isinstance(config.get(name, {}), dict) for name in SECTIONS):
        return ["its sections are not options by name"]
    found = [f"{str(name)[:60]} is no section of a run's" for name in config if name not in (*SECTIONS, *PLAIN)]
    trainer = dict(config.get("trainer") or {})
    logger = trainer.pop("logger", None)
    if isinstance(logger, dict):
        made = str(logger.get("class_path")).removeprefix("lightning.pytorch.loggers.")
        if made not in LOGGERS or not _flat(logger.get("init_args") or {}) or set(logger) - {"class_path", "init_args"}:
            found.append(f"trainer.logger is {str(logger)[:60]!r}")
    else:
        trainer["logger"] = logger
    found += [f"trainer.{name} is {str(value)[:60]!r}" for name, value in trainer.items() if not _word(value)]
    for section, names in PARTS.items():
        options = config.get(section) or {}
        found += [
            f"{section}.{name} is {str(options[name])[:60]!r}"
            for name in names
            if options.get(name) is not None and not isinstance(options[name], dict)
        ]
    base = (config.get("model") or {}).get("base")
    if isinstance(base, dict) and base.get("trust_remote_code"):
        found.append("model.base.trust_remote_code is on")
    place = (config.get("checkpoint") or {}).get("filename")
    if place is not None and not (isinstance(place, str) and not set(place) & set("/\\")):
        found.append(f"checkpoint.filename is {str(place)[:60]!r}")
    nested = [name for name in SECTIONS if name != "trainer" and "class_path" in str(config.get(name))]
    return found + [f"{name} names a class" for name in nested]


def _flat(options: Any) -> bool:
    return isinstance(options, dict) and not any(isinstance(value, dict | list) for value in options.values())


def _word(value: object) -> bool:
    """Whether it is no name of a class or file: a number, a word such as ``ddp`` or ``bf16-mixed``, or a list of these."""
    if isinstance(value, list):
        return all(map(_word, value))
    return (
        value is None
        or isinstance(value, int | float)
        or (isinstance(value, str) and bool(re.fullmatch(r"[\w:,-]*", value)))
    )
