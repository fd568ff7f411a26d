"""Paths from the command line and from files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from introspection_lit.utils.errors import ConfigurationError


def parse_path(option: str, text: str) -> Path:
    """Read a path; the file need not exist.

    Args:
        option: The option that gives it, as it was typed.
        text: The path; ``~`` is a home folder.

    Raises:
        ConfigurationError: It is too long, holds a null character, or begins with the home folder of an unknown user.
    """
    try:
        path = Path(text).expanduser()
        path.exists()
        if "\0" in text:
            raise ValueError("it holds a null character")
    except (OSError, RuntimeError, ValueError) as error:
        short = text if len(text) < 80 else f"{text[:60]}..."
        reason = str(error).partition(": ")[0]
        raise ConfigurationError([f"{option}: {short!r} is no path ({reason}). Expected the name of a file."]) from error
    return path


def inside_folder(paths: Iterable[str | Path], folder: str | Path) -> list[Path]:
    """The paths that lie inside a folder once links are followed; they need not exist, and may be any text of a file.

    In the hub's cache the files of a snapshot lie in the cache's ``blobs``.
    """
    home = Path(folder).resolve()
    homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    inside = []
    for path in paths:
        try:
            resolved = Path(path).resolve()
        except (OSError, ValueError, RuntimeError, TypeError):  # a null character, a circle of links
            continue
        if any(resolved.is_relative_to(each) for each in homes):
            inside.append(Path(path))
    return inside
