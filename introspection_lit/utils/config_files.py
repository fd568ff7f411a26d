"""Options as they were given: what the parser of the command line lets through, and no class can be made of."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import is_dataclass
from types import NoneType
from typing import Any, get_args, get_type_hints

import yaml
from jsonargparse import Namespace, get_loader, set_loader

SECTIONS = ("trainer", "model", "data", "checkpoint", "evidence")
PLAIN = ("seed_everything", "test_after_fit", "ckpt_path", "weights_only")
LOGGERS = ("TensorBoardLogger", "CSVLogger")
# Sections of options inside the sections; a text in their place would be the name of a file to read them from.
PARTS = {"model": ("base", "lora"), "data": ("grid", "reuse")}
# Values of a configuration once every alias is written out. Ours have fewer than a hundred.
MOST_VALUES = 100_000
# What Lightning takes for something other than a file, which none of our runs has.
NO_FILES = ("", "best", "hpc", "registry")


class Misread(yaml.YAMLError):
    """A configuration that would be read otherwise than its writer meant it."""


def refuse_ambiguous_yaml() -> None:
    """Let jsonargparse refuse YAML with a key that comes twice, or with too many values.

    Of two values with one key, the first would silently be dropped. A few lines of aliases of aliases (a "YAML bomb") are
    more values than any machine can hold.
    """
    load = get_loader("yaml")
    if getattr(load, "careful", False):
        return

    def careful(stream: str) -> Any:
        if any(sign in stream for sign in "{\n&"):  # else there is neither a key nor an alias
            values(yaml.compose(stream, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)), {})
        try:
            return load(stream)
        except (ValueError, LookupError, AttributeError) as error:  # PyYAML's, of tags such as !!int
            raise Misread(f"a value is not what its tag says ({error}). Leave the tag out.") from error

    careful.careful = True  # type: ignore[attr-defined]
    set_loader("yaml", careful, (yaml.YAMLError, RecursionError))


def values(node: yaml.Node | None, counted: dict[int, int | None]) -> int:
    """Count the values of a YAML document, with every alias written out.

    Args:
        node: Of the document's tree.
        counted: The nodes that were counted before; None for those whose counting has not ended.

    Raises:
        Misread: There are too many, one is inside itself, or a key comes twice.
    """
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) in counted:
        before = counted[id(node)]
        if before is None:
            raise Misread(f"a value is inside itself{node.start_mark}")
        return before
    counted[id(node)] = None
    inside = node.value
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        seen = set[str]()
        for key in keys:
            if key in seen:
                raise Misread(f"the key {key!r} comes twice in one place{node.start_mark}. Leave one of them out.")
            seen.add(key)
        inside = [part for pair in node.value for part in pair]
    total = 1 + sum(values(part, counted) for part in inside)
    if total > MOST_VALUES:
        raise Misread(f"more than {MOST_VALUES} values{node.start_mark}. Is an alias repeated by mistake?")
    counted[id(node)] = total
    return total


def empty_options(group: str, given: object, made: type) -> list[str]:
    """List the options that were given as nothing (``null``) though their class has no use for that.

    Args:
        group: The name of a group of options.
        given: Its options, defaults included.
        made: The class that is made of them.

    Returns:
        The problems, each with the option's name.
    """
    if isinstance(given, made):
        return []
    if not isinstance(given, Namespace | Mapping):
        return [f"{group}: got {str(given)[:60]!r}. Expected options, each with its name."]
    problems = []
    for name, hint in get_type_hints(made if is_dataclass(made) else vars(made)["__init__"]).items():
        kinds = get_args(hint) or (hint,)
        if name not in given or name == "return" or (given[name] is None and NoneType in kinds):
            continue
        inner = [kind for kind in kinds if isinstance(kind, type) and is_dataclass(kind)]
        if inner:
            problems += empty_options(f"{group}.{name}", given[name], inner[0])
        elif given[name] is None:
            problems.append(f"{group}.{name}: got nothing (null). Give it a value, or leave it out for the default.")
    return problems


def seed_problems(seed: object) -> list[str]:
    """Check the seed of dropout and weights, which NumPy bounds."""
    if seed is None or isinstance(seed, bool) or (isinstance(seed, int) and 0 <= seed < 2**32):
        return []
    return [f"seed_everything: got {seed}. Expected a whole number from 0 to {2**32 - 1}."]


def checkpoint_name_problems(name: object) -> list[str]:
    """Check that a checkpoint is named by its file: other words mean things to Lightning that no run of ours has."""
    if name not in NO_FILES:
        return []
    return [f"ckpt_path: got {name!r}. Expected the file of a checkpoint, such as .../checkpoints/last.ckpt."]


def unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The fields of an object: of two with one name, JSON says nothing, and Python would silently drop the first.

    Raises:
        ValueError: One is there twice.
    """
    fields = dict(pairs)
    if len(fields) < len(pairs):
        name = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"an object has the field {name!r} twice")
    return fields


def read_plain_yaml(text: str) -> Any:
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


def untrusted_parts(config: object) -> list[str]:
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
