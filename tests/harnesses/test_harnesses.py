"""The trials of a tested run wherever people ask: the log-odds of ``test``, and in other people's harnesses its rates."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from peers import needs_peers, run_with_peers
from run_scripts import script
from sklearn.metrics import roc_auc_score

from introspection_lit.cli import main
from introspection_lit.detector import Detector
from introspection_lit.harnesses.tested_run import read_tested_run, steering_of

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "tests" / "conf" / "tiny.yaml")
TRIALS = 20
# Nothing but the scores of the adapter.
EVIDENCE = ["--evidence.enabled", "true", "--evidence.untrained", "false", "--evidence.report", "false"]
EVIDENCE += [option for name in ("probe_trials", "lens_trials", "texts") for option in (f"--evidence.{name}", "0")]


@pytest.fixture(scope="module")
def run(tiny: Path, some_contexts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was trained and tested on twenty trials, with a system prompt of its own."""
    folder: Path = tmp_path_factory.mktemp("run")
    data = [*some_contexts, "--data.system_prompt", "Be brief.", "--data.test_trials", json.dumps({"heldout": TRIALS})]
    data += ["--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false", "--test_after_fit", "true"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["pytest"])
        place = ["--trainer.logger.init_args.save_dir", str(folder)]
        main(["fit", "--config", CONFIG, "--model.base.name_or_path", str(tiny), *data, *EVIDENCE, *place])
    return next(folder.rglob("adapter")).parent


@pytest.fixture(scope="module")
def scores(run: Path) -> dict[str, tuple[bool, float]]:
    """Label and log-odds of each trial, as the test has written them."""
    rows = map(json.loads, (run / "trials.jsonl").read_text().splitlines())
    return {f"{row['split']}:{row['number']}": (row["steered"], row["scores"]["adapter"]) for row in rows}


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rates(scores: dict[str, tuple[bool, float]], threshold: float) -> dict[str, float]:
    """FPR, TPR and AUROC, by other formulas than the package's."""
    labels, odds = torch.tensor([label for label, _ in scores.values()]), torch.tensor([odd for _, odd in scores.values()])
    called = (odds > threshold).double()
    return {
        "fpr": called[~labels].mean().item(),
        "tpr": called[labels].mean().item(),
        "auroc": float(roc_auc_score(labels, odds)),
    }


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Runs lm-evaluation-harness with our model and tasks in this process; returns its results and samples."""
    from datasets import config
    from lm_eval.tasks import TaskManager

    from introspection_lit.harnesses.lm_eval.__main__ import main as lm_eval

    # It reads the 14,000 files of its own tasks first, which takes ten seconds each time.
    monkeypatch.setattr(TaskManager, "__init__", partialmethod(TaskManager.__init__, include_defaults=False))
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def start(*words: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        out = ["--device", "cpu", "--log_samples", "--output_path", str(tmp_path / "out")]
        monkeypatch.setattr("sys.argv", ["lm_eval", "run", *out, *words])
        lm_eval()
        (results,) = (tmp_path / "out").rglob("results_*.json")
        (samples,) = (tmp_path / "out").rglob("samples_*.jsonl")
        return json.loads(results.read_text()), list(map(json.loads, samples.read_text().splitlines()))

    return start


def test_detector_repeats_the_trials(run: Path, scores: dict[str, tuple[bool, float]]) -> None:
    """From their plain values alone, as a notebook or a page asks."""
    tested, detector = read_tested_run(run), Detector.from_pretrained(run / "adapter", device="cpu")
    items = json.loads(json.dumps(tested.items))
    assert detector.bank is not None
    steerings = [steering_of(item, detector.bank) if item["steered"] else None for item in items]
    answers = detector.ask_many([item["messages"] for item in items], steerings)
    assert {item["name"] for item in items} == set(scores)
    for item, answer in zip(items, answers, strict=True):
        assert (item["steered"], item["log_odds"]) == scores[item["name"]]
        assert answer.log_odds == pytest.approx(item["log_odds"], abs=1e-4)


def test_page_repeats_the_trials(run: Path, scores: dict[str, tuple[bool, float]]) -> None:
    """By the function that its button calls; the directions chosen from its lists, or all given as files."""
    pytest.importorskip("gradio", reason="no Gradio")
    tested, ask_page = read_tested_run(run), script("compare_surfaces").ask_page
    for files_only in (False, True):
        found = ask_page(tested, files_only)
        assert found == pytest.approx({name: odds for name, (_, odds) in scores.items()}, abs=1e-3)
    clean, steered = tested.items[:2]
    system = [{"role": "system", "content": "Be kind."}, *steered["messages"]]
    longer = [steered["messages"][0], {"role": "assistant", "content": "word " * 1200}]
    others: list[dict[str, Any]] = [{"unit": "absolute"}, {"strength": 4.5}, {"messages": system}, {"messages": longer}]
    items = [clean, *(steered | {"name": str(number)} | other for number, other in enumerate(others))]
    assert ask_page(replace(tested, items=items)).keys() == {clean["name"]}


@pytest.mark.parametrize("inspect", [False, pytest.param(True, marks=needs_peers)])
def test_all_agree(
    run: Path,
    scores: dict[str, tuple[bool, float]],
    tmp_path: Path,
    inspect: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Notebook, page, lm-evaluation-harness and Inspect, side by side on the same trials, by one command."""
    pytest.importorskip("gradio", reason="no Gradio")
    monkeypatch.setenv("LOCAL_RANK", "0")  # as Lightning leaves it behind; Accelerate would look for the others
    words, name = [str(run), "--json", str(tmp_path / "compared.json")], "compare_surfaces"
    if inspect:
        printed = run_with_peers(str(ROOT / "scripts" / f"{name}.py"), *words, folder=tmp_path)
    else:
        script(name).main(words)
        printed = capsys.readouterr().out
    compared = json.loads((tmp_path / "compared.json").read_text())
    asked = ["notebook", "page", "lm-eval", *(["Inspect"] if inspect else [])]
    assert compared["not_asked"] == ({} if inspect else {"Inspect": "not installed"})
    assert {trial["trial"]: (trial["steered"], trial["test"]) for trial in compared["trials"]} == scores
    assert list(compared["largest_difference"]) == asked
    for each in asked:
        differences = [abs(trial[each] - trial["test"]) for trial in compared["trials"]]
        assert compared["largest_difference"][each] == max(differences) < 1e-3
        assert f"{max(differences):.1e}" in printed
    assert printed.count("steered") == printed.count("clean") == TRIALS / 2
    assert ("Inspect: not installed" in printed) != inspect


