"""Which linear modules get an adapter where ``model.lora.target_modules`` is not given, by architecture."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

# The usual attention: every layer has the four.
USUAL = ["q_proj", "k_proj", "v_proj", "o_proj"]
# Parts of a decoder layer that mix tokens: attention of any kind, state-space and recurrent layers, convolutions.
MIXERS = re.compile(r"attn|attention|mixer|mamba|ssm|conv|temporal|delta")
# Parts of them that get none: what chooses tokens by rank has no gradient (DSA), and what unfolds latents (MLA) reads those
# of the whole context, so that the adapter would act on the context, too.
EXCEPT = re.compile(r"indexer|router|gate$|kv_b_proj$")


def default_targets(layers: Sequence[nn.Module], model_type: str) -> list[str]:
    """Choose the modules that get an adapter.

    The four matrices of attention where every decoder layer has them; otherwise what PEFT chooses for the architecture;
    otherwise the linear modules of all layers that mix tokens.

    Args:
        layers: The model's decoder layers, possibly on the meta device.
        model_type: Of the decoder's configuration, such as ``gpt2``.

    Returns:
        Names of modules; none if there are no such modules.
    """
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT

    names = [_linear(layer) for layer in layers]
    if all(set(USUAL) <= {name.rpartition(".")[2] for name in found} for found in names):
        return list(USUAL)
    own = PEFT.get(model_type, ())
    if not isinstance(own, str) and any(name.rpartition(".")[2] in own for found in names for name in found):
        return sorted(own)
    mixers = [name for found in names for name in found if MIXERS.search(name) and not EXCEPT.search(name)]
    return list(dict.fromkeys(name.rpartition(".")[2] for name in mixers))


def _linear(layer: nn.Module) -> list[str]:
    """Dotted names of the matrices of a layer that can have an adapter which is used."""
    found = []
    for name, module in layer.named_modules():
        parent = type(layer.get_submodule(name.rpartition(".")[0])).__name__
        # Kernels of Mamba layers take the weights of out_proj, past the adapter.
        in_kernel = name.endswith("out_proj") and re.search("Mamba|Bamba", parent)
        if (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D") and not in_kernel:
            found.append(name)
    return found
