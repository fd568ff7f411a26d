"""The steps of ``scripts/gpu_day.py``: everything that one GPU must show, in the order of its worth.

The minutes of ``tests``, ``speed-32b``, ``fsdp2`` and ``nf4`` are those of one H200, rounded up; the others are estimates.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from introspection_lit.report.result_files import read_results
from introspection_lit.report.verdict import worst_unseen
from introspection_lit.tools import pipeline
from introspection_lit.tools.gpu_day.figures import LARGEST
from introspection_lit.tools.gpu_day.recorded import differences, read_recorded
from introspection_lit.tools.gpu_day.step import Step, fit_command, measure_command, read_result
from introspection_lit.utils.errors import ConfigurationError, RunError

SEEDS = (0, 1, 2)
WEAK = 0.04  # the strength that the goals of weak doses are of
# Of the same training twice.
MODES: dict[str, dict[str, Any]] = {"default": {}, "deterministic": {"trainer.deterministic": True}}
SHAPES = {"32b": "qwen2.5-coder-32b", "7b": "qwen2.5-7b"}
# What a rehearsal overrides in any configuration: a tiny random model and few trials. It runs where torch finds a device.
FEW: dict[str, Any] = {
    "trainer.accelerator": "auto",
    "trainer.max_epochs": 1,
    "model.base.name_or_path": "random:tiny",
    "data.contexts": "builtin",
    "data.long": "null",
    "data.concepts": "[bread, cats, the ocean]",
    "data.train_vectors": 4,
    "data.validation_vectors": 3,
    "data.heldout_vectors": 4,
    "data.batch_size": 4,
    "data.eval_batch_size": 4,
    "data.trials_per_epoch": 16,
    "data.validation_trials": 16,
    "data.test_trials": "{heldout: 8, concept: 6}",
}
# And in the full experiment, whose tests and evidence are rehearsed, too.
SETS = "seen heldout concept newkinds newquestions doses doses_concept odd swapped factual as_exported"
SETS += " flipped scattered vanishing"
FEW_TESTS: dict[str, Any] = {
    "data.test_trials": dict.fromkeys(SETS.split(), 4),
    "evidence": {"probe_trials": 32, "info_trials": 2, "lens_trials": 2, "texts": 1, "facts": 2},
}
# The arithmetic of the large models: 4 bits, packed as bfloat16.
NF4: dict[str, Any] = {
    "trainer.precision": "bf16-mixed",
    "model.base.dtype": "bfloat16",
    "model.base.quantization": "nf4",
    "model.base.quant_storage": "bfloat16",
}


def day_steps(root: Path, folder: Path, tiny: bool, contexts: Path | None = None) -> list[Step]:
    """The steps of the day.

    Args:
        root: Of the checkout.
        folder: Gets their files; absolute.
        tiny: A rehearsal: the same commands with tiny models and few trials.
        contexts: Of the full experiment: a file, absolute; None: built from the packages that are installed.

    Raises:
        ConfigurationError: There is no such file.
    """
    if contexts is not None and not contexts.is_file():
        raise ConfigurationError([f"--contexts: no such file: {contexts}. Expected one of build_contexts.py."])
    work = folder / "work"
    seeds = [_seed(seed, work / f"seed-{seed}", tiny, contexts) for seed in SEEDS]
    speeds = [_speed(name, root, work / f"speed-{name}", tiny) for name in SHAPES]
    copies, nf4 = (work / name / "found.json" for name in ("fsdp2", "nf4"))
    trials = ["--trials", "4"] if tiny else []
    return [
        tests_step(root, work / "tests", "gpu"),
        *speeds,
        Step("fsdp2", 1, [measure_command("copies", copies)], lambda: read_result(copies)),
        Step("nf4", 1, [measure_command("quantised", nf4, *trials)], lambda: read_result(nf4)),
        *(_repeat(mode, work / f"repeat-{mode}", tiny) for mode in MODES),
        _auto(work / "auto", tiny),
        *seeds,  # the longest by far, and what they show can be had on a CPU, too
    ]


def tests_step(root: Path, work: Path, marker: str) -> Step:
    """The tests with a marker; files without it are not read."""
    files = sorted(root.glob("tests/**/test_*.py"))
    named = [str(file) for file in files if f"mark.{marker}\n" in file.read_text(encoding="utf-8")]
    report = work / "tests.xml"
    words = ["-m", "pytest", "-n0", "-q", "-m", marker, "-p", "no:cacheprovider", f"--junitxml={report}", *named]
    return Step("tests", 1, [words], lambda: outcomes_of_tests(report), accepted=(0, 1))  # 1: a test failed


def outcomes_of_tests(report: Path) -> dict[str, Any]:
    """Outcomes of tests from pytest's JUnit file: ``tests`` by name, and how many have each outcome."""
    tests = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        found = {child.tag: child.get("type", "") for child in case}
        outcome = "failed" if "failure" in found or "error" in found else "passed"
        if "skipped" in found:
            outcome = "expected to fail" if "xfail" in found["skipped"] else "skipped"
        tests[f"{case.get('classname')}::{case.get('name')}"] = outcome
    outcomes = list(tests.values())
    return {"tests": tests, "outcomes": {outcome: outcomes.count(outcome) for outcome in dict.fromkeys(outcomes)}}


