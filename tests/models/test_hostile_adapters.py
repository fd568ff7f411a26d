"""Adapters of strangers: nothing in their files runs, imports, fetches or reaches a file elsewhere; all has limits."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import Bomb, change_json, exceeding
from safetensors.torch import load_file, save_file

from introspection_lit.models import adapter_weights
from introspection_lit.models.adapter_weights import weight_mismatches
from introspection_lit.models.adapters import DESCRIPTION, adapter_problems, read_adapter
from introspection_lit.models.base_identity import BaseIdentity
from introspection_lit.models.base_model import BaseModel
from introspection_lit.models.recorded_settings import resolve_paths, validate_settings
from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.resource_limits import BeyondLimitError

pytestmark = pytest.mark.thorough


# A setting, what an attacker puts there, and that the error names it.
SETTINGS: dict[str, Any] = {
    "megatron_config": {"a": 1},
    "megatron_core": "evil_package",
    "init_lora_weights": "pissa",
    "loftq_config": {"loftq_bits": 4},
    "corda_config": {"cache_file": "evil.pt", "covariance_file": "evil.pt"},
    "lora_ga_config": {"cache_file": "evil.pt"},
    "arrow_config": {"task_adapter_names": ["evil"]},
    "layer_replication": [[0, 3], [1, 6]],
    "alora_invocation_tokens": "x",
    "bias": "all",
    "task_type": "SEQ_CLS",
    "base_model_name_or_path": ["x"],
    "peft_version": "import os",
    "rank_pattern": {"q_proj": "x"},
    "r": -1,
    "lora_alpha": 10**400,
    "target_modules": [1],
    "trainable_token_indices": "x",
    "shadow_model": "evil/model",
    "made_up": {"class_path": "evil_package.Evil"},
    "init_lora_weights ": "x",
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_adapters_are_not_believed(
    name: str, adapter: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is named, and nothing is imported or loaded."""
    (marker.parent / "evil_package.py").write_text(f"open({str(marker)!r}, 'w').write('it ran')")
    torch.save({"a": Bomb(marker)}, marker.parent / "evil.pt")
    monkeypatch.syspath_prepend(str(marker.parent))
    monkeypatch.chdir(marker.parent)
    change_json(adapter / "adapter_config.json", **{name: SETTINGS[name]})
    with pytest.raises(ConfigurationError, match=f"adapter_config.json: {name} is"):
        read_adapter(str(adapter))
    assert not marker.exists()
    assert "evil_package" not in sys.modules


@pytest.mark.parametrize("kind", ["XLORA", "SHADOW", "POLY", "MULTITASK_PROMPT_TUNING", "CARTRIDGE", "os.system", "", None])
def test_kinds_of_adapters_that_load_more(kind: str | None, adapter: Path) -> None:
    """Kinds that load further models or pickles, and those that nobody knows."""
    change_json(adapter / "adapter_config.json", peft_type=kind)
    with pytest.raises(ConfigurationError, match=r"is of type|does not say of which peft_type"):
        read_adapter(str(adapter))


