"""Files of strangers: nothing in them runs, imports, fetches, or reaches a file elsewhere. A real attack for each."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pages import Read
from peft import LoraConfig, get_peft_model
from project_paths import ROOT
from results_example import example
from run_scripts import script
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from introspection_lit import report
from introspection_lit.cli import main
from introspection_lit.models.adapters import DESCRIPTION, adapter_problems, read_adapter
from introspection_lit.models.base_model import BaseModel
from introspection_lit.models.loading import load_config, load_model, load_tokenizer
from introspection_lit.models.recorded_settings import resolve_paths, validate_settings
from introspection_lit.steering.vector_files import read_directions
from introspection_lit.tools import pipeline
from introspection_lit.training.callbacks.best_checkpoint import BestCheckpoint
from introspection_lit.training.checkpoint_checks import checkpoint_problems
from introspection_lit.utils import resource_limits as limits
from introspection_lit.utils.config_files import untrusted_parts
from introspection_lit.utils.console import PlainConsole
from introspection_lit.utils.errors import ConfigurationError, IntrospectionError, visible
from introspection_lit.utils.paths import inside_folder

pytestmark = pytest.mark.thorough


class Bomb:
    """Writes a marker when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({self.marker!r}, 'w').write('it ran')",)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """Where hostile code leaves its trace."""
    return tmp_path / "it-ran"


@pytest.fixture
def adapter(tiny: Path, tmp_path: Path) -> Path:
    """A LoRA adapter for the tiny model, as anybody saves one."""
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny), LoraConfig(r=2, target_modules=["q_proj"]))
    model.save_pretrained(str(tmp_path / "theirs"))
    return tmp_path / "theirs"


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def change(file: Path, **fields: Any) -> None:
    """Set fields of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def plain(content: Any, file: Path) -> None:
    """Pickle as Python does."""
    file.write_bytes(pickle.dumps(content))


def legacy(content: Any, file: Path) -> None:
    """Save as old versions of torch did."""
    torch.save(content, file, _use_new_zipfile_serialization=False)


def zipped(content: Any, file: Path) -> None:
    """Put a plain pickle into an archive that looks like torch's."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(content))
        archive.writestr("archive/version", "3\n")


WAYS = {"plain": plain, "torch": torch.save, "legacy": legacy, "zipped": zipped}


@pytest.mark.parametrize("way", WAYS)
def test_the_bombs_are_real(way: str, marker: Path, tmp_path: Path) -> None:
    """Read without care, each of them runs."""
    WAYS[way]({"state_dict": Bomb(marker)}, tmp_path / "file")
    if way == "plain":
        pickle.loads((tmp_path / "file").read_bytes())
    else:
        torch.load(tmp_path / "file", weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("way", WAYS)
def test_checkpoints_and_vectors_are_not_unpickled(way: str, marker: Path, tmp_path: Path) -> None:
    """Whatever the archive looks like."""
    for name, content in (("best.ckpt", {"state_dict": {}, "introspection": Bomb(marker)}), ("v.pt", {"a": Bomb(marker)})):
        WAYS[way](content, tmp_path / name)
    assert "cannot be read as a checkpoint" in checkpoint_problems(str(tmp_path / "best.ckpt"), {})[0]
    with pytest.raises(ConfigurationError, match=r"v\.pt"):
        read_directions(tmp_path / "v.pt", 6, 32)
    assert not marker.exists()


def test_what_lies_beside_is_left_alone(marker: Path, model: Path, adapter: Path, tiny: Path) -> None:
    """Pickles beside safetensors are never opened."""
    beside = {model: ("pytorch_model.bin", "training_args.bin", "optimizer.pt"), adapter: ("adapter_model.bin",)}
    for folder, names in beside.items():
        for name in names:
            torch.save({"a": Bomb(marker)}, folder / name)
    assert load_model(BaseModel(str(model))).config.num_hidden_layers == 6
    change(adapter / "adapter_config.json", base_model_name_or_path=str(tiny))
    assert adapter_problems(str(adapter), BaseModel(str(tiny)), None, fitting=False) == []
    assert not marker.exists()


def test_weights_that_are_pickles_are_refused(marker: Path, model: Path, adapter: Path) -> None:
    """The message says what to do; the file is not opened."""
    torch.save({"a": Bomb(marker)}, model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    for load in (load_config, load_model):
        with pytest.raises(ConfigurationError, match=r"pytorch_model\.bin, a pickle.*save_pretrained writes safetensors"):
            load(BaseModel(str(model)))
    torch.save({"a": Bomb(marker)}, adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    problems = adapter_problems(str(adapter), BaseModel(str(model)), None, fitting=False)
    assert "Expected weights as safetensors" in problems[0]
    assert not marker.exists()


CODE = """
from pathlib import Path
Path({marker!r}).write_text("it ran")
from transformers import PreTrainedTokenizerFast, Qwen2Config
class Config(Qwen2Config):
    model_type = "theirs"
