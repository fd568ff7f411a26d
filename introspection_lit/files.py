"""Files that appear whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Let a file be written under another name, and give it its own once the block has ended well.

    Args:
        path: What the file will be called; its folder is made if need be.

    Yields:
        Where to write. If the block fails, or is interrupted, this is removed and ``path`` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that it is complete or not there."""
    with whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def save_figure(path: Path, figure: Figure) -> None:
    """Write a PNG file so that it is complete or not there."""
    with whole(path) as unfinished:
        figure.savefig(unfinished, dpi=110, format="png")
