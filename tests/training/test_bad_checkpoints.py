"""Damaged checkpoints by the hundred, none with a checksum: Lightning and torch can use what is accepted."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import mutated, places
from hypothesis import event, given
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.migration.utils import _pl_migrate_checkpoint
from torch import Tensor

from introspection_lit.models.base_identity import BaseIdentity
from introspection_lit.models.base_model import BaseModel
from introspection_lit.training.checkpoint_checks import LOOPS, checkpoint_problems, content_problems, identity_problems
from introspection_lit.training.checkpoint_files import CheckpointFiles, adapter_tensor_problems

pytestmark = pytest.mark.thorough

IDENTITY = {
    "base_model": "m",
    "revision": None,
    "dtype": "float32",
    "quantization": "none",
    "lora": {"r": 2, "alpha": 4, "target_modules": ["q_proj"], "layers": []},
}
MODEL = BaseIdentity(BaseModel("m"))
STEPS = 6


def new_trainer() -> Trainer:
    """A trainer that shows and writes nothing."""
    return Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)


def loops() -> dict[str, Any]:
    """The state of the loops of a new trainer."""
    trainer = new_trainer()
    return {name: getattr(trainer, name).state_dict() for name in LOOPS.values()}


def adapter() -> dict[str, Tensor]:
    """Two matrices of rank 2."""
    name = "model.layers.0.self_attn.q_proj.lora_{}.default.weight"
    return {name.format("A"): torch.randn(2, 4), name.format("B"): torch.randn(4, 2)}


def optimiser(weights: list[Tensor], rate: float = 0.1) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW and a schedule, as a training makes them."""
    made = torch.optim.AdamW(weights, lr=rate, weight_decay=0.01)
    return made, torch.optim.lr_scheduler.LambdaLR(made, Schedule())


class Schedule:
    """A schedule that is an object: torch keeps its state."""

    def __call__(self, step: int) -> float:
        """Lower at every step."""
        return 1 / (1 + step)


def sound() -> dict[str, Any]:
    """A checkpoint after six steps, as Lightning makes them."""
    torch.manual_seed(0)
    made, state = adapter(), loops()
    weights = [torch.nn.Parameter(tensor) for tensor in made.values()]
    optimizer, schedule = optimiser(weights)
    for _ in range(STEPS):
        sum((weight**2).sum() for weight in weights).backward()
        optimizer.step()
        schedule.step()
    fit = state["fit_loop"]
    fit["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"] = {
        "ready": STEPS,
        "completed": STEPS,
    }
    best = {"a.ckpt": torch.tensor(0.9)}
    record = {
        **{name: ["0123456789abcdef"] for name in ("messages", "kinds", "vectors", "questions")},
        **{
            "prefill_adapter": False,
            "phrasing": {"system": "", "answers": ["yes", "no"], "answer_prefix": "x", "info": ""},
        },
        **{"bands": [[0, 1]], "strengths": [0.3, 2.0], "strength_unit": "relative", "control": "none", "manifest": None},
    }
    return {
        "epoch": 1,
        "global_step": STEPS,
        "pytorch-lightning_version": "2.6.0",
        "state_dict": {name: tensor.detach() for name, tensor in zip(made, weights, strict=True)},
        "loops": state,
        "callbacks": {
            "BestCheckpoint{'monitor': 'x'}": {
                "monitor": "x",
                "best_model_score": torch.tensor(0.9),
                "best_model_path": "a.ckpt",
                "current_score": torch.tensor(0.9),
                "dirpath": "x",
                "best_k_models": best,
                "kth_best_model_path": "a.ckpt",
                "kth_value": torch.tensor(0.9),
                "last_model_path": "last.ckpt",
            }
        },
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [schedule.state_dict()],
        "IntrospectionDataModule": record,
        "introspection": {"threshold": 0.5, "validation": {"auroc": 0.9}, **IDENTITY},
    }


SOUND, LOOPS_OF_ITS_OWN = sound(), loops()
TENSORS = st.sampled_from(
    [
        torch.tensor(math.nan),
        torch.tensor(1.0),
        torch.ones(2, 4) * math.inf,
        torch.ones(3),
        torch.ones(4, 2),
    ]
)


