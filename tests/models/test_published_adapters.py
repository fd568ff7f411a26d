"""Adapters as they are published: a base under another name or under none, and matrices beside the embeddings."""

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
from peft import LoraConfig, PeftModel, get_peft_model
from project_paths import CONFIG
from safetensors.torch import load_file, save_file
from tiny_models import SIZES
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from introspection_lit.cli import main
from introspection_lit.models.adapter_weights import load_adapter
from introspection_lit.models.adapters import adapter_problems, read_adapter
from introspection_lit.models.architecture import find_decoder_layers
from introspection_lit.models.base_identity import BaseIdentity
from introspection_lit.models.base_model import BaseModel
from introspection_lit.models.loading import load_model
from introspection_lit.steering.intervention import Intervention
from introspection_lit.steering.prefill import steered_cache
from introspection_lit.steering.question_pass import read_answers
from introspection_lit.utils.errors import ConfigurationError

CONTEXT, QUESTION = 9, 6
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> dict[bool, Path]:
    """Tiny models whose head is a matrix of its own, or the embeddings."""
    folders = {}
    for tied in (False, True):
        torch.manual_seed(0)
        folders[tied] = tmp_path_factory.mktemp("tied" if tied else "untied")
        config = LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=tied, **SIZES)
        LlamaForCausalLM(config).save_pretrained(folders[tied])
        tokenizer.save_pretrained(folders[tied])
    return folders


def published(model: Path, folder: Path, *targets: str) -> str:
    """An adapter as anybody saves one, trained (its matrices are random)."""
    torch.manual_seed(1)
    config = LoraConfig(r=2, lora_alpha=8, target_modules=list(targets), task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).save_pretrained(str(folder))
    return str(folder)


def loaded(model: Path, adapter: str, accepts_any: bool = False) -> PeftModel:
    """The adapter on its model, as a run loads it."""
    base = BaseModel(str(model))
    return load_adapter(load_model(base), read_adapter(adapter), BaseIdentity(base, accepts_any)).eval()


def in_one_pass(model: Path, adapter: str, ids: Tensor, acts: Tensor, direction: Tensor) -> Tensor:
    """Plain PEFT over conversation and question in one pass; each matrix acts at some tokens, ``acts``, alone."""
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), adapter).eval()

    def at_some(module: Any, args: Any, output: Tensor) -> Tensor:
        return torch.where(acts[:, -output.shape[1] :, None].bool(), output, module.base_layer(*args))

    def steer(layer: int) -> Any:
        def hook(module: Any, args: Any, output: Any) -> Any:
            steered = (output if isinstance(output, Tensor) else output[0]).clone()
            steered[:, :CONTEXT] += 0.5 * direction[:, layer, None]
            return steered if isinstance(output, Tensor) else (steered, *output[1:])

        return hook

    for number, layer in enumerate(plain.get_base_model().model.layers):
        layer.register_forward_hook(steer(number))
    for module in plain.modules():
        if len(getattr(module, "lora_A", ())) or len(getattr(module, "lora_embedding_A", ())):
            module.register_forward_hook(at_some)
    with torch.no_grad():
        return plain(input_ids=ids).logits[:, -1]


EMBEDDINGS = [("q_proj", "embed_tokens"), ("q_proj", "lm_head"), ("embed_tokens", "lm_head")]


@pytest.mark.parametrize("targets", EMBEDDINGS, ids="-".join)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
def test_matrices_beside_embeddings_act_as_in_plain_peft(
    tied: bool, targets: tuple[str, str], models: dict[bool, Path], tmp_path: Path
) -> None:
    """On the question alone, and on all tokens; the model's own embeddings, which PEFT has put into the file, stay."""
    model = models[tied]
    adapter = published(model, tmp_path / "theirs", *targets)
    assert any("base_layer" in name for name in load_file(f"{adapter}/{WEIGHTS}"))
    assert adapter_problems(adapter, BaseIdentity(BaseModel(str(model))), None, fitting=False) == []
    ours = loaded(model, adapter)
    layers = find_decoder_layers(ours)
    random = torch.Generator().manual_seed(2)
    ids = torch.randint(5, 800, (2, CONTEXT + QUESTION), generator=random)
    direction = torch.randn(2, len(layers), SIZES["hidden_size"], generator=random)
    context, mask = ids[:, :CONTEXT], torch.ones(2, CONTEXT, dtype=torch.long)
    steering = Intervention(direction, torch.full((2, len(layers)), 0.5), mask.bool())
    batch = SimpleNamespace(context_mask=mask, cache_of=None, question_prefix_ids=None)
    batch.question_ids, batch.question_mask = ids[:, CONTEXT:], torch.ones(2, QUESTION, dtype=torch.long)
    answers = []
    for in_prefill in (False, True):
        batch.cache = steered_cache(ours, ours, layers, context, mask, steering, in_prefill)
        with torch.no_grad():
            answers.append(read_answers(ours, batch))  # type: ignore[arg-type]
        acts = torch.cat([mask * in_prefill, batch.question_mask], dim=1)
        torch.testing.assert_close(answers[-1], in_one_pass(model, adapter, ids, acts, direction), atol=1e-4, rtol=1e-4)
    untrained = in_one_pass(model, adapter, ids, torch.zeros_like(ids), direction)
    assert (answers[0] - untrained).abs().max() > 0.1
    assert targets == EMBEDDINGS[1] or (answers[0] - answers[1]).abs().max() > 0.01