def _speed(name: str, root: Path, work: Path, tiny: bool) -> Step:
    """Throughput and memory of a geometry in NF4 with random weights."""
    file = work / "speed.json"
    words = [str(root / "scripts" / "benchmark.py"), "--json", str(file), "--model", "tiny" if tiny else SHAPES[name]]
    words += ["--batch-sizes", "4", "--sweep", "--sweep-limit", "8" if tiny else str(LARGEST), "--each-saving"]
    words += ["--quantization", "nf4", "--precision", "bf16-mixed", "--rounds", "1" if tiny else "2"]
    words += ["--steps", "1" if tiny else "2"]
    if tiny:
        words += ["--contexts", "8"]
        words += pipeline.as_arguments({name: FEW[name] for name in FEW if "vectors" in name or "concepts" in name})

    def collect() -> dict[str, Any]:
        found = read_result(file)
        return {key: value for key, value in found.items() if key not in ("command", "options", "more")}

    return Step(f"speed-{name}", 5.5 if name == "32b" else 4, [words], collect)


def _options(config: str, tiny: bool, *settings: Mapping[str, Any]) -> list[str]:
    """A configuration, settings on top of it, and those of a rehearsal on top of these."""
    merged = {name: value for each in (*settings, FEW if tiny else {}) for name, value in each.items()}
    return ["--config", f"configs/{config}.yaml", *pipeline.as_arguments(merged)]


def _seed(seed: int, work: Path, tiny: bool, contexts: Path | None) -> Step:
    """The full experiment on the embedded model."""
    run = work / "run"
    settings: dict[str, Any] = {"seed_everything": seed, "data.seed": seed, "test_after_fit": True, "trainer.devices": 1}
    settings |= {} if contexts is None else {"data.contexts": str(contexts)}
    few_tests = pipeline.as_arguments(FEW_TESTS) if tiny else []
    command = fit_command(run, [*_options("smollm2-135m", tiny, settings), *few_tests])

    def collect() -> dict[str, Any]:
        recorded = read_recorded(run)
        speed = {name: recorded[name] for name in ("trials_per_second", "peak_gib", "test_peak_gib")}
        return {"numbers": seed_numbers(read_results(run / "results.json")), **speed}

    return Step(f"seed-{seed}", 12, [command], collect, seed)


def seed_numbers(results: Mapping[str, Any]) -> dict[str, float | None]:
    """What the full experiment is judged by, from the results of a run; None where there is no such number."""
    sets, evidence = results["sets"], results.get("evidence") or {}
    numbers = {
        f"{metric.upper()} {name}": sets[name][metric]
        for name in ("heldout", "concept", "newkinds")
        for metric in ("auroc", "tpr", "fpr")
        if name in sets
    }
    strengths, curves = evidence.get("detection_strength") or {}, evidence.get("curves") or {}
    for vectors in ("random", "concept"):
        points = (curves.get(vectors) or {}).get("adapter") or []
        weak = next((point["auroc"] for point in points if point["strength"] == WEAK), None)
        numbers[f"AUROC at {WEAK}, {vectors}"] = weak
        numbers[f"75 % detected from, {vectors}"] = (strengths.get(vectors) or {}).get("strength")
    worst = worst_unseen(results) if evidence.get("kinds") else None
    return numbers | {"FPR of the worst unseen kind": worst and worst["fpr"]}


def _repeat(mode: str, work: Path, tiny: bool) -> Step:
    """The same short training twice, each in its process: are its losses and scores equal?"""
    runs = [work / f"run-{number}" for number in (1, 2)]
    few = {"trainer.max_epochs": 1, "data.test_trials": "{heldout: 96, concept: 52}", "evidence.enabled": False}
    place = {"trainer.accelerator": "auto", "trainer.devices": 1, "model.lora.dropout": 0.05, "test_after_fit": True}
    options = _options("quickstart", tiny, NF4, few, place, MODES[mode])
    commands = [fit_command(run, options) for run in runs]
    return Step(f"repeat-{mode}", 2.5, commands, lambda: differences(*map(read_recorded, runs)))


def _auto(work: Path, tiny: bool) -> Step:
    """The micro-batch that ``data.batch_size auto`` chooses for the 32B, and the peak of training with it."""
    run, trials = work / "run", 32 if tiny else 240  # a size with many even parts
    settings = {"model.base.name_or_path": "random:qwen2.5-coder-32b", "test_after_fit": False, "trainer.max_epochs": 1}
    settings |= {"data.validation_trials": 16}
    sizes = {"data.batch_size": "auto", "data.effective_batch": trials, "data.trials_per_epoch": 2 * trials}
    options = [*_options("qwen2.5-coder-32b", tiny, settings), *pipeline.as_arguments(sizes)]

    def collect() -> dict[str, Any]:
        recorded = read_recorded(run)
        if "auto" not in recorded:
            raise RunError(["data.batch_size auto has chosen nothing."])
        return {**recorded["auto"], "peak_gib": recorded["peak_gib"], "trials_per_second": recorded["trials_per_second"]}

    return Step("auto", 2, [fit_command(run, options)], collect)
