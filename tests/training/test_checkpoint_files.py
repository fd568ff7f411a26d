"""Checkpoint files: what was written comes back, or the reader says what is wrong; a full disk costs no checkpoint."""

from __future__ import annotations

import errno
import io
import os
import pickle
import warnings
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from damage import damaged, left_in
from project_paths import CONFIG
from torch.utils.tensorboard import SummaryWriter

from introspection_lit.cli import main
from introspection_lit.training.callbacks.tensorboard_files import BestEffortWriter, wrap_event_file
from introspection_lit.training.checkpoint_files import CheckpointFiles, read_checkpoint
from introspection_lit.utils.checksums import CHECKSUM
from introspection_lit.utils.errors import ConfigurationError, RunError
from introspection_lit.utils.tensor_hash import content_hash


def small(rank: int = 2) -> dict[str, Any]:
    """A checkpoint as fit writes it, with an adapter of one matrix."""
    generator = torch.Generator().manual_seed(0)
    names = {"model.q_proj.lora_A.default.weight": (rank, 8), "model.q_proj.lora_B.default.weight": (8, rank)}
    adapter = {name: torch.randn(shape, generator=generator) for name, shape in names.items()}
    return {
        "epoch": 1,
        "global_step": 3,
        "state_dict": OrderedDict(adapter),
        "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2, 8).bfloat16()}}}],
        "callbacks": {"best": {"score": torch.tensor(0.5), "path": "é.ckpt", "none": None, "seen": (1, 2.5, True)}},
        "introspection": {"threshold": 0.25, "lora": {"r": rank, "alpha": 4.0}},
    }


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The small checkpoint on disk."""
    CheckpointFiles().save_checkpoint(small(), tmp_path / "small.ckpt")
    return tmp_path / "small.ckpt"


def test_what_is_written_is_read(saved: Path) -> None:
    """By our reader and by torch's; nothing else is left in the folder."""
    assert left_in(saved.parent) == ["small.ckpt"]
    assert content_hash(CheckpointFiles().load_checkpoint(saved)) == content_hash(small())
    plain = torch.load(saved, weights_only=True)
    assert plain.pop(CHECKSUM) == content_hash(small()) == content_hash(plain)


def test_no_damage_goes_unseen(saved: Path) -> None:
    """Cut off, or one bit changed, at hundreds of places: refused, or every value in it is the right one."""
    content, expected, refused, kept = saved.read_bytes(), content_hash(small()), 0, 0
    for changed in damaged(content, 250):
        saved.write_bytes(changed)
        try:
            read = read_checkpoint(saved)
        except ConfigurationError:
            refused += 1
        else:
            kept += 1
            assert content_hash({name: read[name] for name in small()}) == expected
    assert refused > 320  # the rest was padding, or sizes and dates that nobody reads
    assert refused + kept == 500


def test_no_damage_to_an_older_checkpoint_goes_unseen(saved: Path) -> None:
    """Without a seal of ours, the sums of the archive are checked, which torch does not do."""
    torch.save(small(), saved)
    content, expected, silent = saved.read_bytes(), content_hash(small()), 0
    assert content_hash(read_checkpoint(saved)) == expected
    for changed in damaged(content, 100):
        saved.write_bytes(changed)
        try:
            assert content_hash(read_checkpoint(saved)) == expected
        except ConfigurationError:
            try:
                torch.load(saved, weights_only=True)
                silent += 1
            except Exception:
                continue  # torch has noticed
    assert silent > 10  # which shows that checking is needed


