"""The soak: what it counts, what it judges, and that planted leaks are found."""

from __future__ import annotations

import gc
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import endurance.soak
import pytest
import torch
from endurance.footprint import Footprint, footprint, function_caches, most_remembered
from endurance.soak import LONG, REST, SHORT, Sample, Soak
from endurance.soak_report import checks, figure, growth
from matplotlib.figure import Figure
from project_paths import CONFIG
from run_scripts import script
from torch import nn

from introspection_lit.training.module import IntrospectionModule

MIB = 2**20
QUIET = Footprint(
    resident=900 * MIB,
    allocated=400 * MIB,
    device=0,
    objects=600_000,
    collected=0,
    tensors=500,
    tensor_bytes=30 * MIB,
    kept_bytes=90 * MIB,
    hooks=3,
    files=7,
    threads=5,
    figures=0,
    remembered=64,
    encoded=800,
)


@pytest.fixture(autouse=True)
def frozen() -> Iterator[None]:
    """What other tests have left, half a million objects, is not looked through at each count."""
    gc.freeze()
    yield
    gc.unfreeze()


def hour(change: Callable[[Sample], Footprint] = lambda sample: sample.holds, remembered: int | None = 64) -> Soak:
    """An hour of samples in which nothing grows, but for a change."""
    samples = [Sample(LONG, 0, 5.0 * n, 50 * n, 160.0, QUIET) for n in range(1, 360)]
    for life in range(1, 21):
        samples.append(Sample(SHORT, life, 1800.0 + 90 * life, 18_000 + 100 * life, 160.0, QUIET))
        samples.append(Sample(REST, life, 1850.0 + 90 * life, 18_000 + 100 * life, 0.0, QUIET))
    return Soak([sample._replace(holds=change(sample)) for sample in samples], 1360, remembered)


def grown(soak: Soak) -> list[str]:
    """The names of the checks that fail."""
    return [check.name for check in checks(soak) if not check.passed]


