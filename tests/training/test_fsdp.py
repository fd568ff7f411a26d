"""DDP and FSDP train and test like one process; two real processes with gloo on the CPU."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from project_paths import CONFIG
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from two_processes import run_together

from introspection_lit.cli import main
from introspection_lit.training.fsdp import ALONE, ShardedStrategy

FSDP = ShardedStrategy.strategy_name
OLD = torch.__version__ < ALONE
CLIP, STEPS = 0.05, 4
KEPT_GIB = "0.001"  # room for some of the ten training contexts
# Of the same numbers summed in another order. Seen: losses 4e-7, scores 5e-6; adapters 5e-6 on one machine, more than 1e-4
# on another (with torch 2.6, whose attention over padding differs with the padding, 3e-4). Of an adapter tensor's squared
# difference, 89 to 99 % is in three elements: their gradient is near zero, AdamW divides it by its own size, and so
# rounding decides their step.
FLOAT32 = SimpleNamespace(loss=1e-5, adapter=1e-3, score=1e-4)
# A number that is rounded otherwise to bfloat16 changes by 1/256. Seen: 1e-3 and 4e-3; in other batches, 5e-3 and 6e-2
# (with torch 2.6, 2e-1).
BFLOAT16 = SimpleNamespace(loss=1e-2, adapter=2e-2, loss_of_one=2e-2, adapter_of_one=0.3 if OLD else 0.15)
EVIDENCE = {"enabled": "true", "report": "false", "info_trials": "2", "lens_trials": "6", "probe_trials": "32"}
EVIDENCE |= {"sets": "[heldout]", "texts": "3", "facts": "4"}
TASKS = "{detection: {questions: 2, early: 0.5}, factual: {questions: 1}, reading: {questions: 1}, "
TASKS += "comparison: {pairs: 6}, plain_text: {questions: 0.5}}"  # so many that a process has nothing else in some step
NF4 = ["--model.base.quantization", "nf4"]
PRECISIONS = {
    "float32": ["--model.base.quant_storage", "float32"],
    "bfloat16": ["--model.base.dtype", "bfloat16", "--trainer.precision", "bf16-mixed"],
}


def command(root: Path, name: str, model: Path, precision: str, strategy: str | None, *more: str) -> list[str]:
    """A fit in NF4 of 16 trials in each of two epochs, 8 in each step however many processes, and a test after it."""
    alone = strategy is None
    options = {
        "model.base.name_or_path": str(model),
        "model.lora.dropout": "0",  # each process draws its own
        "test_after_fit": "true",
        "checkpoint.save_top_k": "-1",
        "trainer.gradient_clip_val": str(CLIP),
        "trainer.devices": "1" if alone else "2",
        "trainer.strategy": strategy or "auto",
        "trainer.logger.init_args.save_dir": str(root),
        "trainer.logger.init_args.name": name,
        "data.trials_per_epoch": "16",
        "data.batch_size": "8" if alone else "4",
        "data.eval_batch_size": "8" if alone else "4",
        "data.test_trials": "{seen: 8, heldout: 12}",  # 12 does not divide: the last batches are filled up
    }
    words = ["fit", "--config", CONFIG, *NF4, *PRECISIONS[precision], *more]
    return words + [word for option, value in options.items() for word in (f"--{option}", value)]


@pytest.fixture(scope="module")
def runs(
    tiny_folder: Callable[[str], Path], few_contexts: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """All runs of this file, made together because starting a process takes longer than a run; says where each one is."""
    root, model = tmp_path_factory.mktemp("runs"), tiny_folder("qwen2-wide")
    count = ["--trainer.callbacks+=two_processes.ShardCount"]
    observed = count + [word for option, value in EVIDENCE.items() for word in (f"--evidence.{option}", value)]

    def folder(name: str) -> Path:
        return root / name / "version_0"

    def fit(name: str, precision: str, strategy: str | None, *more: str) -> list[str]:
        return command(root, name, model, precision, strategy, *more)

    def several_tasks(name: str, strategy: str | None) -> list[str]:
        size = "32" if strategy is None else "16"
        sizes = ["--data.batch_size", size, "--data.eval_batch_size", size, "--data.trials_per_epoch", "64"]
        sizes += ["--data.validation_trials", "128"]
        tests = ["--data.test_trials", "{heldout: 8, facts: 16}"]
        return [*fit(name, "float32", strategy), "--data.tasks", TASKS, *sizes, *tests]

    def resumed(first: str, strategy: str | None) -> list[str]:
        saved = str(folder(first) / "checkpoints" / "best-step2.ckpt")
        return fit(f"{first}, then {strategy}", "float32", strategy, "--ckpt_path", saved)

    # Clean caches are kept, of some contexts only and in small groups: processes find theirs at different times.
    keeping = ["--data.contexts", few_contexts, "--data.validation_kinds", "[csv]"]
    keeping += ["--data.reuse.group", "2", "--data.reuse.gib", KEPT_GIB]
    keeping += ["--data.test_trials", "{heldout: 12}", "--data.trials_per_epoch", "24"]
    main([*fit("kept, one", "float32", None), *keeping])
    if not OLD:
        main([*fit("kept, fsdp of one", "float32", None), *keeping, "--trainer.strategy", FSDP])
    main(fit("one", "float32", None, *observed))
    main(fit("one16", "bfloat16", None))
    main(several_tasks("tasks, one", None))
    together = [
        fit("ddp", "float32", "ddp"),
        fit("fsdp", "float32", FSDP, *observed),
        resumed("one", FSDP),
        resumed("fsdp", FSDP),
        fit("ddp16", "bfloat16", "ddp"),
        fit("fsdp16", "bfloat16", FSDP),
        [*fit("kept, ddp", "float32", "ddp"), *keeping],
        [*fit("kept, fsdp", "float32", FSDP), *keeping],
        several_tasks("tasks, ddp", "ddp"),
        several_tasks("tasks, fsdp", FSDP),
    ]
    run_together(root, together)
    main(resumed("fsdp", None))
    return folder


def checkpoint_of(folder: Path) -> dict[str, Any]:
    """The checkpoint of the last step."""
    return torch.load(folder / "checkpoints" / f"best-step{STEPS}.ckpt", weights_only=True)


def curve(folder: Path, name: str) -> Tensor:
    """A scalar of TensorBoard's, step by step."""
    return torch.tensor([event.value for event in EventAccumulator(str(folder)).Reload().Scalars(name)])