def test_a_damaged_table_of_contents_is_met(saved: Path) -> None:
    """The end of an archive, where its parts are listed: torch reads past some of what Python's zipfile raises at."""
    torch.save(small(), saved)
    content, expected = saved.read_bytes(), content_hash(small())
    start = content.index(b"PK\x01\x02")
    for place in (*range(start, start + 100), *range(len(content) - 60, len(content))):
        saved.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        try:
            assert content_hash(read_checkpoint(saved)) == expected
        except ConfigurationError:
            continue


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_other_files_are_refused(tmp_path: Path) -> None:
    """Nothing, emptiness, text, a pickle, a checkpoint with code in it: each with what is wrong; no code is run."""
    path = tmp_path / "x.ckpt"

    def said() -> str:
        with pytest.raises(ConfigurationError) as stop:
            read_checkpoint(path)
        assert str(path) in str(stop.value)
        assert "weights_only" not in str(stop.value)  # torch's advice to load it all the same
        return str(stop.value)

    assert "no such file" in said()
    path.write_bytes(b"")
    assert "it is empty" in said()
    path.write_text("hello")
    assert "no zip archive" in said()
    path.write_bytes(pickle.dumps(small()))
    assert "no zip archive" in said()
    torch.save(small() | {"more": Hostile(tmp_path / "made")}, path)
    assert "asks for" in said()
    assert "mkdir" in said()
    assert not (tmp_path / "made").exists()
    torch.save([1, 2], path)
    with pytest.raises(ConfigurationError, match="not one of introspection_lit"):
        read_checkpoint(path)
    torch.save(small() | {CHECKSUM: "0" * 64}, path)
    assert "does not hold what was written" in said()


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("model.q_proj.lora_A.default.weight", torch.full((2, 8), float("nan")), "not finite in model.q_proj.lora_A"),
        ("model.q_proj.lora_B.default.weight", torch.full((8, 2), float("inf")), "not finite in model.q_proj.lora_B"),
        ("model.q_proj.lora_A.default.weight", torch.ones(3, 8), r"shape \(3, 8\), which is not of rank 2"),
        ("model.q_proj.lora_B.default.weight", torch.ones(2, 8), r"shape \(2, 8\), which is not of rank 2"),
        ("model.q_proj.lora_B.default.weight", torch.ones(16), r"shape \(16,\), which is not of rank 2"),
        ("model.q_proj.lora_A.default.weight", torch.ones(2, 8, dtype=torch.int64), "not made of plain tensors"),
        ("model.q_proj.lora_A.default.weight", torch.ones(2, 8).to_sparse(), "does not hold what was written"),
        ("model.q_proj.lora_A.default.weight", "a text", "not made of plain tensors"),
        (3, torch.ones(2, 8), "not made of plain tensors"),
    ],
)
@pytest.mark.parametrize("with_seal", [True, False])
def test_adapters_that_cannot_be(with_seal: bool, name: Any, tensor: Any, message: str, tmp_path: Path) -> None:
    """Numbers that are none, shapes of another rank, no numbers at all: sealed by us or not."""
    checkpoint = small()
    checkpoint["state_dict"][name] = tensor
    if with_seal and not (isinstance(tensor, torch.Tensor) and tensor.is_sparse):
        CheckpointFiles().save_checkpoint(checkpoint, tmp_path / "x.ckpt")
    else:
        torch.save(checkpoint, tmp_path / "x.ckpt")
    with pytest.raises(ConfigurationError, match=message):
        read_checkpoint(tmp_path / "x.ckpt")