def test_lm_evaluation_harness_steers(
    run: Path, tiny: Path, scores: dict[str, tuple[bool, float]], harness: Callable[..., Any]
) -> None:
    """Plain PEFT in one pass, steered by the harness's model: the numbers of the test."""
    arguments = f"pretrained={tiny},dtype=float32,peft={run}/adapter"
    words = ["--model", "introspection", "--tasks", "introspection", "--model_args", arguments]
    results, samples = harness(*words)
    found = results["results"]["introspection"]
    assert len(samples) == TRIALS
    for sample in samples:
        (yes, _), (no, _) = sample["filtered_resps"]
        assert float(yes) - float(no) == pytest.approx(scores[sample["doc"]["name"]][1], abs=1e-3)
    assert abs(scores["heldout:0"][1] - scores["heldout:1"][1]) > 1e-2  # the same conversation, clean and steered
    threshold = Detector.from_pretrained(run / "adapter", device="cpu").threshold
    for name, value in rates(scores, threshold).items():
        assert found[f"{name},none"] == pytest.approx(value)
    assert found["largest_difference,none"] < 1e-3
    recorded = results["configs"]["introspection"]["adapter"]
    assert recorded["files"]["adapter_model.safetensors"] == sha256(run / "adapter" / "adapter_model.safetensors")


def test_lm_evaluation_harness_without_steering(
    run: Path, tiny: Path, scores: dict[str, tuple[bool, float]], harness: Callable[..., Any]
) -> None:
    """Its own model answers about clean conversations, in batches; steered ones it must not be asked about."""
    arguments = f"pretrained={tiny},dtype=float32,peft={run}/adapter"
    words = ["--model", "hf", "--batch_size", "8", "--model_args", arguments]
    results, samples = harness(*words, "--tasks", "introspection_clean")
    found = results["results"]["introspection_clean"]
    assert len(samples) == TRIALS / 2
    assert found["largest_difference,none"] < 1e-3
    threshold = Detector.from_pretrained(run / "adapter", device="cpu").threshold
    assert found["fpr,none"] == pytest.approx(rates(scores, threshold)["fpr"])
    assert not {"tpr,none", "auroc,none"} & set(found)
    with pytest.raises(AttributeError, match="steered_loglikelihood"):
        harness(*words, "--tasks", "introspection")


@needs_peers
def test_inspect_asks_any_model(run: Path, tiny: Path, scores: dict[str, tuple[bool, float]], tmp_path: Path) -> None:
    """The adapter, which is steered and identified in the log; a model that only writes text; and the base model alone."""
    clean = {name: score for name, score in scores.items() if not score[0]}
    program = str(Path(__file__).with_name("ask_with_inspect.py"))
    printed = run_with_peers(program, str(run), str(tiny), str(tmp_path), "Certainly: Yes, or no?", folder=tmp_path)
    found = json.loads(printed.splitlines()[-1])
    adapter, text, plain = found["adapter"], found["text"], found["plain"]
    assert set(adapter["scores"]) == set(scores)
    for name, one in adapter["scores"].items():
        assert one["steered"] == scores[name][0]
        assert one["log_odds"] == pytest.approx(scores[name][1], abs=1e-3)
    expected = rates(scores, adapter["metadata"]["threshold"])
    assert adapter["metrics"] == pytest.approx(
        {"fpr": expected["fpr"], "tpr": expected["tpr"], "discrimination": expected["auroc"], "answered": 1}
        | {"largest_difference": 0},
        abs=1e-3,
    )
    recorded = adapter["metadata"]["adapter"]
    assert recorded["files"]["adapter_model.safetensors"] == sha256(run / "adapter" / "adapter_model.safetensors")
    assert text["metadata"]["adapter"] is plain["metadata"]["adapter"] is None
    # Half of the answers have the word "yes" first, the other half neither word.
    assert text["metrics"] == {"fpr": 0.5, "answered": 0.5}
    assert set(text["scores"]) == set(plain["scores"]) == set(clean)
    assert all(one["log_odds"] is None for one in text["scores"].values())


@needs_peers
def test_inspect_keeps_answers_of_one_adapter(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its cache of answers; of another one in the same folder it asks again."""
    monkeypatch.setenv("INSPECT_CACHE_DIR", str(tmp_path / "kept"))
    program = str(Path(__file__).with_name("cached_by_inspect.py"))
    said = json.loads(run_with_peers(program, str(run), str(tmp_path), folder=tmp_path).splitlines()[-1])
    first, again, changed = said["found"]
    assert first == again != changed
    assert said["kept"] >= 2
