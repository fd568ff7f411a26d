"""Known shapes with random weights, and the benchmark: what it counts, what it compares with, what it writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from peft.tuners.lora import Linear4bit as AdaptedLinear4bit
from project_paths import CONFIG
from run_scripts import script
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from introspection_lit.cli import attach
from introspection_lit.cli import main as command_line
from introspection_lit.models.architecture import find_decoder_layers
from introspection_lit.models.base_model import BaseModel, Lora
from introspection_lit.models.loading import add_lora, load_config, load_model, load_tokenizer
from introspection_lit.models.random_models import SHAPES, random_config, weightless_model
from introspection_lit.models.sources import resolve
from introspection_lit.steering.prefill import steered_cache
from introspection_lit.tasks.scoring import answer_loss, log_odds
from introspection_lit.tools.benchmark import against, benchmark
from introspection_lit.tools.benchmark.hardware import TokensRun, matrix_weights, nominal_operations
from introspection_lit.tools.benchmark.measurement import (
    CLEAN,
    LAYERS,
    ONE_AT_A_TIME,
    PLAIN,
    REUSE,
    TASKS,
    Amount,
    Setting,
    narrow,
)
from introspection_lit.tools.benchmark.single_trials import ACCUMULATED, SingleTrialLoop
from introspection_lit.training.module import IntrospectionModule
from introspection_lit.training.options import Reuse
from introspection_lit.utils.errors import ConfigurationError

FEW_VECTORS = ["--data.concepts", "[bread, cats, the ocean]"]
FEW_VECTORS += [f"--data.{split}_vectors=4" for split in ("train", "validation", "heldout")]
SMALL = Amount(steps=1, warmup=1, singles=2, contexts=10, context_tokens=60, question_tokens=30)


@pytest.mark.parametrize(
    ("name", "parameters", "without_embeddings"),
    # As the models' pages say: in all, and without embeddings (Qwen only).
    [("qwen2.5-coder-32b", 32.8e9, 31.0e9), ("qwen2.5-7b", 7.61e9, 6.53e9), ("smollm2-135m", 134.5e6, None)],
)
def test_published_sizes(name: str, parameters: float, without_embeddings: float | None) -> None:
    """Counted on models without weights."""
    model = weightless_model(random_config(name))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == pytest.approx(parameters, rel=2e-3)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    if without_embeddings is not None:
        assert matrix_weights(find_decoder_layers(model)) == pytest.approx(without_embeddings, rel=1e-2)


def test_random_embedded_model_has_the_shape_of_the_real_one() -> None:
    """Layer by layer, as its own configuration says."""
    real, ours = load_config(BaseModel()), load_config(BaseModel("random:smollm2-135m"))
    for key, value in SHAPES["smollm2-135m"].items():
        assert getattr(real, key) == getattr(ours, key) == value, key
    tokenizers = [load_tokenizer(BaseModel(name)) for name in ("random:tiny", "smollm2-135m")]
    assert tokenizers[0]("Is ice made of water?") == tokenizers[1]("Is ice made of water?")


def parts(model: nn.Module) -> dict[str, tuple[type, dict[str, torch.dtype]]]:
    """What a model is made of: the class of each module, and the dtypes of its parameters."""
    return {
        name: (type(module), {key: parameter.dtype for key, parameter in module.named_parameters(recurse=False)})
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize("storage", ["uint8", "bfloat16"])
def test_random_nf4_model_is_as_a_loaded_one(tiny_folder: Callable[[str], Path], storage: Any) -> None:
    """Frozen, in 4 bits, weights of std .02 that differ from layer to layer; finite; its adapter gets a gradient."""
    options: dict[str, Any] = {"dtype": "bfloat16", "quantization": "nf4", "quant_storage": storage}
    model, again = (load_model(BaseModel("random:tiny", **options)) for _ in range(2))
    loaded = load_model(BaseModel(str(tiny_folder("qwen2-wide")), **options))
    for name in ("is_loaded_in_4bit", "is_quantized", "quantization_method", "dtype", "training"):
        assert getattr(model, name) == getattr(loaded, name), name
    assert parts(model) == parts(loaded)
    layers = find_decoder_layers(model)
    weights = [layer.mlp.up_proj.weight for layer in layers]
    assert {weight.dtype for weight in weights} == {getattr(torch, storage)}
    dense = [dequantize_4bit(weight.data, weight.quant_state).float() for weight in weights]
    assert all(matrix.shape == (128, 64) and matrix.std() == pytest.approx(0.02, rel=0.15) for matrix in dense)
    assert not any(torch.equal(dense[0], other) for other in dense[1:])
    assert len({weight.quant_state.absmax.data_ptr() for weight in weights}) == len(weights)  # memory as of a real one
    assert not any(layer.mlp.up_proj.support_avx512bf16_for_cpu for layer in layers)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert model(ids).logits.isfinite().all()
        assert torch.equal(model(ids).logits, again(ids).logits)
    peft = add_lora(model, Lora(dropout=0.0)).train()
    assert isinstance(find_decoder_layers(peft)[0].self_attn.q_proj, AdaptedLinear4bit)
    trained = {name: parameter for name, parameter in peft.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=1.0)
    peft(ids).logits[:, -1].float().logsumexp(-1).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in trained.values())
    before = {name: parameter.detach().clone() for name, parameter in trained.items() if "lora_B" in name}
    optimizer.step()
    assert all(not torch.equal(before[name], trained[name]) for name in before)


def test_random_models_are_refused_where_they_make_no_sense() -> None:
    """Unknown shapes and int8; nothing takes them for files or for something on the hub."""
    with pytest.raises(ValueError, match=r"'random:gpt-5'\. Expected one of .*random:qwen2\.5-7b"):
        load_config(BaseModel("random:gpt-5"))
    with pytest.raises(ValueError, match="'nf4' or 'none'"):
        load_model(BaseModel("random:tiny", quantization="int8"))
    with pytest.raises(ValueError, match="random weights, and no files"):
        resolve(BaseModel("random:tiny"))
    assert not BaseModel("random:tiny").on_hub


@pytest.mark.slow
def test_whole_experiment_with_random_weights_says_so(tmp_path: Path) -> None:
    """Fit and test through the command line: the results and the adapter carry the name."""
    words = ["fit", "--config", CONFIG, "--model.base.name_or_path", "random:tiny", "--test_after_fit", "true"]
    cli = command_line([*words, f"--trainer.logger.init_args.save_dir={tmp_path}", "--trainer.max_epochs", "1"])
    folder = Path(cli.trainer.log_dir)
    assert json.loads((folder / "results.json").read_text())["base_model"] == "random:tiny"
    assert json.loads((folder / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == "random:tiny"


@pytest.fixture(scope="module")
def measured() -> SimpleNamespace:
    """A short measurement on the tiny shape: what it said, and its objects, ready for more."""
    options = script("benchmark").argument_parser().parse_args(["--model", "tiny", "--context-tokens", "60"])
    cli = attach(script("benchmark").arguments(options, FEW_VECTORS, gpu=False))
    queue = [Setting(PLAIN, 4), Setting(ONE_AT_A_TIME, 1), Setting(REUSE, 4), Setting(ONE_AT_A_TIME, 1)]
    told: list[Any] = []
    chunks, too_large, first = benchmark.measure(cli, queue, SMALL, Reuse(), lambda *what: told.append(what))
    return SimpleNamespace(cli=cli, queue=queue, chunks=chunks, too_large=too_large, first=first, told=told)


def test_every_setting_is_measured_in_order(measured: SimpleNamespace) -> None:
    """As many trials as asked for; the caches of all contexts are there once the last rows are measured."""
    assert [setting for setting, _ in measured.chunks] == measured.queue
    assert [chunk.trials for _, chunk in measured.chunks] == [4, 2, 4, 2]
    assert not measured.too_large
    assert measured.first.seconds > 0
    assert measured.told == measured.chunks
    data = measured.cli.datamodule
    assert data.prefill.contexts_kept == len(data.splits["train"].contexts) == 10
    assert not measured.cli.model.layers[0]._forward_hooks  # counting is over


def test_contexts_and_questions_have_the_length_asked_for(measured: SimpleNamespace) -> None:
    """The nearest contexts of all; questions not shorter; a second call changes nothing."""
    data = measured.cli.datamodule
    split = data.splits["train"]
    assert all(abs(length - 60) <= 4 for length in split.lengths())
    assert {len(split.encoded(context).question_ids) for context in range(10)} == {30}
    assert narrow(data, SMALL) is split


def test_operations_agree_with_torchs_own_count(measured: SimpleNamespace) -> None:
    """Prefill of one context, head left out: FlopCounterMode, the counting hooks, and 2·N·tokens."""
    cli = measured.cli
    split, module = cli.datamodule.splits["train"], cli.model
    batch = split.collate([split.plan.trial(0)], cli.datamodule.bank)
    counted = TokensRun(module)
    with FlopCounterMode(display=False) as counter:
        steered_cache(module, module.model, module.layers, batch.context_ids, batch.context_mask, batch.intervention)
    counted.remove()
    found = counter.get_flop_counts()
    head = next((counts for name, counts in found.items() if name.endswith("lm_head")), {})
    products = sum(n - head.get(op, 0) for op, n in found["Global"].items() if str(op) in ("aten.mm", "aten.addmm"))
    tokens = batch.context_ids.shape[1]
    assert products == counted.operations() == nominal_operations(matrix_weights(module.layers), tokens, 0)


@pytest.mark.parametrize(("recompute", "passes"), [(False, 2), (True, 3)])
def test_layers_that_run_again_are_counted(measured: SimpleNamespace, recompute: bool, passes: int) -> None:
    """The question goes through the layers forward, back, and once more forward if nothing but their inputs was kept."""
    module, split = measured.cli.model, measured.cli.datamodule.splits["train"]
    batch = split.collate([split.plan.trial(0)], measured.cli.datamodule.bank)
    batch.cache = steered_cache(
        module, module.model, module.layers, batch.context_ids, batch.context_mask, batch.intervention
    )
    module.recompute = recompute
    counted = TokensRun(module)
    module.answer_logits(batch).sum().backward()
    counted.remove()
    module.recompute = False
    module.zero_grad()
    expected = passes * nominal_operations(matrix_weights(module.layers), batch.question_ids.shape[1], 0)
    assert counted.operations() == expected


def test_work_of_the_paths(measured: SimpleNamespace) -> None:
    """One at a time runs what is nominal (nothing is padded, gradients once); a batch about that; reuse less."""
    run = {setting.path: chunk.run / chunk.nominal for setting, chunk in measured.chunks}
    assert run[ONE_AT_A_TIME] == pytest.approx(1.0)
    assert run[PLAIN] == pytest.approx(1.0, abs=0.15)  # padding, and equal caches within a batch
    assert run[REUSE] < 0.9


@pytest.fixture
def reading_adapter(measured: SimpleNamespace) -> IntrospectionModule:
    """The module with an adapter that does something, without dropout."""
    torch.manual_seed(0)
    module = measured.cli.model
    for name, parameter in module.model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.5)
    module.model.eval()
    return module


def singles(module: IntrospectionModule, data: Any, rate: float) -> SingleTrialLoop:
    """The loop over single trials with plain gradient descent."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    plugin = SimpleNamespace(forward_context=torch.enable_grad)
    trainer = SimpleNamespace(optimizers=[torch.optim.SGD(trained, rate)], precision_plugin=plugin, gradient_clip_val=None)
    return SingleTrialLoop(trainer, module, data)  # type: ignore[arg-type]


