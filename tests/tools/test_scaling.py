"""Costs against counted operations, and fits against steps whose rate and overhead are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from project_paths import ROOT
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, DynamicCache, Qwen2Config

from introspection_lit.models.base_model import Lora
from introspection_lit.models.decoder_shape import decoder_shape
from introspection_lit.models.loading import add_lora
from introspection_lit.models.random_models import random_config
from introspection_lit.steering.bands import resolve_bands
from introspection_lit.steering.shared_prefill import schedule
from introspection_lit.tools.scaling import formulas

GUIDE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
SIZES = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.mark.parametrize(("context", "question"), [(40, 20), (200, 10), (10, 60)])
def test_operations_are_those_that_torch_counts(context: int, question: int) -> None:
    """Prefill, question pass and backward of a frozen model with a small adapter, counted operator by operator."""
    config = Qwen2Config(**SIZES, num_hidden_layers=4, vocab_size=8)
    # Eager attention: torch's counter knows its products, backward included, on the CPU.
    base = AutoModelForCausalLM.from_config(config, attn_implementation="eager").requires_grad_(False)
    model = add_lora(base, Lora(r=1, dropout=0.0))
    counter, cache = FlopCounterMode(display=False), DynamicCache()
    with counter:
        with torch.no_grad(), model.disable_adapter():
            model(input_ids=torch.ones(1, context, dtype=torch.long), past_key_values=cache, logits_to_keep=1)
        asked = torch.ones(1, question, dtype=torch.long)
        model(input_ids=asked, past_key_values=cache, logits_to_keep=1).logits.sum().backward()
    expected = formulas.trial_operations(decoder_shape(config), context, question)
    # The score matrix is kept here, not computed again: a backward of 2 forwards instead of 2.5.
    again = 0.5 * 4 * 4 * 64 * question * (context + question)
    assert expected.total - again == pytest.approx(counter.get_total_flops(), rel=0.06)


@pytest.mark.parametrize("layers", [6, 30, 64])
def test_share_of_the_prefill_is_what_the_schedule_runs(layers: int) -> None:
    """Pairs of a clean and a steered row in each third, with and without kept contexts."""
    bands = resolve_bands(["early", "middle", "late"], layers)
    first = [place for band in bands for place in (layers, band[0])]
    contexts = [number // 2 for number in range(len(first))]
    for share in (False, True):
        for kept in (set(), set(contexts)):
            plan = schedule(first, contexts, kept, layers, share)
            run = sum(layers - start for start in plan.starts) / (len(first) * layers)
            opener = 1 / (len(first) * layers) * layers if kept and share else 0.0  # one row has to open the pass
            assert formulas.prefill_share(bands, layers, share, float(bool(kept))) <= run + 1e-9
            assert run - formulas.prefill_share(bands, layers, share, float(bool(kept))) <= opener + 1e-9


def test_thirds_save_two_thirds_of_the_prefill() -> None:
    """Half by kept clean contexts, and a third of the other half: what docs/scaling.md says of 64 layers."""
    bands = resolve_bands(["early", "middle", "late"], 64)
    assert formulas.prefill_share(bands, 64, True, 0.0) == pytest.approx((1 + 126 / 192) / 2)
    assert formulas.prefill_share(bands, 64, True, 1.0) == pytest.approx(126 / 192 / 2)
    assert formulas.prefill_share(bands, 64, False, 0.0) == 1.0


def test_fit_finds_rate_and_overhead() -> None:
    """Exactly without noise; within some percent with 2 % of it, and the worst error is then that of the noise."""
    operations = np.array([1, 2, 4, 8, 16, 32]) * 1e13
    seconds = 0.3 + operations / 2e14
    exact = formulas.fit(operations, seconds)
    assert (exact.rate, exact.overhead) == pytest.approx((2e14, 0.3))
    assert exact.worst < 1e-9
    noise = 1 + 0.02 * np.random.default_rng(0).standard_normal(6)
    noisy = formulas.fit(operations, seconds * noise)
    assert (noisy.rate, noisy.overhead) == pytest.approx((2e14, 0.3), rel=0.1)
    assert 0.005 < noisy.worst < 0.08
    rows = [{"batch": b, "trials_per_second": b / (0.3 + b * 1e13 / 2e14)} for b in (1, 8, 64)]
    assert formulas.fit_rows(rows, 1e13).rate == pytest.approx(2e14)


@pytest.mark.parametrize(("operations", "seconds"), [([1.0], [1.0]), ([1.0, 1.0], [1.0, 2.0]), ([1.0, 2.0], [0.0, 1.0])])
def test_too_little_to_fit(operations: list[float], seconds: list[float]) -> None:
    """One point has no slope."""
    with pytest.raises(ValueError, match="measure several batch sizes"):
        formulas.fit(operations, seconds)


def test_more_work_in_less_time_is_refused() -> None:
    """A rate below zero is no rate."""
    with pytest.raises(ValueError, match="more work took less time"):
        formulas.fit([1.0, 2.0], [2.0, 1.0])


def test_cost_of_a_run_by_hand() -> None:
    """1,000 trials of 1e12 operations at 1e13 a second, .2 s a step: 100 s of work and 100 steps."""
    one = formulas.run_cost(formulas.Speed(1e13, 0.2), 1e12, 1000, 10, hourly=3.6)
    assert (one.steps, one.hours * 3600, one.price) == pytest.approx((100, 120, 0.12))
    eight = formulas.run_cost(formulas.Speed(1e13, 0.2), 1e12, 1000, 10, gpus=8, hourly=3.6, sending=0.3)
    assert eight.steps == 13
    assert eight.hours * 3600 == pytest.approx(13 * 1.5)
    assert eight.gpu_hours == pytest.approx(8 * eight.hours)
    assert formulas.gathering_seconds(16e9, 8, 1e11) == pytest.approx(3 * 14e9 / 1e11)
    assert formulas.gathering_seconds(16e9, 1, 1e11) == 0


# The table of docs/scaling.md: training of the configs, 8 epochs of 1,600 trials, at shares of an H100's ceiling.
CEILING = 785e12
TRIALS, CONTEXT, QUESTION = 8 * 1600, 128, 48


def table() -> list[str]:
    """Its rows."""
    rows = []
    for name in ("qwen2.5-coder-32b", "qwen2.5-7b"):
        shape = decoder_shape(random_config(name))
        bands = resolve_bands(["early", "middle", "late"], shape.layers)
        for title, share in (
            ("nothing", 1.0),
            ("layers and kept contexts", formulas.prefill_share(bands, shape.layers, True, 1.0)),
        ):
            operations = formulas.trial_operations(shape, CONTEXT, QUESTION, share).total
            cells = []
            for part in (0.1, 0.3, 0.5):
                minutes = [
                    formulas.run_cost(formulas.Speed(part * CEILING), operations, TRIALS, 16, gpus).hours * 60
                    for gpus in (1, 8, 64)
                ]
                cells.append(" / ".join(f"{value:.2f}" for value in minutes))
            rows.append(f"| {name} | {title} | {operations / 1e12:.2f} | " + " | ".join(cells) + " |")
    return rows


def gathering_table() -> list[str]:
    """What FSDP sends: the packed weights of the decoder layers, over links of three kinds."""
    rows = ["| bytes a second into a GPU | 32B | 7B |", "|---|---:|---:|"]
    shapes = [decoder_shape(random_config(name)) for name in ("qwen2.5-coder-32b", "qwen2.5-7b")]
    for link, bandwidth in (
        ("400e9 (NVLink)", 400e9),
        ("50e9 (a 400 Gbit/s adapter each)", 50e9),
        ("3e9 (25 Gbit/s)", 3e9),
    ):
        seconds = [formulas.gathering_seconds(sum(m.weights for m in shape.matrices) / 2, 8, bandwidth) for shape in shapes]
        rows.append(f"| {link} | " + " | ".join(f"{value:.2f} s" for value in seconds) + " |")
    return rows


def test_tables_of_the_guide_are_computed() -> None:
    """Row by row."""
    for rows in (table(), gathering_table()):
        assert "\n".join(rows) in GUIDE, "\n".join(rows)
