"""Files that we write: whole or not at all, whatever stops the writing, and damage is found when they are read."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bank_example import small_bank
from damage import left_in
from matplotlib.figure import Figure
from project_paths import CONFIG

from introspection_lit.cli import main
from introspection_lit.training import module
from introspection_lit.utils import files
from introspection_lit.utils.errors import RunError
from introspection_lit.utils.files import atomic_file, atomic_folder, folder_problems, save_figure, sync, write_file


@pytest.fixture(autouse=True)
def _nothing_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process."""
    monkeypatch.setattr(files, "_cleared", set())


def killed(program: str, *words: str | Path) -> None:
    """Run a program that kills itself with SIGKILL at the word ``KILL``."""
    program = program.replace("KILL", "os.kill(os.getpid(), 9)")
    head = "import os, sys\nfrom pathlib import Path\nfrom introspection_lit.utils import files\n"
    done = subprocess.run([sys.executable, "-c", head + program, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    files._cleared.clear()  # what comes next is another process


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_block_that_fails_changes_nothing(error: type[BaseException], tmp_path: Path) -> None:
    """The old file stays, and nothing else."""
    path = tmp_path / "new" / "file.txt"
    write_file(path, "old")
    with pytest.raises(error), atomic_file(path) as unfinished:
        unfinished.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert left_in(path.parent) == ["file.txt"]


def test_each_writer_has_a_file_of_its_own(tmp_path: Path) -> None:
    """Two at once: both end well, and what is there is what one of them wrote."""
    path = tmp_path / "file.txt"
    with atomic_file(path) as first, atomic_file(path) as second:
        assert first != second
        first.write_text("first" * 1000)
        second.write_text("2")
    assert path.read_text() == "first" * 1000
    assert left_in(tmp_path) == ["file.txt"]


def test_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut at any moment leaves the old file or the new one: the order is content, name, folder."""
    events: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def seen_fsync(descriptor: int) -> None:
        events.append(("on disk", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def seen_replace(source: Any, target: Any, **options: Any) -> None:
        events.append(("named", str(target)))
        replace(source, target, **options)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "replace", seen_replace)
    with atomic_file(tmp_path / "file.txt") as unfinished:
        unfinished.write_text("x")
    assert events == [("on disk", str(unfinished)), ("named", str(tmp_path / "file.txt")), ("on disk", str(tmp_path))]


@pytest.mark.parametrize("number", sorted(files.REMEDIES))
def test_what_the_system_says_is_explained(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which file, what is wrong, what is still good, what to do; the old file stays."""
    path = tmp_path / "file.txt"
    write_file(path, "old")

    def refused(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refused)
    with pytest.raises(RunError) as stop:
        write_file(path, "new")
    said = str(stop.value)
    for part in (str(path), os.strerror(number), errno.errorcode[number], "as it was", files.REMEDIES[number]):
        assert part in said
    assert path.read_text() == "old"
    assert left_in(tmp_path) == ["file.txt"]
    (problem,) = folder_problems(tmp_path / "run", "trainer.logger")
    assert problem.startswith(f"trainer.logger: {tmp_path / 'run'} cannot be written to: {os.strerror(number)}")


def test_errors_of_other_files_are_not_ours(tmp_path: Path) -> None:
    """What is read in the block fails as it would outside."""
    elsewhere = PermissionError(errno.EACCES, "no", "/elsewhere/secret.txt")
    for error in (elsewhere, FileNotFoundError(errno.ENOENT, "no such file", str(tmp_path / "x"))):
        with pytest.raises(type(error)), atomic_file(tmp_path / "file.txt"):
            raise error


def test_file_systems_that_cannot_sync_are_put_up_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of the network's say that they cannot."""

    def cannot(descriptor: int) -> None:
        raise OSError(errno.EINVAL, "cannot")

    monkeypatch.setattr(os, "fsync", cannot)
    write_file(tmp_path / "file.txt", "x")
    sync(tmp_path)


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    """Found before a run, and in it."""
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "a.txt", tmp_path / "file" / "deeper" / "a.txt"):
        with pytest.raises(RunError, match="A part of the path is a file"):
            write_file(path, "x")
        assert "A part of the path is a file" in folder_problems(path.parent, "x")[0]
    (tmp_path / "folder" / "in").mkdir(parents=True)
    with pytest.raises(RunError, match="EISDIR"):
        write_file(tmp_path / "folder", "x")


def test_a_limit_of_the_system_is_met(tmp_path: Path) -> None:
    """A real error in the middle of writing: files may not be larger than 10 kB."""
    path, limits = tmp_path / "file.bin", resource.getrlimit(resource.RLIMIT_FSIZE)
    write_file(path, bytes(5000))
    picture = Figure()
    picture.add_subplot().imshow(np.random.default_rng(0).random((200, 200)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(RunError, match="EFBIG"):
            write_file(path, bytes(20_000))
        with pytest.raises(RunError, match="EFBIG"), atomic_folder(tmp_path / "folder") as unfinished:
            (unfinished / "large").write_bytes(bytes(20_000))
        with pytest.raises(RunError, match="EFBIG"):
            save_figure(tmp_path / "figure.png", picture)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == bytes(5000)
    assert left_in(tmp_path) == ["file.bin"]


def test_a_full_disk(small_disk: Callable[..., Path]) -> None:
    """A real one: what is there stays, nothing half-written does, and there is room again afterwards."""
    disk = small_disk("size=200k")
    write_file(disk / "small.bin", bytes(50_000))
    with pytest.raises(RunError, match="No space left on device"):
        write_file(disk / "large.bin", bytes(300_000))
    with pytest.raises(RunError, match="No space left on device"):
        small_bank(4096).save(disk / "bank.safetensors")
    with pytest.raises(RunError, match="Make room"), atomic_folder(disk / "folder") as unfinished:
        (unfinished / "large").write_bytes(bytes(300_000))
    assert left_in(disk) == ["small.bin"]
    write_file(disk / "small.bin", bytes(60_000))
    assert (disk / "small.bin").stat().st_size == 60_000


def test_a_disk_that_is_read_only(small_disk: Callable[..., Path]) -> None:
    """A real one; not even root writes there."""
    disk = small_disk("ro")
    with pytest.raises(RunError, match="EROFS"):
        write_file(disk / "file.txt", "x")
    assert "Read-only file system" in folder_problems(disk / "run" / "version_0", "trainer.logger")[0]


def test_a_killed_process_leaves_nothing_that_is_mistaken(tmp_path: Path) -> None:
    """SIGKILL in the middle: the old file is there, the rest is no checkpoint for anybody and goes at the next writing."""
    path = tmp_path / "hpc_ckpt_1.ckpt"
    write_file(path, "old")
    killed("with files.atomic_file(Path(sys.argv[1])) as unfinished:\n    unfinished.write_text('half')\n    KILL", path)
    assert path.read_text() == "old"
    (leftover,) = set(left_in(tmp_path)) - {path.name}
    assert leftover.endswith(".unfinished")
    assert "hpc_ckpt_" not in leftover  # what Lightning looks for after a job was requeued
    assert list(tmp_path.glob("*.ckpt")) == [path]
    others = [f"{host}.{process}.x.unfinished" for host, process in ((files.HOST, os.getppid()), ("elsewhere", 1))]
    for name in (*others, "mine.unfinished", f"{files.HOST}.mine.unfinished"):
        (tmp_path / name).mkdir()
    write_file(tmp_path / "another.txt", "x")
    kept = ["another.txt", path.name, "mine.unfinished", f"{files.HOST}.mine.unfinished", *others]
    assert left_in(tmp_path) == sorted(kept)


def filled(folder: Path, text: str) -> Path:
    """A folder with a file and a folder in it."""
    with atomic_folder(folder) as unfinished:
        (unfinished / "inner").mkdir()
        (unfinished / "inner" / "file").write_text(text)
    return folder


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    """A block that fails changes nothing; without ``replace`` the older folder stays."""
    folder = filled(tmp_path / "adapter", "old")
    with pytest.raises(KeyboardInterrupt), atomic_folder(folder) as unfinished:
        (unfinished / "more").write_text("half")
        raise KeyboardInterrupt
    assert (folder / "inner" / "file").read_text() == "old"
    filled(folder, "new")
    with atomic_folder(folder, replace=False) as unfinished:
        (unfinished / "late").write_text("too late")
    assert (folder / "inner" / "file").read_text() == "new"
    assert left_in(tmp_path) == ["adapter"]


def test_a_folder_is_not_lost_when_its_name_cannot_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the second renaming fails, the older folder has its name back."""
    folder = filled(tmp_path / "adapter", "old")
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if (self / "inner" / "file").read_text() == "new":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(RunError, match="EIO"):
        filled(folder, "new")
    assert (folder / "inner" / "file").read_text() == "old"
    assert left_in(tmp_path) == ["adapter"]


KILLED_AT_A_RENAME = """
rename, calls = Path.rename, []
def renamed(self, target):
    rename(self, target)
    calls.append(target)
    if len(calls) == int(sys.argv[2]):
        KILL
Path.rename = renamed
with files.atomic_folder(Path(sys.argv[1])) as unfinished:
    (unfinished / "file").write_text("new")
"""


def test_a_folder_survives_a_kill_between_the_renames(tmp_path: Path) -> None:
    """The next process that writes there moves the older folder back, even if its own block fails."""
    folder = filled(tmp_path / "adapter", "old")
    killed(KILLED_AT_A_RENAME, folder, "1")
    assert not folder.exists()
    with pytest.raises(ValueError, match="enough"), atomic_folder(folder):
        raise ValueError("enough")
    assert (folder / "inner" / "file").read_text() == "old"
    assert left_in(tmp_path) == ["adapter"]


def test_a_folder_that_was_replaced_is_the_new_one(tmp_path: Path) -> None:
    """Killed right after the second renaming: the new folder is there, and the older one goes with the next writing."""
    folder = filled(tmp_path / "adapter", "old")
    killed(KILLED_AT_A_RENAME, folder, "2")
    assert (folder / "file").read_text() == "new"
    write_file(tmp_path / "another.txt", "x")
    assert left_in(tmp_path) == ["adapter", "another.txt"]
    assert left_in(folder) == ["file"]


def test_run_folder_is_checked_before_the_model(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file where the folder should be, for the run and for the checkpoints; nothing is loaded."""
    monkeypatch.setattr(module, "load_model", lambda *_: pytest.fail("the model was loaded"))
    (tmp_path / "file").write_text("x")
    place = [f"--trainer.logger.init_args.save_dir={tmp_path / 'file'}", f"--checkpoint.dirpath={tmp_path / 'file' / 'x'}"]
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", CONFIG, "--model.base.name_or_path", str(tiny), *place])
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert "2 problems" in printed
    for option in ("trainer.logger", "checkpoint.dirpath"):
        assert f"{option}: {tmp_path / 'file'}" in printed
    assert left_in(tmp_path) == ["file"]
