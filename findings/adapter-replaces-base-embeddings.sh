#!/usr/bin/env bash
# peft 0.21.2, transformers 5.23.0, torch 2.13.0: a LoRA adapter on `embed_tokens` or `lm_head` replaces the base model's own matrix.
#
# Guess: a LoRA adapter holds low-rank matrices alone. Put on another model of the same shape (a mirror, a finetuned or quantised
#        copy), it changes what that model computes while it is on; switched off (`disable_adapter`) or taken off (`unload`), the
#        model answers as before.
# Seen:  With `embed_tokens` or `lm_head` among the target modules, save_pretrained also writes the matrix of the base model that
#        it was trained on (`...embed_tokens.base_layer.weight`), with a warning in the second half of a line. from_pretrained
#        writes it over the matrix of the model it is put on, without a word. With the adapter off, and after unload, the model
#        is then neither of the two: its logits differ from its own by .5. With attention's matrices alone as targets: by 0.
#        So comparing "adapter on" with "adapter off" does not compare with the base model that was loaded.
# Fails if that changes. Run: bash findings/adapter-replaces-base-embeddings.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "$@"; }
pip torch==2.13.0
pip transformers==5.23.0 peft==0.21.2
cat > "$folder/look.py" <<'PYTHON'
import tempfile
import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen2Config

ids = torch.arange(10)[None]


def base(seed):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen2Config(**sizes, num_key_value_heads=2, vocab_size=100, tie_word_embeddings=False)
    return AutoModelForCausalLM.from_config(config).eval()


@torch.no_grad()
def logits(model):
    return model(ids).logits


differences = {}
for module in ("embed_tokens", "lm_head", "q_proj"):
    folder = tempfile.mkdtemp()
    trained = get_peft_model(base(0), LoraConfig(r=2, target_modules=[module], task_type="CAUSAL_LM"))
    trained.save_pretrained(folder)
    whole = [name for name in load_file(f"{folder}/adapter_model.safetensors") if "lora_" not in name]
    other = base(1)
    before = logits(other)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        adapted = PeftModel.from_pretrained(other, folder)
    with adapted.disable_adapter():
        off = (logits(adapted) - before).abs().max().item()
    unloaded = (logits(adapted.unload()) - before).abs().max().item()
    mentions = sum("base_layer" in str(warning.message) or module in str(warning.message) for warning in said)
    print(f"{module}: also in the file {whole}; off differs by {off:.2f}, unloaded by {unloaded:.2f}; {mentions} warnings at loading")
    differences[module] = whole, off, unloaded, mentions

for module in ("embed_tokens", "lm_head"):
    whole, off, unloaded, mentions = differences[module]
    assert len(whole) == 1 and whole[0].endswith(f"{module}.base_layer.weight")
    assert off > 0.1 and unloaded > 0.1 and mentions == 0
assert differences["q_proj"] == ([], 0, 0, 0)
PYTHON
"$folder/venv/bin/python" "$folder/look.py" 2> "$folder/errors" || { cat "$folder/errors"; exit 1; }
