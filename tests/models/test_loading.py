"""Loading, quantising and adapting: tiny models of four families, and the real embedded one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from tiny_models import FAMILIES, SIZES
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from introspection_lit.contexts.conversations import Phrasing
from introspection_lit.models.architecture import find_decoder_layers
from introspection_lit.models.base_model import BaseModel, Lora
from introspection_lit.models.loading import add_lora, load_config, load_model, load_tokenizer
from introspection_lit.models.sources import resolve
from introspection_lit.steering.extraction import read_texts, record_outputs
from introspection_lit.steering.intervention import Intervention
from introspection_lit.steering.prefill import pad, steered_cache
from introspection_lit.tasks.answer_tokens import find_answer_tokens
from introspection_lit.tasks.questions import QUESTION

# The sixteen levels of NF4: QLoRA, arXiv 2305.14314, appendix E.
NF4 = torch.tensor(
    (-1, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0, 0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.723, 1)
)
GPT2 = GPT2Config(n_layer=3, n_head=2, n_embd=16, vocab_size=50)


@pytest.mark.parametrize("family", FAMILIES)
def test_local_folder_loads_frozen_and_in_eval_mode(tiny_folder: Callable[[str], Path], family: str) -> None:
    """The weights of the folder, nothing to train, dropout off."""
    base = BaseModel(str(tiny_folder(family)))
    model = load_model(base)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert load_config(base).num_hidden_layers == SIZES["num_hidden_layers"]
    reference = AutoModelForCausalLM.from_pretrained(tiny_folder(family), dtype=torch.float32)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, reference(ids).logits)


def test_decoder_layers_in_the_order_in_which_they_run(family_model: PreTrainedModel) -> None:
    """With and without an adapter; the stream after the last one, normed, gives the logits."""
    layers = find_decoder_layers(family_model)
    assert layers == find_decoder_layers(add_lora(family_model, Lora()))
    ran = []
    handles = [layer.register_forward_hook(lambda *_, number=n: ran.append(number)) for n, layer in enumerate(layers)]
    ids = torch.arange(10)[None]
    with torch.no_grad(), record_outputs(layers) as outputs:
        hidden = family_model(ids, output_hidden_states=True).hidden_states
    for handle in handles:
        handle.remove()
    assert ran == list(range(len(layers)))
    # transformers' entry 0 is the embedding, and its last one is normed: layer i is entry i + 1, but for the last.
    for layer in range(len(layers) - 1):
        assert torch.equal(outputs[layer], hidden[layer + 1])
    assert not torch.equal(outputs[-1], hidden[-1])


def test_unknown_architecture_names_the_override() -> None:
    """Two lists may be meant; the message says which option to set, and setting it works."""
    model = GPT2LMHeadModel(GPT2)
    assert find_decoder_layers(model) == list(model.transformer.h)
    model.transformer.others = nn.ModuleList(nn.Identity() for _ in range(3))
    with pytest.raises(ValueError, match=r"base\.decoder_layers .*'transformer\.h'"):
        find_decoder_layers(model)
    assert find_decoder_layers(model, "transformer.h") == list(model.transformer.h)
    with pytest.raises(ValueError, match=r"has nothing at 'transformer\.x'"):
        find_decoder_layers(model, "transformer.x")
    with pytest.raises(ValueError, match="expected a ModuleList of 3"):
        find_decoder_layers(model, "transformer.wte")


def test_fresh_adapter_changes_nothing_and_sits_where_asked(family_model: PreTrainedModel) -> None:
    """Equal logits before training; target modules and layers as configured."""
    ids = torch.arange(10)[None]
    with torch.no_grad():
        before = family_model(ids).logits
        peft = add_lora(family_model, Lora(r=2, target_modules=["q_proj"], layers=[1, 4])).eval()
        assert torch.equal(peft(ids).logits, before)
    trained = [name for name, parameter in peft.named_parameters() if parameter.requires_grad]
    assert len(trained) == 4
    assert all("q_proj.lora_" in name and (".1." in name or ".4." in name) for name in trained)


@pytest.mark.parametrize("storage", ["uint8", "bfloat16"])
def test_nf4_on_the_cpu(tiny_folder: Callable[[str], Path], storage: str) -> None:
    """Weights on NF4's levels, stored as asked for; prefill, detection and gradient run on them."""
    folder = tiny_folder("qwen2-wide")
    base = BaseModel(str(folder), dtype="bfloat16", quantization="nf4", quant_storage=storage)  # type: ignore[arg-type]
    model = load_model(base)
    linear = find_decoder_layers(model)[0].self_attn.q_proj
    assert isinstance(linear, Linear4bit)
    assert linear.weight.dtype == getattr(torch, storage)
    full = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    blocks = full.model.layers[0].self_attn.q_proj.weight.detach().bfloat16().float().reshape(-1, 64)
    largest = blocks.abs().amax(dim=1, keepdim=True)
    nearest = (blocks[..., None] / largest[..., None] - NF4).abs().argmin(dim=-1)
    restored = dequantize_4bit(linear.weight.data, linear.weight.quant_state).float().reshape(-1, 64)
    # The largest of each block is quantised too, to 8 bits; few weights are near the middle between two levels.
    close = (restored - NF4[nearest] * largest).abs() < 0.02 * largest
    assert close.float().mean() > 0.98
    peft = add_lora(model, Lora(dropout=0.0)).train()
    ids, mask = pad([list(range(10, 22)), list(range(30, 36))], 0, "left")
    scale = torch.zeros(2, 6)
    scale[0, 2] = 3.0
    direction = nn.functional.normalize(torch.randn(2, 1, 64), dim=-1)
    cache = steered_cache(peft, peft, find_decoder_layers(peft), ids, mask, Intervention(direction, scale, mask.bool()))
    question = torch.arange(40, 45).repeat(2, 1)
    whole = torch.cat([mask, torch.ones_like(question)], dim=1)
    logits = peft(input_ids=question, attention_mask=whole, past_key_values=cache, position_ids=None).logits[:, -1]
    logits.float().logsumexp(-1).sum().backward()
    # Gradient arrives at the first layer too, through every quantised matrix in between.
    first = [p.grad for name, p in peft.named_parameters() if "layers.0." in name and "lora_B" in name]
    assert len(first) == 4
    assert all(gradient is not None and gradient.isfinite().all() and gradient.any() for gradient in first)


