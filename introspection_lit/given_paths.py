"""Paths as they were typed: what the system cannot take for one is said in our words."""

from __future__ import annotations

from pathlib import Path

from introspection_lit.errors import ConfigurationError


def given_path(option: str, text: str) -> Path:
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