def test_single_trials_do_the_work_of_a_batch(measured: SimpleNamespace, reading_adapter: IntrospectionModule) -> None:
    """Scores of each trial, and the gradient of eight: those of the project's own step."""
    module, data = reading_adapter, measured.cli.datamodule
    split = data.splits["train"]
    batch = split.collate([split.plan.trial(number) for number in range(ACCUMULATED)], data.bank)
    batch.cache = steered_cache(
        module, module.model, module.layers, batch.context_ids, batch.context_mask, batch.intervention
    )
    module.zero_grad()
    logits = module.answer_logits(batch)
    answer_loss(logits, batch.answer_ids, batch.targets, module.loss).backward()
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    expected = {name: parameter.detach() - parameter.grad for name, parameter in trained.items()}
    module.zero_grad()
    loop = singles(module, data, rate=1.0)
    scores = log_odds(logits, batch.answer_ids)
    for number in range(ACCUMULATED):
        alone = split.collate([split.plan.trial(number)], data.bank)
        with torch.no_grad():
            single = log_odds(loop.logits(alone), alone.answer_ids)
        torch.testing.assert_close(single[0], scores[number], atol=1e-4, rtol=1e-4)
    assert (scores[0] - scores[1]).abs() > 1e-3  # clean and steered differ
    assert loop.run(range(ACCUMULATED)) == batch.trials
    for name, parameter in trained.items():
        torch.testing.assert_close(parameter.detach(), expected[name], atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_script_writes_consistent_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows of every path and size; each ratio is that of the rates; the best one on top; the name says what was run."""
    file = tmp_path / "speed.json"
    words = ["--model", "tiny", "--batch-sizes", "1", "8", "--rounds", "2", "--steps", "1", "--contexts", "10"]
    words += ["--each-saving", "--tasks"]
    script("benchmark").main([*words, "--json", str(file), *FEW_VECTORS, "--model.lora.r", "4"])
    results = json.loads(file.read_text())
    assert results["base_model"] == "random:tiny"
    assert results["lora"]["r"] == 4
    assert {"commit", "versions", "hardware", "ceiling_tflops", "seconds_to_start", "options"} <= set(results)
    rows = {(row["path"], row["batch"]): row for row in results["rows"]}
    assert set(rows) == {(ONE_AT_A_TIME, 1), *((path, 8) for path in (PLAIN, LAYERS, CLEAN, REUSE, TASKS))}
    run = {path: rows[path, 8]["tflops_run"] / rows[path, 8]["tflops"] for path in (CLEAN, REUSE)}
    assert run[REUSE] < run[CLEAN]
    alone = rows[ONE_AT_A_TIME, 1]
    assert alone["ratio"] == 1
    for row in rows.values():
        assert row["ratio"] == pytest.approx(row["trials_per_second"] / alone["trials_per_second"])
        assert row["of_ceiling"] == pytest.approx(row["tflops"] / results["ceiling_tflops"])
        assert row["lowest"] <= row["trials_per_second"] <= row["highest"]
        assert row["peak_gib"] > 0
    assert results["ratio"] == max(row["ratio"] for row in rows.values())
    printed = capsys.readouterr().out
    assert "…" not in printed
    framed = [line for line in printed.splitlines() if line.strip()[:1] in "┏┃┡│└" and line.strip()]
    assert len(framed) == 10
    assert max(map(len, framed)) <= 100


@pytest.mark.slow
def test_sweep_finds_the_largest_batch(measured: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that run out of memory above 24 trials; what does not fit is said of its row, and the rest is measured."""
    step = IntrospectionModule.training_step

    def limited(module: IntrospectionModule, batch: Any, batch_idx: int) -> Any:
        if len(batch.trials) > 24:
            raise torch.OutOfMemoryError("as a GPU says it")
        return step(module, batch, batch_idx)

    monkeypatch.setattr(IntrospectionModule, "training_step", limited)
    cli = measured.cli
    assert benchmark.sweep(cli, SMALL, Reuse(), 16, 1024) == 24
    queue = [Setting(PLAIN, 26), Setting(ONE_AT_A_TIME, 1), Setting(PLAIN, 2), Setting(PLAIN, 26)]
    chunks, too_large, _ = benchmark.measure(cli, queue, SMALL, Reuse())
    assert [setting for setting, _ in chunks] == [Setting(ONE_AT_A_TIME, 1), Setting(PLAIN, 2)]
    assert too_large == {Setting(PLAIN, 26)}


@pytest.mark.parametrize("limit", range(0, 40, 2))
@pytest.mark.parametrize(("start", "most"), [(2, 32), (4, 32), (4, 30), (16, 32), (4, 33)])
def test_largest(limit: int, start: int, most: int) -> None:
    """Every limit, from above and from below; no size is tried twice or beyond the end."""
    tried = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= limit

    assert benchmark.largest(fits, start, most) == min(limit, most // 2 * 2)
    assert len(tried) == len(set(tried))
    assert all(size % 2 == 0 and 2 <= size <= most for size in tried)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch-sizes", "3"], "Expected even numbers"),
        (["--batch-sizes", "1"], "Expected an even one, too"),
        (["--batch-sizes", "4", "--tasks"], "Expected multiples of 8"),
        (["--model", "random:gpt-5"], "Expected one of the known shapes"),
    ],
)
def test_bad_options(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is named, and nothing is measured."""
    with pytest.raises(SystemExit) as stopped:
        script("benchmark").main(words)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def fake_checkout(folder: Path, rates: str, ending: str = "") -> Path:
    """A checkout whose benchmark writes rates, and itself into a diary; ``rates`` is a list of Python."""
    (folder / "scripts").mkdir(parents=True)
    (folder / "introspection_lit").mkdir()
    (folder / "introspection_lit" / "__init__.py").write_text(f"NAME = {folder.name!r}\n")
    (folder / "scripts" / "benchmark.py").write_text(
        "import argparse, json, pathlib, sys, introspection_lit\n"
        f"diary = pathlib.Path({str(folder.parent / 'diary')!r})\n"
        "done = diary.read_text().split() if diary.exists() else []\n"
        "diary.write_text(' '.join([*done, introspection_lit.NAME]))\n"
        f"{ending}\n"
        "parser = argparse.ArgumentParser()\n"
        "for name in ('--model', '--rounds', '--json'):\n    parser.add_argument(name, required=True)\n"
        "given = parser.parse_args()\n"
        f"rate = {rates}[done.count(introspection_lit.NAME)]\n"
        "rows = [{'path': 'batched', 'batch': 8, 'trials_per_second': rate},\n"
        "        {'path': 'batched', 'batch': 512, 'trials_per_second': None}]\n"
        "assert (given.model, given.rounds) == ('tiny', '1')\n"
        "pathlib.Path(given.json).write_text(json.dumps({'commit': introspection_lit.NAME, 'rows': rows}))\n"
    )
    return folder


def test_two_builds_are_measured_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each first in its turn, each with its own package and the same options; the ratio is that of the pairs."""
    new, old = fake_checkout(tmp_path / "new", "[30.0, 60.0, 10.0]"), fake_checkout(tmp_path / "old", "[20.0, 50.0, 10.0]")
    benchmarking = script("benchmark")
    monkeypatch.setattr(benchmarking, "ROOT", new)
    words = ["--model", "tiny", "--rounds", "3", "--json", str(tmp_path / "a.json"), "--against", str(old)]
    benchmarking.main(words)
    assert (tmp_path / "diary").read_text() == "new old old new new old"
    rates = iter([30.0, 20.0, 30.0, 20.0])
    row = {"path": "batched", "batch": 4}
    monkeypatch.setattr(against, "run_once", lambda *_: {"commit": "x", "rows": [row | {"trials_per_second": next(rates)}]})
    (noise,) = against.measure(new, new, [], 2, lambda _: None)["rows"]  # a build with itself: the spread is the machine's
    assert (noise["lowest"], noise["highest"]) == pytest.approx((20 / 30, 30 / 20))
    monkeypatch.undo()
    found = json.loads((tmp_path / "a.json").read_text())
    (row,) = found["rows"]
    ratios = [1.5, 1.2, 1.0]
    logs = torch.tensor(ratios, dtype=torch.float64).log()
    assert (row["this"], row["other"]) == (30, 20)
    assert (row["lowest"], row["highest"]) == pytest.approx((1.0, 1.5))
    assert row["ratio"] == pytest.approx(float(logs.mean().exp()))
    assert row["standard_error"] == pytest.approx(row["ratio"] * float(logs.std()) / 3**0.5)
    assert (found["this"]["commit"], found["other"]["commit"], found["options"]) == ("new", "old", ["--model", "tiny"])
    printed = capsys.readouterr().out
    assert "pair 2 of 3, other build: 50 trials/s" in printed
    assert all(len(line) <= 80 for line in printed.splitlines())


@pytest.mark.parametrize(
    ("ending", "words", "status", "message"),
    [
        ("", ["--tasks"], 2, "unrecognized arguments: --tasks\nBoth builds get the same options"),
        ("sys.exit('out of luck')", [], 1, "old ended with exit status 1:\nout of luck"),
        (None, [], 2, "has no scripts/benchmark.py. Expected the folder of another checkout"),
    ],
)
def test_builds_that_cannot_be_compared(
    ending: str | None,
    words: list[str],
    status: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An option that the other one does not know, a process that fails, a folder without a checkout."""
    old = tmp_path / "old"
    if ending is not None:
        fake_checkout(old, "[1.0]", ending)
    benchmarking = script("benchmark")
    monkeypatch.setattr(benchmarking, "ROOT", old)
    with pytest.raises(SystemExit) as stopped:
        benchmarking.main(["--model", "tiny", "--against", str(old), *words])
    assert stopped.value.code == status
    assert message in capsys.readouterr().err


def test_manifests_are_refused(measured: SimpleNamespace) -> None:
    """The benchmark draws its own trials."""
    data = SimpleNamespace(splits={"train": SimpleNamespace(plan=None)})
    with pytest.raises(ConfigurationError, match=r"data\.manifest"):
        narrow(data, SMALL)  # type: ignore[arg-type]
