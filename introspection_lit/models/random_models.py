"""Models of known shapes with random weights, for measuring speed and memory without downloading weights.

Time and memory of a step depend on the shape of a model, not on its weights. The model name ``random:qwen2.5-coder-32b``
builds one in seconds, on its device and quantised as it will run. Its answers mean nothing; the name is recorded in
everything that is made with it.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel


RANDOM = "random:"
# As published in each model's config.json; ``tiny`` is for tests.
SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-coder-32b": {
        "model_type": "qwen2",
        "num_hidden_layers": 64,
        "hidden_size": 5120,
        "intermediate_size": 27648,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "vocab_size": 152064,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
    },
    "qwen2.5-7b": {
        "model_type": "qwen2",
        "num_hidden_layers": 28,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
    },
    "smollm2-135m": {
        "model_type": "llama",
        "num_hidden_layers": 30,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "model_type": "qwen2",
        "num_hidden_layers": 6,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 49152,  # of the tokenizer that random models get
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
    },
}
# Standard deviation of the random weights, as models are usually initialised; activations stay finite in every dtype.
STANDARD_DEVIATION = 0.02


def is_random(name: str) -> bool:
    """Whether a model name stands for random weights."""
    return name.startswith(RANDOM)


def random_config(name: str) -> PretrainedConfig:
    """The configuration of a known shape.

    Args:
        name: Name of the shape, with or without the prefix ``random:``.

    Raises:
        ValueError: The name is unknown.
    """
    from transformers import AutoConfig

    sizes = SHAPES.get(name.removeprefix(RANDOM))
    if sizes is None:
        known = ", ".join(RANDOM + each for each in SHAPES)
        raise ValueError(f"base.name_or_path: got {name!r}. Expected one of the known shapes: {known}.")
    config = AutoConfig.for_model(**sizes)
    config.name_or_path = RANDOM + name.removeprefix(RANDOM)
    return config


def weightless_model(
    config: PretrainedConfig, dtype: torch.dtype = torch.bfloat16, attention: str = "sdpa"
) -> PreTrainedModel:
    """Build a model whose parameters are on the device ``meta`` and whose buffers are on the CPU.

    Args:
        config: Of the model.
        dtype: Of the parameters.
        attention: The attention implementation.
    """
    from accelerate import init_empty_weights  # type: ignore[import-untyped]
    from transformers import AutoModelForCausalLM

    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    model.tie_weights()  # moving to meta unties them
    return model


def random_model(
    config: PretrainedConfig,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    quantization: BitsAndBytesConfig | None = None,
    seed: int = 0,
) -> PreTrainedModel:
    """Build a model with random weights on its device, layer by layer, without holding all weights unquantised.

    Args:
        config: Of the model.
        device: Device of the weights.
        dtype: Of weights that are not quantised.
        attention: The attention implementation.
        quantization: 4 bits, or None.
        seed: Of the weights, which are equal on every process and on every device of one type.

    Returns:
        The model, quantised by the code that ``from_pretrained`` uses. Weights of norms are 1, all others are normal with
        standard deviation .02.

    Raises:
        ValueError: The quantisation is not 4 bits.
    """
    if quantization is not None and not quantization.load_in_4bit:
        raise ValueError("base.quantization: models with random weights can be 'nf4' or 'none'.")
    device = torch.device(device)
    random = torch.Generator(device).manual_seed(seed)
    model = weightless_model(config, dtype, attention)
    if quantization is not None:
        from transformers.quantizers import AutoHfQuantizer

        quantizer = AutoHfQuantizer.from_config(quantization, pre_quantized=False)
        quantizer.preprocess_model(model=model, dtype=dtype, device_map={"": device})
        _fill_quantised(model, dtype, random)
        model.hf_quantizer = quantizer
        quantizer.postprocess_model(model)
    _fill(model, dtype, random)
    return model


def _fill(model: nn.Module, dtype: torch.dtype, random: torch.Generator) -> None:
    """Replace every parameter on ``meta`` by random values on the generator's device, and move the buffers there."""
    parameters: dict[int, nn.Parameter] = {}  # by id on meta, so that tied parameters stay tied
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.device.type != "meta":
                continue
            if id(parameter) not in parameters:
                values = _normal(parameter.shape, dtype, random)
                if name == "weight" and values.dim() == 1:  # of a norm
                    values.fill_(1.0)
                parameters[id(parameter)] = nn.Parameter(values, requires_grad=False)
            setattr(module, name, parameters[id(parameter)])
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(random.device))


def _fill_quantised(model: nn.Module, dtype: torch.dtype, random: torch.Generator) -> None:
    """Fill every 4-bit layer: one of each shape is quantised, the others get its bytes, rotated."""
    import bitsandbytes

    packing: Any = bitsandbytes.nn
    first: dict[tuple[int, int], Any] = {}
    module: Any
    for module in model.modules():
        if not isinstance(module, packing.Linear4bit):
            continue
        shape, empty = (module.out_features, module.in_features), module.weight
        if shape not in first:
            first[shape] = packing.Params4bit(
                _normal(shape, dtype, random),
                requires_grad=False,
                compress_statistics=empty.compress_statistics,
                quant_type=empty.quant_type,
                quant_storage=empty.quant_storage,
            ).to(random.device)
        weight = copy.deepcopy(first[shape])  # with its scales
        packed = weight.data.view(torch.uint8).flatten()
        shift = int(torch.randint(len(packed), (), generator=random, device=random.device))
        weight.data = packed.roll(shift).view(weight.dtype).reshape(weight.shape)
        weight.module = module
        module.weight, module.quant_state = weight, weight.quant_state


def _normal(shape: tuple[int, ...] | torch.Size, dtype: torch.dtype, random: torch.Generator) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=random.device).normal_(0.0, STANDARD_DEVIATION, generator=random)
