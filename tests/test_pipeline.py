"""The scripts of the research pipeline, in order, on a tiny model."""

from __future__ import annotations

import importlib.util
import json
import math
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from introspection_lit import vectors
from introspection_lit.batches import Split
from introspection_lit.callbacks import PredictionWriter
from introspection_lit.cli import main as command_line
from introspection_lit.contexts import BUILTIN, load_contexts
from introspection_lit.export import DESCRIPTION
from introspection_lit.ladder import RUNGS, failures, verdict
from introspection_lit.module import IntrospectionModule
from introspection_lit.vectors import VectorBank

ROOT = Path(__file__).parent.parent
CONFIG = str(ROOT / "tests" / "conf" / "tiny.yaml")
SCRIPTS = ("generate_vectors", "baseline_benchmark", "generate_training_data", "finetune", "evaluate")


def script(name: str) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec and spec.loader  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def options(model: Path | str, folder: Path) -> list[str]:
    """What every step gets."""
    return ["--model", str(model), "--config", CONFIG, "--folder", str(folder)]


GRID = ["--n-vectors", "2", "--n-contexts", "3"]


@pytest.fixture(scope="module")
def steps(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """All five steps, run once: their folder, and the shared options."""
    folder = tmp_path_factory.mktemp("pipeline")
    shared = options(tiny, folder)
    script("generate_vectors").main([*shared, "--n-random", "8", "--data.validation_vectors", "3"])
    script("baseline_benchmark").main([*shared, *GRID, "--with-info"])
    script("generate_training_data").main([*shared, "--n-examples", "24", "--n-train-vectors", "4"])
    train = ["--epochs", "2", "--grad-accum", "2", "--lr", "1e-2", "--output", str(folder / "checkpoints")]
    script("finetune").main([*shared, *train])
    adapter = ["--adapter", str(folder / "checkpoints" / "best")]
    script("evaluate").main([*shared, *adapter, "--n-train-vectors", "4"])
    return SimpleNamespace(folder=folder, shared=shared, train=train, adapter=adapter, model=tiny)


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_has_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every script says how it is used, and takes --model and --config."""
    with pytest.raises(SystemExit) as stop:
        script(name).main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for expected in (f"python {name}.py --", "--model", "--config", "Qwen/Qwen2.5-Coder-32B-Instruct"):
        assert expected in text


def test_every_step_leaves_its_files(steps: SimpleNamespace) -> None:
    """Bank, baseline, manifest, adapter, ladder: whole, and nothing unfinished."""
    names = {path.name for path in steps.folder.iterdir()}
    assert {"vectors.safetensors", "vectors.json", "vectors.png", "train.jsonl", "ladder.json", "ladder.png"} <= names
    assert {"baseline-info.json", "baseline-info.jsonl", "baseline-info.png"} <= names
    assert not list(steps.folder.rglob("*unfinished*"))
    best = {path.name for path in (steps.folder / "checkpoints" / "best").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", DESCRIPTION} <= best


def independent(model: PreTrainedModel, folder: Path, row: dict, bank: Path, turns: list, info: str) -> tuple[float, float]:
    """P(yes) and P(no) of a row of the baseline, from transformers and hooks alone."""
    tokenizer, tensors = AutoTokenizer.from_pretrained(folder), load_file(bank)
    turns = [{"role": "system", "content": ""}, *turns]
    first = tokenizer.apply_chat_template(turns, tokenize=False)
    asked = [*turns, {"role": "user", "content": f"{info}\n\n{row['question_text']}".strip()}]
    second = (
        tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)[len(first) :] + "The answer is"
    )
    ids = [tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"] for text in (first, second)]
    hooks = []
    for layer in range(row["band"][0], row["band"][1] + 1) if row["steered"] else ():
        vector = tensors[f"directions.{row['vectors']}"][row["vector"]].reshape(-1, 32).expand(6, -1)[layer]
        n = min(row["band"][1], 4) - row["band"][0] + 1  # the last of six layers reaches no cache
        added = row["strength"] * tensors["residual_norms"][layer] / n**0.5 * vector

        def hook(_module: Any, _args: Any, out: Any, added: torch.Tensor = added) -> Any:
            return (out[0] + added, *out[1:]) if isinstance(out, tuple) else out + added

        hooks.append(model.model.layers[layer].register_forward_hook(hook))
    with torch.no_grad():
        cache = model(ids[0]).past_key_values
        for handle in hooks:
            handle.remove()
        p = model(ids[1], past_key_values=cache).logits[0, -1].softmax(-1)
    return p[tokenizer(" yes")["input_ids"][0]].item(), p[tokenizer(" no")["input_ids"][0]].item()


def test_baseline_agrees_with_an_independent_computation(steps: SimpleNamespace) -> None:
    """Single trials, clean and steered, with and without info, random and concept, detection and control: to 1e-4."""
    results = json.loads((steps.folder / "baseline-info.json").read_text())
    rows = [json.loads(line) for line in (steps.folder / "baseline-info.jsonl").read_text().splitlines()]
    model = AutoModelForCausalLM.from_pretrained(steps.model)
    contexts = {context.key: context for context in load_contexts(BUILTIN)}
    steered = [row for row in rows if row["steered"]]
    for row in (rows[0], rows[-1], steered[0], steered[7], steered[len(steered) // 2], steered[-1]):
        turns = [turn._asdict() for turn in contexts[row["context_key"]].turns]
        info = results["infos"][row["split"].split("/")[1]]
        yes, no = independent(model, steps.model, row, steps.folder / "vectors.safetensors", turns, info)
        assert row["mass"] == pytest.approx(yes + no, abs=1e-4)
        assert row["log_odds"] == pytest.approx(math.log(yes / no), abs=1e-4)


def test_baseline_table_is_that_of_its_rows(steps: SimpleNamespace) -> None:
    """Every direction, question and condition once; the shift is steered minus clean; the info prompts are equally long."""
    results = json.loads((steps.folder / "baseline-info.json").read_text())
    cells = {(row["info"], row["question"], row["vectors"], row["vector"]) for row in results["directions"]}
    assert len(cells) == len(results["directions"]) == 3 * 3 * (2 + 3)
    for row in results["directions"]:
        assert row["p_yes_shift"] == pytest.approx(row["p_yes_steered"] - row["p_yes_clean"])
        assert row["mass_clean"] == pytest.approx(row["p_yes_clean"] + row["p_no_clean"])
        assert 0 <= row["auroc"] <= 1
    tokenizer = AutoTokenizer.from_pretrained(steps.model)
    lengths = {name: len(tokenizer(text)["input_ids"]) for name, text in results["infos"].items()}
    assert lengths["none"] == 0
    assert lengths["explained"] <= lengths["neutral"] <= lengths["explained"] + 3
    rows = [json.loads(line) for line in (steps.folder / "baseline-info.jsonl").read_text().splitlines()]
    assert len(rows) == 3 * 5 * 3 * ((1 + 2) + (1 + 3))  # conditions, questions, contexts, clean and steered


def test_finetune_is_fit(steps: SimpleNamespace, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The command that the script prints gives the same adapter, bit by bit."""
    script("finetune").main([*steps.shared, *steps.train[:-1], str(tmp_path / "checkpoints")])
    printed = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("the same as"))
    words = shlex.split(printed.removeprefix("the same as: python -m introspection_lit "))
    cli = command_line(words)
    ours = torch.load(cli.trainer.checkpoint_callback.best_model_path, weights_only=True)["state_dict"]
    theirs = load_file(steps.folder / "checkpoints" / "best" / "adapter_model.safetensors")
    assert len(ours) == len(theirs)
    for name, tensor in ours.items():
        plain = name.removeprefix("model.").replace(".default.weight", ".weight")
        assert torch.equal(tensor, theirs[plain])


