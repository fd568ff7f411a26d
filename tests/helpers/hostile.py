"""Files as an attacker would make them: pickles that run code when they are read, here to leave a mark, and no more."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch


class Bomb:
    """Writes a marker when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({self.marker!r}, 'w').write('it ran')",)


def change_json(file: Path, **fields: Any) -> None:
    """Set fields of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def plain(content: Any, file: Path) -> None:
    """Pickle as Python does."""
    file.write_bytes(pickle.dumps(content))


def legacy(content: Any, file: Path) -> None:
    """Save as old versions of torch did."""
    torch.save(content, file, _use_new_zipfile_serialization=False)


def zipped(content: Any, file: Path) -> None:
    """Put a plain pickle into an archive that looks like torch's."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(content))
        archive.writestr("archive/version", "3\n")


WAYS = {"plain": plain, "torch": torch.save, "legacy": legacy, "zipped": zipped}


def exceeding(error: Exception, time: int = 1) -> Callable[..., AbstractContextManager[None]]:
    """A stand-in for a limit of time or memory: what it is put around is too much, from the ``time``-th use on."""
    uses = 0

    @contextmanager
    def limit(*_: Any, **__: Any) -> Iterator[None]:
        nonlocal uses
        uses += 1
        yield
        if uses >= time:
            raise error

    return limit
