"""Checkpoints of strangers: no code in them runs, their memory is limited, and nothing elsewhere is removed."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import WAYS, Bomb, exceeding

from introspection_lit.models.base_identity import BaseIdentity
from introspection_lit.models.base_model import BaseModel
from introspection_lit.steering.vector_files import read_directions
from introspection_lit.training import checkpoint_files
from introspection_lit.training.callbacks.best_checkpoint import BestCheckpoint
from introspection_lit.training.checkpoint_checks import checkpoint_problems, content_problems
from introspection_lit.training.checkpoint_files import CheckpointFiles, read_checkpoint
from introspection_lit.utils import tensor_hash
from introspection_lit.utils.checksums import CHECKSUM
from introspection_lit.utils.errors import ConfigurationError, IntrospectionError

pytestmark = pytest.mark.thorough


@pytest.mark.parametrize("way", WAYS)
def test_the_bombs_are_real(way: str, marker: Path, tmp_path: Path) -> None:
    """Read without care, each of them runs."""
    WAYS[way]({"state_dict": Bomb(marker)}, tmp_path / "file")
    if way == "plain":
        pickle.loads((tmp_path / "file").read_bytes())
    else:
        torch.load(tmp_path / "file", weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("way", WAYS)
def test_checkpoints_and_vectors_are_not_unpickled(way: str, marker: Path, tmp_path: Path) -> None:
    """Whatever the archive looks like."""
    for name, content in (("best.ckpt", {"state_dict": {}, "introspection": Bomb(marker)}), ("v.pt", {"a": Bomb(marker)})):
        WAYS[way](content, tmp_path / name)
    problems = checkpoint_problems(str(tmp_path / "best.ckpt"), {}, BaseIdentity(BaseModel()))
    assert "cannot be read as a checkpoint" in problems[0]
    with pytest.raises(ConfigurationError, match=r"v\.pt"):
        read_directions(tmp_path / "v.pt", 6, 32)
    assert not marker.exists()


def no_tensor_of_its_own(file: Path) -> None:
    """One number that says it is eight; it could say that it is a thousand million."""
    torch.save({"introspection": {}, "state_dict": {"a": torch.zeros(1).expand(8)}}, file)


def lists_of_lists(file: Path) -> None:
    """Twelve lists, each of the one before, twice: written out, sixty of them would be more than any machine holds."""
    content: Any = [0]
    for _ in range(12):
        content = [content, content]
    torch.save({"introspection": {"validation": {}}, "state_dict": {"a": torch.zeros(1)}, "epoch": content}, file)


def inside_itself(file: Path) -> None:
    """A list that has no end."""
    content: list[Any] = []
    content.append(content)
    torch.save({"introspection": {}, "state_dict": {}, "epoch": content, CHECKSUM: "0" * 64}, file)


@pytest.mark.parametrize("made", [no_tensor_of_its_own, lists_of_lists, inside_itself])
def test_values_that_are_more_than_they_seem(
    made: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused by what they would be once they are written out."""
    monkeypatch.setattr(tensor_hash, "MAX_VALUES", 1000)
    made(tmp_path / "x.ckpt")
    with pytest.raises(ConfigurationError, match=r"plain tensors|does not hold what was written"):
        read_checkpoint(tmp_path / "x.ckpt")


@pytest.mark.parametrize(
    ("time", "said"), [(1, "MemoryError"), (2, "does not hold what was written")], ids=["reading", "hashing"]
)
def test_checkpoints_have_a_limit_of_memory(time: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A packed file of a few bytes can ask for gigabytes when it is read, and one number for as many when it is hashed."""
    CheckpointFiles().save_checkpoint({"introspection": {}, "state_dict": {"a": torch.zeros(1)}}, tmp_path / "x.ckpt")
    read_checkpoint(tmp_path / "x.ckpt")
    monkeypatch.setattr(checkpoint_files, "room_for", exceeding(MemoryError(), time))
    with pytest.raises(ConfigurationError, match=said):
        read_checkpoint(tmp_path / "x.ckpt")


@pytest.mark.parametrize(
    "score",
    [
        torch.zeros(1, device="meta"),
        torch.zeros(1).to_sparse(),
        torch.quantize_per_tensor(torch.zeros(1), 1, 0, torch.qint8),
        torch.nested.nested_tensor([torch.zeros(1)]),
    ],
    ids=["meta", "sparse", "quantised", "nested"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch, of nested tensors
def test_scores_that_are_no_plain_numbers(score: torch.Tensor) -> None:
    """Torch has no answer to whether they are finite."""
    checkpoint = {"introspection": {"validation": {"auroc": score}}, "state_dict": {"a": torch.zeros(1)}}
    assert any("introspection.validation.auroc is" in problem for problem in content_problems(checkpoint, "test", {}))
    checkpoint["introspection"]["validation"]["auroc"] = torch.tensor(3)
    assert not any("introspection.validation.auroc is" in problem for problem in content_problems(checkpoint, "test", {}))


def hostile_state(elsewhere: Path, best: str) -> dict[str, Any]:
    """What a checkpoint says of the best ones so far, with files of others among its own."""
    return {
        "monitor": "validation/selection",
        "best_model_score": torch.tensor(0.1),
        "best_model_path": best,
        "current_score": torch.tensor(0.1),
        "dirpath": str(elsewhere),
        "best_k_models": {best: torch.tensor(0.1), str(elsewhere / "precious"): torch.tensor(0.1), "..": torch.tensor(0)},
        "kth_best_model_path": str(elsewhere / "precious"),
        "kth_value": torch.tensor(0.1),
        "last_model_path": str(elsewhere / ".."),
    }


@pytest.mark.parametrize("same_folder", [True, False])
@pytest.mark.parametrize("best", ["best.ckpt", "../../elsewhere/precious", "..", "/", ""])
def test_a_resumed_run_removes_nothing_elsewhere(best: str, same_folder: bool, tmp_path: Path) -> None:
    """Lightning removes the checkpoints that a checkpoint names, folders and all, once there are better ones."""
    elsewhere, resumed = tmp_path / "elsewhere", tmp_path / "run" / "checkpoints"
    for folder in (elsewhere, resumed):
        folder.mkdir(parents=True)
    (elsewhere / "precious").write_text("a")
    (resumed / "best.ckpt").write_text("a")
    saver = BestCheckpoint(dirpath=str(resumed if same_folder else tmp_path / "new"), monitor="validation/selection")
    saver.resumed_from, saver.writes = resumed, True
    try:
        saver.load_state_dict(hostile_state(elsewhere, best))
    except IntrospectionError:
        return
    named = [saver.best_model_path, saver.last_model_path, saver.kth_best_model_path, *saver.best_k_models]
    home = (resumed if same_folder else tmp_path / "new").resolve()
    for path in filter(None, named):
        assert Path(path).resolve().parent == home, path