def problems(checkpoint: Any, function: str) -> list[str]:
    """What set-up says of a checkpoint that was read."""
    if not isinstance(checkpoint, dict):
        return ["no checkpoint"]
    wrong = adapter_tensor_problems(checkpoint) or identity_problems(checkpoint.get("introspection"), IDENTITY, MODEL)
    return wrong or content_problems(checkpoint, function, LOOPS_OF_ITS_OWN)


def goes_on(checkpoint: dict[str, Any]) -> None:
    """Go on from a checkpoint as Lightning does: its loaders must take it, and the next step must be a step."""
    checkpoint = _pl_migrate_checkpoint(copy.deepcopy(checkpoint))
    trainer = new_trainer()
    trainer.fit_loop.load_state_dict(checkpoint["loops"]["fit_loop"])
    for name, state in checkpoint["callbacks"].items():
        if name.startswith("BestCheckpoint"):
            saver = ModelCheckpoint(dirpath=Path.cwd() / "x")
            saver.load_state_dict({**state, "dirpath": saver.dirpath})
            assert isinstance(saver.best_model_path, str)
    weights = [torch.nn.Parameter(tensor.float()) for tensor in checkpoint["state_dict"].values()]
    before = [weight.detach().clone() for weight in weights]
    optimizer, schedule = optimiser(weights, rate=0.3)
    optimizer.load_state_dict(checkpoint["optimizer_states"][0])
    schedule.load_state_dict(checkpoint["lr_schedulers"][0])
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    schedule.step()
    assert len(optimizer.state) == len(weights)
    assert all(weight.isfinite().all() or not old.isfinite().all() for weight, old in zip(weights, before, strict=True))


@given(content=mutated(SOUND))
def test_resuming_from_checkpoints_with_something_wrong(content: Any) -> None:
    """Keys left out, renamed or doubled, and values of every other type: refused, or training can go on from it."""
    if problems(content, "fit"):
        event("refused")
    else:
        goes_on(content)
        assert content["IntrospectionDataModule"].keys() >= {"messages", "vectors", "kinds", "questions", "phrasing"}


@given(data=st.data(), tensor=TENSORS)
def test_resuming_from_odd_tensors(data: st.DataObject, tensor: Tensor) -> None:
    """A tensor in any place: not finite, negative, of another shape, or where none should be."""
    made = copy.deepcopy(SOUND)
    *way, last = data.draw(st.sampled_from([way for way in places(SOUND) if way[0] not in ("state_dict", "loops")]))
    holder = made
    for key in way:
        holder = holder[key]
    holder[last] = tensor
    if problems(made, "fit"):
        event("refused")
    else:
        goes_on(made)


@given(content=mutated(SOUND), function=st.sampled_from(["test", "validate", "predict"]))
def test_testing_checkpoints_with_something_wrong(content: Any, function: str) -> None:
    """What is tested says what it was trained on, has a finite threshold, and loops that can be loaded."""
    if problems(content, function):
        event("refused")
    else:
        assert math.isfinite(content["introspection"]["threshold"])
        assert content["state_dict"]
        record = content["IntrospectionDataModule"]
        assert all(isinstance(text, str) for name in ("messages", "vectors", "questions") for text in record[name])
        assert set(record["phrasing"]) or record["phrasing"] == {}
        _pl_migrate_checkpoint(copy.deepcopy(content))
        trainer = new_trainer()
        if content.get("loops") is not None:
            getattr(trainer, LOOPS[function]).load_state_dict(content["loops"][LOOPS[function]])


@pytest.mark.parametrize(
    "content", [torch.ones(3), [1, 2], {}, {"state_dict": {}}, {"introspection": {"threshold": "x"}, "state_dict": {}}, 3]
)
def test_other_torch_files(content: Any, tmp_path: Path) -> None:
    """Valid files of torch that are no checkpoints."""
    torch.save(content, tmp_path / "file.ckpt")
    assert "not one of introspection_lit" in str(checkpoint_problems(str(tmp_path / "file.ckpt"), IDENTITY, MODEL))


def test_sound_checkpoints_are_taken(tmp_path: Path) -> None:
    """Written with a checksum and read again; and one of weights alone, which can be tested."""
    CheckpointFiles().save_checkpoint(copy.deepcopy(SOUND), tmp_path / "file.ckpt")
    for function in LOOPS:
        assert checkpoint_problems(str(tmp_path / "file.ckpt"), IDENTITY, MODEL, function, LOOPS_OF_ITS_OWN) == []
    goes_on(SOUND)
    alone = {name: value for name, value in SOUND.items() if name not in ("optimizer_states", "lr_schedulers", "callbacks")}
    assert problems(alone, "test") == []
    assert "weights alone" in str(problems(alone, "fit"))


