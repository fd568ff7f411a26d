"""An adapter as GGUF: names, shapes, order and metadata by gguf-py and transformers, and what llama.cpp makes of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf_example import write_gguf
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

from introspection_lit.publishing.gguf_adapter import in_pairs, main
from introspection_lit.subcommands import answer

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]
INVOKED = [7, 11, 5]
TOKENS = [20, 31, 42, 53, 64, 75, *INVOKED, 86, 97, 108, 119]
# Runs llama.cpp's server in a process of its own: log-probabilities of the next token, with the adapter and without.
SERVED = """
import json, sys
import xllamacpp

model, adapter, tokens = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.n_gpu_layers = model, 256, 1, 0
params.cpuparams.n_threads, params.warmup, params.verbosity = 1, False, 0
if adapter:
    info = xllamacpp.CommonAdapterLoraInfo()
    info.path, info.scale = adapter, 1.0
    params.lora_adapters = [info]
asked = {"prompt": tokens, "max_tokens": 1, "temperature": 0, "logprobs": int(sys.argv[4])}
found = xllamacpp.Server(params).handle_completions(asked)["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
print(json.dumps({one["id"]: one["logprob"] for one in found}))
"""


def adapter_for(base: Path, folder: Path, **settings: Any) -> PeftModel:
    """A LoRA adapter with random matrices, saved in a folder."""
    torch.manual_seed(1)
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules=TARGETS, r=4, lora_alpha=12, **settings)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(folder)
    return model.eval()


def deltas_of(file: Path) -> dict[str, np.ndarray]:
    """What llama.cpp adds to each matrix: alpha / rank * B A."""
    reader = gguf.GGUFReader(file)
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    alpha = reader.get_field("adapter.lora.alpha").contents()
    pairs = {name.removesuffix(".lora_a"): name for name in tensors if name.endswith(".lora_a")}
    assert {*tensors} == {f"{name}.lora_{part}" for name in pairs for part in "ab"}
    return {name: alpha / tensors[a].shape[0] * (tensors[f"{name}.lora_b"] @ tensors[a]) for name, a in pairs.items()}


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("qwen2", {}),
        ("llama", {}),
        ("mistral", {}),
        ("llama", {"use_rslora": True}),
        ("qwen2", {"alpha_pattern": {"k_proj": 5}, "rank_pattern": {"v_proj": 2}}),
    ],
)
def test_the_file_adds_what_peft_adds(tiny_folder: Any, family: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """Under gguf's own names, in its order, for each of PEFT's ways to scale."""
    base = tiny_folder(family)
    model, file = adapter_for(base, tmp_path / "adapter", **settings), tmp_path / "adapter.gguf"
    main([str(tmp_path / "adapter"), str(file)])
    found, config = deltas_of(file), model.config
    key = gguf.MODEL_ARCH.QWEN2 if family == "qwen2" else gguf.MODEL_ARCH.LLAMA
    names, reordered = gguf.TensorNameMap(key, config.num_hidden_layers), LlamaTensorProcessor()
    expected = {}
    for name, module in model.get_base_model().named_modules():
        if hasattr(module, "lora_A"):
            theirs, delta = names.get_name(name), module.get_delta_weight("default").detach().numpy()
            expected[f"{theirs}.weight"] = delta
            if key == gguf.MODEL_ARCH.LLAMA and theirs.endswith(("attn_q", "attn_k")):
                heads = (config.num_attention_heads, config.num_key_value_heads)
                undo = reordered._reverse_permute_weights
                ours = found[f"{theirs}.weight"]
                found[f"{theirs}.weight"] = undo(ours, heads[0], heads[0] if theirs.endswith("attn_q") else heads[1])
                assert not np.allclose(ours, delta)
    assert found.keys() == expected.keys()
    for name, delta in expected.items():
        np.testing.assert_allclose(found[name], delta, atol=1e-6)


def test_metadata(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As llama.cpp checks it: type, architecture, alpha as float32, invocation tokens as uint32."""
    adapter_for(tiny, tmp_path / "adapter", alora_invocation_tokens=INVOKED)
    with pytest.raises(SystemExit) as stop:
        answer(["gguf", str(tmp_path / "adapter"), str(tmp_path / "adapter.gguf")])
    assert stop.value.code == 0
    assert "acts from 3 invocation tokens on" in capsys.readouterr().out
    fields = gguf.GGUFReader(tmp_path / "adapter.gguf").fields
    expected = {
        "general.type": "adapter",
        "general.architecture": "qwen2",
        "adapter.type": "lora",
        "adapter.lora.alpha": 12,
    }
    assert {name: fields[name].contents() for name in expected} == expected
    assert fields["adapter.lora.alpha"].types == [gguf.GGUFValueType.FLOAT32]
    tokens = fields[gguf.Keys.Adapter.ALORA_INVOCATION_TOKENS]
    assert tokens.contents() == INVOKED
    assert tokens.types == [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT32]


def test_what_llama_cpp_has_no_place_for(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused, and no file is left."""
    adapter_for(tiny, tmp_path / "dora", use_dora=True)
    adapter_for(tiny, tmp_path / "other")
    config = tmp_path / "moved" / "config.json"
    config.parent.mkdir()
    for file in tiny.iterdir():
        (config.parent / file.name).write_bytes(file.read_bytes())
    config.write_text(config.read_text().replace('"qwen2"', '"phi3"').replace("Qwen2ForCausalLM", "Phi3ForCausalLM"))
    for words, said in (
        ([str(tmp_path / "dora")], "has use_dora"),
        ([str(tmp_path / "none")], "no such folder"),
        ([str(tmp_path / "other"), "--base", str(config.parent)], "type 'phi3'. Expected one of llama"),
    ):
        with pytest.raises(SystemExit) as stop:
            main([words[0], str(tmp_path / "a.gguf"), *words[1:]])
        assert stop.value.code == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "a.gguf").exists()


def served(model: Path, adapter: Path | str, size: int) -> torch.Tensor:
    """Log-probabilities of the next token by llama.cpp, ``(vocabulary,)``."""
    words = [sys.executable, "-c", SERVED, str(model), str(adapter), json.dumps(TOKENS), str(size)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    return torch.tensor([found[str(token)] for token in range(size)])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_llama_cpp_reads_it(tiny_folder: Any, family: str, tmp_path: Path) -> None:
    """The same next token as in PEFT, to the rounding of its half-precision cache; activated a token earlier than there."""
    base = tiny_folder(family)
    model = adapter_for(base, tmp_path / "adapter", alora_invocation_tokens=INVOKED)
    main([str(tmp_path / "adapter"), str(tmp_path / "adapter.gguf")])
    heads = {"attn_q": model.config.num_attention_heads, "attn_k": model.config.num_key_value_heads}

    def reorder(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        kinds = {name: name.split(".")[-2] for name in tensors if family == "llama"}
        return tensors | {n: in_pairs(tensors[n], heads[kind]) for n, kind in kinds.items() if kind in heads}

    whole = write_gguf(tmp_path / "base.gguf", base, reorder, architecture=family)
    size = model.config.vocab_size
    asked = torch.tensor([TOKENS])
    with torch.no_grad(), model.disable_adapter():
        off = model(input_ids=asked).logits[0, -1].log_softmax(-1)
    with torch.no_grad():
        exact, early = (
            model(input_ids=asked, alora_offsets=[len(TOKENS) - start]).logits[0, -1].log_softmax(-1) for start in (6, 5)
        )
        torch.testing.assert_close(model(input_ids=asked).logits[0, -1].log_softmax(-1), exact)
    without, on = served(whole, "", size), served(whole, tmp_path / "adapter.gguf", size)
    apart = {name: float((on - one).abs().max()) for name, one in (("early", early), ("exact", exact), ("off", off))}
    assert (without - off).abs().max() < 0.01
    assert apart["early"] < 0.02 < apart["off"]
    assert apart["early"] < apart["exact"]