class Words(PreTrainedTokenizerFast):
    pass
"""


def test_code_of_a_model_runs_only_if_trusted(marker: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the option; where it is on, the code does run."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(marker.parent / "modules"))
    monkeypatch.syspath_prepend(str(marker.parent / "modules"))
    (model / "theirs.py").write_text(CODE.format(marker=str(marker)))
    change(model / "config.json", model_type="theirs", auto_map={"AutoConfig": "theirs.Config"})
    with pytest.raises(ValueError, match=r"base\.trust_remote_code: .* the option is off"):
        load_config(BaseModel(str(model)))
    assert not marker.exists()
    assert load_config(BaseModel(str(model), trust_remote_code=True)).model_type == "theirs"
    assert marker.exists()


def test_code_of_a_tokenizer_is_not_run(marker: Path, model: Path) -> None:
    """Either it is not needed, or it is refused."""
    (model / "theirs.py").write_text(CODE.format(marker=str(marker)))
    auto_map = {"AutoTokenizer": [None, "theirs.Words"]}
    change(model / "tokenizer_config.json", tokenizer_class="Words", auto_map=auto_map)
    with suppress(ValueError):
        load_tokenizer(BaseModel(str(model)))
    assert not marker.exists()


def test_a_model_names_no_other_model(model: Path, adapter: Path) -> None:
    """Transformers puts an adapter that lies in a model's folder on it, or loads the model that it names."""
    shutil.copy(adapter / "adapter_config.json", model)
    for load in (load_config, load_model):
        with pytest.raises(ConfigurationError, match="holds an adapter"):
            load(BaseModel(str(model)))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"quantization_config": {"quant_method": "quark"}}, "quantised by 'quark'"),
        ({"text_config": {"quantization_config": {"quant_method": "mxfp4"}}}, "quantised by 'mxfp4'"),
        ({"transformers_weights": "../elsewhere.safetensors"}, r"names the weights '\.\./elsewhere"),
        ({"transformers_weights": "adapter_model.bin"}, "names the weights"),
        ({"_attn_implementation": "evil/kernel"}, "_attn_implementation 'evil/kernel', which would be fetched and run"),
        ({"text_config": {"attn_implementation": {"vision": "evil/kernel@main:run"}}}, "would be fetched and run"),
        ({"experts_implementation": "evil/kernel"}, "would be fetched and run"),
        ({"_attn_implementation": "eager"}, None),
        ({"num_attention_heads": 0}, "could not be loaded"),
        ({"vocab_size": 1234}, "could not be loaded"),
        ({"hidden_size": "x"}, "could not be loaded"),
    ],
)
def test_configurations_of_models(fields: dict[str, Any], said: str | None, model: Path) -> None:
    """Kernels, packages and files that a config.json names are not fetched; what does not fit is an error of ours."""
    change(model / "config.json", **fields)
    if said is None:
        assert load_model(BaseModel(str(model))).config._attn_implementation in ("sdpa", "eager")
        return
    with pytest.raises(ValueError, match=said):
        load_model(BaseModel(str(model)))


