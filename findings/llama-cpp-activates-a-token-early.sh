#!/usr/bin/env bash
# llama.cpp's server (wheel xllamacpp 2026.10.11549), peft 0.21.2, gguf 0.19.0, transformers 5.23.0, torch 2.13.0: an activated LoRA
# adapter (aLoRA) acts from one token before its invocation tokens on.
#
# Guess: with `adapter.alora.invocation_tokens` in the adapter's GGUF file, the server switches the adapter on at the first of these
#        tokens, as PEFT does with `alora_invocation_tokens`: all tokens before them are read by the base model, so that their part
#        of the KV cache is the base model's own.
# Seen:  the token before the invocation is read with the adapter, too. The log-probabilities of the next token are those of PEFT,
#        to .005, if PEFT is told to begin one token early (`alora_offsets`); from those of PEFT's default they differ by up to 1.6.
#        Where no token precedes the invocation, the two agree. Base model alone, and the adapter without that key (it then acts on
#        the whole prompt), agree as well, so this is not a matter of the files. Nothing is said about it. A score, or a threshold
#        on it, that was measured with PEFT is not the server's.
# Fails if that changes. Run: bash findings/llama-cpp-activates-a-token-early.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "$@"; }
pip torch==2.13.0
pip transformers==5.23.0 peft==0.21.2 gguf==0.19.0 xllamacpp==2026.10.11549
cat > "$folder/serve.py" <<'PYTHON'
"""Log-probabilities of the next token, for each prompt (lists of token ids), by llama.cpp's server."""
import json
import sys

import xllamacpp

model, prompts, vocabulary, *adapters = sys.argv[1:]
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.n_gpu_layers = model, 256, 1, 0
params.cpuparams.n_threads, params.warmup, params.verbosity = 1, False, 0
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
loras = []
for path in adapters:
    lora = xllamacpp.CommonAdapterLoraInfo()
    lora.path, lora.scale = path, 1.0
    loras.append(lora)
params.lora_adapters = loras
server, found = xllamacpp.Server(params), []
for prompt in json.loads(prompts):
    asked = {"prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": int(vocabulary), "cache_prompt": False}
    (choice,) = server.handle_completions(asked)["choices"]
    found.append({each["id"]: each["logprob"] for each in choice["logprobs"]["content"][0]["top_logprobs"]})
print(json.dumps(found))
PYTHON
cat > "$folder/look.py" <<'PYTHON'
import json
import subprocess
import sys

import gguf
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Qwen2Config

root, invocation, vocabulary, layers, rank = sys.argv[1], [7, 8, 9], 60, 2, 4
prompts = {before: [*range(20, 20 + before), *invocation, 50, 51] for before in (0, 1, 2, 6)}
torch.manual_seed(0)
config = Qwen2Config(  # its matrices need no reordering in GGUF
    vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2, tie_word_embeddings=False,
    eos_token_id=None, bos_token_id=None,
)
model = AutoModelForCausalLM.from_config(config).eval()
names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, layers)


def write(path, fields, tensors):
    writer = gguf.GGUFWriter(path, "qwen2")
    fields(writer)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.detach().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def base_fields(writer):
    writer.add_block_count(layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"w{token}" for token in range(vocabulary)])
    writer.add_token_types([1] * vocabulary)
    writer.add_token_merges(["w 1"])


write(f"{root}/base.gguf", base_fields, {names.get_name(n, (".weight", ".bias")): each for n, each in model.state_dict().items()})
lora = LoraConfig(
    r=rank, lora_alpha=rank, target_modules=["v_proj", "o_proj"], task_type="CAUSAL_LM", alora_invocation_tokens=invocation
)
peft = get_peft_model(model, lora).eval()
matrices = {}
for name, module in model.named_modules():
    if hasattr(module, "lora_A"):
        a, b = module.lora_A["default"].weight, torch.nn.init.normal_(module.lora_B["default"].weight, std=0.5)
        matrices |= {f"{names.get_name(name)}.weight.lora_a": a, f"{names.get_name(name)}.weight.lora_b": b}


def adapter_fields(writer):
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", rank)


def activated_fields(writer):
    adapter_fields(writer)
    key = "adapter.alora.invocation_tokens"
    writer.add_key_value(key, invocation, gguf.GGUFValueType.ARRAY, sub_type=gguf.GGUFValueType.UINT32)


write(f"{root}/whole.gguf", adapter_fields, matrices)
write(f"{root}/activated.gguf", activated_fields, matrices)


def served(*adapters):
    words = [f"{root}/serve.py", f"{root}/base.gguf", json.dumps([*prompts.values()]), str(vocabulary), *adapters]
    done = subprocess.run([sys.executable, *words], stdout=subprocess.PIPE, text=True, check=True)
    rows = json.loads(done.stdout.splitlines()[-1])
    return [torch.tensor([row[str(token)] for token in range(vocabulary)]) for row in rows]


@torch.no_grad()
def in_peft(ids, **options):
    return peft(input_ids=torch.tensor([ids]), **options).logits[0, -1].log_softmax(-1)


def apart(a, b):
    return float((a - b).abs().max())


alone, whole, activated = served(), served(f"{root}/whole.gguf"), served(f"{root}/activated.gguf")
for (before, ids), off, everywhere, on in zip(prompts.items(), alone, whole, activated):
    length = len(ids) - before  # PEFT counts from the end
    with peft.disable_adapter():
        base = apart(off, in_peft(ids))
    throughout = apart(everywhere, in_peft(ids, alora_offsets=[len(ids)]))
    default = in_peft(ids)
    assert apart(default, in_peft(ids, alora_offsets=[length])) == 0  # PEFT begins at the first invocation token
    exact = apart(on, default)
    early = apart(on, in_peft(ids, alora_offsets=[length + 1])) if before else None
    twice = apart(on, in_peft(ids, alora_offsets=[length + 2])) if before > 1 else None
    shown = " ".join("-" if one is None else f"{one:.4f}" for one in (exact, early, twice))
    print(f"{before} tokens before: base {base:.4f}, acting throughout {throughout:.4f}; begun 0, 1, 2 tokens early: {shown}")
    assert base < 0.01 and throughout < 0.01
    if before:
        assert early < 0.01 and exact > 0.2 and (twice is None or twice > 0.2)
    else:
        assert exact < 0.01
PYTHON
"$folder/venv/bin/python" "$folder/look.py" "$folder" 2> "$folder/errors" || { cat "$folder/errors"; exit 1; }
if grep -qi "alora\|invocation" "$folder/errors"; then cat "$folder/errors"; exit 1; fi