def test_evaluate_is_test(steps: SimpleNamespace, tmp_path: Path) -> None:
    """Each column of the ladder is what `test` says: the adapter, the untrained model, and the latter with info."""
    ladder = json.loads((steps.folder / "ladder.json").read_text())
    assert list(ladder["ways"]) == ["untrained", "with info", "adapter"]
    plain = ["test", "--config", CONFIG, "--model.base.name_or_path", str(steps.model)]
    plain += ["--data.bank", str(steps.folder / "vectors.safetensors"), "--data.train_vectors", "4"]
    logger = f"--trainer.logger.init_args.save_dir={tmp_path}"
    for name, more in (
        ("adapter", ["--model.adapter", steps.adapter[1]]),
        ("untrained", []),
        ("with info", ["--data.info", "explained"]),
    ):
        cli = command_line([*plain, logger, *more])
        for rung, row in ladder["ways"][name].items():
            assert json.dumps(row) == json.dumps(cli.model.summaries[rung])
    assert ladder["ways"]["adapter"] != ladder["ways"]["untrained"]


def test_manifest_was_trained_on(steps: SimpleNamespace) -> None:
    """The header says what it was made with; half of the trials are steered; the run's own settings name it."""
    lines = [json.loads(line) for line in (steps.folder / "train.jsonl").read_text().splitlines()]
    header, rows = lines[0], lines[1:]
    assert header["n"] == len(rows) == 24
    assert sum(row["steered"] for row in rows) == 12
    assert {row["vector"] for row in rows if row["steered"]} == {f"train-{i}" for i in range(4)}
    assert {"seed", "splits", "bank", "commit", "version", "training_contexts"} <= set(header)
    config = next(steps.folder.glob("finetune/version_0/config.yaml")).read_text()
    assert "manifest: " + str(steps.folder / "train.jsonl") in config


