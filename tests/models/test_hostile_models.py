"""Models of strangers: nothing in their files runs, imports, fetches or reaches a file elsewhere; all has limits."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import Bomb, change_json, exceeding
from safetensors.torch import load_file

from introspection_lit.models import file_checks, loading
from introspection_lit.models.adapters import adapter_problems
from introspection_lit.models.base_identity import BaseIdentity
from introspection_lit.models.base_model import BaseModel
from introspection_lit.models.loading import load_config, load_model, load_tokenizer
from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.resource_limits import BeyondLimitError

pytestmark = pytest.mark.thorough


def test_what_lies_beside_is_left_alone(marker: Path, model: Path, adapter: Path, tiny: Path) -> None:
    """Pickles beside safetensors are never opened."""
    beside = {model: ("pytorch_model.bin", "training_args.bin", "optimizer.pt"), adapter: ("adapter_model.bin",)}
    for folder, names in beside.items():
        for name in names:
            torch.save({"a": Bomb(marker)}, folder / name)
    assert load_model(BaseModel(str(model))).config.num_hidden_layers == 6
    change_json(adapter / "adapter_config.json", base_model_name_or_path=str(tiny))
    assert adapter_problems(str(adapter), BaseIdentity(BaseModel(str(tiny))), None, fitting=False) == []
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
    problems = adapter_problems(str(adapter), BaseIdentity(BaseModel(str(model))), None, fitting=False)
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
    change_json(
        model / "config.json",
        model_type="theirs",
        auto_map={"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"},
    )
    with pytest.raises(ValueError, match=r"base\.trust_remote_code: .* the option is off"):
        load_config(BaseModel(str(model)))
    assert not marker.exists()
    assert load_config(BaseModel(str(model), trust_remote_code=True)).model_type == "theirs"
    assert marker.exists()


def test_code_of_a_tokenizer_is_not_run(marker: Path, model: Path) -> None:
    """Either it is not needed, or it is refused."""
    (model / "theirs.py").write_text(CODE.format(marker=str(marker)))
    auto_map = {"AutoTokenizer": [None, "theirs.Words"]}
    change_json(model / "tokenizer_config.json", tokenizer_class="Words", auto_map=auto_map)
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
        ({"vocab_size": 1234}, r"lm_head\.weight \[900, 32\] instead of \[1234, 32\]"),
        ({"hidden_size": "x"}, "could not be loaded"),
    ],
)
def test_configurations_of_models(fields: dict[str, Any], said: str | None, model: Path) -> None:
    """Kernels, packages and files that a config.json names are not fetched; what does not fit is an error of ours."""
    change_json(model / "config.json", **fields)
    if said is None:
        assert load_model(BaseModel(str(model))).config._attn_implementation in ("sdpa", "eager")
        return
    with pytest.raises(ValueError, match=said):
        load_model(BaseModel(str(model)))


def test_models_with_more_layers_than_any(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers makes a list of as many as the file says, before a weight is read; here the limit is low."""
    monkeypatch.setattr(file_checks, "MAX_LAYERS", 5)
    with pytest.raises(ValueError, match=r"has 6e\+00 layers, more than any model"):
        load_config(BaseModel(str(model)))


def test_weights_elsewhere_are_not_read(model: Path, tmp_path: Path) -> None:
    """An index could name any file as a part of the weights."""
    shutil.move(model / "model.safetensors", tmp_path / "elsewhere.safetensors")
    names = load_file(tmp_path / "elsewhere.safetensors")
    weight_map = dict.fromkeys(names, "../elsewhere.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    with pytest.raises(ConfigurationError, match=r"does not say which \.safetensors files beside it"):
        load_model(BaseModel(str(model)))


ESCAPE = "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ cycler.__init__.__globals__.os.system('touch MARKER') }}"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (BeyondLimitError("it takes longer than 20 seconds"), "it takes longer than 20"),
        (MemoryError(), "takes more memory"),
    ],
)
def test_chat_templates_have_limits(error: Exception, said: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A template is a program: it could hang the run by loops in loops, or fill the memory with one long text."""
    monkeypatch.setattr(loading, "limited", exceeding(error))
    with pytest.raises(ValueError, match=said):
        load_tokenizer(BaseModel(str(model)))


def test_chat_templates_have_a_length(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three words could become a million."""
    monkeypatch.setattr(loading, "MAX_TEMPLATE_CHARACTERS", 500)
    (model / "chat_template.jinja").write_text("{% for a in range(50) %}many words {% endfor %}")
    with pytest.raises(ValueError, match="makes 550 characters"):
        load_tokenizer(BaseModel(str(model)))


def test_chat_templates_cannot_get_out(model: Path, marker: Path) -> None:
    """Jinja's sandbox holds: no way from a text to its class, to a module, to the shell."""
    (model / "chat_template.jinja").write_text(ESCAPE.replace("MARKER", str(marker)))
    tokenizer = load_tokenizer(BaseModel(str(model)))
    with pytest.raises(Exception, match="unsafe"):
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert not marker.exists()