def test_int8(tiny: Path) -> None:
    """The other quantisation."""
    model = load_model(BaseModel(str(tiny), quantization="int8"))
    assert isinstance(find_decoder_layers(model)[0].self_attn.q_proj, Linear8bitLt)


def test_readings_ignore_padding_and_the_first_token(family_model: PreTrainedModel) -> None:
    """Texts read together, padded, give what each gives alone."""
    peft = add_lora(family_model, Lora())
    layers = find_decoder_layers(peft)
    texts = [list(range(10, 20)), list(range(30, 34))]
    means, lasts, norms = read_texts(peft, peft, layers, texts)
    assert norms.shape == (6, 9 + 3)
    for row, text in enumerate(texts):
        with torch.no_grad(), record_outputs(layers) as outputs:
            family_model(torch.tensor([text]))
        alone = torch.stack(outputs)[:, 0, 1:].mean(dim=1)
        torch.testing.assert_close(means[row], alone, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(lasts[row], torch.stack(outputs)[:, 0, -1], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_embedded_model_is_the_real_one() -> None:
    """SmolLM2-135M-Instruct out of its GGUF: architecture, chat template, answer tokens, and a capital it knows."""
    base = BaseModel()
    assert resolve(base) == resolve(BaseModel("smollm2-135m"))
    model, tokenizer = load_model(base), load_tokenizer(base)
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (30, 576)
    assert find_answer_tokens(tokenizer, [], [QUESTION], Phrasing())[1] == (9805, 787)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = model.generate(**ids, max_new_tokens=10, do_sample=False)
    assert "Paris" in tokenizer.decode(written[0, ids["input_ids"].shape[1] :])
