"""What users keep from one version to the next: option names, file formats, and runs that were made before.

``tests/contract`` was written by commit 4a3de2f3 (before the package was divided into sub-packages), with the model
``random:tiny``: a run (``run/``), its results, predictions and a manifest, and what ``--print_config`` and the scripts'
``--help`` said. A difference here is a change that users must be told of, in CHANGELOG.md.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from project_paths import ROOT
from run_scripts import script
from safetensors.torch import load_file

from introspection_lit.cli import IntrospectionCLI, main
from introspection_lit.models.lora_targets import USUAL

OLD = ROOT / "tests" / "contract"
QUIET = ["--trainer.enable_progress_bar", "false"]
# What introspection.json and the evidence have got since.
NEW_IN_ADAPTER = ("invocation", "check")
# What each file of a run says of its base model, and the results of what the user accepts; null of random weights.
NEW_OF_BASE = {".introspection.base_hashes", ".base_hashes", ".other_base"}
NEW_EVIDENCE = {"tasks": [], "choices": [], "deployed": [], "as_exported": None, "long": None, "reader_trials": None}
# Of the data, with their defaults.
NEW_OPTIONS = dict.fromkeys(("tasks", "lead_in", "trained_concepts", "long", "test_changes", "benign", "curriculum"))
NEW_OPTIONS |= {
    "benign_share": 0.25,
    "both_signs": False,
    "dither": 0.0,
    "merged": 0.0,
    "chat_template": None,
    "thinking": "closed",
}


def keys(value: Any, place: str = "") -> set[str]:
    """The paths of all keys of nested objects; the items of a list have one path together."""
    if isinstance(value, dict):
        return {path for name, inner in value.items() for path in ({f"{place}.{name}"} | keys(inner, f"{place}.{name}"))}
    if isinstance(value, list | tuple):
        return {path for inner in value for path in keys(inner, f"{place}[]")}
    return set()


def rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def numbers(value: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """Every number of nested objects, with its place."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from numbers(inner, f"{place}.{name}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from numbers(inner, f"{place}[{index}]")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield place, value


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the old run, and the working folder of the new ones."""
    copy: Path = tmp_path_factory.mktemp("contract") / "old"
    shutil.copytree(OLD, copy)
    return copy


@pytest.fixture(scope="module")
def resumed(folder: Path) -> IntrospectionCLI:
    """The old run, gone on with from the checkpoint of its first epoch, with its own saved configuration."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["pytest"])
        return main(["fit", "--config", "run/config.yaml", "--ckpt_path", "run/checkpoints/best-step3.ckpt", *QUIET])


@pytest.fixture(scope="module")
def tested(folder: Path) -> dict[str, Any]:
    """The results of the old adapter, with the configuration that its old test has saved."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["pytest"])
        options = ["--model.adapter", "run/adapter", "--data.bank", "run/vectors.safetensors", *QUIET]
        cli = main(["test", "--config", "test.yaml", "--ckpt_path", "null", *options])
        return json.loads((Path(cli.trainer.log_dir) / "results.json").read_text(encoding="utf-8"))


def test_an_old_run_is_resumed_to_the_same_end(folder: Path, resumed: IntrospectionCLI) -> None:
    """Its second epoch ends with the adapter that the old run ended with."""
    ended = load_file(folder / "run" / "adapter" / "adapter_model.safetensors")
    checkpoint = torch.load(folder / resumed.trainer.checkpoint_callback.last_model_path, weights_only=True)
    ours = {name.removeprefix("model.").replace(".default.", "."): t for name, t in checkpoint["state_dict"].items()}
    assert ours.keys() == ended.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, ended[name], atol=1e-5, rtol=1e-4)


def test_checkpoints_have_the_same_keys(folder: Path, resumed: IntrospectionCLI) -> None:
    """Of the file, of the callbacks' states and of what training has seen."""
    old = torch.load(folder / "run" / "checkpoints" / "best-step3.ckpt", weights_only=True)
    new = torch.load(folder / resumed.trainer.checkpoint_callback.best_model_path, weights_only=True)
    assert list(new["callbacks"]) == list(old["callbacks"])
    for checkpoint in (old, new):  # named by paths and steps
        for state in checkpoint["callbacks"].values():
            state["best_k_models"] = {}
    assert keys(new) - NEW_OF_BASE == keys(old)