def without(*way: Any) -> Callable[[dict[str, Any]], None]:
    """Takes something out of a checkpoint."""
    return put(None, *way)


def put(value: Any, *way: Any) -> Callable[[dict[str, Any]], None]:
    """Puts something into a checkpoint; None takes out what is there."""

    def change(checkpoint: dict[str, Any]) -> None:
        holder: Any = checkpoint
        for key in way[:-1]:
            holder = holder[key]
        if value is None:
            del holder[way[-1]]
        else:
            holder[way[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("IntrospectionDataModule"), "record of what it was trained on is missing"),
        (put("x", "IntrospectionDataModule", "messages"), "what it was trained on.messages is 'x', expected a list"),
        (put("high", "introspection", "threshold"), "not one of introspection_lit"),
        (put(math.nan, "introspection", "threshold"), "not one of introspection_lit"),
        (put({"auroc": math.inf}, "introspection", "validation"), "introspection.validation.auroc is inf"),
        (without("introspection", "validation"), "introspection.validation is missing"),
        (put("2.x", "pytorch-lightning_version"), "lightning_version is '2.x'"),
        (put("0.0.1", "pytorch-lightning_version"), "expected 2.0 or later"),
        (without("loops"), "weights alone, without 'loops'"),
        (without("loops", "fit_loop", "epoch_progress"), "fit_loop.epoch_progress is missing"),
        (
            put(-1, "loops", "fit_loop", "epoch_loop.batch_progress", "current", "ready"),
            "current.ready is -1",
        ),
        (put(True, "global_step"), "global_step is True"),
        (without("optimizer_states"), "weights alone"),
        (put({}, "optimizer_states", 0, "state"), "state is not that of the adapter's 2 tensors"),
        (without("optimizer_states", 0, "state", 1), "state is not that of the adapter's 2 tensors"),
        (put(torch.ones(3), "optimizer_states", 0, "state", 0, "exp_avg"), "expected finite numbers of shape (2, 4)"),
        (
            put(True, "optimizer_states", 0, "param_groups", 0, "maximize"),
            "maximize is True, expected False",
        ),
        (put(-1.0, "optimizer_states", 0, "param_groups", 0, "lr"), "param_groups[0].lr is -1.0"),
        (put("x", "lr_schedulers", 0, "step"), "lr_schedulers[0].step is unknown"),
        (without("lr_schedulers", 0, "lr_lambdas"), "lr_schedulers[0].lr_lambdas is missing"),
        (without("callbacks", "BestCheckpoint{'monitor': 'x'}", "best_model_path"), "best_model_path is missing"),
        (without("callbacks", "BestCheckpoint{'monitor': 'x'}", "best_model_score"), "best_model_score is missing"),
        (put(torch.ones(2), "callbacks", "BestCheckpoint{'monitor': 'x'}", "dirpath"), "dirpath is tensor"),
        (put(torch.ones(2), "global_step"), "expected a whole number"),
        (put(torch.ones(2), "introspection", "lora", "r"), "the checkpoint has lora"),
    ],
)
def test_faults_that_were_found(change: Callable[[dict[str, Any]], None], message: str) -> None:
    """Lightning passes over each of these, or fails deep inside it."""
    made = copy.deepcopy(SOUND)
    change(made)
    assert message in str(problems(made, "fit"))


def test_refused_before_the_model_is_loaded(refused: Callable[..., str], tiny: Path, tmp_path: Path) -> None:
    """Through the command line, with a valid checksum."""
    identity = IDENTITY | {
        "base_model": str(tiny),
        "lora": {"r": 16, "alpha": 32, "target_modules": ["q_proj"], "layers": []},
    }
    made = copy.deepcopy(SOUND)
    made["introspection"] |= identity
    made["state_dict"] = {name: torch.zeros(16, 16) for name in made["state_dict"]}
    del made["IntrospectionDataModule"]
    CheckpointFiles().save_checkpoint(made, tmp_path / "file.ckpt")
    options = ("--ckpt_path", str(tmp_path / "file.ckpt"), "--model.lora.target_modules", "[q_proj]")
    for subcommand in ("fit", "test"):
        assert "record of what it was trained on is missing" in refused(*options, subcommand=subcommand)