@pytest.mark.parametrize("name", SCRIPTS)
def test_files_of_another_model_are_refused(
    name: str, steps: SimpleNamespace, tiny_folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Bank, manifest and adapter belong to a model; a script says whose they are before it loads anything."""
    if name == "generate_vectors":
        pytest.skip("makes the bank")
    shared = options(tiny_folder("llama"), steps.folder)
    more = {"evaluate": steps.adapter, "baseline_benchmark": GRID}.get(name, [])
    with pytest.raises(SystemExit) as stop:
        script(name).main([*shared, *more])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "made for the model" in error
    assert str(steps.model) in error
    if name == "evaluate":
        assert "model.adapter: " in error


def test_manifest_of_another_model_is_refused(
    steps: SimpleNamespace, tiny_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a bank that fits, the manifest does not."""
    shared = options(tiny_folder("llama"), tmp_path)
    script("generate_vectors").main([*shared, "--n-random", "8"])
    with pytest.raises(SystemExit):
        script("finetune").main([*shared, "--manifest", str(steps.folder / "train.jsonl")])
    assert "data.manifest: made with base_model" in capsys.readouterr().err


# Where each script is interrupted: in the middle of what takes long.
INTERRUPTED: dict[str, tuple[Any, str, list[str], str]] = {
    "generate_vectors": (vectors, "save_file", ["--n-random", "8"], "vectors.safetensors"),
    "baseline_benchmark": (PredictionWriter, "on_predict_batch_end", GRID, "baseline.json"),
    "generate_training_data": (Split, "asked", ["--n-examples", "24"], "train.jsonl"),
    "finetune": (IntrospectionModule, "training_step", [], f"checkpoints/best/{DESCRIPTION}"),
    "evaluate": (IntrospectionModule, "test_step", [], "ladder.json"),
}


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("older", [False, True])
def test_interrupted_scripts_leave_nothing_half_written(
    name: str, older: bool, steps: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the middle: the file is not there, and no part of it either; an older one stays as it was."""
    owner, method, more, made = INTERRUPTED[name]
    original, seen = getattr(owner, method), []

    def interrupting(*args: Any, **kwargs: Any) -> Any:
        seen.append(1)
        if name == "generate_vectors":
            original(*args, **kwargs)  # written, but not yet under its name
        if len(seen) > 2 or name == "generate_vectors":
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    if older:
        (tmp_path / made).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / made).write_text("older")
    monkeypatch.setattr(owner, method, interrupting)
    shared = options(steps.model, tmp_path)
    bank = ["--vectors", str(steps.folder / "vectors.safetensors")] if name != "generate_vectors" else []
    output = ["--output", str(tmp_path / "checkpoints")] if name == "finetune" else []
    with pytest.raises(SystemExit) as stop:
        script(name).main([*shared, *bank, *more, *output])
    assert stop.value.code != 0
    assert seen
    assert (tmp_path / made).exists() is older
    assert not older or (tmp_path / made).read_text() == "older"
    assert not list(tmp_path.rglob("*unfinished*"))


def plain_adapter(model: Path, folder: Path, config: Any) -> str:
    """An adapter as anybody saves one, without our JSON."""
    base = AutoModelForCausalLM.from_pretrained(model)
    torch.manual_seed(0)
    get_peft_model(base, config).save_pretrained(str(folder))
    return str(folder)


def test_any_peft_adapter_can_be_evaluated(
    steps: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without introspection.json: other target modules, a question, answers and a threshold from the command line."""
    config = LoraConfig(r=2, target_modules=["gate_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    folder = plain_adapter(steps.model, tmp_path / "theirs", config)
    question = ["--question", "Were you changed? Say {yes} or {no}.", "--answers", "no", "yes", "--threshold", "-0.25"]
    shared = options(steps.model, tmp_path)
    bank = ["--vectors", str(steps.folder / "vectors.safetensors"), "--data.test_trials", '{"heldout": 8}']
    with pytest.warns(UserWarning, match="nobody knows what it was trained on"):
        script("evaluate").main([*shared, *bank, "--adapter", folder, *question])
    ladder = json.loads((tmp_path / "ladder.json").read_text())
    assert ladder["questions"]["train"] == ["Were you changed? Say no or yes."]
    assert ladder["answers"] == ["no", "yes"]
    assert ladder["lora"]["target_modules"] == ["gate_proj"]
    assert ladder["ways"]["adapter"]["heldout"]["threshold"] == -0.25
    assert ladder["ways"]["adapter"] != ladder["ways"]["untrained"]
    reference = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(steps.model), folder)
    assert reference.peft_config["default"].r == ladder["lora"]["r"]


def test_adapters_that_cannot_be_used_are_refused(
    steps: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No folder, no weights, cut weights, tokens instead of weights, damaged JSON: each says what is wrong."""
    prompt = plain_adapter(
        steps.model, tmp_path / "prompt", PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    )
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    cut, empty, damaged = (plain_adapter(steps.model, tmp_path / name, lora) for name in ("cut", "empty", "damaged"))
    weights = Path(cut) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    (Path(empty) / "adapter_model.safetensors").unlink()
    (Path(damaged) / DESCRIPTION).write_text("{")
    for name, message in (
        ("nowhere", "no such folder: nowhere"),
        (prompt, "PROMPT_TUNING, which adds tokens of its own"),
        (cut, "may be cut off"),
        (empty, "is missing"),
        (damaged, "is damaged"),
    ):
        with pytest.raises(SystemExit):
            script("evaluate").main([*steps.shared, "--adapter", name])
        assert message in capsys.readouterr().err


def test_verdict_names_the_first_rung_that_fails() -> None:
    """And why; a ladder that holds says so."""
    fine = {"auroc": 1.0, "tpr": 1.0, "fpr": 0.0, "fpr_interval": [0.0, 0.138], "n_clean_distinct": 24}
    assert failures(fine) == []
    said = verdict("adapter", {"seen": fine, "heldout": fine | {"fpr_interval": [0.0, 0.07], "n_clean_distinct": 48}})
    assert said == ("adapter: every rung holds. An FPR of up to 0.14 cannot be excluded (95 %, 24 distinct clean inputs).")
    rows = {"seen": fine, "heldout": fine | {"tpr": 0.5}, "newkinds": fine | {"fpr": 1.0}}
    said = verdict("adapter", rows)
    assert f"the first rung to fail is {RUNGS['heldout']!r}" in said
    assert "misses steering (TPR 0.50)" in said
    assert RUNGS["newkinds"] in said
    assert "no rung holds" in verdict("untrained", {"seen": fine | {"auroc": 0.5, "tpr": 0.0}})


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("generate_vectors", ["--n-random", "200"]),
        ("baseline_benchmark", ["--n-vectors", "50"]),
        ("baseline_benchmark", ["--n-vectors", "50", "--with-info"]),
        ("generate_training_data", ["--n-examples", "10000", "--n-train-vectors", "100"]),
        ("finetune", ["--epochs", "3", "--grad-accum", "8", "--lr", "2e-4"]),
        ("evaluate", ["--n-train-vectors", "100"]),
    ],
)
def test_default_model_is_the_32b(
    name: str, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its experiment, on a machine without a hub and a GPU: what is missing is said, and nothing is left behind."""
    more = ["--folder", str(tmp_path), "--trainer.accelerator", "cpu"]
    with pytest.raises(SystemExit) as stop:
        script(name).main([*command, *more])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "'Qwen/Qwen2.5-Coder-32B-Instruct' could not be loaded" in error
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".json", ".jsonl", ".safetensors", ".png")]


def test_published_setting_is_the_default_for_the_32b() -> None:
    """Layers 21 to 42, both included, at strength 20 for the model of the literature; the same third for others."""
    module = script("baseline_benchmark")
    plain = SimpleNamespace(sweep=False, unit=None, n_vectors=50, n_contexts=8, with_info=False, bands=None, strengths=None)
    for model, bands, strengths, unit in (
        ("Qwen/Qwen2.5-Coder-32B-Instruct", [[21, 42]], [20.0], "absolute"),
        ("Qwen/Qwen2.5-7B-Instruct", ["middle"], [1.0], "relative"),
    ):
        plain.model = model
        words = dict(word.removeprefix("--data.").split("=", 1) for word in module.grid_arguments(plain))
        grid = json.loads(words["grid"])
        assert (grid["bands"], grid["strengths"], words["strength_unit"]) == (bands, strengths, unit)
        assert grid["info"] == ["none"]
    plain.sweep, plain.with_info = True, True
    grid = json.loads(module.grid_arguments(plain)[0].split("=", 1)[1])
    assert len(grid["bands"]) * len(grid["strengths"]) == 12
    assert grid["info"] == ["none", "explained", "neutral"]


def test_vectors_are_described(steps: SimpleNamespace) -> None:
    """Lengths, cosines within and to the random directions, as computed from the bank by other means."""
    described = json.loads((steps.folder / "vectors.json").read_text())
    bank = VectorBank.load(steps.folder / "vectors.safetensors")
    assert described["fingerprint"] == bank.fingerprint
    train, heldout = bank.directions["train"].numpy(), bank.directions["heldout"].numpy()
    assert described["splits"]["train"]["to"]["heldout"] == pytest.approx(abs(train @ heldout.T).max(), abs=1e-6)
    assert set(described["splits"]) == {"train", "validation", "heldout", "concept", "concept_pca"}
    assert all(split["off_unit"] < 1e-5 for split in described["splits"].values())
    bread = next(row for row in described["directions"] if row["name"] == "bread" and row["vectors"] == "concept")
    both = [bank.directions[split][bank.names[split].index("bread")] for split in ("concept", "concept_pca")]
    assert bread["other_method"] == pytest.approx((both[0] * both[1]).sum(-1).mean().item(), abs=1e-6)
    assert bread["length"] == pytest.approx((bank.lengths["concept"][0, 3] / bank.residual_norms[3]).item(), abs=1e-6)


def test_imported_directions_become_a_test_set(steps: SimpleNamespace, tmp_path: Path) -> None:
    """Somebody's file, through the bank, up to a rung of the ladder; and concepts out again."""
    torch.save({"theirs": torch.randn(32, generator=torch.Generator().manual_seed(5))}, tmp_path / "theirs.pt")
    shared = options(steps.model, tmp_path)
    made = ["--n-random", "8", "--import", str(tmp_path / "theirs.pt"), "--export-as", ".gguf"]
    script("generate_vectors").main([*shared, *made])
    assert {path.name for path in (tmp_path / "exported").iterdir()} == {"bread.gguf", "cats.gguf", "the-ocean.gguf"}
    script("evaluate").main([*shared, "--data.test_trials", '{"imported": 4, "concept_pca": 4}'])
    ladder = json.loads((tmp_path / "ladder.json").read_text())
    assert list(ladder["ways"]["untrained"]) == ["concept_pca", "imported"]
    assert list(ladder["ways"]) == ["untrained", "with info"]


def test_resume_with_another_manifest_is_refused(
    steps: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The trials of a training are part of what it was."""
    bank = ["--vectors", str(steps.folder / "vectors.safetensors")]
    other = tmp_path / "other.jsonl"
    script("generate_training_data").main([*steps.shared, *bank, "--n-examples", "16", "--output", str(other)])
    last = next(steps.folder.glob("finetune/version_0/checkpoints/last.ckpt"))
    resumed = ["--manifest", str(other), "--ckpt_path", str(last), "--folder", str(tmp_path)]
    with pytest.raises(SystemExit):
        script("finetune").main([*steps.shared, *bank, *steps.train, *resumed])
    assert "was trained on other" in capsys.readouterr().err


def test_adapter_is_not_for_training(steps: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    """A fresh optimiser on an old adapter would be neither a resume nor a new start."""
    plain = ["fit", "--config", CONFIG, "--model.base.name_or_path", str(steps.model)]
    with pytest.raises(SystemExit):
        command_line([*plain, "--model.adapter", steps.adapter[1]])
    assert "model.adapter: is for validate, test and predict" in capsys.readouterr().err


def test_adapter_is_asked_as_it_was_trained(
    steps: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Question, answers, info, unit, strengths, number of vectors: evaluate and baseline take them from the adapter."""
    folder = tmp_path / "checkpoints"
    shared = [*options(steps.model, tmp_path), "--vectors", str(steps.folder / "vectors.safetensors")]
    asked = ["--question", "Was it you? Say {yes} or {no}.", "--answers", "no", "yes"]
    dose = ["--data.strength_unit", "absolute", "--data.strengths", "[7, 9]", "--data.bands", "[[1, 3]]"]
    more = ["--data.info", "neutral", "--data.system_prompt", "Be brief.", "--n-train-vectors", "3"]
    script("generate_training_data").main([*shared, *asked, *dose, *more, "--n-examples", "12"])
    script("finetune").main([*shared, "--epochs", "1", "--grad-accum", "1", "--output", str(folder)])
    header = json.loads((tmp_path / "train.jsonl").open().readline())
    assert (header["strengths"], header["train_vectors"], header["system"]) == ([7, 9], 3, "Be brief.")
    sets = ["--data.test_trials", '{"seen": 4, "heldout": 4}', "--adapter", str(folder / "best")]
    script("evaluate").main([*shared, *sets])
    ladder = json.loads((tmp_path / "ladder.json").read_text())
    assert ladder["questions"]["train"] == ["Was it you? Say no or yes."]
    assert (ladder["answers"], ladder["system"], ladder["strength_unit"]) == (["no", "yes"], "Be brief.", "absolute")
    assert (ladder["strengths"], ladder["bands"], ladder["vectors"]["train"]) == ([7, 9], [[1, 3]], 4)
    assert ladder["info"].startswith("Before you answer, some background on how bread is made")
    script("baseline_benchmark").main([*shared, *GRID, "--adapter", str(folder / "best")])
    rows = (tmp_path / "baseline-adapter.jsonl").read_text().splitlines()
    assert json.loads(rows[0])["question_text"] == "Was it you? Say no or yes."
    # What the user types wins.
    script("evaluate").main([*shared, *sets, "--data.strengths", "[1, 2]"])
    assert json.loads((tmp_path / "ladder.json").read_text())["strengths"] == [1, 2]


def test_configuration_of_the_user_beats_defaults_and_is_beaten_by_options(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The order that people expect: the script's defaults, then --config, then what is typed."""
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"model: {{base: {{name_or_path: {tiny}}}, learning_rate: 0.5}}\ntrainer: {{max_epochs: 7}}\n")
    shared = ["--config", CONFIG, "--config", str(mine), "--folder", str(tmp_path), "--epochs", "5", "--print_config"]
    with pytest.raises(SystemExit) as stop:
        script("finetune").main(shared)
    assert stop.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out.split("\n", 2)[2])
    assert (printed["model"]["learning_rate"], printed["trainer"]["max_epochs"]) == (0.5, 5)
    assert printed["trainer"]["accumulate_grad_batches"] == 8
    assert printed["data"]["batch_size"] == 4
    assert printed["model"]["base"]["name_or_path"] == str(tiny)


def test_directions_that_reach_no_cache_are_refused(
    steps: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file with one layer only, steered at others: its trials would be clean ones with the wrong label."""
    torch.save({3: torch.ones(32)}, tmp_path / "theirs.pt")
    shared = options(steps.model, tmp_path)
    script("generate_vectors").main([*shared, "--n-random", "8", "--import", str(tmp_path / "theirs.pt")])
    with pytest.raises(SystemExit):
        script("evaluate").main([*shared, "--data.test_trials", '{"imported": 4}'])
    assert "theirs (imported) has no direction for the layers 0..1" in capsys.readouterr().err
    script("evaluate").main([*shared, "--data.test_trials", '{"imported": 4}', "--data.test_bands", "[[2, 4]]"])


HOSTILE = {
    "trainer.callbacks": [{"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"setup": "os.abort"}}],
    "trainer.logger.init_args.save_dir": "/tmp/elsewhere",
    "config": "/etc/passwd",
    "data.contexts": "/etc/passwd",
    "data.info": "/etc/passwd",
    "print_config": "",
    "model.threshold": 5,
    "data.seed": "0 --trainer.max_epochs 9",
    "data.strengths": [1, float("inf")],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_settings_of_strangers_are_not_believed(
    name: str, steps: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An adapter or a manifest may come from anybody: what it says must not load a class or write a file."""
    theirs = tmp_path / "theirs"
    shutil.copytree(steps.adapter[1], theirs)
    said = json.loads((theirs / DESCRIPTION).read_text())
    (theirs / DESCRIPTION).write_text(json.dumps(said | {"options": {name: HOSTILE[name]}}))
    with pytest.raises(SystemExit) as stop:
        script("evaluate").main([*steps.shared, "--adapter", str(theirs)])
    assert stop.value.code == 2
    assert "options are damaged, or not ours" in capsys.readouterr().err
    lines = (steps.folder / "train.jsonl").read_text().splitlines(keepends=True)
    header = json.loads(lines[0])
    header["options"] = {name: HOSTILE[name]}
    (tmp_path / "theirs.jsonl").write_text(json.dumps(header) + "\n" + "".join(lines[1:]))
    with pytest.raises(SystemExit) as stop:
        script("finetune").main([*steps.shared, "--manifest", str(tmp_path / "theirs.jsonl")])
    assert stop.value.code == 2
    assert "options are damaged, or not ours" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": []}, "expected fields by name, got list"),
        ({"trained_on": {}}, "'messages' is missing"),
        ({"threshold": 10**400}, "is damaged"),
        ({"threshold": True}, "its threshold is True"),
    ],
)
def test_damaged_descriptions_are_refused(
    changes: dict, message: str, steps: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever is in the JSON, there is a message and no traceback."""
    theirs = tmp_path / "theirs"
    shutil.copytree(steps.adapter[1], theirs)
    said = json.loads((theirs / DESCRIPTION).read_text())
    (theirs / DESCRIPTION).write_text(json.dumps(said | changes))
    with pytest.raises(SystemExit) as stop:
        script("evaluate").main([*steps.shared, "--adapter", str(theirs)])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_weights_of_another_adapter_are_refused(
    steps: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """PEFT leaves out what it does not know, and a fresh adapter changes nothing: that would be the untrained model."""
    weights = load_file(Path(steps.adapter[1]) / "adapter_model.safetensors")
    half = dict(list(weights.items())[::2])
    for number, tensors in enumerate(({"foo": torch.ones(3)}, half, {name: rows[:1] for name, rows in weights.items()})):
        theirs = tmp_path / f"theirs-{number}"
        shutil.copytree(steps.adapter[1], theirs)
        save_file({name: rows.contiguous() for name, rows in tensors.items()}, theirs / "adapter_model.safetensors")
        with pytest.raises(SystemExit) as stop:
            script("evaluate").main([*steps.shared, "--adapter", str(theirs)])
        assert stop.value.code == 2
        assert "does not fit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "command", "message"),
    [
        ("generate_vectors", ["--n-random", "7"], "Expected an even number"),
        ("generate_vectors", ["--n-random", "0"], "Expected a whole number, at least 1"),
        ("generate_vectors", ["--seed", "-1"], "Expected a whole number from 0"),
        ("generate_vectors", ["--concepts", "cats", "", "bread"], "data.concepts: got an empty one"),
        ("baseline_benchmark", ["--bands", "[]"], "Expected a list such as"),
        ("baseline_benchmark", ["--bands", "[1, 3]"], "Did you mean '[[1, 3]]'?"),
        ("baseline_benchmark", ["--strengths", "[0]"], "Expected a list of numbers above 0"),
        ("baseline_benchmark", ["--n-vectors", "999"], "data.grid.random_vectors: 999 asked for"),
        ("baseline_benchmark", ["--n-contexts", "9999", "--n-vectors", "2"], "data.grid.contexts: 9999 asked for"),
        ("baseline_benchmark", ["--name", "../x"], "no path"),
        ("baseline_benchmark", ["--name", "train"], "--name: got 'train'"),
        ("baseline_benchmark", ["--data.strength_unit", "absolute"], "use --unit"),
        ("generate_training_data", ["--n-examples", "5"], "Expected an even number"),
        ("finetune", ["--epochs", "0"], "Expected a whole number, at least 1"),
        ("finetune", ["--grad-accum", "0"], "Expected a whole number, at least 1"),
        ("finetune", ["--lr", "nan"], "Expected a number"),
        ("finetune", ["--output", "occupied"], "is not an adapter of ours"),
        ("finetune", ["--manifest", "nowhere.jsonl"], "data.manifest: no such file"),
        ("evaluate", ["--threshold", "inf"], "Expected a number"),
        ("evaluate", ["--vectors", "nowhere.safetensors"], "scripts/generate_vectors.py"),
    ],
)
def test_bad_options_of_the_scripts(
    name: str,
    command: list[str],
    message: str,
    steps: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 2 and a message that names what was typed, before a model is loaded."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "occupied" / "best").mkdir(parents=True)
    monkeypatch.setattr("introspection_lit.module.load_model", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(SystemExit) as stop:
        script(name).main([*steps.shared, *command])
    assert stop.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