def test_weights_elsewhere_are_not_read(model: Path, tmp_path: Path) -> None:
    """An index could name any file as a part of the weights."""
    shutil.move(model / "model.safetensors", tmp_path / "elsewhere.safetensors")
    names = load_file(tmp_path / "elsewhere.safetensors")
    weight_map = dict.fromkeys(names, "../elsewhere.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    with pytest.raises(ConfigurationError, match=r"does not say which \.safetensors files beside it"):
        load_model(BaseModel(str(model)))


ESCAPE = "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ cycler.__init__.__globals__.os.system('touch MARKER') }}"
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (ENDLESS, "takes longer than 0.5 seconds"),
        ("{% for a in range(99999) %}many words {% endfor %}", "makes 1,099,989 characters"),
        ("{{ 'x' * 9999999999 }}", "takes more memory"),
    ],
)
def test_chat_templates_have_limits(template: str, said: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A template is a program; it cannot hang the run or fill the memory."""
    monkeypatch.setattr(limits, "SECONDS", 0.5)
    (model / "chat_template.jinja").write_text(template)
    with pytest.raises(ValueError, match=said):
        load_tokenizer(BaseModel(str(model)))


def test_chat_templates_cannot_get_out(model: Path, marker: Path) -> None:
    """Jinja's sandbox holds: no way from a text to its class, to a module, to the shell."""
    (model / "chat_template.jinja").write_text(ESCAPE.replace("MARKER", str(marker)))
    tokenizer = load_tokenizer(BaseModel(str(model)))
    with pytest.raises(Exception, match="unsafe"):
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert not marker.exists()


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
    change(adapter / "adapter_config.json", **{name: SETTINGS[name]})
    with pytest.raises(ConfigurationError, match=f"adapter_config.json: {name} is"):
        read_adapter(str(adapter))
    assert not marker.exists()
    assert "evil_package" not in sys.modules


@pytest.mark.parametrize("kind", ["XLORA", "SHADOW", "POLY", "MULTITASK_PROMPT_TUNING", "CARTRIDGE", "os.system", "", None])
def test_kinds_of_adapters_that_load_more(kind: str | None, adapter: Path) -> None:
    """Kinds that load further models or pickles, and those that nobody knows."""
    change(adapter / "adapter_config.json", peft_type=kind)
    with pytest.raises(ConfigurationError, match=r"is of type|does not say of which peft_type"):
        read_adapter(str(adapter))


def test_library_that_an_adapter_names_is_not_imported(
    adapter: Path, tiny: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT writes such a field itself where there is no task type, so it may be there: it is left out."""
    (marker.parent / "evil_package.py").write_text(f"open({str(marker)!r}, 'w').write('it ran')")
    monkeypatch.syspath_prepend(str(marker.parent))
    named = {"base_model_class": "Evil", "parent_library": "evil_package"}
    change(adapter / "adapter_config.json", auto_mapping=named, base_model_name_or_path=str(tiny))
    assert adapter_problems(str(adapter), BaseModel(str(tiny)), None, fitting=False) == []
    assert read_adapter(str(adapter)).config.auto_mapping is None
    assert not marker.exists()


@pytest.mark.parametrize("field", ["target_modules", "rank_pattern", "exclude_modules"])
def test_patterns_that_never_end(field: str, adapter: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A regular expression can take longer than anybody lives."""
    monkeypatch.setattr(limits, "SECONDS", 0.5)
    pattern = r"(([a-z]|[a-z_.0-9])+)+!"
    value: Any = {pattern: 4} if field == "rank_pattern" else pattern
    change(adapter / "adapter_config.json", **{field: value}, base_model_name_or_path=str(tiny))
    problems = adapter_problems(str(adapter), BaseModel(str(tiny)), None, fitting=False)
    assert "takes longer than 0.5 seconds" in problems[0]


@pytest.mark.parametrize("name", ["base_model.model.model.norm.weight", "base_model.model.lm_head.weight"])
def test_weights_of_the_base_model_stay(name: str, adapter: Path, tiny: Path) -> None:
    """PEFT would write an adapter's tensors over those of the model, if they have the names."""
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file(weights | {name: torch.zeros(32)}, adapter / "adapter_model.safetensors")
    change(adapter / "adapter_config.json", base_model_name_or_path=str(tiny))
    problems = adapter_problems(str(adapter), BaseModel(str(tiny)), None, fitting=False)
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


def test_the_users_own_file_wins(tmp_path: Path) -> None:
    """On the command line, or in a configuration of his."""
    (tmp_path / "mine.yaml").write_text("data: {contexts: mine.jsonl}")
    theirs = {"data.contexts": "/elsewhere/theirs.json", "data.info": "none"}
    for words, given in (
        (["--conversations", "mine.json"], True),
        (["--data.contexts=mine.json"], True),
        (["--config", str(tmp_path / "mine.yaml")], True),
        (["--seed", "3"], False),
    ):
        parser = pipeline.make_parser("", ROOT)
        steps = pipeline.parse(parser, ["--model", "a", "--folder", str(tmp_path), *words], "evaluate")
        if given:
            assert pipeline.recorded_options(theirs, tmp_path / "train.jsonl", steps) == ["--data.info=none"]
        else:
            with pytest.raises(ConfigurationError, match="--conversations FILE"):
                pipeline.recorded_options(theirs, tmp_path / "train.jsonl", steps)


@pytest.mark.parametrize("revision", ["refs/pr/7", "../main", "--config=x", "a b", ""])
def test_revisions_that_anybody_can_make(revision: str) -> None:
    """On the hub anybody can propose a change to anybody's model: it is a revision of it, and not its owner's."""
    for good in ("main", "v1.0", "release/2", "0123abc"):
        assert validate_settings({"model.base.revision": good}, "theirs")
    with pytest.raises(ConfigurationError, match=r"model\.base\.revision"):
        validate_settings({"model.base.revision": revision}, "theirs")


def test_what_belongs_to_a_folder(tmp_path: Path) -> None:
    """Against the operating system's own view of where a path leads."""
    (tmp_path / "run").mkdir()
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "run" / "up").symlink_to(tmp_path)
    paths = ["run/a", "run/b/../a", "run/..", "run/up/a", "a", "circle", "run/\0", "run", "/", "~", "run/" + "x" * 5000]
    kept = inside_folder([tmp_path / path for path in paths], tmp_path / "run")
    assert kept == [tmp_path / path for path in ("run/a", "run/b/../a", "run", "run/" + "x" * 5000)]
    for path in kept:
        assert os.path.realpath(path).startswith(os.path.realpath(tmp_path / "run"))


def hostile_state(elsewhere: Path, best: str) -> dict[str, Any]:
    """What a checkpoint says of the best ones so far, with files of others among its own."""
    return {
        "monitor": "validation/selection",
        "best_model_score": torch.tensor(0.1),
        "best_model_path": best,
        "current_score": torch.tensor(0.1),
        "dirpath": str(elsewhere),
        "best_k_models": {best: torch.tensor(0.1), str(elsewhere / "precious"): torch.tensor(0.1), "..": torch.tensor(0)},
        "kth_best_model_path": str(elsewhere / "precious"),
        "kth_value": torch.tensor(0.1),
        "last_model_path": str(elsewhere / ".."),
    }


@pytest.mark.parametrize("same_folder", [True, False])
@pytest.mark.parametrize("best", ["best.ckpt", "../../elsewhere/precious", "..", "/", ""])
def test_a_resumed_run_removes_nothing_elsewhere(best: str, same_folder: bool, tmp_path: Path) -> None:
    """Lightning removes the checkpoints that a checkpoint names, folders and all, once there are better ones."""
    elsewhere, resumed = tmp_path / "elsewhere", tmp_path / "run" / "checkpoints"
    for folder in (elsewhere, resumed):
        folder.mkdir(parents=True)
    (elsewhere / "precious").write_text("a")
    (resumed / "best.ckpt").write_text("a")
    saver = BestCheckpoint(dirpath=str(resumed if same_folder else tmp_path / "new"), monitor="validation/selection")
    saver.resumed_from, saver.writes = resumed, True
    try:
        saver.load_state_dict(hostile_state(elsewhere, best))
    except IntrospectionError:
        return
    named = [saver.best_model_path, saver.last_model_path, saver.kth_best_model_path, *saver.best_k_models]
    home = (resumed if same_folder else tmp_path / "new").resolve()
    for path in filter(None, named):
        assert Path(path).resolve().parent == home, path


CONFIGS = {
    "callback": {"trainer": {"callbacks": [{"class_path": "evil.Callback"}]}},
    "text for a class": {"trainer": {"strategy": "evil_package.Strategy"}},
    "logger": {"trainer": {"logger": {"class_path": "evil_package.Logger"}}},
    "logger's logger": {"trainer": {"logger": {"class_path": "CSVLogger", "init_args": {"save_dir": {"class_path": "x"}}}}},
    "section in a file": {"trainer": "evil.yaml"},
    "part in a file": {"model": {"base": "evil.yaml"}},
    "another file": {"config": "evil.yaml"},
    "trust": {"model": {"base": {"trust_remote_code": True}}},
    "class inside": {"data": {"reuse": {"class_path": "evil_package.Reuse"}}},
    "place": {"checkpoint": {"filename": "../../../evil"}},
    "default place": {"trainer": {"default_root_dir": "/elsewhere"}},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_runs_own_configuration_names_no_class(name: str, tmp_path: Path, marker: Path) -> None:
    """controls.py reads it without being told to, so it must not be a program."""
    usual = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text())
    usual |= {"test_after_fit": True}
    assert untrusted_parts(usual) == []
    for section, options in CONFIGS[name].items():
        whole = isinstance(options, str)
        usual[section] = options if whole else usual.get(section, {}) | options
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(usual))
    (tmp_path / "results.json").write_text(json.dumps({"sets": {}}))
    with pytest.raises(IntrospectionError, match="could run code or write elsewhere"):
        script("controls").as_in(tmp_path)
    assert untrusted_parts(usual)


