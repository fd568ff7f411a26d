#!/usr/bin/env bash
# peft 0.21.2, torch 2.13.0: `with model.disable_adapter()` looks at every module of the model, and writes out every adapter layer.
#
# Guess: entering and leaving it sets a flag in each adapter layer, so that a training step or a decoding loop may do so at will.
# Seen:  it walks over the whole model seven times and takes the text of each LoRA layer (`repr`) once, for a status of which one
#        word is used. With 60 LoRA layers in a model of 30 blocks that took 7.6 ms on one CPU, a forward pass of a row 2.1,
#        and the flags alone (`enable_adapters` of each layer) 1.6. It grows with the modules of the model, not with the adapter.
# Fails if the counts change. Run: bash findings/peft-disable-adapter-walks.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 peft==0.21.2
cat > "$folder/look.py" <<'PYTHON'
import time
from unittest import mock

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.v = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x):
        return self.v(self.q(x))


model = get_peft_model(nn.Sequential(*(Block() for _ in range(30))), LoraConfig(target_modules=["q", "v"]))
layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
whole = {id(model), id(model.base_model), id(model.base_model.model)}
counts = {"walks": 0, "texts": 0}
named_modules, text = nn.Module.named_modules, Linear.__repr__


def counted_walk(self, *args, **options):
    counts["walks"] += id(self) in whole
    return named_modules(self, *args, **options)


def counted_text(self):
    counts["texts"] += 1
    return text(self)


with mock.patch.object(nn.Module, "named_modules", counted_walk), mock.patch.object(Linear, "__repr__", counted_text):
    with model.disable_adapter():
        pass
print(len(layers), "LoRA layers;", counts)


def milliseconds(action):
    action()
    start = time.perf_counter()
    for _ in range(20):
        action()
    return (time.perf_counter() - start) / 20 * 1e3


def context():
    with model.disable_adapter():
        pass


def flags():
    for enabled in (False, True):
        for layer in layers:
            layer.enable_adapters(enabled)


row = torch.zeros(1, 64)
with torch.no_grad():
    times = {"context": context, "flags": flags, "forward": lambda: model(row)}
    print({name: f"{milliseconds(action):.1f} ms" for name, action in times.items()})
assert len(layers) == 60
assert counts == {"walks": 7, "texts": 60}, counts
PYTHON
"$folder/venv/bin/python" "$folder/look.py"
