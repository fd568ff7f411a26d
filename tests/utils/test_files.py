"""Files that we write: whole or not at all, whatever stops the writing, and damage is found when they are read."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bank_example import random_bank, small_bank
from damage import damaged, left_in
from manifest_example import manifest_of, training_split
from matplotlib.figure import Figure
from project_paths import CONFIG
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

from introspection_lit.cli import main
from introspection_lit.models.adapters import CONFIG as PEFT_CONFIG
from introspection_lit.models.adapters import DESCRIPTION, WEIGHTS, changed_files, copy_adapter
from introspection_lit.report.command import load_run
from introspection_lit.steering.vector_bank import VectorBank
from introspection_lit.training import module
from introspection_lit.trials.manifest_plan import Manifest, ManifestPlan
from introspection_lit.utils import files
from introspection_lit.utils.checksums import CHECKSUM, checksum_problem, file_hash, with_checksum, write_json
from introspection_lit.utils.errors import ConfigurationError, RunError
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


def leaves(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of nested content: where it is kept, and under what."""
    for key in list(content) if isinstance(content, dict) else range(len(content)):
        yield content, key
        if isinstance(content[key], dict | list):
            yield from leaves(content[key])


def test_every_change_of_results_breaks_their_seal(tmp_path: Path) -> None:
    """Each value and each name, one at a time; layout and order may change, and older files have no seal."""
    content = {"sets": {"seen": {"auroc": 0.25, "n": 3, 4: None}}, "words": ["yes", "né", "\ud800", True]}
    path = tmp_path / "results.json"
    write_json(path, content)
    text = path.read_text()
    read = json.loads(text)
    assert checksum_problem(read) is None
    assert checksum_problem(json.loads(json.dumps(dict(reversed(read.items()))))) is None
    assert checksum_problem({name: value for name, value in read.items() if name != CHECKSUM}) is None
    places = len(list(leaves(read)))
    assert places == 11
    for number in range(places):
        for change in ("value", "name"):
            changed = json.loads(text)
            holder, key = list(leaves(changed))[number]
            if key == CHECKSUM and change == "name":
                continue
            if change == "value":
                holder[key] = 0.250001 if holder[key] == 0.25 else [holder[key]]
            elif isinstance(holder, dict):
                holder[f"{key}x"] = holder.pop(key)
            else:
                holder.insert(key, None)
            assert checksum_problem(changed), (key, change)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"auroc": float("nan")})
    assert path.read_text() == text


def test_the_report_refuses_changed_results(tmp_path: Path) -> None:
    """And says how a change that is meant is made."""
    write_json(tmp_path / "results.json", {"sets": {"seen": {"auroc": 0.75, "tpr": 0.5, "fpr": 0.0}}})
    assert load_run(tmp_path).results["sets"]["seen"]["auroc"] == 0.75
    changed = (tmp_path / "results.json").read_text().replace("0.75", "0.95")
    (tmp_path / "results.json").write_text(changed)
    with pytest.raises(ConfigurationError, match=r"changed or damaged.*remove its field 'sha256'"):
        load_run(tmp_path)
    plain = {name: value for name, value in json.loads(changed).items() if name != CHECKSUM}
    (tmp_path / "results.json").write_text(json.dumps(plain))
    assert load_run(tmp_path).results["sets"]["seen"]["auroc"] == 0.95


def test_no_damage_to_a_bank_goes_unseen(tmp_path: Path) -> None:
    """It is refused, or all that it holds is what was saved; one without a seal is read as ever."""
    path, bank = tmp_path / "bank.safetensors", small_bank(16)
    bank.save(path)
    refused = 0
    for content in damaged(path.read_bytes(), 100, first=200):
        path.write_bytes(content)
        try:
            again = VectorBank.load(path)
        except ConfigurationError:
            refused += 1
        else:
            assert again.names == bank.names
            assert again.metadata.items() >= bank.metadata.items()
            assert again.fingerprint == bank.fingerprint
    assert refused > 390
    tensors = {f"directions.{split}": rows for split, rows in bank.directions.items()}
    header = {"format": "introspection_lit/vector-bank/1", "names": json.dumps(bank.names), **bank.metadata}
    save_file(tensors | {"residual_norms": bank.residual_norms}, path, metadata=header)
    assert VectorBank.load(path).fingerprint == bank.fingerprint


def test_no_damage_to_a_manifest_goes_unseen(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """Its lines are those that were written, or something is said; a change that is meant needs no seal."""
    train, bank = training_split(tokenizer), random_bank()
    path = manifest_of(tmp_path / "m.jsonl", train, bank, 8)
    content = path.read_bytes()

    def problems() -> list[str]:
        try:
            return ManifestPlan(Manifest(path), train, bank, 0).problems()
        except ConfigurationError as error:
            return error.problems

    assert problems() == []
    for changed in damaged(content, 80):
        path.write_bytes(changed)
        try:
            header = json.loads(changed.split(b"\n")[0])
        except ValueError:
            header = {}
        if isinstance(header, dict) and CHECKSUM in header:  # else its name is what was damaged
            assert problems()
    changed = content.replace(b'"begins": "message', b'"begins": "Message', 1)
    path.write_bytes(changed)
    assert "remove 'sha256' from its first line" in problems()[0]
    header = json.loads(changed.split(b"\n")[0])
    del header[CHECKSUM]
    path.write_bytes(json.dumps(header).encode() + b"\n" + changed.split(b"\n", 1)[1])
    assert problems() == []


def test_changed_adapters_are_noticed(tmp_path: Path) -> None:
    """Weights, PEFT's configuration, our description; older exports say nothing of their files."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / WEIGHTS).write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / PEFT_CONFIG).write_text('{"r": 4, "lora_alpha": 8}')
    description = with_checksum(
        {"threshold": 0.5, "files": {name: file_hash(folder / name) for name in (WEIGHTS, PEFT_CONFIG)}}
    )
    assert changed_files(folder, description) == []
    assert changed_files(folder, {"threshold": 0.5}) == changed_files(folder, None) == []
    assert DESCRIPTION in changed_files(folder, description | {"threshold": 0.6})[0]
    for name in (WEIGHTS, PEFT_CONFIG):
        content = (folder / name).read_bytes()
        for changed in damaged(content, 20):
            (folder / name).write_bytes(changed)
            (problem,) = changed_files(folder, description)
            assert str(folder / name) in problem
        (folder / name).write_bytes(content)
    (folder / DESCRIPTION).write_text(json.dumps(description))
    copy_adapter(folder, tmp_path / "copy")
    assert changed_files(tmp_path / "copy", description) == []
