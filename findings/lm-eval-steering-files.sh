#!/usr/bin/env bash
# lm-eval 0.4.13, eai-sparsify 1.3.3, transformers 5.23.0, torch 2.13.0: which steering files `--model steered` can use.
#
# Guess: files as in the two examples of the README, a .pt file of vectors and a CSV file that names a sparse coder, work; and
#        `head_index`, which the class documents as a key of the one and a column of the other, limits steering to one head.
# Seen:  both examples end in an AssertionError, before any task: "add" is refused with a bias. The first gives one; for the second
#        the bias of the sparse coder is always passed on, so no coder of sparsify can "add". Without the bias the first works, and
#        with "clamp" both do. With "clamp", a head_index in a .pt file ends in a RuntimeError at the first forward pass. In a CSV
#        file it is ignored without a word: every head is steered, whichever is named. And the extra lm_eval[sparsify] asks for the
#        package `sparsify`, another project that was withdrawn: its last version, 1.7.0, refuses to be installed. The sparse
#        coders are in `eai-sparsify`.
# Fails if that changes. Run: bash findings/lm-eval-steering-files.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "$@"; }
pip torch==2.13.0
pip transformers==5.23.0 'lm_eval[hf]==0.4.13'
if pip --no-deps sparsify==1.7.0 > "$folder/other" 2>&1; then echo "sparsify 1.7.0 was installed"; exit 1; fi
grep -o "'sparsify' has reached end-of-life" "$folder/other"
pip --no-deps eai-sparsify==1.3.3 natsort==8.4.0 einops==0.8.2 schedulefree==1.4.1 simple-parsing==0.1.9 docstring-parser==0.18.0
cat > "$folder/look.py" <<'PYTHON'
import csv
import sys
from importlib.metadata import requires
from pathlib import Path

import lm_eval.models
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from sparsify import SparseCoder, SparseCoderConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

root = Path(sys.argv[1])
layer, heads = "layers.1", "layers.1.self_attn.q_norm"  # outputs (batch, tokens, 32) and (batch, tokens, 4 heads, 8)
config = Qwen3Config(
    vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    head_dim=8, max_position_embeddings=128, initializer_range=0.3, bos_token_id=None, eos_token_id=None,
)
torch.manual_seed(0)
AutoModelForCausalLM.from_config(config).save_pretrained(root / "base")
words = Tokenizer(models.WordLevel({f"w{token}": token for token in range(60)}, unk_token="w0"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w1", eos_token="w1", pad_token="w2").save_pretrained(root / "base")
for hookpoint, width in ((layer, 32), (heads, 8)):
    SparseCoder(width, SparseCoderConfig(num_latents=16, k=4)).save_to_disk(root / "coder" / hookpoint)


def log_probability(kind, **options):
    """Of a word after four others, or the name and text of the error."""
    try:
        model = get_model(kind)(pretrained=str(root / "base"), device="cpu", dtype="float32", **options)
        asked = Instance("loglikelihood", {}, ("w5 w6 w7 w8", " w9"), 0)
        return round(model.loglikelihood([asked], disable_tqdm=True)[0][0], 4)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def vectors(hookpoint, action, **rest):
    torch.manual_seed(1)
    vector = torch.randn(32 if hookpoint == layer else 8)
    torch.save({hookpoint: {"steering_vector": vector, "steering_coefficient": 3.0, "action": action, **rest}}, root / "steer.pt")
    return log_probability("steered", steer_path=str(root / "steer.pt"))


def table(hookpoint, action, **rest):
    row = {"loader": "sparsify", "action": action, "sparse_model": root / "coder", "hookpoint": hookpoint, "feature_index": 3,
           "steering_coefficient": 10.0, **rest}
    with open(root / "steer.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, row)
        writer.writeheader()
        writer.writerow(row)
    return log_probability("steered", steer_path=str(root / "steer.csv"))


bias = {"bias": torch.randn(32)}
plain = log_probability("hf")
found = {
    "vectors, add": vectors(layer, "add"),
    "vectors, add, bias (README)": vectors(layer, "add", **bias),
    "vectors, clamp, bias": vectors(layer, "clamp", **bias),
    "table, add (README)": table(layer, "add"),
    "table, clamp": table(layer, "clamp"),
    "vectors, add, head 0": vectors(heads, "add", head_index=0),
    "vectors, add, head 1": vectors(heads, "add", head_index=1),
    "vectors, clamp, all heads": vectors(heads, "clamp"),
    "vectors, clamp, head 1": vectors(heads, "clamp", head_index=1),
    "table, clamp, all heads": table(heads, "clamp"),
    "table, clamp, head 0": table(heads, "clamp", head_index=0),
    "table, clamp, head 1": table(heads, "clamp", head_index=1),
}
print("log-probability, not steered:", plain)
for name, one in found.items():
    print(f"{name}: {one}")
refused = {name for name, one in found.items() if isinstance(one, str)}
assert refused == {"vectors, add, bias (README)", "table, add (README)", "vectors, clamp, head 1"}
assert all(found[name].startswith("AssertionError: Bias is not supported") for name in refused if "README" in name)
assert found["vectors, clamp, head 1"].startswith("RuntimeError")
assert all(abs(one - plain) > 1e-3 for one in found.values() if not isinstance(one, str))
assert found["vectors, add, head 0"] != found["vectors, add, head 1"]
assert found["table, clamp, head 0"] == found["table, clamp, head 1"] == found["table, clamp, all heads"]
asked = [each for each in requires("lm_eval") if "extra == \"sparsify\"" in each]
print("lm_eval[sparsify] asks for", *asked)
assert [each.split(";")[0] for each in asked] == ["sparsify"]
PYTHON
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/look.py" "$folder" 2> "$folder/errors" || { cat "$folder/errors"; exit 1; }
