#!/usr/bin/env bash
# peft 0.21.2, torch 2.13.0: create_loraplus_optimizer(..., weight_decay=.1) makes an optimiser without weight decay.
#
# Guess: keyword arguments that it does not name go to the optimiser's class, so that `weight_decay` holds as in torch.optim.AdamW(...).
# Seen:  it gives each of its four groups of parameters a weight decay of its own, which is `loraplus_weight_decay`, 0 if that
#        is not given. `weight_decay` becomes the default of groups without one, of which there are none: the optimiser's
#        `defaults` show .1, no parameter has it, and there is no warning. betas and eps do reach all groups.
# Fails if that changes. Run: bash findings/peft-loraplus-weight-decay.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 peft==0.21.2
cat > "$folder/look.py" <<'PYTHON'
import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer

model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 4)), LoraConfig(target_modules=["0"], r=2))


def decays(**options):
    """The defaults' weight decay, and those of all groups with parameters."""
    made = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=4, betas=(0.8, 0.9), **options)
    groups = [group for group in made.param_groups if group["params"]]
    assert all(group["betas"] == (0.8, 0.9) for group in groups)
    return made.defaults["weight_decay"], [group["weight_decay"] for group in groups]


named, own = decays(weight_decay=0.1), decays(loraplus_weight_decay=0.1)
print("weight_decay=.1: defaults and groups", named)
print("loraplus_weight_decay=.1: defaults and groups", own)
assert named == (0.1, [0.0, 0.0]), "it has changed"
assert own[1] == [0.1, 0.1], "it has changed"
PYTHON
"$folder/venv/bin/python" "$folder/look.py"
