"""What a run that is out of memory is advised to change."""

from __future__ import annotations

import shlex
from itertools import product

import pytest

from introspection_lit.training.batch_size import largest_part, step_problems
from introspection_lit.training.callbacks.memory_advice import Situation, changes


@pytest.mark.parametrize(
    ("size", "accumulated", "world", "auto"), list(product((2, 4, 6, 16), (1, 3), (1, 2), (False, True)))
)
def test_smaller_batches_keep_the_step(size: int, accumulated: int, world: int, auto: bool) -> None:
    """As typed, they are accepted, are smaller, and make steps of as many trials."""
    now = Situation(batch_size=size, parts=accumulated, world=world, auto=auto, last="last.ckpt")
    advised = [change.typed for change in changes(now) if change.typed.startswith("--data.batch_size")]
    smaller = largest_part(size * accumulated, lambda part: part < size)
    assert len(advised) == (not auto and size > 2) + bool(smaller)
    for typed in advised:
        words = shlex.split(typed)
        given = dict(zip(words[::2], words[1::2], strict=True))
        value = given["--data.batch_size"]
        assert int(given["--data.effective_batch"]) == size * accumulated * world
        assert step_problems(value if value == "auto" else int(value), size * accumulated * world, world, 1) == []
        assert value == "auto" or int(value) == smaller < size
        assert given["--ckpt_path"] == "last.ckpt"


@pytest.mark.parametrize(
    ("now", "first", "never"),
    [
        (Situation(), "--data.batch_size auto", "eval_batch_size"),
        (Situation(batch_size=2), "--model.recompute true", "data.batch_size"),
        (Situation(recompute=True, batch_size=2, context_tokens=128), "--data.max_context_tokens 64", "recompute"),
        (Situation(host=True, kept_gib=8.0), "--data.reuse.gib 4", "fsdp"),
        (Situation("scoring"), "--data.eval_batch_size 16", "recompute"),
        (Situation("scoring", fitting=False, last="x.ckpt"), "--data.eval_batch_size 16", "ckpt_path"),
        (Situation("start", quantised=False), "--model.base.quantization nf4", "batch_size"),
        (Situation("start", cuda=False, float32=True, quantised=False), "--model.base.dtype", "nf4"),
        (Situation("start", sharded=True), "more GPUs", "fsdp.yaml"),
        (Situation("evidence", fitting=False, eval_batch_size=2), "--evidence.enabled false", "eval_batch"),
    ],
)
def test_advice_is_what_applies(now: Situation, first: str, never: str) -> None:
    """The most useful first; nothing that cannot help."""
    advised = [change.typed for change in changes(now)]
    assert advised[0].startswith(first)
    assert not any(never in typed for typed in advised)
