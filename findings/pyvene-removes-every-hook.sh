#!/usr/bin/env bash
# pyvene 0.1.8, transformers 5.23.0, torch 2.13.0: what else a call of `IntervenableModel` does to a model, and where `generate` steers.
#
# Guess: a call adds hooks of its own and removes them; others that the model has (steering of one's own, a recorder) stay and
#        act. `generate` steers the prompt if no place is given, and `intervene_on_prompt=True` steers it alone, as documented.
# Seen:  a call begins and ends by removing all forward hooks and forward pre-hooks of the model, whoever registered them: a
#        model steered by a hook is not steered in the call, nor ever after, without a word. Backward hooks stay.
#        `generate` alone leaves the prompt as it is and steers place 0 of each later forward pass: with a KV cache the generated
#        tokens, with `use_cache=False` the first token of the prompt. With a KV cache `intervene_on_prompt=True` alone steers
#        everything, generated tokens too; the prompt alone is steered only if its places are given as well. A call without
#        places steers the whole prompt, and returns its KV cache.
# Fails if that changes. Run: bash findings/pyvene-removes-every-hook.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "$@"; }
pip torch==2.13.0
pip transformers==5.23.0 matplotlib==3.11.2
pip --no-deps pyvene==0.1.8  # the rest of what it asks for is for notebooks
cat > "$folder/look.py" <<'PYTHON'
import warnings

import pyvene
import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=64, initializer_range=0.3, bos_token_id=None, eos_token_id=None, pad_token_id=0,
)
model = LlamaForCausalLM(config).eval().requires_grad_(False)
prompt = torch.arange(5, 11)[None]  # 6 tokens
asked, layers = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}, model.model.layers


def adding(vector):
    return pyvene.IntervenableModel(
        {"layer": 1, "component": "block_output", "source_representation": vector,
         "intervention_type": pyvene.AdditionIntervention}, model,
    )


plain = model(**asked).logits
layers[0].register_forward_hook(lambda module, inputs, output: output + 3)
layers[2].mlp.register_forward_hook(lambda *anything: None)
layers[0].register_forward_pre_hook(lambda module, inputs: None)
layers[0].register_full_backward_hook(lambda *anything: None)
steered = model(**asked).logits
nothing = adding(torch.zeros(32))
wrapped = model(**asked).logits
with warnings.catch_warnings():
    warnings.simplefilter("error")
    _, output = nothing(asked)
after = model(**asked).logits
kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
left = {kind: sum(len(getattr(module, kind)) for module in model.modules()) for kind in kinds}
print("largest change of the logits by a hook of one's own:", (steered - plain).abs().max().item())
print("the same wrapped in pyvene:", (wrapped - plain).abs().max().item())
print("in a call that adds zeros:", (output.logits - plain).abs().max().item())
print("in the model itself afterwards:", (after - plain).abs().max().item())
print("hooks left:", left)
assert torch.equal(wrapped, steered) and not torch.equal(steered, plain)
assert torch.equal(output.logits, plain) and torch.equal(after, plain)
assert left == {"_forward_hooks": 0, "_forward_pre_hooks": 0, "_backward_hooks": 1}


def steered_places(cache, call=False, **options):
    """Of each forward pass of `generate`, or of a call: places of the conversation at which layer 1 has the vector added."""
    passes, unsteered, forwards, first = [], [], (layers[1].forward, layers[2].forward), 0

    def block(*inputs, **named):  # no hook, since those are removed
        layers[0].register_forward_hook(lambda *anything: None)  # after the removal at the beginning of the call
        output = forwards[0](*inputs, **named)
        unsteered[:] = [output.clone()]
        return output

    def next_block(states, *inputs, **named):
        nonlocal first
        changed = (states - unsteered[0])[0].norm(dim=-1) > 1e-3
        start = first if cache else 0
        passes.append([start + place for place in changed.nonzero().flatten().tolist()])
        first += len(changed)
        return forwards[1](states, *inputs, **named)

    layers[1].forward, layers[2].forward = block, next_block
    steered = adding(torch.ones(32))
    if call:
        _, output = steered(asked, use_cache=cache, **options)
        assert output.past_key_values.get_seq_length() == 6
    else:
        steered.generate(asked, max_new_tokens=4, do_sample=False, use_cache=cache, **options)
    layers[1].forward, layers[2].forward = forwards
    assert not layers[0]._forward_hooks  # those registered during the call are gone as well
    return passes


whole = list(range(6))
places = {"unit_locations": {"base": [[whole]]}}
found = {
    "generate, KV cache": steered_places(True),
    "generate, no cache": steered_places(False),
    "on the prompt, KV cache": steered_places(True, intervene_on_prompt=True),
    "on the prompt, its places, KV cache": steered_places(True, intervene_on_prompt=True, **places),
    "a call": steered_places(True, call=True),
}
for name, passes in found.items():
    print(f"{name}: {passes}")
assert found["generate, KV cache"] == [[], [6], [7], [8]]
assert found["generate, no cache"] == [[], [0], [0], [0]]
assert found["on the prompt, KV cache"] == [whole, [6], [7], [8]]
assert found["on the prompt, its places, KV cache"] == [whole, [], [], []]
assert found["a call"] == [whole]
PYTHON
"$folder/venv/bin/python" "$folder/look.py" 2> "$folder/errors" || { cat "$folder/errors"; exit 1; }