def test_yaml_that_grows(tmp_path: Path) -> None:
    """A few lines of aliases are gigabytes once they are written out."""
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))]
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    (tmp_path / "results.json").write_text(json.dumps({"sets": {}}))
    with pytest.raises(IntrospectionError, match="Is an alias repeated"):
        script("controls").as_in(tmp_path)


@pytest.mark.parametrize("content", ["trainer: {x: &a [*a]}", "a: !!bool x", "a: !!int ''", "a: !!timestamp x", "[" * 3000])
def test_yaml_that_its_library_fails_at(content: str, tmp_path: Path) -> None:
    """In a run's folder, and given with --config."""
    (tmp_path / "config.yaml").write_text(content)
    (tmp_path / "results.json").write_text(json.dumps({"sets": {}}))
    with pytest.raises(IntrospectionError, match=r"config\.yaml cannot be read"):
        script("controls").as_in(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["fit", "--config", str(tmp_path / "config.yaml")])
    assert left.value.code == 2


def test_links_in_a_runs_folder(tmp_path: Path) -> None:
    """A report shows no file from elsewhere, and writes none there."""
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (elsewhere / "secret").write_text("a private key")
    (folder / "config.yaml").symlink_to("../elsewhere/secret")
    (folder / "results.json").write_text(json.dumps(example()))
    assert "a private key" not in report.write_report(folder).read_text()
    shutil.rmtree(folder / "figures")
    (folder / "figures").symlink_to("../elsewhere")
    with pytest.raises(IntrospectionError, match="a link to a folder elsewhere"):
        report.write_report(folder)
    assert [path.name for path in elsewhere.iterdir()] == ["secret"]


