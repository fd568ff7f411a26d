"""A base model that has moved: its checkpoints, adapters, banks and manifests follow it; another model is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hostile import change_json
from project_paths import CONFIG
from run_scripts import options, script
from safetensors.torch import load_file, save_file

from introspection_lit import Detector
from introspection_lit.cli import IntrospectionCLI, main
from introspection_lit.models.base_identity import BaseIdentity
from introspection_lit.models.base_model import BaseModel
from introspection_lit.training.checkpoint_checks import identity_problems
from introspection_lit.training.checkpoint_files import read_checkpoint
from introspection_lit.utils.checksums import CHECKSUM

SMALL = ["--trainer.enable_progress_bar", "false", "--evidence.enabled", "false"]
TESTED = [*SMALL, "--data.test_trials", '{"heldout": 8}']


def command(subcommand: str, model: Path, *more: str) -> IntrospectionCLI:
    """A subcommand on a model."""
    return main([subcommand, "--config", CONFIG, "--model.base.name_or_path", str(model), *SMALL, *more])


@pytest.fixture(scope="module")
def moved(tiny: Path, some_contexts: list[str], tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run whose model was staged to one folder, and now lies in another one."""
    root = tmp_path_factory.mktemp("moved")
    old, new = root / "job-1" / "model", root / "job-2" / "model"
    shutil.copytree(tiny, old)
    logger = f"--trainer.logger.init_args.save_dir={root}"
    cli = command("fit", old, *some_contexts, logger, "--checkpoint.save_top_k", "-1")
    new.parent.mkdir()
    shutil.move(old, new)
    folder = root / "default" / "version_0"
    return SimpleNamespace(old=old, new=new, folder=folder, contexts=some_contexts, cli=cli)


@pytest.fixture
def another(moved: SimpleNamespace) -> Any:
    """Another model of the same shapes in the place of the first one."""
    shutil.copytree(moved.new, moved.old)
    tensors = load_file(moved.old / "model.safetensors")
    name = "model.layers.2.self_attn.v_proj.weight"
    save_file(tensors | {name: -tensors[name]}, moved.old / "model.safetensors", metadata={"format": "pt"})
    yield moved.old
    shutil.rmtree(moved.old)


def unrecorded(checkpoint: Path, copy: Path) -> str:
    """A copy of a checkpoint as it was written before it recorded hashes."""
    content = torch.load(checkpoint, weights_only=True)
    content["introspection"].pop("base_hashes")
    content.pop(CHECKSUM)
    torch.save(content, copy)
    return str(copy)


def results_of(cli: IntrospectionCLI) -> dict[str, Any]:
    """What a test has written."""
    return json.loads((Path(str(cli.trainer.log_dir)) / "results.json").read_text())


def test_what_is_recorded(moved: SimpleNamespace) -> None:
    """The same three hashes everywhere."""
    saved = read_checkpoint(moved.folder / "checkpoints" / "last.ckpt")["introspection"]
    described = json.loads((moved.folder / "adapter" / "introspection.json").read_text())
    assert saved["base_hashes"] == described["base_hashes"] == moved.cli.model.base_identity.hashes
    assert set(saved["base_hashes"]) == {"config", "tokenizer", "weights"}


def test_training_goes_on_where_the_model_is_now(moved: SimpleNamespace, tmp_path: Path, monkeypatch: Any) -> None:
    """To the same weights as without a move, with the bank of the run."""
    monkeypatch.chdir(tmp_path)
    bank = ["--data.bank", str(moved.folder / "vectors.safetensors")]
    first = moved.folder / "checkpoints" / "best-step3.ckpt"
    again = command("fit", moved.new, *moved.contexts, *bank, "--ckpt_path", str(first))
    ends = [read_checkpoint(cli.trainer.checkpoint_callback.last_model_path) for cli in (moved.cli, again)]
    for name, tensor in ends[0]["state_dict"].items():
        assert torch.equal(tensor, ends[1]["state_dict"][name])


@pytest.mark.parametrize("what", ["checkpoint", pytest.param("adapter", marks=pytest.mark.slow)])
def test_tests_find_the_model_where_it_is(what: str, moved: SimpleNamespace, tmp_path: Path, monkeypatch: Any) -> None:
    """Of a checkpoint, and of an adapter; the results say nothing of a difference."""
    monkeypatch.chdir(tmp_path)
    given = ["--ckpt_path", str(moved.folder / "checkpoints" / "last.ckpt")]
    given = given if what == "checkpoint" else ["--model.adapter", str(moved.folder / "adapter")]
    results = results_of(command("test", moved.new, *moved.contexts, *given, "--data.test_trials", '{"heldout": 8}'))
    assert results["other_base"] is None
    assert results["base_hashes"] == moved.cli.model.base_identity.hashes


def test_the_detector_loads_it_from_its_new_place(moved: SimpleNamespace, recwarn: pytest.WarningsRecorder) -> None:
    """Its bank is used, too; without the new place, the error says how to give it."""
    detector = Detector.from_pretrained(moved.folder / "adapter", str(moved.new), device="cpu")
    assert detector.bank is not None
    assert not [warning for warning in recwarn if "was made for" in str(warning.message)]
    with pytest.raises(Exception, match=r"(?s)neither a model folder .* give its place as base"):
        Detector.from_pretrained(moved.folder / "adapter", device="cpu")


