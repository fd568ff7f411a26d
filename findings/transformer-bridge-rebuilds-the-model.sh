#!/usr/bin/env bash
# transformer-lens 4.3.0, transformers 5.23.0, peft 0.21.2, torch 2.13.0: `TransformerBridge.boot_transformers(name, hf_model=model)`
# rebuilds the model that it is given.
#
# Guess: the bridge reads the model's weights through a view of its own, and the model stays what it was: its logits, its names of
#        weights, its saving. A bridge's hooks act on the bridge. `bridge(ids, use_cache=True)` returns a cache, as in transformers.
# Seen:  the bridge replaces the modules inside the model and switches its attention to "eager". Afterwards model(ids) differs from
#        itself by 7.5e-6 (by 0 if it was loaded with "eager": the documentation names eager attention for the bridge, not that your
#        model keeps it). A hook of the bridge steers model(ids), too. None of the model's 30 names of weights is left; its
#        state_dict has 100 others, so that nothing of it loads into a model of the same class. save_pretrained ends in a
#        RuntimeError (shared tensors), get_peft_model in a ValueError (LinearBridge). So compare with a second copy, and put an
#        adapter on, and save, before the bridge is made. And use_cache=True returns logits alone, also with `past_key_values`; the
#        cache comes with return_type="logits_and_cache", which needs no use_cache.
# Fails if that changes. Run: bash findings/transformer-bridge-rebuilds-the-model.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "$@"; }
pip torch==2.13.0
pip transformers==5.23.0 peft==0.21.2 transformer-lens==4.3.0
cat > "$folder/look.py" <<'PYTHON'
import sys

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

root = sys.argv[1]
config = LlamaConfig(
    vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=128, initializer_range=0.3, bos_token_id=None, eos_token_id=None,
)
torch.manual_seed(0)
AutoModelForCausalLM.from_config(config).save_pretrained(f"{root}/base")
words = Tokenizer(models.WordLevel({f"w{token}": token for token in range(60)}, unk_token="w0"))
PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w1", eos_token="w1", pad_token="w2").save_pretrained(f"{root}/base")
tokenizer = PreTrainedTokenizerFast.from_pretrained(f"{root}/base")
ids = torch.randint(0, 60, (1, 30))


def load(**options):
    return AutoModelForCausalLM.from_pretrained(f"{root}/base", **options).eval()


def apart(a, b):
    return (a - b).abs().max().item()


def raised(action):
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:60]}"
    return "no error"


torch.set_grad_enabled(False)
changes = {}
for attention in ("sdpa", "eager"):
    model = load(attn_implementation=attention)
    before, names = model(ids).logits, set(model.state_dict())
    bridge = TransformerBridge.boot_transformers("a tiny Llama", hf_model=model, tokenizer=tokenizer)
    changes[attention], now = apart(model(ids).logits, before), model.config._attn_implementation
    print(f"loaded with {attention}: afterwards {now}; its own logits changed by {changes[attention]:.1e}")
    assert now == "eager"
assert 0 < changes["sdpa"] < 1e-3 and changes["eager"] == 0

with bridge.hooks(fwd_hooks=[("blocks.1.hook_resid_post", lambda residual, hook: residual + 5)]):
    steered = apart(model(ids).logits, before)
print(f"under a hook of the bridge, the logits of the model itself change by {steered:.1f}")
assert steered > 1 and apart(model(ids).logits, before) == 0

after = model.state_dict()
missing = load().load_state_dict(after, strict=False).missing_keys
print(f"names of weights: {len(names)} before, {len(after)} after, {len(names & set(after))} of them in both;",
      f"loaded into another model: {len(names) - len(missing)}")
assert names and not names & set(after) and len(missing) == len(names)

saving = raised(lambda: model.save_pretrained(f"{root}/saved"))
adapting = raised(lambda: get_peft_model(model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")))
print(f"save_pretrained: {saving}...\nget_peft_model: {adapting}...")
assert saving.startswith("RuntimeError") and adapting.startswith("ValueError: Target module LinearBridge")
assert raised(lambda: load().save_pretrained(f"{root}/saved")) == "no error"
assert raised(lambda: get_peft_model(load(), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))) == "no error"

_, cache = bridge(ids, return_type="logits_and_cache")
filled = cache.get_seq_length()
for options in ({"use_cache": True}, {"past_key_values": cache}, {"return_type": "logits_and_cache"}):
    found = bridge(ids, **options)
    kinds = [type(each).__name__ for each in (found if isinstance(found, tuple) else (found,))]
    print(f"bridge(ids, {', '.join(options)}) returns {' and '.join(kinds)}")
    assert kinds == (["Tensor", "DynamicCache"] if "return_type" in options else ["Tensor"])
assert filled == 30
PYTHON
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/look.py" "$folder" 2> "$folder/errors" || { cat "$folder/errors"; exit 1; }