def test_library_that_an_adapter_names_is_not_imported(
    adapter: Path, tiny: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT writes such a field itself where there is no task type, so it may be there: it is left out."""
    (marker.parent / "evil_package.py").write_text(f"open({str(marker)!r}, 'w').write('it ran')")
    monkeypatch.syspath_prepend(str(marker.parent))
    named = {"base_model_class": "Evil", "parent_library": "evil_package"}
    change_json(adapter / "adapter_config.json", auto_mapping=named, base_model_name_or_path=str(tiny))
    assert adapter_problems(str(adapter), BaseIdentity(BaseModel(str(tiny))), None, fitting=False) == []
    assert read_adapter(str(adapter)).config.auto_mapping is None
    assert not marker.exists()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (BeyondLimitError("it takes longer than 20 seconds"), "it takes longer than 20 seconds. Its patterns are not used"),
        (MemoryError("no more"), "PEFT cannot put it on the model (MemoryError: no more)"),
    ],
)
def test_putting_it_on_a_model_has_limits(
    error: Exception, said: str, adapter: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its patterns can take longer than anybody lives, and a few numbers can ask for gigabytes of weights."""
    change_json(adapter / "adapter_config.json", base_model_name_or_path=str(tiny))
    assert weight_mismatches(read_adapter(str(adapter)), BaseModel(str(tiny))) == []
    monkeypatch.setattr(adapter_weights, "limited", exceeding(error))
    assert said in weight_mismatches(read_adapter(str(adapter)), BaseModel(str(tiny)))[0]


@pytest.mark.parametrize("name", ["base_model.model.model.norm.weight", "base_model.model.lm_head.weight"])
def test_weights_of_the_base_model_stay(name: str, adapter: Path, tiny: Path) -> None:
    """PEFT would write an adapter's tensors over those of the model, if they have the names."""
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file(weights | {name: torch.zeros(32)}, adapter / "adapter_model.safetensors")
    change_json(adapter / "adapter_config.json", base_model_name_or_path=str(tiny))
    problems = adapter_problems(str(adapter), BaseIdentity(BaseModel(str(tiny))), None, fitting=False)
    assert "1 tensors are missing or too many" in problems[0]


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_links_out_of_an_adapters_folder(file: str, adapter: Path, tmp_path: Path) -> None:
    """An archive can bring links; in the hub's cache they are how files are kept."""
    (adapter / file).rename(tmp_path / "secret")
    (adapter / file).symlink_to(tmp_path / "secret")
    with pytest.raises(ConfigurationError, match="a link to a file outside"):
        read_adapter(str(adapter))
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "abc", tmp_path / "models--a--b" / "blobs"
    shutil.copytree(adapter, snapshot)
    blobs.mkdir()
    (snapshot / file).rename(blobs / "hash")
    (snapshot / file).symlink_to("../../blobs/hash")
    assert read_adapter(str(snapshot)).folder == snapshot


PATHS = {
    "data.contexts": ["/etc/passwd.json", "../secret.json", "{tmp}/secret.json", "link.json", "hub:evil/data", "~/a.json"],
    "data.info": ["/etc/hostname.txt", "../secret.txt", "{tmp}/secret.txt", "link.txt", "a/../../secret.txt"],
}


@pytest.mark.parametrize("name", PATHS)
def test_paths_stay_in_their_folder(name: str, tmp_path: Path) -> None:
    """A path in an adapter's description or a manifest's header; the user's own file is used instead, if he names one."""
    folder, ending = tmp_path / "theirs", name == "data.info"
    folder.mkdir()
    secret, beside = tmp_path / f"secret.{'txt' if ending else 'json'}", folder / f"own.{'txt' if ending else 'json'}"
    secret.write_text("{}")
    beside.write_text("{}")
    (folder / f"link.{'txt' if ending else 'json'}").symlink_to(secret)
    for path in PATHS[name]:
        settings = validate_settings({name: path.replace("{tmp}", str(tmp_path)), "data.seed": 3}, "theirs")
        with pytest.raises(ConfigurationError, match=rf"made with {name} .* give it with --"):
            resolve_paths(settings, folder / DESCRIPTION, [])
        assert resolve_paths(settings, folder / DESCRIPTION, [name]) == {"data.seed": 3}
    for path in (beside.name, str(beside)):
        assert resolve_paths({name: path}, folder / DESCRIPTION, [])[name] == str(beside)
    for usual in ("builtin", None) if not ending else ("none", "explained", "neutral", None):
        assert resolve_paths({name: usual}, folder / DESCRIPTION, []) == {name: usual}


@pytest.mark.parametrize("revision", ["refs/pr/7", "../main", "--config=x", "a b", ""])
def test_revisions_that_anybody_can_make(revision: str) -> None:
    """On the hub anybody can propose a change to anybody's model: it is a revision of it, and not its owner's."""
    for good in ("main", "v1.0", "release/2", "0123abc"):
        assert validate_settings({"model.base.revision": good}, "theirs")
    with pytest.raises(ConfigurationError, match=r"model\.base\.revision"):
        validate_settings({"model.base.revision": revision}, "theirs")
