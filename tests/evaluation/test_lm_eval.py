"""The guide's way to EleutherAI's lm-evaluation-harness, run on a tiny model and checked with transformers alone."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from project_paths import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer

GUIDE = (ROOT / "docs" / "side-effects.md").read_text(encoding="utf-8")
ITEMS = [json.loads(line) for line in (ROOT / "tests" / "lm_eval_task" / "items.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def base(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a row of embeddings for each token of its tokenizer: the harness cuts others to size."""
    folder = tmp_path_factory.mktemp("harness") / "base"
    tokenizer, model = AutoTokenizer.from_pretrained(tiny), AutoModelForCausalLM.from_pretrained(tiny)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(base: Path) -> Path:
    """The folder of a run, as far as the harness sees it: an adapter whose weights are not zero."""
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    folder = base.parent / "run"
    get_peft_model(model, config).save_pretrained(folder / "adapter")
    return folder


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[list[str]], None]:
    """Runs the command line of the harness, from the root of the repository."""
    from datasets import config
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.tasks import TaskManager

    # It reads the 14,000 files of its own tasks first, which takes ten seconds each time.
    monkeypatch.setattr(TaskManager, "__init__", partialmethod(TaskManager.__init__, include_defaults=False))
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(ROOT)

    def start(command: list[str]) -> None:
        monkeypatch.setattr("sys.argv", command)
        cli_evaluate()

    return start


def commands(text: str) -> list[list[str]]:
    """The harness's commands in a document, as words."""
    return [shlex.split(line.replace("\\\n", " ")) for line in re.findall(r"^lm_eval (?:.*\\\n)*.*$", text, re.MULTILINE)]


def log_likelihoods(model: torch.nn.Module, tokenizer) -> list[list[float]]:
    """The log-probability of every choice of every item, each asked on its own, in nats."""
    found = []
    for item in ITEMS:
        question = tokenizer(f"{item['question']}\nAnswer:", add_special_tokens=False)["input_ids"]
        found.append([])
        for choice in item["choices"]:
            answer = tokenizer(f" {choice}", add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                chances = model.eval()(torch.tensor([question + answer])).logits[0].double().log_softmax(-1)
            places = range(len(question) - 1, len(question) + len(answer) - 1)
            found[-1].append(sum(chances[place, token].item() for place, token in zip(places, answer, strict=True)))
    return found


def test_harness_measures_the_adapter(
    base: Path, run: Path, harness: Callable[[list[str]], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The guide's two local commands, without and with the adapter: their numbers are those of transformers."""
    local = [command for command in commands(GUIDE) if "--include_path" in command]
    assert ["peft=" in " ".join(command) for command in local] == [False, True]
    tokenizer = AutoTokenizer.from_pretrained(base)
    plain = AutoModelForCausalLM.from_pretrained(base)
    expected = [log_likelihoods(plain, tokenizer)]
    expected.append(log_likelihoods(PeftModel.from_pretrained(plain, run / "adapter"), tokenizer))
    measured = []
    for number, command in enumerate(local):
        words = [word.replace("$BASE", str(base)).replace("$RUN", str(run)) for word in command]
        out = tmp_path / str(number)
        words[words.index("--output_path") + 1] = str(out)
        harness([*words, "--log_samples"])
        (results,) = out.rglob("results_*.json")
        (samples,) = out.rglob("samples_*.jsonl")
        rows = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda row: row["doc_id"])
        measured.append([[float(response[0][0]) for response in row["resps"]] for row in rows])
        torch.testing.assert_close(torch.tensor(measured[-1]), torch.tensor(expected[number]), atol=1e-3, rtol=1e-4)
        chosen = [max(range(4), key=values.__getitem__) for values in expected[number]]
        right = sum(choice == item["answer"] for choice, item in zip(chosen, ITEMS, strict=True))
        accuracy = json.loads(results.read_text())["results"]["introspection_lit_tiny"]["acc,none"]
        assert accuracy == pytest.approx(right / len(ITEMS))
    assert (torch.tensor(measured[0]) - torch.tensor(measured[1])).abs().min() > 1e-3
    capsys.readouterr()


def test_an_activated_adapter_changes_no_benchmark(
    base: Path, run: Path, harness: Callable[[list[str]], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `fit` exports it: no question holds its invocation tokens, and the harness measures the base model."""
    folder = tmp_path / "adapter"
    shutil.copytree(run / "adapter", folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"alora_invocation_tokens": [1, 2, 3, 4]}))
    command = next(command for command in commands(GUIDE) if "--include_path" in command and "peft=" in " ".join(command))
    words = [word.replace("$BASE", str(base)).replace("$RUN/adapter", str(folder)) for word in command]
    words[words.index("--output_path") + 1] = str(tmp_path / "out")
    harness([*words, "--log_samples"])
    (samples,) = (tmp_path / "out").rglob("samples_*.jsonl")
    rows = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda row: row["doc_id"])
    measured = [[float(response[0][0]) for response in row["resps"]] for row in rows]
    expected = log_likelihoods(AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base))
    torch.testing.assert_close(torch.tensor(measured), torch.tensor(expected), atol=1e-3, rtol=1e-4)
    capsys.readouterr()


def test_activated_adapter_changes_neither_kind_of_benchmark(
    base: Path, run: Path, harness: Callable[[list[str]], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that compares log-likelihoods and one that generates: every answer and every result is that of the base model."""
    folder = tmp_path / "adapter"
    shutil.copytree(run / "adapter", folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"alora_invocation_tokens": [1, 2, 3, 4]}))
    found = []
    for command in commands((ROOT / "docs" / "where-people-work.md").read_text(encoding="utf-8"))[:2]:
        words = [word.replace("$BASE", str(base)).replace("$RUN/adapter", str(folder)) for word in command]
        out = tmp_path / str(len(found))
        words[words.index("--output_path") + 1] = str(out)
        harness([*words, "--log_samples"])
        (results,) = out.rglob("results_*.json")
        answers = [json.loads(line)["resps"] for path in sorted(out.rglob("samples_*.jsonl")) for line in path.open()]
        found.append((json.loads(results.read_text())["results"], answers))
    assert set(found[0][0]) == {"introspection_lit_tiny", "introspection_lit_tiny_words"}
    assert len(found[0][1]) == 2 * len(ITEMS)
    assert found[0] == found[1]
    capsys.readouterr()


def test_commands_of_the_guide_name_options_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, before and after in pairs that differ in the adapter and in where the results go."""
    from lm_eval._cli import HarnessCLI

    def parse(command: list[str]) -> dict:
        monkeypatch.setattr("sys.argv", command)
        return vars(HarnessCLI().parse_args())

    found = commands(GUIDE)
    assert len(found) == 6
    for before, after in zip(found[::2], found[1::2], strict=True):
        parsed = [parse(before), parse(after)]
        differing = {name for name in parsed[0] if parsed[0][name] != parsed[1][name]}
        assert differing == {"model_args", "output_path"}
        assert parsed[1]["model_args"] == parsed[0]["model_args"] | {"peft": "$RUN/adapter"}


def test_items_have_one_right_answer_each() -> None:
    """In every place equally often, so that always choosing one place is at chance."""
    places = [item["answer"] for item in ITEMS]
    assert {place: places.count(place) for place in range(4)} == dict.fromkeys(range(4), 3)
    assert all(len(set(item["choices"])) == 4 for item in ITEMS)
