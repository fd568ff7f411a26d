#!/usr/bin/env bash
# torch 2.13.0: autocast casts a frozen weight again in every forward pass; it keeps the cast of a trainable one.
#
# Guess: inside one `torch.autocast` block the cast of a weight is made once and kept until the block ends (cache_enabled is True
#        by default), frozen or not. LoRA in "bf16-mixed" would then cast its base model once a step.
# Seen:  three passes of a linear layer through one block, with its weight in float32: the weight is cast once if it requires a
#        gradient, three times if it does not, with gradients enabled in both cases. With LoRA nearly all weights are frozen, so a
#        step with several passes (prefill, references, question) casts the whole base model in each of them.
# Fails if that changes. Run: bash findings/autocast-frozen-weights.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
cat > "$folder/look.py" <<'PYTHON'
import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Casts(TorchDispatchMode):
    """Counts casts of a weight to bfloat16."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default and made.shape == self.shape:
            self.count += made.dtype == torch.bfloat16
        return made


counts = {}
for trainable in (True, False):
    layer = torch.nn.Linear(24, 40, bias=False).requires_grad_(trainable)
    inputs = torch.randn(2, 24, requires_grad=True)  # as in LoRA: the gradient passes through the frozen layer
    with Casts(layer.weight.shape) as casts, torch.autocast("cpu", torch.bfloat16):
        for _ in range(3):
            layer(inputs)
    counts["trainable" if trainable else "frozen"] = int(casts.count)
print(f"torch {torch.__version__}: casts of the weight in three passes: {counts}")
assert counts == {"trainable": 1, "frozen": 3}
PYTHON
"$folder/venv/bin/python" "$folder/look.py"
