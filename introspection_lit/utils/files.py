"""Files and folders that appear whole or not at all, survive a power cut, and say what stopped their writing."""

from __future__ import annotations

import ctypes
import errno
import io
import itertools
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from introspection_lit.utils.errors import RunError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


ROOM = "Make room there, or name a folder elsewhere."
RIGHTS = "Name a folder that can be written to, or have its rights changed."
NAMES = "A part of the path is a file, or not what it seems: name another one."
REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), ROOM),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), RIGHTS),
    **dict.fromkeys((errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP), NAMES),
    errno.EIO: "The disk, or the way to it, fails: name a folder elsewhere.",
}
HOST = re.sub(r"[^A-Za-z0-9-]", "-", platform.node())
LEFTOVER = re.compile(r"\.(?P<host>[A-Za-z0-9-]*)\.(?P<process>\d+)\.\d+\.(unfinished|replaced)")
EXCHANGE = 2  # RENAME_EXCHANGE of Linux's renameat2
_numbers = itertools.count()
_cleared: set[Path] = set()


def cache_folder() -> Path:
    """Where things lie that are made once and used by every run: ``$INTROSPECTION_LIT_CACHE``, or below the home folder."""
    return Path(os.environ.get("INTROSPECTION_LIT_CACHE", "~/.cache/introspection_lit")).expanduser()


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Let a file be written under another name, and give it its own once the block has ended well and it is on the disk.

    Args:
        path: What the file will be called; its folder is made if need be.

    Yields:
        Where to write; no other process or block has the same. If the block fails, or is interrupted, this is removed and
        ``path`` stays as it was.

    Raises:
        RunError: The system does not let it be written.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(path.parent)
    unfinished = _another_name(path)
    try:
        with explained(path):
            yield unfinished
            sync(unfinished)
            unfinished.replace(path)
            sync(path.parent)
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes | memoryview) -> None:
    """Write a file so that it is complete or not there; texts as UTF-8."""
    with whole(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)


def save_figure(path: Path, figure: Figure) -> None:
    """Write a PNG file so that it is complete or not there."""
    content = io.BytesIO()  # the writer of pictures hides why it could not write
    figure.savefig(content, dpi=110, format="png")
    write_whole(path, content.getbuffer())


@contextmanager
def whole_folder(folder: Path, replace: bool = True) -> Iterator[Path]:
    """Let a folder be filled under another name, and give it its own once the block has ended well and it is on the disk.

    An older folder changes places with the new one in one step, where the system can do that (Linux, on most file
    systems). Elsewhere it is moved aside first; if the process is killed right then, the next call moves it back.

    Args:
        folder: What it will be called; a link is followed.
        replace: Put it in the place of an older one. Otherwise that stays, and what was written is thrown away.

    Yields:
        An empty folder; it is removed if the block fails.

    Raises:
        RunError: The system does not let it be written.
    """
    folder = folder.resolve()
    with explained(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _move_back(folder)
        clear_leftovers(folder.parent)
        unfinished = _another_name(folder)
        unfinished.mkdir()
    try:
        with explained(folder):
            yield unfinished
            for path in (*unfinished.rglob("*"), unfinished):
                sync(path)
            if replace or not folder.exists():
                _put(unfinished, folder)
            sync(folder.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _put(new: Path, folder: Path) -> None:
    """Give a folder its name; the older one, if there is one, has the name of the new one afterwards, or is gone."""
    if not folder.exists():
        new.rename(folder)
    elif not _exchanged(new, folder):
        older = new.with_suffix(".replaced")
        folder.rename(older)
        try:
            new.rename(folder)
        except BaseException:
            older.rename(folder)
            raise
        shutil.rmtree(older, ignore_errors=True)


def _exchanged(first: Path, second: Path) -> bool:
    """Let two folders change places at once; False if the system, or the file system, cannot."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here = -100  # AT_FDCWD
    return bool(rename(here, os.fsencode(first), here, os.fsencode(second), EXCHANGE) == 0)


def _move_back(folder: Path) -> None:
    """Give an older folder its name back that a killed process had moved aside; remove it if it was replaced."""
    for older in folder.parent.glob(f"{_plain(folder.name)}.*.replaced"):
        if not _abandoned(older):
            continue
        if folder.exists():
            shutil.rmtree(older, ignore_errors=True)
        else:
            older.rename(folder)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what the system says against the writing of a file into an error that says what to do.

    Args:
        path: What is being written.

    Raises:
        RunError: The disk is full, the folder read-only, ... Errors of other files pass as they are.
    """
    try:
        yield
    except OSError as error:
        named = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes | os.PathLike) else path
        ours = named in (path, *path.parents) or named.is_relative_to(path.parent)
        if error.errno not in REMEDIES or not ours:
            raise
        raise RunError(
            [
                f"{path} cannot be written: {_said(error)}. What had this name before is as it was, and so is all that was "
                f"written earlier. {REMEDIES[error.errno]}"
            ]
        ) from error


@contextmanager
def explained_elsewhere() -> Iterator[None]:
    """The same for what other packages write.

    Raises:
        RunError: The disk is full, the folder read-only, ...
    """
    try:
        yield
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        what = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes | os.PathLike) else "a file"
        raise RunError(
            [f"{what} cannot be read or written: {_said(error)}. The checkpoints so far are good. {REMEDIES[error.errno]}"]
        ) from error


def folder_problems(folder: Path, option: str) -> list[str]:
    """Check that a folder can be written to: that a file of a few bytes can be made in it, or where it would be made.

    Args:
        folder: It need not be there.
        option: The option that names it, for messages.
    """
    try:
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        with tempfile.NamedTemporaryFile(dir=there, suffix=".unfinished") as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return [f"{option}: {folder} cannot be written to: {_said(error)}. {REMEDIES.get(error.errno or 0, RIGHTS)}"]
    return []


def clear_leftovers(folder: Path) -> None:
    """Remove what processes of this machine left unfinished in a folder when they were killed; once for each folder."""
    folder = folder.resolve()  # however it is called: what this process has begun there is not to be cleared
    if folder in _cleared:
        return
    _cleared.add(folder)
    for path in folder.glob("*.unfinished"):
        if _abandoned(path):
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def sync(path: Path) -> None:
    """Wait until a file, or the list of files in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot
            raise
    finally:
        os.close(descriptor)


def _said(error: OSError) -> str:
    return f"{error.strerror} ({errno.errorcode.get(error.errno or 0, error.errno)})"


def _plain(name: str) -> str:
    """A name without underscores: Lightning takes whatever has ``hpc_ckpt_`` in its name for a checkpoint."""
    return name.replace("_", "-")


def _another_name(path: Path) -> Path:
    """A name beside that of a file, for this process and this once."""
    return path.with_name(f"{_plain(path.name)}.{HOST}.{os.getpid()}.{next(_numbers)}.unfinished")


def _abandoned(path: Path) -> bool:
    """Whether something unfinished belongs to a process of this machine that is no more."""
    found = LEFTOVER.search(path.name)
    if found is None or found["host"] != HOST:
        return False
    try:
        os.kill(int(found["process"]), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        pass
    return int(found["process"]) == os.getpid()  # of one that had the same number