def test_run_whose_name_is_no_text(tmp_path: Path) -> None:
    """A page that compares it with another shows its bytes."""
    runs = [tmp_path / "a", tmp_path / os.fsdecode(b"r\xff")]
    for folder in runs:
        folder.mkdir()
        (folder / "results.json").write_text(json.dumps(example()))
    words = [word for folder in runs for word in ("--run", str(folder))]
    with pytest.raises(SystemExit) as left:
        main(["report", *words, "--out", str(tmp_path / "both.html")])
    assert left.value.code == 0
    assert r"r\udcff" in (tmp_path / "both.html").read_text()


ACTIVE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg onload=alert(1)>",
    "</script></style></title></pre><iframe src=javascript:alert(1)>",
    "javascript:alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "$\\frac{",
    "../../../evil",
    "\x1b[31m\u202e<b>",
)


def laced(value: Any, text: str) -> Any:
    """Results with a text in every text."""
    if isinstance(value, dict):
        return {key: laced(each, text) for key, each in value.items()}
    if isinstance(value, list):
        return [laced(each, text) for each in value]
    return value + text if isinstance(value, str) else value


def written(folder: Path, text: str) -> set[Any]:
    """Write a report on results with a text in all their texts and names; what of it a browser acts on."""
    folder.mkdir(parents=True)
    results = laced(example(), text)
    evidence = results["evidence"]
    for drawn in ("curves", "roc", "heat_maps", "lens", "training", "kinds"):  # drawing takes long
        evidence.pop(drawn, None)
    name, histogram = next(iter(evidence["histograms"].items()))
    evidence["histograms"] = {f"{name}{text}": histogram}
    results["sets"][f"heldout{text}"] = results["sets"]["heldout"]
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "config.yaml").write_text(text)
    report.write_report(folder)
    acted_on = ("href", "src", "style", "http-equiv", "content")
    return {
        (tag, name, str(value)[:22] if name in acted_on else None)
        for tag, attributes in Read((folder / "report.html").read_text()).tags
        for name, value in {"": None, **attributes}.items()
    }