@pytest.mark.parametrize("given", ["--ckpt_path", "--model.adapter", "--data.bank"])
def test_another_model_in_the_old_place_is_refused(
    given: str, moved: SimpleNamespace, another: Path, refused: Callable[..., str]
) -> None:
    """Its name is that which is recorded; its weights are not."""
    files = {"--ckpt_path": "checkpoints/last.ckpt", "--model.adapter": "adapter", "--data.bank": "vectors.safetensors"}
    said = refused(*moved.contexts, given, str(moved.folder / files[given]), subcommand="test", base=another)
    assert f"'{another}' has other weights" in said
    with pytest.raises(Exception, match=r"has other weights\. Give its place as base"):
        Detector.from_pretrained(moved.folder / "adapter", device="cpu")


def test_of_older_files_the_name_decides_and_the_advice_works(
    moved: SimpleNamespace, tmp_path: Path, refused: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    """They have no hashes: the user says that the model is the same one."""
    checkpoint = unrecorded(moved.folder / "checkpoints" / "last.ckpt", tmp_path / "old.ckpt")
    shutil.copytree(moved.folder / "adapter", tmp_path / "old")
    described = json.loads((tmp_path / "old" / "introspection.json").read_text())
    described = {name: value for name, value in described.items() if name not in (CHECKSUM, "base_hashes")}
    (tmp_path / "old" / "introspection.json").write_text(json.dumps(described))
    for given in (["--ckpt_path", checkpoint], ["--model.adapter", str(tmp_path / "old")]):
        said = refused(*moved.contexts, *given, subcommand="test", base=moved.new)
        assert f"was made for the model '{moved.old}', not for '{moved.new}'" in said
        assert "set model.adapter_base to any" in said
    moved.old.symlink_to(moved.new)
    try:  # a link in the old place is the same place
        with pytest.raises(pytest.fail.Exception, match="the model was loaded"):
            refused(*moved.contexts, "--ckpt_path", checkpoint, subcommand="test", base=moved.old)
    finally:
        moved.old.unlink()


@pytest.mark.parametrize("what", ["checkpoint", pytest.param("adapter", marks=pytest.mark.slow)])
def test_the_user_can_say_that_the_models_match(
    what: str, moved: SimpleNamespace, tmp_path: Path, monkeypatch: Any
) -> None:
    """It is used, and said in the console and in the results."""
    monkeypatch.chdir(tmp_path)
    other = Path(shutil.copytree(moved.new, tmp_path / "mirror"))
    change_json(other / "config.json", pad_token_id=1)
    given = ["--ckpt_path", str(moved.folder / "checkpoints" / "last.ckpt")]
    given = given if what == "checkpoint" else ["--model.adapter", str(moved.folder / "adapter")]
    given += ["--model.adapter_base", "any", "--data.test_trials", '{"heldout": 8}']
    with pytest.warns(UserWarning, match=r"has another config\.json\. You say that they match"):
        results = results_of(command("test", other, *moved.contexts, *given))
    assert "has another config.json" in results["other_base"]
    assert f"'{other}'" in results["other_base"]


def test_a_quantised_copy_is_loaded_as_it_is_stored(moved: SimpleNamespace) -> None:
    """Its quantisation and dtype cannot be those that the checkpoint names; what the user accepts is recorded."""
    saved = torch.load(moved.folder / "checkpoints" / "last.ckpt", weights_only=True)["introspection"]
    loaded = saved | {"quantization": "nf4", "dtype": "bfloat16"}
    recorded, any_base = (BaseIdentity(BaseModel(str(moved.new)), accepts) for accepts in (False, True))
    assert len(identity_problems(saved, loaded, recorded)) == 2
    with pytest.warns(UserWarning, match="You say that they match"):
        assert identity_problems(saved, loaded, any_base) == []
    assert [sentence.split()[4] for sentence in any_base.accepted] == ["dtype", "quantization"]
    assert len(identity_problems(saved, loaded | {"lora": {}}, any_base)) == 1


@pytest.mark.parametrize("given", ["--ckpt_path", "--model.adapter"])
def test_shapes_are_checked_whatever_the_user_says(
    given: str, moved: SimpleNamespace, tiny_folder: Callable[[str], Path], refused: Callable[..., str]
) -> None:
    """Before the model is loaded."""
    files = {"--ckpt_path": "checkpoints/last.ckpt", "--model.adapter": "adapter"}
    any_base = ["--model.adapter_base", "any", given, str(moved.folder / files[given])]
    said = refused(*moved.contexts, *any_base, subcommand="test", base=tiny_folder("qwen2-wide"))
    assert "shape" in said
    assert "fit" in said


@pytest.mark.slow
def test_the_pipeline_goes_on_where_the_model_is_now(steps: SimpleNamespace, tmp_path: Path) -> None:
    """Bank and manifest of the first two steps, and the adapter of the third."""
    copy = Path(shutil.copytree(steps.model, tmp_path / "copy"))
    shared = [*options(copy, tmp_path), "--vectors", str(steps.folder / "vectors.safetensors")]
    manifest = ["--manifest", str(steps.folder / "train.jsonl")]
    script("finetune").main([*shared, *manifest, "--epochs", "1", "--grad-accum", "1", "--output", str(tmp_path / "out")])
    script("evaluate").main([*shared, *steps.adapter, "--data.test_trials", '{"heldout": 4}'])
    assert json.loads((tmp_path / "ladder.json").read_text())["other_base"] is None