def test_exported_adapters_have_the_same_files_and_keys(folder: Path, resumed: IntrospectionCLI) -> None:
    """The folder that people keep."""
    made, old = folder / resumed.trainer.log_dir / "adapter", folder / "run" / "adapter"
    assert {path.name for path in made.iterdir()} == {path.name for path in old.iterdir()}
    for name in ("introspection.json", "adapter_config.json"):
        first, second = (json.loads((place / name).read_text(encoding="utf-8")) for place in (made, old))
        if name == "introspection.json":
            assert all(first.pop(new) for new in NEW_IN_ADAPTER)
        assert keys(first) - NEW_OF_BASE == keys(second)


@pytest.mark.slow
def test_an_old_adapter_gives_the_old_results(tested: dict[str, Any]) -> None:
    """Every number of every test set, and every key of the file."""
    old = json.loads((OLD / "results.json").read_text(encoding="utf-8"))
    # A test of a checkpoint finds the curves of its training; one of an adapter looks beside the adapter.
    for results in (old, tested):
        results["evidence"].pop("training")
        results["evidence"].pop("lengths", None)  # of contexts; newer than the old results
    assert {name: tested["evidence"].pop(name) for name in NEW_EVIDENCE} == NEW_EVIDENCE
    assert keys(tested) - NEW_OF_BASE == keys(old)
    for part in ("sets", "threshold"):
        ours, theirs = dict(numbers(tested[part])), dict(numbers(old[part]))
        assert ours == pytest.approx(theirs, abs=1e-4)


def test_old_checkpoints_predict_as_they_did(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row by row, from the weights of the adapter; and the rows have the same fields."""
    monkeypatch.chdir(folder)
    options = ["--model.adapter", "run/adapter", "--data.bank", "run/vectors.safetensors", *QUIET]
    cli = main(["predict", "--config", "run/config.yaml", *options])
    ours, theirs = rows(Path(cli.trainer.log_dir) / "predictions.jsonl"), rows(OLD / "predictions.jsonl")
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert list(mine) == list(other)
        scores = {"log_odds": None, "mass": None}
        assert mine | scores == other | scores
        assert (mine["log_odds"], mine["mass"]) == pytest.approx((other["log_odds"], other["mass"]), abs=1e-4)


def test_an_old_manifest_is_trained_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the bank that it names."""
    monkeypatch.chdir(folder)
    options = ["--data.manifest", "train.jsonl", "--data.bank", "run/vectors.safetensors", *QUIET]
    cli = main(["fit", "--config", "run/config.yaml", "--trainer.max_epochs", "1", *options])
    assert cli.trainer.global_step == 6


@pytest.mark.slow
def test_trials_of_a_test_have_the_same_fields(folder: Path, tested: dict[str, Any]) -> None:
    """In ``trials.jsonl``."""
    (made,) = folder.glob("lightning_logs/test/version_*/trials.jsonl")
    assert rows(made)[0].keys() == rows(OLD / "trials.jsonl")[0].keys()


@pytest.mark.parametrize("subcommand", ["fit", "validate", "test", "predict"])
def test_options_and_defaults_are_those_of_before(subcommand: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every option of the configuration, in its order, with its default; those that are new change nothing by default."""
    with pytest.raises(SystemExit) as left:
        main([subcommand, "--print_config"])
    assert not left.value.code
    printed = capsys.readouterr().out
    options = yaml.safe_load(printed)
    assert {name: options["data"].pop(name) for name in NEW_OPTIONS} == NEW_OPTIONS
    assert options["model"].pop("adapter_base") == "recorded"
    assert options["evidence"].pop("reader_trials") == 0
    # As before, but for the question pass in bfloat16 on the CPU.
    assert options["model"]["base"]["attention"] == "auto"
    options["model"]["base"]["attention"] = "sdpa"
    # Those of the architecture, which are the four of before where every layer has them.
    assert options["model"]["lora"]["target_modules"] is None
    options["model"]["lora"]["target_modules"] = USUAL
    assert options == yaml.safe_load((OLD / "printed" / f"{subcommand}.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", json.loads((OLD / "scripts.json").read_text(encoding="utf-8")))
def test_scripts_have_the_options_of_before(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By name; new ones may come."""
    with pytest.raises(SystemExit) as left:
        script(name.removesuffix(".py")).main(["--help"])
    assert not left.value.code
    old = json.loads((OLD / "scripts.json").read_text(encoding="utf-8"))[name]
    assert set(old) <= set(re.findall(r"(?<![\w-])--[a-z][\w.-]*", capsys.readouterr().out))
