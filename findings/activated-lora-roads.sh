#!/usr/bin/env bash
# peft 0.21.2, transformers 5.23.0, torch 2.13.0: an activated LoRA adapter (aLoRA, `alora_invocation_tokens`) acts on some roads
# only, and says nothing on the others.
#
# Guess: such a folder acts wherever a LoRA folder does, from its invocation tokens on, and `generate` continues the same text
#        with and without a KV cache.
# Seen:  loaded by `PeftModel.from_pretrained` it acts in a forward pass and in `generate`. Loaded by
#        `AutoModelForCausalLM.from_pretrained(folder)` or `model.load_adapter(folder)` of transformers, which both take a LoRA
#        folder, it never acts: the logits equal those of the base model to the bit. `generate(use_cache=False)` through
#        PeftModel continues otherwise than with the cache: the number of activated tokens is fixed before the first token, so
#        that each longer input activates one token less of the question. `generate(prefill_chunk_size=...)` and decoding by hand
#        (a forward pass a token, with `past_key_values`) continue otherwise, too: in a pass whose input lacks the invocation the
#        adapter is off. Of two invocations in one input only the last acts: the first question, with its answer, is read by the
#        base model. None of this raises an error or a warning. Beams (ValueError), merging (NotImplementedError) and
#        `inputs_embeds` (a warning; the adapter is off) say so.
# Fails if that changes. Run: bash findings/activated-lora-roads.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 peft==0.21.2
cat > "$folder/look.py" <<'PYTHON'
import sys
import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, Qwen2Config

root, invocation = sys.argv[1], [7, 8, 9]
config = Qwen2Config(
    vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=256, initializer_range=0.3, eos_token_id=None, bos_token_id=None,
)
torch.manual_seed(0)
AutoModelForCausalLM.from_config(config).save_pretrained(f"{root}/base")
plain = lambda: AutoModelForCausalLM.from_pretrained(f"{root}/base", dtype=torch.float32).eval()
lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", alora_invocation_tokens=invocation)
made = get_peft_model(plain(), lora)
for name, parameter in made.named_parameters():
    if "lora_B" in name:
        torch.nn.init.normal_(parameter, std=1.0)
made.save_pretrained(f"{root}/adapter")

ids = torch.tensor([[20, 21, 22, 23, *invocation, 30, 31]])
with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    peft = PeftModel.from_pretrained(plain(), f"{root}/adapter").eval()
    alone = plain()(ids).logits
    through_peft = peft(input_ids=ids).logits
    automatic = AutoModelForCausalLM.from_pretrained(f"{root}/adapter", dtype=torch.float32).eval()(ids).logits
    loading = plain()
    loading.load_adapter(f"{root}/adapter")
    loaded = loading.eval()(ids).logits
    options = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 0}
    cached = peft.generate(input_ids=ids, **options)[0, ids.shape[1]:].tolist()
    uncached = peft.generate(input_ids=ids, use_cache=False, **options)[0, ids.shape[1]:].tolist()
    chunked = peft.generate(input_ids=ids, prefill_chunk_size=4, **options)[0, ids.shape[1]:].tolist()
    by_hand, next_ids, past = [], ids, None
    for _ in range(options["max_new_tokens"]):
        made = peft(input_ids=next_ids, past_key_values=past, use_cache=True)
        past, next_ids = made.past_key_values, made.logits[:, -1:].argmax(dim=-1)
        by_hand.append(int(next_ids))
    twice = peft(input_ids=torch.cat([ids, ids], dim=1)).logits
    twice_alone = plain()(torch.cat([ids, ids], dim=1)).logits

change = lambda a, b: float((a - b).abs().max())
print("effect before the invocation, through PeftModel:", change(through_peft[:, :4], alone[:, :4]))
print("effect at the answer, through PeftModel:", round(change(through_peft[:, -1], alone[:, -1]), 2))
print("the same, through AutoModelForCausalLM and load_adapter:", change(automatic, alone), change(loaded, alone))
print("greedy tokens with a cache:", cached)
print("greedy tokens without     :", uncached)
print("with prefill_chunk_size=4 :", chunked)
print("by hand, with a cache     :", by_hand)
first = change(twice[:, : ids.shape[1]], twice_alone[:, : ids.shape[1]])
second = change(twice[:, -1], twice_alone[:, -1])
print("effect at the first of two questions:", first, "and at the second:", round(second, 2))
told = [str(each.message) for each in caught if "alora" in str(each.message).lower()]
print("warnings about it:", told)
assert change(through_peft[:, :4], alone[:, :4]) == 0 and change(through_peft[:, -1], alone[:, -1]) > 0.5
assert change(automatic, alone) == 0 and change(loaded, alone) == 0
assert cached not in (uncached, chunked, by_hand)
assert first == 0 and second > 0.5
assert told == []
with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    embedded = peft(inputs_embeds=peft.get_input_embeddings()(ids)).logits
said = [str(each.message) for each in caught if "alora" in str(each.message).lower()]
print("with inputs_embeds: effect", change(embedded, alone), "and a warning:", said[0])
assert change(embedded, alone) == 0
for name, action in (("beams", lambda: peft.generate(input_ids=ids, num_beams=2, **options)), ("merging", peft.merge_and_unload)):
    try:
        action()
    except (ValueError, NotImplementedError) as error:
        print(f"{name}: {type(error).__name__}: {error}")
    else:
        raise AssertionError(name)
PYTHON
"$folder/venv/bin/python" "$folder/look.py" "$folder" 2>"$folder/errors" || { cat "$folder/errors"; exit 1; }
if grep -qi alora "$folder/errors"; then cat "$folder/errors"; exit 1; fi