class Point(NamedTuple):
    """Two numbers."""

    x: int
    y: int


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (np.float64(1), r"numpy\.float64"),
        (np.str_("x"), r"numpy\.str_"),
        (Point(1, 2), r"test_checkpoint_files\.Point"),
        (defaultdict(int, a=1), r"collections\.defaultdict"),
        (deque([1]), r"collections\.deque"),
        (frozenset([1]), r"builtins\.frozenset"),
        (range(3), r"builtins\.range"),
        ({np.float64(1)}, r"builtins\.set"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_could_not_be_read_back_is_not_written(value: Any, kind: str, saved: Path) -> None:
    """A callback's state with an object in it would make the checkpoint unreadable without unpickling."""
    before = saved.read_bytes()
    torch.save([value], other := io.BytesIO())
    other.seek(0)
    with pytest.raises(UnpicklingError):
        torch.load(other, weights_only=True)
    with pytest.raises(RunError, match=f"callbacks/mine/0 is a {kind}"):
        CheckpointFiles().save_checkpoint(small() | {"callbacks": {"mine": [value]}}, saved)
    assert saved.read_bytes() == before
    assert left_in(saved.parent) == ["small.ckpt"]


@pytest.fixture
def fit(tiny: Path, some_contexts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Fits the tiny model through the command line, with its run in a folder."""
    monkeypatch.chdir(tmp_path)

    def command(folder: Path, *options: str) -> Any:
        logger = f"--trainer.logger.init_args.save_dir={folder}"
        return main(["fit", "--config", CONFIG, "--model.base.name_or_path", str(tiny), logger, *some_contexts, *options])

    return command


@pytest.mark.slow
def test_a_full_disk_costs_no_checkpoint(
    fit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The third does not fit: exit status 1, the message says where to go on, and from there the run ends well."""
    fsync, checkpoints = os.fsync, []

    def full_at_the_third(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        if ".ckpt" in name and "first.ckpt" not in name:  # which is read back before the first step
            checkpoints.append(name)
            if len(checkpoints) >= 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with monkeypatch.context() as full:
        full.setattr(os, "fsync", full_at_the_third)
        with pytest.raises(SystemExit) as stop:
            fit(tmp_path)
    assert stop.value.code == 1
    folder = tmp_path / "default" / "version_0" / "checkpoints"
    assert left_in(folder) == ["best-step3.ckpt", "last.ckpt"]
    assert [read_checkpoint(path)["global_step"] for path in sorted(folder.iterdir())] == [3, 3]
    assert all(CHECKSUM in torch.load(path, weights_only=True) for path in folder.iterdir())
    printed = capsys.readouterr().err
    assert "error: the run has stopped. 1 problem:" in printed
    assert "No space left on device (ENOSPC)" in printed
    good = printed.split("with ckpt_path: ")[1].split("\n")[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        resumed = fit(tmp_path, "--ckpt_path", good)
    assert resumed.trainer.global_step == 6


@pytest.mark.slow
def test_a_disk_that_fills_up(
    fit: Callable[..., Any], small_disk: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """A real one, with room for about three checkpoints of ten: what is there is whole."""
    disk = small_disk("size=1500k")
    with pytest.raises(SystemExit) as stop:
        fit(disk, "--checkpoint.save_top_k", "-1", "--trainer.max_epochs", "10")
    assert stop.value.code == 1
    assert "No space left on device" in capsys.readouterr().err
    run = disk / "default" / "version_0"
    written = sorted((run / "checkpoints").iterdir())
    assert len(written) >= 2
    for path in written:
        assert path.suffix == ".ckpt"
        read_checkpoint(path)
    assert not list(run.rglob("*.unfinished"))


class Full:
    """A file on a full disk."""

    closed = False

    def write(self, data: bytes) -> None:
        """As the system does."""
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    flush = close = lambda self: self.write(b"")


def test_curves_that_cannot_be_written_do_not_stop_a_run(tmp_path: Path) -> None:
    """TensorBoard alone raises at what is logged after the error, and when it is closed; here there is one warning."""
    writers = [SummaryWriter(tmp_path / name) for name in ("theirs", "ours")]
    for writer in writers:
        writer.flush()
        writer._get_file_writer().event_writer._async_writer._writer._writer = Full()
    wrap_event_file(writers[1])
    wrap_event_file(writers[1])
    wrap_event_file(None)

    def log(writer: SummaryWriter) -> None:
        for number in range(50):
            writer.add_scalar("x", number, number)
            writer.flush()
        writer.close()

    with pytest.warns(UserWarning, match=r"curves end here.*No space left on device") as warned:
        log(writers[1])
    assert len([warning for warning in warned if "curves" in str(warning.message)]) == 1
    with pytest.raises(OSError, match="No space left"):  # what this is for
        log(writers[0])


@pytest.mark.slow
def test_a_run_without_room_for_curves_ends_well(
    fit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only TensorBoard's file fails: checkpoints, adapter and configuration are there."""
    original = BestEffortWriter.__init__

    def full(self: BestEffortWriter, file: Any, name: str) -> None:
        original(self, Full(), name)

    monkeypatch.setattr(BestEffortWriter, "__init__", full)
    with pytest.warns(UserWarning, match="The run goes on"):
        fit(tmp_path, "--trainer.max_epochs", "1")
    run = tmp_path / "default" / "version_0"
    assert {"adapter", "checkpoints", "config.yaml", "vectors.safetensors"} <= set(left_in(run))
    assert left_in(run / "checkpoints") == ["best-step3.ckpt", "last.ckpt"]
