"""Atomic writing: a file or folder is complete and on the disk before it gets its name; write errors say what to do."""

from __future__ import annotations

import errno
import io
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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
# A folder for unfinished files: HOST.PROCESS.RANDOM.unfinished. In REPLACED is an older folder that a new one replaces.
UNFINISHED, REPLACED = ".unfinished", "replaced"

_cleared: set[Path] = set()


def cache_folder() -> Path:
    """The folder for files that every run uses: ``$INTROSPECTION_LIT_CACHE``, or a folder below the home folder."""
    return Path(os.environ.get("INTROSPECTION_LIT_CACHE", "~/.cache/introspection_lit")).expanduser()


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Write a file elsewhere, and give it its name once the block has ended well and the file is on the disk.

    Args:
        path: The file; its folder is made if need be.

    Yields:
        Where to write; no other process or block has the same path. If the block fails or is interrupted, this file is
        removed and ``path`` stays as it was.

    Raises:
        RunError: The system does not let it be written.
    """
    with explain_write_errors(path), _unfinished(path) as unfinished:
        yield unfinished
        sync(unfinished)
        unfinished.replace(path)
        sync(path.parent)


def write_file(path: Path, content: str | bytes | memoryview) -> None:
    """Write a file atomically; texts as UTF-8."""
    with atomic_file(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)


def save_figure(path: Path, figure: Figure) -> None:
    """Write a PNG file atomically."""
    content = io.BytesIO()  # matplotlib's own writer of files hides the system's error
    figure.savefig(content, dpi=110, format="png")
    write_file(path, content.getbuffer())


@contextmanager
def atomic_folder(folder: Path, replace: bool = True) -> Iterator[Path]:
    """Fill a folder elsewhere, and give it its name once the block has ended well and its files are on the disk.

    An older folder of that name is moved aside first. If the process is killed between the two renames, the next process
    that writes beside it moves the older folder back.

    Args:
        folder: The folder; a link is followed.
        replace: Replace an older folder. Otherwise the older one stays, and the new one is thrown away.

    Yields:
        An empty folder; it is removed if the block fails.

    Raises:
        RunError: The system does not let it be written.
    """
    folder = folder.resolve()
    with explain_write_errors(folder), _unfinished(folder) as unfinished:
        unfinished.mkdir()
        yield unfinished
        for path in (*unfinished.rglob("*"), unfinished):
            sync(path)
        if not folder.exists():
            unfinished.rename(folder)
        elif replace:
            older = unfinished.parent / REPLACED / folder.name
            older.parent.mkdir()
            folder.rename(older)
            try:
                unfinished.rename(folder)
            except BaseException:
                older.rename(folder)
                raise
        sync(folder.parent)


@contextmanager
def _unfinished(path: Path) -> Iterator[Path]:
    """A path of the same name in a new folder beside it; the folder is removed at the end of the block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(path.parent)
    prefix = f"{HOST}.{os.getpid()}."
    with tempfile.TemporaryDirectory(UNFINISHED, prefix, path.parent, ignore_cleanup_errors=True) as place:
        yield Path(place) / path.name


def clear_leftovers(folder: Path) -> None:
    """Remove what killed processes of this machine left unfinished in a folder; once for each folder."""
    folder = folder.resolve()  # one folder has several spellings, and this process's own files must stay
    if folder in _cleared:
        return
    _cleared.add(folder)
    for place in folder.glob(f"{HOST}.*{UNFINISHED}"):
        if not _is_abandoned(place):
            continue
        for older in place.glob(f"{REPLACED}/*"):
            if not (folder / older.name).exists():
                older.rename(folder / older.name)
        shutil.rmtree(place, ignore_errors=True)


def _is_abandoned(place: Path) -> bool:
    """Whether the process that made an unfinished folder has ended; this process has made none so far."""
    process = place.name.removeprefix(f"{HOST}.").partition(".")[0]
    try:
        if int(process) != os.getpid():  # else it was another process with this number
            os.kill(int(process), 0)
            return False
    except (ProcessLookupError, OverflowError):
        return True
    except (OSError, ValueError):
        return False
    return True


@contextmanager
def explain_write_errors(path: Path | None = None) -> Iterator[None]:
    """Turn a system error of writing into an error that says what to do.

    Args:
        path: The file that is being written: errors of files elsewhere pass unchanged. None: any file.

    Raises:
        RunError: The disk is full, the folder read-only, ...
    """
    try:
        yield
    except OSError as error:
        named = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes | os.PathLike) else None
        place, own = Path(named or path or "").absolute(), path and path.absolute()
        other = own and not (place in (own, *own.parents) or place.is_relative_to(own.parent))
        if error.errno not in REMEDIES or other:
            raise
        if path:
            problem = (
                f"{path} cannot be written: {_describe(error)}. What had this name before is as it was, and so is all "
            )
            problem += "that was written earlier."
        else:
            problem = f"{named or 'a file'} cannot be read or written: {_describe(error)}. The checkpoints so far are good."
        raise RunError([f"{problem} {REMEDIES[error.errno]}"]) from error


def folder_problems(folder: Path, option: str) -> list[str]:
    """Check that a folder can be written to, by writing a small file there, or where the folder would be made.

    Args:
        folder: It need not exist.
        option: The option that names it, for messages.
    """
    try:
        existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        with tempfile.NamedTemporaryFile(dir=existing, suffix=UNFINISHED) as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return [f"{option}: {folder} cannot be written to: {_describe(error)}. {REMEDIES.get(error.errno or 0, RIGHTS)}"]
    return []


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


def _describe(error: OSError) -> str:
    return f"{error.strerror} ({errno.errorcode.get(error.errno or 0, error.errno)})"
