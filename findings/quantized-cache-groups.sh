#!/usr/bin/env bash
# transformers 5.23.0, hqq 0.2.8.post1, optimum-quanto 0.2.7, torch 2.13.0: which numbers of a KV cache share a scale in `QuantizedCache`.
#
# Guess: a quantised cache rounds each conversation of a batch on its own, and keys by channel ("per-channel", as in the KIVI paper
#        that its docstring names), so that one channel of large keys, as trained models have it, costs the others nothing.
# Seen:  With the backend HQQ and its default axes (0), numbers share a scale across the conversations of a batch: another
#        neighbour changes the keys that a conversation reads, and its logits by 1.7. With axis 1 the scale is its own, but the
#        neighbour still moves the logits by .005; with quanto's default axes (0) by nothing. In these two the group is a run of
#        channels of *one token*: one large channel takes the steps from all others of its group. With 4 bits and one channel 50
#        times as large, the others have a relative error of .57 and .71, where 32 tokens of one channel as a group have .08.
#        quanto's other axis (-1) raises a ValueError unless conversations x heads x tokens is a multiple of the group.
# Fails if that changes. Run (quanto compiles its C++ once, a minute): bash findings/quantized-cache-groups.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "$@"; }
pip torch==2.13.0 transformers==5.23.0
pip --no-deps hqq==0.2.8.post1 termcolor==3.3.0 optimum-quanto==0.2.7 ninja==1.13.2
cat > "$folder/look.py" <<'PYTHON'
import torch
from transformers import AutoModelForCausalLM, DynamicCache, Qwen2Config, QuantizedCache
from transformers.cache_utils import HQQQuantizedLayer, QuantoQuantizedLayer

torch.manual_seed(0)
config = Qwen2Config(
    vocab_size=60, hidden_size=256, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=256, initializer_range=0.1, eos_token_id=None, bos_token_id=None,
)
model = AutoModelForCausalLM.from_config(config).eval()
texts = torch.randint(0, 60, (3, 32))
question = torch.tensor([[5, 6, 7]] * 2)


def logits(make, rows):
    """Of the first of two conversations, whose question is asked after the cache was filled."""
    cache = make()
    with torch.no_grad():
        model(input_ids=texts[rows], past_key_values=cache)
        return model(input_ids=question, past_key_values=cache).logits[0, -1]


moved = {}
for name, make in {
    "none": lambda: DynamicCache(config=config),
    "hqq": lambda: QuantizedCache("hqq", config),
    "hqq, axis 1": lambda: QuantizedCache("hqq", config, axis_key=1, axis_value=1),
    "quanto": lambda: QuantizedCache("quanto", config),
}.items():
    moved[name] = (logits(make, [0, 1]) - logits(make, [0, 2])).abs().max().item()
    print(f"{name}: another neighbour moves the logits by {moved[name]:.2g}")
assert moved["hqq"] > 0.01
assert 0 < moved["hqq, axis 1"] < 0.1
assert moved["none"] == moved["quanto"] == 0

sizes = torch.ones(64)
sizes[5] = 50.0
keys, values = torch.randn(2, 2, 64, 64) * sizes, torch.randn(2, 2, 64, 64)
others = [channel for channel in range(64) if channel != 5]


def error(found):
    return ((found - keys)[..., others].norm() / keys[..., others].norm()).item()


for name, kind, axis in (("hqq", HQQQuantizedLayer, 0), ("hqq", HQQQuantizedLayer, 1), ("quanto", QuantoQuantizedLayer, 0)):
    layer = kind(nbits=4, axis_key=axis, axis_value=axis, q_group_size=32)
    layer.update(keys, values)
    read = layer.update(keys[:, :, :1], values[:, :, :1])[0][:, :, :64]
    far = keys.clone()
    far[1, 1, 7, 9] = 1e4
    layer = kind(nbits=4, axis_key=axis, axis_value=axis, q_group_size=32)
    layer.update(far, values)
    changed = (layer.update(keys[:, :, :1], values[:, :, :1])[0][:, :, :64] != read).nonzero()
    conversations, tokens, channels = (changed[:, part].unique().numel() for part in (0, 2, 3))
    print(f"{name}, axis {axis}: error of the other channels {error(read):.3f}; one key shares its scale with "
          f"{conversations} conversations, {tokens} tokens, {channels} channels")
    assert (error(read) > 0.3) == ((name, axis) != ("hqq", 0))
    assert (conversations, tokens > 1, channels > 2) == ((2, True, False) if (name, axis) == ("hqq", 0) else (1, False, True))

# The rule of the paper, by hand: 32 tokens of one channel share a scale.
groups = keys.reshape(2, 2, 2, 32, 64)
low, high = groups.amin(3, keepdim=True), groups.amax(3, keepdim=True)
by_channel = (((groups - low) / (high - low) * 15).round() / 15 * (high - low) + low).reshape_as(keys)
print(f"by channel: error of the other channels {error(by_channel):.3f}")
assert error(by_channel) < 0.1

layer = QuantoQuantizedLayer(nbits=4, axis_key=-1, axis_value=-1, q_group_size=32)
try:
    layer.update(keys[:, :, :60], values[:, :, :60])
except ValueError as raised:
    print(f"quanto, axis -1, 240 tokens of all heads: {raised}")
else:
    raise AssertionError("no error")
PYTHON
"$folder/venv/bin/python" "$folder/look.py"