def test_nothing_grows() -> None:
    """A quiet hour passes, also when memory goes up and down, and jumps once while it warms up."""
    assert grown(hour()) == []

    def restless(sample: Sample) -> Footprint:
        swing = (sample.steps // 50 % 2) * 15 * MIB
        jump = 200 * MIB if sample.seconds > 100 else 0
        return sample.holds._replace(resident=sample.holds.resident + swing + jump)

    assert grown(hour(restless)) == []


@pytest.mark.parametrize(
    ("name", "amount", "expected"),
    [
        ("hooks", 1, ["hooks, at every sample of training"]),
        ("files", 1, ["open files, in training"]),
        ("figures", 1, ["figures, in training and after"]),
        ("tensors", 1, ["tensors, one long fit", "tensors, between lives"]),
        ("threads", 1, ["threads, one long fit", "threads, between lives"]),
        ("objects", 100, ["Python objects, one long fit", "Python objects, between lives"]),
        ("resident", 1.5 * MIB / 12, ["resident memory, one long fit"]),
        ("allocated", 0.25 * MIB / 12, ["allocated memory, one long fit"]),
        ("allocated", 1.5 * MIB / 12, ["allocated memory, one long fit", "allocated memory, between lives"]),
        ("remembered", 1, ["entries of function caches"]),
        ("encoded", 10, ["tokenised conversations"]),
    ],
)
def test_what_grows_is_named(name: str, amount: float, expected: list[str]) -> None:
    """A little more every five seconds, from the beginning: that check fails, and no other does."""

    def more(sample: Sample) -> Footprint:
        return sample.holds._replace(**{name: int(getattr(sample.holds, name) + amount * sample.seconds / 5)})

    assert grown(hour(more)) == expected


def test_what_grows_from_life_to_life_is_named() -> None:
    """Twelve MiB a life: the model that went before has not gone."""

    def more(sample: Sample) -> Footprint:
        left = 12 * MIB * sample.life
        return sample.holds._replace(resident=sample.holds.resident + left, allocated=sample.holds.allocated + left)

    assert grown(hour(more)) == ["resident memory, between lives", "allocated memory, between lives"]


def test_cache_without_a_limit_is_named() -> None:
    """However few entries it has."""
    assert grown(hour(remembered=None)) == ["entries of function caches"]


def test_growth_is_that_of_a_line_and_outliers_do_not_matter() -> None:
    """Three a second over 100 seconds, one sample in five far off."""
    samples = [Sample(LONG, 0, float(n), n, 1.0, QUIET._replace(objects=3 * n if n % 5 else 10**6)) for n in range(101)]
    assert growth(samples, "objects") == pytest.approx(300)


def test_footprint_counts_what_is_held(tmp_path: Path) -> None:
    """Tensors, an open file, a figure, a thread: one more each, until they are gone."""
    before, done = footprint(), threading.Event()
    held = [torch.zeros(1000) for _ in range(5)]
    view, drawn = held[0][:10], Figure()
    waiting = threading.Thread(target=done.wait)
    waiting.start()
    with (tmp_path / "file").open("w"):
        now = footprint()
    assert (now.tensors - before.tensors, now.tensor_bytes - before.tensor_bytes) == (6, 20_000)
    assert (now.files - before.files, now.figures - before.figures, now.threads - before.threads) == (1, 1, 1)
    assert now.resident > 50 * MIB
    done.set()
    waiting.join()
    del held, view, drawn
    after = footprint()
    assert (after.tensors, after.files, after.figures) == (before.tensors, before.files, before.figures)


def test_every_kind_of_hook_is_counted() -> None:
    """Forward, backward, state-dict and parameter hooks, on inner modules, too."""
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    before = footprint(module).hooks
    inner: Any = module[1]
    handles = [
        inner.register_forward_hook(print),
        inner.register_forward_hook(print, with_kwargs=True),
        inner.register_forward_pre_hook(print),
        inner.register_full_backward_hook(print),
        inner.register_full_backward_pre_hook(print),
        module.register_state_dict_pre_hook(print),
        module.register_load_state_dict_post_hook(print),
        inner.weight.register_hook(print),
        inner.weight.register_post_accumulate_grad_hook(print),
        nn.modules.module.register_module_forward_hook(print),
    ]
    assert footprint(module).hooks - before == len(handles)
    for handle in handles:
        handle.remove()
    assert footprint(module).hooks == before


def test_allocated_memory_is_counted() -> None:
    """A tensor of 64 MiB, to a MiB."""
    before = footprint().allocated
    if not before:
        pytest.skip("the C library does not say")
    held = torch.zeros(16 * MIB)
    assert footprint().allocated - before == pytest.approx(held.nbytes, abs=MIB)


def test_function_caches_of_the_package_have_limits() -> None:
    """All that are imported by now."""
    assert {"round_order"} <= {cache.__name__ for cache in function_caches()}
    assert most_remembered() is not None


@pytest.fixture
def soak(tiny: Path, few_contexts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, Any]]:
    """Runs the script for seconds on the tiny model; what it has written, and which checks failed."""
    where = ["--out", str(tmp_path / "soak"), "--minutes", "0.05", "--every", "0", "--model", str(tiny)]
    contexts = ["--data.contexts", few_contexts, "--data.validation_kinds", "[csv]"]
    tests = ["--data.test_trials", "{heldout: 8}", "--trainer.log_every_n_steps", "50"]

    monkeypatch.setattr(endurance.soak, "FEWEST_LIVES", 2)

    def run() -> dict[str, Any]:
        code = 0
        try:
            script("soak").main([*where, "--config", CONFIG, *contexts, *tests])
        except SystemExit as stop:
            code = int(stop.code or 0)
        results = json.loads((tmp_path / "soak" / "soak.json").read_text())
        assert (tmp_path / "soak" / "soak.png").read_bytes().startswith(b"\x89PNG")
        return results | {"code": code, "grown": [check["name"] for check in results["checks"] if not check["passed"]]}

    return run


@pytest.mark.slow
def test_training_is_flat(soak: Callable[[], dict[str, Any]]) -> None:
    """The real training loop, for seconds: long fit, resumed fits, tests."""
    found = soak()
    assert [check for check in found["checks"] if not check["passed"]] == []
    assert found["code"] == 0
    scenes = [sample[0] if isinstance(sample, list) else sample["scene"] for sample in found["samples"]]
    assert {LONG, SHORT, REST, "resumed fit"} == set(scenes)


@pytest.mark.slow
def test_planted_leaks_are_found(
    soak: Callable[[], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step leaves a hook, a tensor and an open file behind."""
    step, kept = IntrospectionModule.training_step, []

    def leaking(self: IntrospectionModule, batch: Any, batch_idx: int) -> torch.Tensor:
        self.layers[0].register_forward_hook(lambda *_: None)
        kept.append((torch.zeros(3), (tmp_path / "leak").open("w")))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(IntrospectionModule, "training_step", leaking)
    found = soak()
    for _, file in kept:
        file.close()
    assert found["code"] == 1
    wanted = ["hooks, at every sample of training", "open files, in training", "tensors, one long fit"]
    assert set(wanted) <= set(found["grown"])
    assert not {"figures, in training and after", "tokenised conversations"} & set(found["grown"])


def test_picture_has_all_panels() -> None:
    """Memory, tensors, objects, hooks and files, speed."""
    assert len(figure(hour().samples).axes) == 5
