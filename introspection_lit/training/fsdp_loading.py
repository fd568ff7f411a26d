"""Loading for FSDP: the first process reads the model, the others get its weights layer by layer as they are sharded.

Loaded by each process, a model takes its size in host memory as many times as there are processes. Here the first process
loads (and quantises) it on the CPU and the others build the same model on the meta device, without weights. FSDP then makes
room on the device for one unit after the other (``param_init_fn``: :func:`materialise`), fills it from the first process
(``sync_module_states``), and keeps a shard of it. No device ever holds more than one whole unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from introspection_lit.models.base_model import BaseModel
from introspection_lit.models.loading import freeze, load_model
from introspection_lit.models.stored_quantization import quantization_config, stored_quantization
from introspection_lit.models.whole_model import auto_class, whole_config
from introspection_lit.training.distributed import broadcast_object, fail_together

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from introspection_lit.steering.vector_bank import VectorBank


T = TypeVar("T")
Form = tuple[tuple[int, ...], torch.dtype]  # shape and dtype of a tensor


class Outline(NamedTuple):
    """The shapes and dtypes of the first process's model, for the other processes; plain values.

    Attributes:
        tensors: Shape and dtype of each parameter and buffer, by name.
        states: Of each 4-bit layer, by name, the tensors of its quantisation state: scales, code, and the rest as bytes.
    """

    tensors: dict[str, Form]
    states: dict[str, dict[str, Form]]


def load_shared(base: BaseModel, rank: int, device: torch.device) -> PreTrainedModel:
    """Load the frozen base model in the first process, and its outline in all others. Collective: every rank must call it.

    The quantisation state of each 4-bit layer is no parameter, so FSDP does not send it: it is sent here, whole, to the
    device of every process (a byte for 64 weights, .5 GB for 32B).

    Args:
        base: The base model; unquantised, or NF4 with a floating storage dtype, which FSDP can shard.
        rank: This process; 0 is the first.
        device: Where this process computes, and what the process group's tensors lie on.

    Returns:
        The causal language model in eval mode; no parameter requires a gradient. Its weights are on the CPU in the first
        process, and on the meta device in all others; quantisation states are on ``device`` everywhere.

    Raises:
        ConfigurationError: In every process: the model cannot be loaded in one of them, or is not the same in all.
    """
    model = fail_together(lambda: load_model(base) if rank == 0 else _without_weights(base))
    outline = broadcast_object(_outline(model) if rank == 0 else None)
    fail_together(lambda: _follow(model, outline.tensors, list(outline.states)) if rank > 0 else None)
    for name, forms in outline.states.items():
        layer: Any = model.get_submodule(name)
        _share_quantisation(layer, forms, rank, device, packed=outline.tensors[f"{name}.weight"])
    return freeze(model)


def _without_weights(base: BaseModel) -> PreTrainedModel:
    """Build the model on the meta device as ``from_pretrained`` builds it before it reads the weights."""
    from transformers.quantizers import AutoHfQuantizer

    try:
        config = whole_config(base)
        quantization = quantization_config(base, stored_quantization(config.to_dict()))
        with torch.device("meta"):
            model: PreTrainedModel = auto_class(config).from_config(
                config,
                dtype=getattr(torch, base.dtype),
                attn_implementation=base.implementation,
                trust_remote_code=base.trust_remote_code,
            )
        model.tie_weights()  # transformers 5.0 leaves them untied on this device
        if quantization is not None:
            model.hf_quantizer = AutoHfQuantizer.from_config(quantization, pre_quantized=False)
            model.hf_quantizer.preprocess_model(model, device_map={"": torch.device("meta")})
            model.hf_quantizer.postprocess_model(model)
    except (OSError, ImportError) as error:
        raise ValueError(
            f"base: the model {base.name_or_path!r} could not be built without its weights: {error}"
        ) from error
    return model


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All parameters and buffers, those that are shared once."""
    return chain(model.named_parameters(), model.named_buffers())


def _outline(model: nn.Module) -> Outline:
    tensors = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in _named_tensors(model)}
    states: dict[str, dict[str, Form]] = {}
    for name, layer in model.named_modules():
        if (state := getattr(layer, "quant_state", None)) is not None:
            parts = state.as_dict(packed=True)
            states[name] = {part: (tuple(tensor.shape), tensor.dtype) for part, tensor in parts.items()}
    return Outline(tensors, states)


