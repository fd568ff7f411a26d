"""Options and configuration files before classes are made of them: ambiguous YAML, empty options."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import yaml
from jsonargparse import Namespace, get_loader, set_loader

from introspection_lit.utils.errors import ConfigurationError

# Values of a configuration with every alias written out. Ours have fewer than a hundred.
MAX_VALUES = 100_000
# Lightning takes these for something other than a file, which no run of ours has.
NO_FILES = ("", "best", "hpc", "registry")


class Misread(yaml.YAMLError):
    """A configuration that would not be read as its author means it."""


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
            count_values(yaml.compose(stream, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)), {})
        return _construct(load, stream)

    careful.careful = True  # type: ignore[attr-defined]
    set_loader("yaml", careful, (yaml.YAMLError, RecursionError))


def read_plain_yaml(stream: str) -> Any:
    """Read YAML of plain values.

    Raises:
        yaml.YAMLError: It is not YAML, has unknown or wrong tags, a key twice, too many values, or one inside itself.
    """
    count_values(yaml.compose(stream, Loader=yaml.SafeLoader), {})
    return _construct(yaml.safe_load, stream)


def read_yaml_file(path: Path, option: str) -> Any:
    """Read a YAML file of plain values that an option names.

    Raises:
        ConfigurationError: It cannot be read.
    """
    try:
        return read_plain_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigurationError([f"{option} {path}: cannot be read ({error})."]) from error


def _construct(load: Callable[[str], Any], stream: str) -> Any:
    try:
        return load(stream)
    except (ValueError, LookupError, AttributeError) as error:  # PyYAML's, of tags such as !!int
        raise Misread(f"a value is not what its tag says ({error}). Leave the tag out.") from error


def count_values(node: yaml.Node | None, counted: dict[int, int | None]) -> int:
    """Count the values of a YAML document, with every alias written out.

    Args:
        node: A node of the document's tree.
        counted: The number of values by node; None while a node is being counted.

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
    inner = node.value
    if isinstance(node, yaml.MappingNode):
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if twice := [key for key, times in keys.items() if times > 1]:
            raise Misread(f"the key {twice[0]!r} comes twice in one place{node.start_mark}. Leave one of them out.")
        inner = [part for pair in node.value for part in pair]
    total = 1 + sum(count_values(part, counted) for part in inner)
    if total > MAX_VALUES:
        raise Misread(f"more than {MAX_VALUES} values{node.start_mark}. Is an alias repeated by mistake?")
    counted[id(node)] = total
    return total


def unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The fields of a JSON object (an ``object_pairs_hook``): of two with one name Python would silently drop the first.

    Raises:
        ValueError: A name comes twice.
    """
    unique = dict(pairs)
    if len(unique) < len(pairs):
        name = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"an object has the field {name!r} twice")
    return unique


def empty_options(group: str, options: object, target: type) -> list[str]:
    """List the options that are set to nothing (``null``) though their class does not take that.

    Args:
        group: The name of a group of options.
        options: Its options, defaults included.
        target: The class that is made of them.

    Returns:
        The problems, each with the option's name.
    """
    if isinstance(options, target):
        return []
    if not isinstance(options, Namespace | Mapping):
        return [f"{group}: got {str(options)[:60]!r}. Expected options, each with its name."]
    empty = []
    for name, hint in get_type_hints(target if is_dataclass(target) else vars(target)["__init__"]).items():
        kinds = get_args(hint) or (hint,)
        if name not in options or name == "return" or (options[name] is None and NoneType in kinds):
            continue
        inner = [kind for kind in kinds if isinstance(kind, type) and is_dataclass(kind)]
        if inner:
            empty += empty_options(f"{group}.{name}", options[name], inner[0])
        elif options[name] is None:
            empty.append(f"{group}.{name}: got nothing (null). Give it a value, or leave it out for the default.")
    return empty


def class_problem(error: Exception, options: Mapping[str, Any]) -> str | None:
    """Why a class that an option names cannot be made, in a line; None if the error is of another kind.

    Args:
        error: What jsonargparse raises: a list of what each type says that the value may have, and the value.
        options: Those of the trainer.
    """
    text = str(error)
    listed = text.partition("\nErrors:\n")[2].partition("\nGiven value")[0]
    reasons = [" ".join(reason.split()) for reason in re.split(r"^  - ", listed, flags=re.MULTILINE)]
    told = [reason for reason in reasons if reason and not reason.startswith(("Expected a ", "Not a valid subclass"))]
    if not told:
        return None
    option = next((f".{name}" for name, value in vars(options).items() if value and text.endswith(str(value))), "")
    return f"trainer{option}: {' '.join(told)}"


def seed_problems(seed: object) -> list[str]:
    """Check the seed of dropout and weights, which NumPy bounds."""
    if seed is None or isinstance(seed, bool) or (isinstance(seed, int) and 0 <= seed < 2**32):
        return []
    return [f"seed_everything: got {seed}. Expected a whole number from 0 to {2**32 - 1}."]


def checkpoint_name_problems(name: object) -> list[str]:
    """Check that a checkpoint is named by its file: Lightning has other meanings for some words."""
    if name not in NO_FILES:
        return []
    return [f"ckpt_path: got {name!r}. Expected the file of a checkpoint, such as .../checkpoints/last.ckpt."]
