"""Options as they were given: what the parser of the command line lets through, and no class can be made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from types import NoneType
from typing import Any, get_args, get_type_hints

import yaml
from jsonargparse import Namespace, get_loader, set_loader

# Values of a configuration once every alias is written out. Ours have fewer than a hundred.
MOST_VALUES = 100_000
# What Lightning takes for something other than a file, which none of our runs has.
NO_FILES = ("", "best", "hpc", "registry")


class Misread(yaml.YAMLError):
    """A configuration that would be read otherwise than its writer meant it."""


def read_carefully() -> None:
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
