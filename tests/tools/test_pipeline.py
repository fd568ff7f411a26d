"""The scripts of the research pipeline, in order, on a tiny model."""

from __future__ import annotations

import io
import json
import math
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from project_paths import CONFIG
from rich.console import Console
from run_scripts import options, script
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from introspection_lit.cli import main as command_line
from introspection_lit.contexts.context import BUILTIN
from introspection_lit.contexts.loading import load_contexts
from introspection_lit.evaluation.rungs import RUNGS, control_verdict, failures, ladder_verdict
from introspection_lit.models.adapters import DESCRIPTION
from introspection_lit.steering.vector_bank import VectorBank
from introspection_lit.tools.ladder import only_rungs, rung_table


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


def test_finetune_is_fit(steps: SimpleNamespace) -> None:
    """The command that the script prints gives the same adapter, bit by bit."""
    printed = next(line for line in steps.finetuned.splitlines() if line.startswith("the same as"))
    words = shlex.split(printed.removeprefix("the same as: python -m introspection_lit "))
    cli = command_line(words)
    ours = torch.load(cli.trainer.checkpoint_callback.best_model_path, weights_only=True)["state_dict"]
    theirs = load_file(steps.folder / "checkpoints" / "best" / "adapter_model.safetensors")
    assert len(ours) == len(theirs)
    for name, tensor in ours.items():
        plain = name.removeprefix("model.").replace(".default.weight", ".weight")
        assert torch.equal(tensor, theirs[plain])


@pytest.mark.slow
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


def test_verdict_names_the_first_rung_that_fails() -> None:
    """And why; a ladder that holds says so."""
    fine = {"auroc": 1.0, "tpr": 1.0, "fpr": 0.0, "fpr_interval": [0.0, 0.138], "n_clean_distinct": 24}
    assert failures(fine) == []
    said = ladder_verdict(
        "adapter", {"seen": fine, "heldout": fine | {"fpr_interval": [0.0, 0.07], "n_clean_distinct": 48}}
    )
    assert said == ("adapter: every rung holds. An FPR of up to 0.14 cannot be excluded (95 %, 24 distinct clean inputs).")
    rows = {"seen": fine, "heldout": fine | {"tpr": 0.5}, "newkinds": fine | {"fpr": 1.0}}
    said = ladder_verdict("adapter", rows)
    assert f"the first rung to fail is {RUNGS['heldout']!r}" in said
    assert "misses steering (TPR 0.50)" in said
    assert RUNGS["newkinds"] in said
    assert "no rung holds" in ladder_verdict("untrained", {"seen": fine | {"auroc": 0.5, "tpr": 0.0}})


@pytest.mark.parametrize(
    ("swapped", "factual", "told"),
    [
        (0.0, 1.0, "it says a word"),
        (1.0, 1.0, "steering also moves other answers"),
        (0.85, 0.4, "does not follow the answer words"),
        (0.99, 0.52, "it answers what it is asked"),
    ],
)
def test_controls_stand_below_the_ladder(swapped: float, factual: float, told: str) -> None:
    """Whatever the rungs show; without controls it is said that none were tested."""
    fine = {"auroc": 1.0, "tpr": 1.0, "fpr": 0.0, "fpr_interval": [0.0, 0.138], "n_clean_distinct": 24}
    rows = {"heldout": fine, "swapped": fine | {"auroc": swapped}, "factual": fine | {"auroc": factual}}
    assert told in control_verdict(rows)
    assert "none were tested" in control_verdict({"heldout": fine})
    console = Console(width=80, file=io.StringIO())
    console.print(rung_table({"adapter": rows}))
    printed = console.file.getvalue()
    assert f"yes and no exchanged (1) │ {swapped:.2f}" in " ".join(printed.split())
    assert f"factual questions (0.5) │ {factual:.2f}" in " ".join(printed.split())
    assert list(only_rungs(rows)) == ["heldout"]


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


@pytest.mark.slow
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


@pytest.mark.slow
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
