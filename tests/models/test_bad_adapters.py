"""Adapters of every sort, right and wrong: a right result, or one of our errors before a model is loaded."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from damage import damaged_bytes, mutated, odd
from hypothesis import currently_in_test_context, event, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from introspection_lit.models.adapter_config import KINDS
from introspection_lit.models.adapter_weights import WEIGHTS
from introspection_lit.models.adapters import CONFIG, DESCRIPTION, adapter_problems, read_adapter
from introspection_lit.models.base_identity import BaseIdentity
from introspection_lit.models.base_model import BaseModel
from introspection_lit.utils.errors import ConfigurationError

pytestmark = pytest.mark.thorough

# A third of the cases of the profile: each puts an adapter on a model.
FEWER = settings(max_examples=settings.default.max_examples // 3)
IDS = torch.arange(12)[None]
SAID = {
    "threshold": 0.5,
    "options": {"seed_everything": 0, "data.contexts": "builtin", "data.info": "none", "data.answers": ["yes", "no"]},
    "trained_on": {
        "messages": ["0123456789abcdef"],
        "kinds": ["chat"],
        "vectors": ["a"],
        "questions": ["b"],
        "prefill_adapter": False,
        "phrasing": {"system": ""},
        "bands": [[0, 2]],
        "strengths": [0.3, 2.0],
        "strength_unit": "relative",
    },
}


class Given(NamedTuple):
    """An adapter that is right, and the model that it is for.

    Attributes:
        folder: The adapter's; with our description.
        model: The model's folder.
        loaded: The model, loaded by transformers.
        config: ``adapter_config.json``.
        weights: Its tensors.
    """

    folder: Path
    model: Path
    loaded: Any
    config: dict[str, Any]
    weights: dict[str, Tensor]

    def problems(self, folder: Path) -> list[str]:
        """What our check says of a folder."""
        return adapter_problems(str(folder), BaseIdentity(BaseModel(str(self.model))), None, fitting=False)


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Given:
    """A LoRA adapter of rank 4 on two of the matrices of a model of two layers, with random weights."""
    folder = tmp_path_factory.mktemp("adapters") / "right"
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "initializer_range": 0.2,
    }
    torch.manual_seed(1)
    config = LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=20, attention_bias=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(tiny := folder.with_name("model"))
    loaded = AutoModelForCausalLM.from_pretrained(tiny).eval()
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(copy.deepcopy(loaded), config).save_pretrained(str(folder))
    (folder / DESCRIPTION).write_text(json.dumps(SAID))
    return Given(folder, tiny, loaded, json.loads((folder / CONFIG).read_text()), load_file(folder / WEIGHTS))


@pytest.fixture(scope="module")
def scratch(right: Given) -> Iterator[Path]:
    """A folder that each case fills anew: the right adapter, but for what the case changes."""
    folder = right.folder.parent / "scratch"
    shutil.copytree(right.folder, folder)
    yield folder
    shutil.rmtree(folder)


def refill(folder: Path, right: Given, **changed: bytes | str | None) -> Path:
    """Put the right adapter into a folder, with some files changed, or left out where they are None."""
    for key, name in (("config", CONFIG), ("weights", WEIGHTS), ("description", DESCRIPTION)):
        content = changed.get(key, b"")
        if content is None:
            (folder / name).unlink(missing_ok=True)
        elif key not in changed:
            shutil.copyfile(right.folder / name, folder / name)
        else:
            (folder / name).write_bytes(content.encode("utf-8", "replace") if isinstance(content, str) else content)
    return folder


def judged(right: Given, folder: Path) -> list[str]:
    """Our check's problems; where there are none, PEFT itself must load the adapter whole, and leave the model alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        problems = right.problems(folder)
        if problems:
            assert all(problem.startswith(("model.adapter: ", str(folder))) for problem in problems), problems
            if currently_in_test_context():
                event("refused")
            return problems
        adapter = read_adapter(str(folder))
        warnings.filterwarnings("error", ".*missing adapter keys.*")
        model = PeftModel.from_pretrained(copy.deepcopy(right.loaded), str(folder), config=adapter.config).eval()
    with torch.no_grad(), model.disable_adapter():
        assert torch.equal(model(IDS).logits, right.loaded(IDS).logits), "switched off, it must be the base model"
    held = {name: tensor for name, tensor in model.state_dict().items() if "lora_" in name}
    for name, tensor in load_file(folder / WEIGHTS).items():
        place = name.replace(".weight", ".default.weight")
        torch.testing.assert_close(held[place], tensor.to(held[place].dtype), equal_nan=False)
    return []


def test_the_right_one_is_right(right: Given, scratch: Path) -> None:
    """Else all the rest says nothing."""
    assert judged(right, refill(scratch, right)) == []


@FEWER
@given(data=st.data())
def test_any_damage_to_the_weights(data: st.DataObject, right: Given, scratch: Path) -> None:
    """Cut, flipped and moved bytes: a flip in a number is a number all the same, everything else is found."""
    content = data.draw(damaged_bytes((right.folder / WEIGHTS).read_bytes()))
    judged(right, refill(scratch, right, weights=content))