def test_embeddings_of_another_model_are_not_loaded(models: dict[bool, Path], tmp_path: Path) -> None:
    """The file has others than the model: refused; or, if the user says that they match, left out and said."""
    model = models[False]
    adapter = published(model, tmp_path / "theirs", "q_proj", "lm_head")
    tensors = load_file(f"{adapter}/{WEIGHTS}")
    name = "base_model.model.lm_head.base_layer.weight"
    save_file(tensors | {name: tensors[name].to(torch.bfloat16)}, f"{adapter}/{WEIGHTS}")
    loaded(model, adapter)  # the same, rounded
    save_file(tensors | {name: -tensors[name]}, f"{adapter}/{WEIGHTS}")
    with pytest.raises(ConfigurationError, match=r"was trained on another base_model\.model\.lm_head than that of"):
        loaded(model, adapter)
    with pytest.warns(UserWarning, match="was trained on another"):
        accepted = loaded(model, adapter, accepts_any=True)
    assert torch.equal(accepted.get_base_model().lm_head.weight, tensors[name])
    identity = BaseIdentity(BaseModel(str(model)))
    for wrong in ({name: tensors[name][:3].clone()}, {name.replace("lm_head", "model.norm"): torch.ones(32)}):
        save_file({key: value for key, value in tensors.items() if key != name} | wrong, f"{adapter}/{WEIGHTS}")
        assert "does not fit" in adapter_problems(adapter, identity, None, fitting=False)[0]


@pytest.mark.parametrize("name", ["someone/mirror-of-it", None, ""])
def test_the_user_can_say_that_the_bases_match(
    name: str | None, tiny: Path, adapter: Path, some_contexts: list[str], monkeypatch: Any, capsys: Any
) -> None:
    """A mirror, a quantised copy, or no name: refused with what to set; then tested, and said."""
    monkeypatch.chdir(adapter.parent)
    change_json(adapter / "adapter_config.json", base_model_name_or_path=name)
    command = ["test", "--config", CONFIG, "--model.base.name_or_path", str(tiny), "--model.adapter", str(adapter)]
    command += [*some_contexts, "--data.test_trials", '{"heldout": 8}', "--trainer.enable_progress_bar", "false"]
    with pytest.raises(SystemExit):
        main(command)
    said = f"was made for the model {name!r}, not for" if name else "does not say for which model it was made"
    printed = capsys.readouterr().err
    assert said in printed
    assert "set model.adapter_base to any" in printed
    with pytest.warns(UserWarning, match="You say that they match"):
        cli = main([*command, "--model.adapter_base", "any"])
    assert said in json.loads((Path(str(cli.trainer.log_dir)) / "results.json").read_text())["other_base"]
    assert said in capsys.readouterr().out.replace("\n", " ")


def test_shapes_are_checked_all_the_same(
    adapter: Path, tiny_folder: Callable[[str], Path], refused: Callable[..., str]
) -> None:
    """Before the model is loaded."""
    any_base = ["--model.adapter", str(adapter), "--model.adapter_base", "any"]
    assert "does not fit" in refused(*any_base, subcommand="test", base=tiny_folder("qwen2-wide"))


def test_a_quantised_copy(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """Its weights are others, and so are known to be: its tensors fit."""
    from transformers import BitsAndBytesConfig

    whole, copy = tiny_folder("qwen2-wide"), tmp_path / "nf4"
    packed = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    AutoModelForCausalLM.from_pretrained(whole, quantization_config=packed).save_pretrained(copy)
    for file in whole.glob("*token*"):
        shutil.copy(file, copy)
    shutil.copy(whole / "chat_template.jinja", copy)
    adapter = published(whole, tmp_path / "theirs", "q_proj", "v_proj")
    base = BaseModel(str(copy), quantization="nf4", quant_storage="uint8")
    assert "was made for the model" in adapter_problems(adapter, BaseIdentity(base), None, fitting=False)[0]
    with pytest.warns(UserWarning, match="was made for the model"):
        assert adapter_problems(adapter, BaseIdentity(base, accepts_any=True), None, fitting=False) == []