def assert_same_tensors(found: dict[Any, Tensor], expected: dict[Any, Tensor], tolerance: float) -> None:
    """The same names in the same order, dtypes and shapes; and numbers, in relation to each tensor's norm."""
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert (found[name] - tensor).norm() <= tolerance * tensor.norm(), name


@pytest.mark.slow
@pytest.mark.parametrize("several", ["tasks, ddp", "tasks, fsdp"])
def test_several_tasks_are_trained_alike(runs: Callable[[str], Path], several: str) -> None:
    """The loss and each task's part of it in every step, with references and plain texts; and the adapter."""
    found, expected = runs(several), runs("tasks, one")
    for name in ("loss", "loss_detection", "loss_factual", "loss_reading", "loss_comparison", "loss_early"):
        losses, whole = curve(found, f"train/{name}"), curve(expected, f"train/{name}")
        assert len(whole) == STEPS
        torch.testing.assert_close(losses, whole, rtol=1e-4, atol=1e-5)
    after, reference = checkpoint_of(found), checkpoint_of(expected)
    assert_same_tensors(after["state_dict"], reference["state_dict"], FLOAT32.adapter)
    sets = [json.loads((folder / "results.json").read_text(encoding="utf-8"))["sets"] for folder in (found, expected)]
    assert sets[0]["facts"]["auroc"] == pytest.approx(sets[1]["facts"]["auroc"], abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("several", ["ddp", "fsdp", f"one, then {FSDP}", f"fsdp, then {FSDP}", "fsdp, then None"])
def test_several_processes_train_as_one_does(runs: Callable[[str], Path], several: str) -> None:
    """The loss of every step, the adapter after the last, Adam's moments: uninterrupted or resumed from either."""
    found, expected = runs(several), runs("one")
    losses, whole = curve(found, "train/loss"), curve(expected, "train/loss")
    assert len(whole) == STEPS
    torch.testing.assert_close(losses, whole[-len(losses) :], rtol=FLOAT32.loss, atol=0)
    assert len(losses) == (STEPS // 2 if "then" in several else STEPS)
    after, reference = checkpoint_of(found), checkpoint_of(expected)
    assert_same_tensors(after["state_dict"], reference["state_dict"], FLOAT32.adapter)
    for kind in ("exp_avg", "exp_avg_sq"):
        moments = [
            {number: state[kind] for number, state in checkpoint["optimizer_states"][0]["state"].items()}
            for checkpoint in (after, reference)
        ]
        assert_same_tensors(*moments, FLOAT32.adapter)


@pytest.mark.slow
@pytest.mark.parametrize("several", ["ddp", "fsdp"])
def test_kept_caches_neither_hang_nor_change_anything(runs: Callable[[str], Path], several: str) -> None:
    """Processes that find different clean caches kept, and some not, train as one does."""
    found, expected = runs(f"kept, {several}"), runs("kept, one")
    torch.testing.assert_close(curve(found, "train/loss"), curve(expected, "train/loss"), rtol=FLOAT32.loss, atol=0)
    ends = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in (found, expected)]
    assert_same_tensors(*ends, FLOAT32.adapter)
    said = (found.parent.parent / "output.rank0.txt").read_text()
    kept = [int(number) for number in re.findall(r"kept the clean caches of (\d+) contexts", said)]
    assert len(kept) == 2
    assert all(0 < number < 10 for number in kept)


@pytest.mark.slow
@pytest.mark.skipif(OLD, reason="refused before this version of torch")
def test_fsdp_of_one_process(runs: Callable[[str], Path]) -> None:
    """One GPU and the overlay for many: the same training, clean caches kept."""
    found, expected = runs("kept, fsdp of one"), runs("kept, one")
    torch.testing.assert_close(curve(found, "train/loss"), curve(expected, "train/loss"), rtol=FLOAT32.loss, atol=0)


@pytest.mark.slow
def test_fsdp_resumed_is_bit_for_bit_fsdp_uninterrupted(runs: Callable[[str], Path]) -> None:
    """Nothing is lost on the way through the file."""
    resumed, whole = checkpoint_of(runs(f"fsdp, then {FSDP}")), checkpoint_of(runs("fsdp"))
    assert_same_tensors(resumed["state_dict"], whole["state_dict"], 0)


@pytest.mark.slow
def test_checkpoints_have_one_format(runs: Callable[[str], Path]) -> None:
    """Whatever made it, a checkpoint has the same entries of the same types; the optimiser counts the same steps."""
    one, *others = (checkpoint_of(runs(name)) for name in ("one", "ddp", "fsdp"))
    assert all("lora_" in name for name in one["state_dict"])
    for other in others:
        assert {key: type(value) for key, value in other.items()} == {key: type(value) for key, value in one.items()}
        ours, theirs = one["optimizer_states"][0], other["optimizer_states"][0]
        assert ours["param_groups"] == theirs["param_groups"]
        assert {n: (list(s), s["step"]) for n, s in ours["state"].items()} == {
            n: (list(s), s["step"]) for n, s in theirs["state"].items()
        }


@pytest.mark.slow
def test_exported_adapters_are_alike(runs: Callable[[str], Path]) -> None:
    """The folder for PEFT, too."""
    exported = [load_file(runs(name) / "adapter" / "adapter_model.safetensors") for name in ("fsdp", "one")]
    assert_same_tensors(*exported, FLOAT32.adapter)


@pytest.mark.slow
def test_every_process_holds_half(runs: Callable[[str], Path]) -> None:
    """After every step; and the two halves are the whole."""
    whole = json.loads((runs("one") / "shards.rank0.json").read_text())
    shards = [json.loads((runs("fsdp") / f"shards.rank{rank}.json").read_text()) for rank in range(2)]
    assert len(whole) == STEPS
    for total, *parts in zip(whole, *shards, strict=True):
        assert sum(parts) == total
        assert max(parts) < 0.51 * total


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one", "ddp", "fsdp"])
def test_clipping_bites(runs: Callable[[str], Path], name: str) -> None:
    """Adam's first moment of gradients that are all as long as the limit is almost as long, and never longer."""
    state = checkpoint_of(runs(name))["optimizer_states"][0]["state"]
    moment = torch.cat([kept["exp_avg"].flatten() for kept in state.values()]).norm()
    longest = CLIP * (1 - 0.9**STEPS)
    assert 0.2 * longest < moment <= 1.001 * longest


@pytest.mark.slow
@pytest.mark.parametrize("several", ["ddp", "fsdp"])
def test_metrics_are_those_of_one_process(runs: Callable[[str], Path], several: str) -> None:
    """Each trial of a test set is counted once, though the last batches are filled up."""
    found, expected = (json.loads((runs(name) / "results.json").read_text()) for name in (several, "one"))
    assert found["n_clean_distinct_total"] == expected["n_clean_distinct_total"]
    for name, trials in (("seen", 8), ("heldout", 12)):
        row, reference = found["sets"][name], expected["sets"][name]
        assert row["n_clean"] + row["n_steered"] == trials
        assert row.pop("fpr_interval") == pytest.approx(reference["fpr_interval"])
        assert row == pytest.approx({k: v for k, v in reference.items() if k != "fpr_interval"}, abs=FLOAT32.score)


@pytest.mark.slow
def test_other_observers_say_the_same_under_fsdp(runs: Callable[[str], Path]) -> None:
    """Outside the steps, too, every forward pass goes through the wrapper, and every process takes part in it."""
    (rows, found), (expected, reference) = (
        ([json.loads(line) for line in (run / "trials.jsonl").read_text().splitlines()], evidence_of(run))
        for run in (runs("fsdp"), runs("one"))
    )
    observers = dict.fromkeys(("adapter", "untrained", "with info", "linear probe"), 0)
    for row, other in zip(rows, expected, strict=True):
        assert row["scores"].keys() == other["scores"].keys()
        for name in observers.keys() & row["scores"].keys():
            observers[name] += 1
            assert row["scores"][name] == pytest.approx(other["scores"][name], abs=1e-3)
    assert observers == {"adapter": 20, "untrained": 12, "with info": 2, "linear probe": 12}
    assert found["lens"]["n"] == reference["lens"]["n"] == 6
    for group in ("clean", "steered"):
        assert found["lens"][group]["mean"] == pytest.approx(reference["lens"][group]["mean"], abs=FLOAT32.score)
    for adapter in ("off", "on"):
        assert found["side_effects"]["perplexity"][adapter] == pytest.approx(
            reference["side_effects"]["perplexity"][adapter], rel=FLOAT32.score
        )


def evidence_of(run: Path) -> dict[str, Any]:
    """What a test has gathered."""
    return json.loads((run / "results.json").read_text())["evidence"]


@pytest.mark.slow
def test_bf16_mixed_is_trained_alike(runs: Callable[[str], Path]) -> None:
    """Float32 adapters on a bfloat16 base. Rounding depends on what is padded together, so one process is less alike."""
    for found, expected, loss, adapter in (
        ("fsdp16", "ddp16", BFLOAT16.loss, BFLOAT16.adapter),
        ("fsdp16", "one16", BFLOAT16.loss_of_one, BFLOAT16.adapter_of_one),
        ("ddp16", "one16", BFLOAT16.loss_of_one, BFLOAT16.adapter_of_one),
    ):
        losses = [curve(runs(name), "train/loss") for name in (found, expected)]
        torch.testing.assert_close(*losses, rtol=loss, atol=0)
        tensors = [checkpoint_of(runs(name))["state_dict"] for name in (found, expected)]
        assert {tensor.dtype for tensor in tensors[0].values()} == {torch.float32}
        assert_same_tensors(*tensors, adapter)