DTYPES = (torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.int64, torch.bool, torch.complex64)
ODD_NUMBERS = (float("nan"), float("inf"), -float("inf"))


@st.composite
def other_tensors(draw: st.DrawFn, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """An adapter's tensors with something changed: what is drawn first may be undone by what comes later."""
    made = dict(weights)
    for _ in range(draw(st.integers(0, 3))):
        name = draw(st.sampled_from(sorted(made))) if made else "a"
        how = draw(st.sampled_from(("dtype", "number", "shape", "remove", "rename", "add", "turn", "empty")))
        tensor = made.get(name, torch.zeros(2))
        if how == "dtype" and not tensor.is_complex():
            made[name] = tensor.to(draw(st.sampled_from(DTYPES)))
        elif how == "number" and tensor.is_floating_point() and tensor.numel():
            made[name] = tensor.clone()
            made[name].view(-1)[draw(st.integers(0, tensor.numel() - 1))] = draw(st.sampled_from(ODD_NUMBERS))
        elif how == "shape":
            made[name] = torch.zeros(draw(st.lists(st.integers(0, 5), max_size=3)))
        elif how == "turn" and tensor.dim() == 2:
            made[name] = tensor.t().contiguous()
        elif how == "remove":
            made.pop(name, None)
        elif how in ("rename", "add"):
            other = draw(st.sampled_from((name.replace(".1.", ".77."), f"{name}.x", "base_model.model.model.norm.weight")))
            made[other] = made.pop(name, tensor) if how == "rename" else tensor.clone()
        elif how == "empty":
            made = {}
    return made


def is_one(tensors: dict[str, Tensor], weights: dict[str, Tensor]) -> bool:
    """Whether tensors are an adapter of the same form as the right one."""
    alike = tensors.keys() == weights.keys() and all(tensors[name].shape == weights[name].shape for name in weights)
    return alike and all(tensor.is_floating_point() and bool(tensor.isfinite().all()) for tensor in tensors.values())


@FEWER
@given(data=st.data())
def test_any_other_tensors(data: st.DataObject, right: Given, scratch: Path) -> None:
    """Other names, shapes, dtypes and numbers: all that fits is accepted, and nothing else."""
    tensors = data.draw(other_tensors(right.weights))
    problems = judged(right, refill(scratch, right, weights=save(tensors)))
    assert bool(problems) != is_one(tensors, right.weights), problems


@FEWER
@given(data=st.data())
def test_any_other_configuration(data: st.DataObject, right: Given, scratch: Path) -> None:
    """Settings replaced, left out, doubled, renamed."""
    changed = data.draw(mutated(right.config))
    judged(right, refill(scratch, right, config=json.dumps(changed)))


NAMES = sorted({field.name for made in PEFT_TYPE_TO_CONFIG_MAPPING.values() for field in dataclasses.fields(made)})


@given(
    kind=st.sampled_from(sorted(str(getattr(each, "value", each)) for each in PEFT_TYPE_TO_CONFIG_MAPPING)),
    settings=st.dictionaries(st.sampled_from(NAMES), odd, max_size=4),
)
def test_any_kind_with_any_setting(kind: str, settings: dict[str, Any], right: Given, scratch: Path) -> None:
    """Every kind that PEFT has, with values of all sorts in settings of all kinds."""
    config = {"peft_type": kind, "target_modules": ["q_proj"], "base_model_name_or_path": str(right.model)} | settings
    judged(right, refill(scratch, right, config=json.dumps(config)))


@FEWER
@given(data=st.data())
def test_any_other_description(data: st.DataObject, right: Given, scratch: Path) -> None:
    """What it says about itself: changed values, cut and flipped bytes, files of something else, or none."""
    text = json.dumps(SAID)
    content = data.draw(
        mutated(SAID).map(json.dumps) | damaged_bytes(text.encode()) | st.none() | odd.map(lambda value: json.dumps(value))
    )
    judged(right, refill(scratch, right, description=content))


@FEWER
@given(missing=st.sets(st.sampled_from(("config", "weights", "description"))), name=odd.map(str))
def test_any_file_missing(missing: set[str], name: str, right: Given, scratch: Path) -> None:
    """Folders without some of the files, and names that are no folders."""
    problems = judged(right, refill(scratch, right, **dict.fromkeys(missing)))
    assert bool(problems) == bool(missing - {"description"})
    if not Path(str(scratch) + "-").exists() and not (0 < len(name) < 200 and "\0" not in name and Path(name).is_dir()):
        assert right.problems(Path(f"{name}/a/b"))


@FEWER
@given(
    what=st.sampled_from(["shape", "rank", "base"]),
    layers=st.sampled_from([1, 2, 3, 5]),
    width=st.sampled_from([16, 64]),
    rank=st.sampled_from([1, 3, 8, 10**6]),
)
def test_any_other_base_or_rank(what: str, layers: int, width: int, rank: int, right: Given, scratch: Path) -> None:
    """Weights of an adapter for a model of another shape, and a configuration with another rank than the weights."""
    tensors = {}
    for layer in range(layers):
        for module in ("q_proj", "v_proj"):
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            tensors |= {f"{name}.lora_A.weight": torch.ones(4, width), f"{name}.lora_B.weight": torch.ones(width, 4)}
    changed: dict[str, Any] = {
        "shape": {"weights": save(tensors)},
        "rank": {"config": json.dumps(right.config | {"r": rank})},
        "base": {"config": json.dumps(right.config | {"base_model_name_or_path": f"/models/{layers}"})},
    }
    said = "was made for the model" if what == "base" else "does not fit"
    assert said in judged(right, refill(scratch, right, **changed[what]))[0]


def saved(right: Given, folder: Path, config: PeftConfig) -> tuple[list[str], bool]:
    """Save a trained adapter as PEFT does: what our check says, and whether switched off it leaves the base model."""
    torch.manual_seed(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = get_peft_model(copy.deepcopy(right.loaded), config).eval()
        with torch.no_grad():
            for parameter in made.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.3 * torch.randn_like(parameter))
        shutil.rmtree(folder, ignore_errors=True)
        made.save_pretrained(str(folder))
        said = json.loads((folder / CONFIG).read_text()) | {"base_model_name_or_path": str(right.model)}
        (folder / CONFIG).write_text(json.dumps(said))
        problems = right.problems(folder)
        chosen = PeftConfig.from_pretrained(str(folder)) if problems else read_adapter(str(folder)).config
        loaded = PeftModel.from_pretrained(copy.deepcopy(right.loaded), str(folder), config=chosen).eval()
    with torch.no_grad():
        if not problems:
            torch.testing.assert_close(loaded(IDS).logits, made(IDS).logits)
            assert not torch.allclose(loaded(IDS).logits, right.loaded(IDS).logits)
        with loaded.disable_adapter():
            return problems, torch.equal(loaded(IDS).logits, right.loaded(IDS).logits)


NEEDED: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 10},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 8},
    "FOURIERFT": {"n_frequency": 10},
    "IA3": {"feedforward_modules": []},
    "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "MISS": {"r": 4},
    "OFT": {"oft_block_size": 4, "r": 0},
    "PSOFT": {"r": 4},
    "ROAD": {"group_size": 8},
    "TRAINABLE_TOKENS": {"token_indices": [1, 2], "target_modules": ["embed_tokens"]},
    "VBLORA": {"num_vectors": 10, "vector_length": 8, "r": 4},
    "WAVEFT": {"n_frequency": 10},
}
WAYS: tuple[dict[str, Any], ...] = (
    {"use_dora": True},
    {"use_rslora": True, "rank_pattern": {"q_proj": 3}, "alpha_pattern": {"v_proj": 3.0}},
    {"modules_to_save": ["lm_head"]},
    {"target_modules": "all-linear"},
    {"target_modules": r".*\.[1-3]\..*(q|k)_proj"},
    {"layers_to_transform": [1], "layers_pattern": "layers"},
    {"task_type": None},
    {"init_lora_weights": "orthogonal"},
    {"alora_invocation_tokens": [3, 4]},
)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_that_is_accepted(kind: str, right: Given, scratch: Path) -> None:
    """What PEFT saved is accepted, computes what it did, and switched off leaves the base model bit for bit."""
    makers = {str(getattr(each, "value", each)): made for each, made in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if kind not in makers:
        pytest.skip("not in this version of PEFT")
    known = {field.name for field in dataclasses.fields(makers[kind])}
    plain = {"init_weights": False, "init_lora_weights": False, "init_ia3_weights": False}
    usual = {name: value for name, value in plain.items() if name in known and kind not in NO_START}
    config = makers[kind](
        **{"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | usual | NEEDED.get(kind, {})
    )
    assert saved(right, scratch.with_name("kind"), config) == ([], True)


# Kinds that refuse to begin at anything but the base model, or have no choice.
NO_START = ("LN_TUNING", "TRAINABLE_TOKENS")


@pytest.mark.parametrize("way", WAYS, ids=lambda way: next(iter(way)))
def test_every_way_of_lora_that_is_accepted(way: dict[str, Any], right: Given, scratch: Path) -> None:
    """DoRA, ranks by name, patterns, whole modules."""
    usual = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    assert saved(right, scratch.with_name("way"), LoraConfig(**usual | way)) == ([], True)


@pytest.mark.parametrize("way", [{"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}, {"bias": "all"}])
def test_adapters_that_change_the_base_model(way: dict[str, Any], right: Given, scratch: Path) -> None:
    """Switched off they are not the base model any more: what should be a clean cache would not be one."""
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **way)
    problems, clean = saved(right, scratch.with_name("changing"), config)
    assert f"{next(iter(way))} is" in problems[0]
    assert not clean


def test_errors_are_ours(right: Given) -> None:
    """What is not there at all."""
    for name in ("", ".", "~nobody-has-this-name/a", "a\0b", "x" * 5000, "/dev/null", str(right.folder / WEIGHTS)):
        with pytest.raises(ConfigurationError, match=r"model\.adapter"):
            read_adapter(name)
