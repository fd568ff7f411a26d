"""Paths as they were typed: what the system cannot take for one is said in our words."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from introspection_lit.utils.errors import ConfigurationError


def parse_path(option: str, text: str) -> Path:
    """Read a path; whether anything lies there is not asked, only whether it can be asked.

    Args:
        option: Where it was given, as it was typed.
        text: The path; ``~`` is somebody's home folder.

    Raises:
        ConfigurationError: It is too long, holds a null character, or begins with the home folder of nobody.
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
