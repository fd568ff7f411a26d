"""A base model is known by what it is: copies in other folders are the same, another model in the same folder is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_example import write_gguf
from hostile import change_json
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from introspection_lit.models.base_identity import MAX_SAMPLES, BaseIdentity, base_hashes
from introspection_lit.models.base_model import BaseModel


def hashes(folder: Path) -> dict[str, str | None]:
    """Of a folder that has all three."""
    found = base_hashes(BaseModel(str(folder)))
    assert found
    assert all(found.values())
    return found


def test_a_copy_is_the_same_model(tiny: Path, model: Path) -> None:
    """In another folder, with its weights in several files, its configuration written by another version."""
    assert hashes(model) == hashes(tiny)
    change_json(model / "config.json", transformers_version="4.0.0", _name_or_path="elsewhere", torch_dtype="float16")
    assert hashes(model) == hashes(tiny)
    (model / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(tiny).save_pretrained(tiny.parent / "parts", max_shard_size="50KB")
    for file in (tiny.parent / "parts").glob("model*"):
        shutil.copy(file, model)
    assert len(list(model.glob("*.safetensors"))) > 1
    assert hashes(model) == hashes(tiny)


def other_rope(folder: Path) -> None:
    """Positions are read otherwise."""
    parameters = json.loads((folder / "config.json").read_text())["rope_parameters"]
    change_json(folder / "config.json", rope_parameters=parameters | {"rope_theta": 5.0})


def other_matrix(folder: Path) -> None:
    """One of all matrices, as an edit or a merged adapter changes it."""
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.3.mlp.down_proj.weight"
    save_file(tensors | {name: tensors[name] + 0.01}, folder / "model.safetensors", metadata={"format": "pt"})


def other_names(folder: Path) -> None:
    """Tokens have other numbers."""
    content = json.loads((folder / "tokenizer.json").read_text())
    first, second = list(content["model"]["vocab"])[500:502]
    vocabulary = content["model"]["vocab"]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (folder / "tokenizer.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "said"),
    [(other_rope, "another config.json"), (other_matrix, "other weights"), (other_names, "another tokenizer")],
)
def test_another_model_in_the_same_folder_is_refused(change: Callable[[Path], None], said: str, model: Path) -> None:
    """Each part by itself, and named."""
    recorded = BaseIdentity(BaseModel(str(model))).record()
    assert BaseIdentity(BaseModel(str(model))).problems("x: it", recorded) == []
    change(model)
    (problem,) = BaseIdentity(BaseModel(str(model))).problems("x: it", recorded)
    assert f"{str(model)!r} has {said}. Use that model" in problem
    accepting = BaseIdentity(BaseModel(str(model)), accepts_any=True)
    assert accepting.problems("x: it", recorded) == []
    assert said in accepting.accepted[0]


def test_every_tensor_of_usual_models_is_sampled(tmp_path: Path, model: Path) -> None:
    """Up to a thousand; a change of the middle of any is seen, and of more tensors at least names and shapes count."""
    tensors = {f"t{number}": torch.zeros(2000) for number in range(MAX_SAMPLES)}
    (model / "model.safetensors").unlink()
    save_file(tensors, model / "model.safetensors")
    seen = {hashes(model)["weights"]}
    for number in (0, 511, MAX_SAMPLES - 1):
        save_file(tensors | {f"t{number}": torch.ones(2000)}, model / "model.safetensors")
        seen.add(hashes(model)["weights"])
    save_file(tensors | {"one more": torch.zeros(1)}, model / "model.safetensors")
    seen.add(hashes(model)["weights"])
    assert len(seen) == 5


def test_hub_ids_are_the_models_in_the_cache(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The snapshot of a revision is hashed; before its weights are there, configuration and tokenizer decide."""
    snapshot = tmp_path / "models--a--b" / "snapshots" / ("0" * 40)
    shutil.copytree(tiny, snapshot)
    (tmp_path / "models--a--b" / "refs").mkdir()
    (tmp_path / "models--a--b" / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    hub = BaseIdentity(BaseModel("a/b"))
    assert hub.hashes == hashes(tiny)
    assert hub.problems("x: it", BaseIdentity(BaseModel(str(tiny))).record()) == []
    assert BaseIdentity(BaseModel("a/b", revision="0" * 40)).hashes == hashes(tiny)
    (snapshot / "model.safetensors").rename(tmp_path / "later")
    early = BaseIdentity(BaseModel("a/b"))
    assert early.hashes == hashes(tiny) | {"weights": None}
    (problem,) = early.problems("x: it", BaseIdentity(BaseModel(str(tiny))).record())
    assert "the weights of 'a/b' are not here yet to be compared: fetch them first" in problem
    assert early.problems("x: it", BaseIdentity(BaseModel(str(tiny))).record() | {"base_model": "a/b"}) == []
    (tmp_path / "later").rename(snapshot / "model.safetensors")
    other_matrix(snapshot)
    assert "other weights" in early.problems("x: it", BaseIdentity(BaseModel(str(tiny))).record())[0]


def test_a_gguf_file_is_the_same_elsewhere(tiny: Path, tmp_path: Path) -> None:
    """Under another name, too; not with another byte of its weights. The embedded model is such a file."""
    file = write_gguf(tmp_path / "one.gguf", tiny)
    copy = Path(shutil.copy(file, tmp_path / "two.gguf"))
    first, second = (base_hashes(BaseModel(str(path))) for path in (file, copy))
    assert first == second is not None
    content = bytearray(copy.read_bytes())
    content[-1] ^= 1
    copy.write_bytes(content)
    assert base_hashes(BaseModel(str(copy))) != first
    assert base_hashes(BaseModel("smollm2-135m"))


@pytest.mark.parametrize("base", ["random:tiny", "nobody/nothing", "/no/such/folder", "package:nothing/file.gguf"])
def test_without_files_the_name_decides(base: str) -> None:
    """As before: of random weights, and of models that cannot be read; loading them says why."""
    own = BaseIdentity(BaseModel(base))
    assert own.hashes is None
    assert own.problems("x: it", own.record()) == []
    assert "was made for the model 'else', not for" in own.problems("x: it", {"base_model": "else"})[0]


RECORDS: list[tuple[dict[str, Any], str | None]] = [
    ({"base_model": "/moved/away", "revision": None}, "was made for the model '/moved/away', not for"),
    ({}, "does not say for which model it was made"),
    ({"base_model": torch.ones(2), "revision": torch.ones(2)}, "does not say for which model"),
    ({"base_hashes": "{"}, "does not say for which model"),
    ({"base_hashes": {"config": 3}}, "does not say for which model"),
    ({"base_hashes": ["config"], "base_model": "x\0y"}, "was made for the model"),
    ({"base_hashes": {"config": "0" * 16, "tokenizer": 1}}, "has another config.json. Use"),
]


@pytest.mark.parametrize(("record", "said"), RECORDS)
def test_records_of_others_are_read_with_care(record: dict[str, Any], said: str, tiny: Path) -> None:
    """Older ones have a name alone; damaged ones anything. All advice names what works."""
    own = BaseIdentity(BaseModel(str(tiny)))
    (problem,) = own.problems("x: it", record)
    assert said in problem
    assert "set model.adapter_base to any" in problem
    assert BaseIdentity(BaseModel(str(tiny)), accepts_any=True).problems("x: it", record) == []


def test_a_weight_between_the_samples_counts_for_what_is_kept(model: Path) -> None:
    """The hashes see samples; what is kept for other runs must not outlive a change elsewhere."""
    before, file = BaseIdentity(BaseModel(str(model))), model / "model.safetensors"
    found, content = before.exactly(), bytearray(file.read_bytes())
    assert found == BaseIdentity(BaseModel(str(model))).exactly()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    del header["__metadata__"]
    largest = max(header.values(), key=lambda tensor: tensor["data_offsets"][1] - tensor["data_offsets"][0])
    content[start + largest["data_offsets"][0]] ^= 1  # the first byte; samples are from the middle
    file.write_bytes(content)
    after = BaseIdentity(BaseModel(str(model)))
    assert after.hashes == before.hashes
    assert after.exactly() != found


def test_models_that_cannot_be_told_from_others(model: Path) -> None:
    """Nothing is kept of random weights, and of models whose own code may read other files."""
    assert BaseIdentity(BaseModel("random:tiny")).exactly() is None
    assert BaseIdentity(BaseModel(str(model), trust_remote_code=True)).exactly() is None
    (model / "model.safetensors").unlink()
    assert BaseIdentity(BaseModel(str(model))).exactly() is None