def _follow(model: nn.Module, expected: dict[str, Form], packed: Sequence[str]) -> None:
    """Give a model without weights the dtypes of the first process's, and check that all else is the same.

    Args:
        model: On the meta device.
        expected: Shape and dtype of each tensor.
        packed: Names of the 4-bit layers, whose weights have another shape once they are packed.
    """
    found = dict(_named_tensors(model))
    weights = {f"{name}.weight" for name in packed}
    differing = found.keys() ^ expected.keys()
    differing |= {name for name in found.keys() & expected.keys() - weights if found[name].shape != expected[name][0]}
    if differing:
        examples = ", ".join(sorted(differing)[:3])
        raise ValueError(
            f"base: the model that the first process has loaded differs from this process's in {len(differing)} tensors, "
            f"such as {examples}. Expected the same files and versions of the packages on every machine."
        )
    for name, tensor in found.items():
        tensor.data = tensor.data.to(expected[name][1])


def _share_quantisation(layer: Any, forms: dict[str, Form], rank: int, device: torch.device, packed: Form) -> None:
    """Send the quantisation state of a 4-bit layer, and pack the weights of those that have none yet."""
    from bitsandbytes.functional import QuantState
    from bitsandbytes.nn.modules import Params4bit

    if rank == 0:
        layer.quant_state.to(device)
        parts = {name: part.to(device) for name, part in layer.quant_state.as_dict(packed=True).items()}
    else:
        parts = {name: torch.empty(shape, dtype=dtype, device=device) for name, (shape, dtype) in forms.items()}
    for name in forms:
        dist.broadcast(parts[name], src=0)
    if rank == 0:
        return
    shape, dtype = packed
    layer.quant_state = QuantState.from_dict(parts, device=device)
    layer.weight = Params4bit(
        torch.empty(shape, dtype=dtype, device="meta"),
        quant_state=layer.quant_state,
        blocksize=layer.quant_state.blocksize,
        compress_statistics=layer.quant_state.nested,
        quant_type=layer.quant_state.quant_type,
        quant_storage=dtype,
        module=layer,
        bnb_quantized=True,
    )


def materialise(module: nn.Module, device: torch.device) -> None:
    """Allocate a module's own parameters and buffers on a device, uninitialised; FSDP's ``param_init_fn``.

    The tensors stay the same objects: tied weights stay tied, and packed 4-bit weights keep their class and state.

    Args:
        module: Its own tensors on the meta device are allocated; all others, and those of its children, are left alone.
        device: The device.
    """
    for tensor in chain(module.parameters(recurse=False), module.buffers(recurse=False)):
        if tensor.is_meta:
            room = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            filled = torch.Tensor._make_subclass(type(tensor), room, tensor.requires_grad)
            vars(filled).update(vars(tensor))
            torch.utils.swap_tensors(tensor, filled)  # type: ignore[no-untyped-call]


def shared_bank(make: Callable[[], VectorBank], rank: int) -> VectorBank:
    """Make a vector bank in the first process, which alone has weights before FSDP, and send it to all.

    Args:
        make: Makes it; called in the first process only.
        rank: This process; 0 is the first.

    Raises:
        ConfigurationError: In every process: it could not be made.
    """
    bank = fail_together(lambda: make() if rank == 0 else None)
    return broadcast_object(bank)


@contextmanager
def one_layer_at_a_time(model: nn.Module, layers: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Run a model that is on the CPU on a device that cannot hold all of it.

    Each decoder layer is copied to the device for its forward and dropped after it; tensors outside the layers (embedding,
    norm, head) stay there while the block runs. For a few forward passes without gradient.

    Args:
        model: The model; after the block it is back on the CPU.
        layers: Its decoder layers.
        device: The device that computes.
    """
    inside = {id(tensor) for layer in layers for _, tensor in _named_tensors(layer)}
    copied: list[tuple[Tensor, Tensor]] = []

    def copy_to_device(tensors: Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
        moved = [(tensor, tensor.data) for tensor in tensors]
        for tensor, home in moved:
            tensor.data = torch.empty(home.shape, dtype=home.dtype, device=device).copy_(home)
        return moved

    def restore(moved: list[tuple[Tensor, Tensor]]) -> None:
        while moved:
            tensor, home = moved.pop()
            tensor.data = home

    handles = []
    for layer in layers:
        handles.append(layer.register_forward_pre_hook(lambda module, _: copied.extend(copy_to_device(_tensors(module)))))
        handles.append(layer.register_forward_hook(lambda *_: restore(copied), always_call=True))
    outside = copy_to_device(tensor for _, tensor in _named_tensors(model) if id(tensor) not in inside)
    try:
        yield
    finally:
        restore(outside)
        restore(copied)  # an interrupt calls no hook
        for handle in handles:
            handle.remove()


def _tensors(module: nn.Module) -> list[Tensor]:
    return [tensor for _, tensor in _named_tensors(module)]
