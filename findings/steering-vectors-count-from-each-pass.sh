#!/usr/bin/env bash
# steering-vectors 0.12.2, transformers 4.57.6, torch 2.13.0: which tokens `min_token_index` and `token_indices` steer.
#
# Guess: those at these places of the conversation: with `min_token_index=3` everything from the fourth token on, what is generated
#        included, and with `token_indices=[0]` the first token. A KV cache saves time and changes nothing. And `apply` takes
#        either of the two, as its documentation says.
# Seen:  places are counted from the beginning of each forward pass. `generate` with a KV cache, its default, passes one token at
#        a time after the prompt, and that is place 0 of its pass: so with `min_token_index=3` no generated token is steered, with
#        `token_indices=[0]` every generated token is, and `[3]` ends in an IndexError after the prompt. With `use_cache=False` places
#        are those of the conversation. A mask as long as the prompt ends in a RuntimeError either way.
#        `apply(model, token_indices=...)` alone ends in an UnboundLocalError: its `min_token_index` is 0 if none is given,
#        and the refusal of both together is hidden by that error. It needs `min_token_index=None`.
# Fails if that changes. Run: bash findings/steering-vectors-count-from-each-pass.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "$@"; }
pip torch==2.13.0
pip transformers==4.57.6 steering-vectors==0.12.2
cat > "$folder/look.py" <<'PYTHON'
import inspect

import torch
from steering_vectors import SteeringVector
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=64, initializer_range=0.3, bos_token_id=None, eos_token_id=None, pad_token_id=0,
)
model = LlamaForCausalLM(config).eval()
prompt = torch.arange(5, 11)[None]  # 6 tokens
vector, layer = SteeringVector({1: torch.ones(32)}), model.model.layers[1]
outputs = {}


def steered_places(cache, **where):
    """Places of the conversation at which layer 1 has the vector added, after 4 generated tokens; and any error."""
    places, first = set(), 0

    def before(_, inputs, output):
        outputs["plain"] = (output[0] if isinstance(output, tuple) else output).clone()

    def after(_, inputs, output):
        nonlocal first
        change = (output[0] if isinstance(output, tuple) else output) - outputs["plain"]
        here = change[0].norm(dim=-1) > 1e-3
        start = first if cache else 0
        places.update(start + place for place in here.nonzero().flatten().tolist())
        first += len(here)

    handles = [layer.register_forward_hook(before)]
    try:
        with vector.apply(model, **where):
            handles.append(layer.register_forward_hook(after))  # runs after the hook that steers
            model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=5, do_sample=False, use_cache=cache
            )
        return sorted(places), None
    except Exception as error:
        return sorted(places), error
    finally:
        for handle in handles:
            handle.remove()


everywhere = list(range(10))  # the prompt, and 4 of 5 generated tokens: the last one is not passed on
options = {
    "nothing": {},
    "min_token_index=3": {"min_token_index": 3},
    "token_indices=[0]": {"min_token_index": None, "token_indices": [0]},
    "token_indices=[3]": {"min_token_index": None, "token_indices": [3]},
    "a mask of the prompt": {"min_token_index": None, "token_indices": torch.tensor([0, 0, 0, 1, 1, 1])},
    "token_indices=[0] alone": {"token_indices": [0]},
}
found = {name: (steered_places(True, **where), steered_places(False, **where)) for name, where in options.items()}
for name, (cached, without) in found.items():
    print(f"{name}: with a KV cache {cached[0]} {cached[1]!r}; without {without[0]} {without[1]!r}")
assert found["nothing"] == ((everywhere, None), (everywhere, None))
assert found["min_token_index=3"] == (([3, 4, 5], None), (everywhere[3:], None))
assert found["token_indices=[0]"] == (([0, 6, 7, 8, 9], None), ([0], None))
(cached, error), without = found["token_indices=[3]"]
assert cached == [3] and isinstance(error, IndexError) and without == ([3], None)
for places, error in found["a mask of the prompt"]:
    assert places == [3, 4, 5] and isinstance(error, RuntimeError)
for places, error in found["token_indices=[0] alone"]:
    assert places == [] and isinstance(error, UnboundLocalError) and isinstance(error.__context__, AssertionError)
assert inspect.signature(SteeringVector.apply).parameters["min_token_index"].default == 0
PYTHON
"$folder/venv/bin/python" "$folder/look.py" 2> "$folder/errors" || { cat "$folder/errors"; exit 1; }