def test_nothing_in_a_report_is_active(tmp_path: Path) -> None:
    """The page has the tags and attributes of one that was made from harmless results, and its files are in its folder."""
    harmless = written(tmp_path / "harmless" / "run", "harmless")
    assert written(tmp_path / "hostile" / "run", " ".join(ACTIVE)) == harmless
    page = (tmp_path / "hostile" / "run" / "report.html").read_text()
    assert page.count("&lt;script&gt;") > 20
    assert "{{ 7 * 7 }}" in page
    assert {path.name for path in (tmp_path / "hostile").iterdir()} == {"run"}
    pictures = list((tmp_path / "hostile").rglob("*.png"))
    assert pictures
    assert {path.parent for path in pictures} == {tmp_path / "hostile" / "run" / "figures"}


def test_terminals_are_not_steered(capsys: pytest.CaptureFixture[str]) -> None:
    """Colours, cursor movements, titles, and marks that turn the direction of writing are shown as what they are."""
    hostile = "\x1b]0;title\x07\x1b[2J\r\u202eabc\x9b31m\ud800"
    with pytest.raises(ConfigurationError) as raised:
        raise ConfigurationError([f"data.contexts: {hostile}"])
    PlainConsole().print(f"[bold]{hostile}[/nothing]")
    for shown in (str(raised.value), raised.value.problems[0], capsys.readouterr().out):
        assert all(character.isprintable() or character == "\n" for character in shown)
        assert "\\x1b[2J\\r\\u202eabc" in shown
    assert visible("Größe 模型 👩‍🚀 العربية\tא\n") == "Größe 模型 👩‍🚀 العربية\tא\n"
