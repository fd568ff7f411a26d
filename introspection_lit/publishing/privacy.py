"""Takes absolute paths out of what is published, and finds the names of the user and of the machine in what is left."""

from __future__ import annotations

import getpass
import json
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import safe_open

# An absolute path of two parts or more, or one in a home folder, of POSIX or of Windows: up to the quote where one stands
# before it, else up to the next space. What stands before it tells it from an address (https://...), a closing tag, a
# fraction and a relative path; /no_think in a prompt is none.
START = r"(?:/(?=[^/\s'\"<>]+/)|~/|[A-Za-z]:[\\/])"
QUOTED = re.compile(rf"""(?<=')({START}[^'\n]*)(?=')|(?<=")({START}[^"\n]*)(?=")""")
BARE = re.compile(rf"""(?<![\w.:/\\<~]){START}[^\s'"<>,;)\]}}&]*""")
PICTURES = re.compile(r"data:[\w/+.-]+;base64,[A-Za-z0-9+/=]*")
# What a run was asked and answered with: published as it is.
WORDING = ("questions", "system", "answers", "answer_prefix", "info", "infos")
# Names that say nothing about anybody, and the fewest characters of one that is looked for.
NOBODY, SHORTEST = ("root", "user", "localhost"), 3
TEXTS = (".json", ".html", ".md", ".jinja")


def without_paths(text: str) -> str:
    """The text with the last part of each absolute path in the path's place."""
    return BARE.sub(_last_part, QUOTED.sub(_last_part, text))


def _last_part(found: re.Match[str]) -> str:
    return re.split(r"[/\\]", found.group().rstrip("/\\"))[-1]


def cleaned(value: Any) -> Any:
    """Plain values of a results file, nested, with :func:`without_paths` of each text but for its wording."""
    if isinstance(value, str):
        return without_paths(value)
    if isinstance(value, Mapping):
        return {name: inner if name in WORDING else cleaned(inner) for name, inner in value.items()}
    return [cleaned(inner) for inner in value] if isinstance(value, list | tuple) else value


def own_names() -> dict[str, str]:
    """What must not be in a published file, by what it is."""
    found = {"the path of your home folder": str(Path.home())}
    with suppress(KeyError, OSError):  # a container's user without a name
        found["your user name"] = getpass.getuser()
    found["this machine's name"] = platform.node().partition(".")[0]
    return {what: name for what, name in found.items() if len(name) >= SHORTEST and name.strip("/") not in NOBODY}


def own_names_in(folder: Path, allowed: tuple[str, ...] = ()) -> list[str]:
    """Problems if a file of a folder holds the user's or the machine's name as a word, or the path of the home folder.

    Args:
        folder: What would be published; texts and the metadata of safetensors files are read.
        allowed: Names that the user says are just words.
    """
    problems = []
    for path in sorted(folder.iterdir()):
        for what, name in own_names().items():
            text = next((text for text in _texts(path) if name not in allowed and _stands_in(name, text)), None)
            if text is not None:
                around = text[max(0, text.index(name) - 30) :][: 60 + len(name)]
                problems.append(
                    f"{path.name} would say {what}, {name!r} ({' '.join(around.split())!r}). Change it where it comes "
                    f"from, or, if it is just a word there, add --allow {name}."
                )
    return problems


def _stands_in(name: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None


def _texts(path: Path) -> Iterator[str]:
    if path.suffix in TEXTS:
        yield PICTURES.sub("", path.read_text(encoding="utf-8"))
    elif path.suffix == ".safetensors":
        with safe_open(path, framework="np") as file:
            yield json.dumps(file.metadata() or {}, ensure_ascii=False)
