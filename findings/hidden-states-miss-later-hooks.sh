#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0: whether `output_hidden_states=True` shows a steered layer depends on what the model was asked before.
#
# Guess: hidden_states[i + 1] is what layer i hands to layer i + 1, whatever hooks are on it and whenever they came: the loop of
#        earlier versions collected it between the layers. Steering by a hook on layer i is then seen there, and a model gives back a
#        state for each layer and the embedding.
# Seen:  transformers 5 records by forward hooks of its own. The first request for hidden states puts them on the modules that are
#        there, for good. A steering hook that returns a new tensor is seen if it came before that request. If it came after, as
#        where directions are first taken from hidden_states and then steered with, the entry is the layer's output *without* the
#        steering, to the bit; logits and later entries are steered. A hook that adds in place is seen either way, and
#        `register_forward_hook(..., prepend=True)` is. Steering by a module around the layer is never seen. If the layer is
#        replaced after the first request by another of its class, with its weights, there is an entry less, and hidden_states[i + 1]
#        is that of layer i + 1; if layer 0 is, the entry of the embedding is the output of layer 0. Nothing is said about any of it.
#        Qwen2, Llama and GPT-2 alike. So read a steered model by hooks, after the steering ones.
# Fails if that changes. Run: bash findings/hidden-states-miss-later-hooks.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "$@"; }
pip torch==2.13.0
pip transformers==5.23.0
cat > "$folder/look.py" <<'PYTHON'
import copy
import sys
import warnings

import torch
import transformers
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config

LAYER, LAYERS, HIDDEN = 1, 4, 32
ids, vector = torch.arange(10)[None], torch.linspace(-5, 5, HIDDEN)
sizes = {"vocab_size": 60, "bos_token_id": None, "eos_token_id": None, "initializer_range": 0.3}
llama = {"hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2}
families = {
    "Qwen2": Qwen2Config(**sizes, **llama),
    "Llama": LlamaConfig(**sizes, **llama),
    "GPT-2": GPT2Config(**sizes, n_embd=HIDDEN, n_layer=LAYERS, n_head=4),
}


class Around(torch.nn.Module):
    """A layer, and the vector added to its output."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, *arguments, **options):
        return self.block(*arguments, **options) + vector


def layer_number(layer):
    return (layer.self_attn if hasattr(layer, "self_attn") else layer.attn).layer_idx


def in_place(module, arguments, output):
    output += vector


def by_hook(layers, hook=lambda module, arguments, output: output + vector, **options):
    layers[LAYER].register_forward_hook(hook, **options)


def around(layers):
    layers[LAYER] = Around(layers[LAYER])


def renewed(layer, config):
    """Another layer of the class, with the same weights."""
    fresh = type(layer)(config, layer_idx=layer_number(layer)).eval()
    fresh.load_state_dict(layer.state_dict())
    return fresh


@torch.no_grad()
def look(config, steer, asked, change=None):
    """What is recorded of the changed layer: entries, and its distance from what the next layer gets, and from no steering."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval()
    layers, got = model.base_model.layers if hasattr(model.base_model, "layers") else model.base_model.h, []
    plain = copy.deepcopy(model)(ids, output_hidden_states=True)
    if asked:
        model(ids, output_hidden_states=True)
    if change is not None:
        layers[change] = renewed(layers[change], model.config)
    if steer:
        steer(layers)
    handle = layers[LAYER + 1].register_forward_pre_hook(lambda module, arguments: got.append(arguments[0].clone()))
    made = model(ids, output_hidden_states=True)
    handle.remove()
    apart = lambda a, b: float((a - b).abs().max())
    state = made.hidden_states[LAYER + 1]
    return {
        "entries": len(made.hidden_states),
        "off by": apart(state, got[0]),
        "steered by": apart(state, plain.hidden_states[LAYER + 1]),
        "logits by": apart(made.logits, plain.logits),
        "is the next": torch.equal(state, plain.hidden_states[LAYER + 2]),
        "first is layer 0": torch.equal(made.hidden_states[0], plain.hidden_states[1]),
    }


print("transformers", transformers.__version__)
ways = {
    "a hook": by_hook,
    "a hook, prepended": lambda layers: by_hook(layers, prepend=True),
    "a hook, in place": lambda layers: by_hook(layers, in_place),
    "a module around": around,
}
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for family, config in families.items():
        for way, steer in ways.items():
            for asked in (False, True):
                seen = look(config, steer, asked)
                print(f"{family}, {way}, hidden states asked for before: {asked}. The entry is steered by {seen['steered by']:.1f}, "
                      f"and {seen['off by']:.1f} from what the next layer gets; logits {seen['logits by']:.1f}")
                missed = way == "a module around" or (way == "a hook" and asked)
                assert seen["logits by"] > 1 and seen["entries"] == LAYERS + 1
                assert abs(seen["off by"] - 5 * missed) < 1e-4
                assert seen["steered by"] == 0 if missed else abs(seen["steered by"] - 5) < 1e-4
        for change in (LAYER, 0):
            before, after = (look(config, None, asked, change) for asked in (False, True))
            print(f"{family}, layer {change} renewed: entries {before['entries']} and, asked before, {after['entries']}; "
                  f"entry {LAYER + 1} is that of the next layer: {after['is the next']}; entry 0 is layer 0: {after['first is layer 0']}")
            assert before["logits by"] == after["logits by"] == 0
            assert (before["entries"], after["entries"]) == (LAYERS + 1, LAYERS)
            assert after["is the next"] and not before["is the next"]
            assert after["first is layer 0"] == (change == 0) and not before["first is layer 0"]
told = [str(each.message) for each in said if "hidden" in str(each.message).lower() or "hook" in str(each.message).lower()]
print("warnings about it:", told)
assert told == []
PYTHON
"$folder/venv/bin/python" "$folder/look.py" 2> "$folder/errors" || { cat "$folder/errors"; exit 1; }
if grep -qi "hidden_states\|hook" "$folder/errors"; then cat "$folder/errors"; exit 1; fi
