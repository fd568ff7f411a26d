"""Loading for FSDP in two real processes (gloo, CPU): the second one never reads weights, and both compute the same."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from bitsandbytes.nn import Params4bit
from peft import PeftModel
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import CustomPolicy
from transformers import PreTrainedModel

from introspection_lit.models.architecture import find_decoder_layers
from introspection_lit.models.base_model import BaseModel, Lora
from introspection_lit.models.loading import add_lora, load_model
from introspection_lit.steering.vector_bank import VectorBank
from introspection_lit.training.distributed import fail_together
from introspection_lit.training.fsdp_loading import load_shared, materialise, one_layer_at_a_time, shared_bank
from introspection_lit.utils.errors import ConfigurationError

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
IDS = torch.arange(10, 60).view(2, 25)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("qwen2-wide", {}),
    "tied, with a buffer that scales": ("gemma", {"dtype": "bfloat16"}),
    "nf4": ("qwen2-wide", {"quantization": "nf4", "quant_storage": "float32"}),
    "nf4 in bfloat16": ("qwen2-wide", {"quantization": "nf4", "dtype": "bfloat16", "quant_storage": "bfloat16"}),
}
FAILURES = ("no weights", "another model", "a bug", "no bank")


def a_bank() -> VectorBank:
    """A small bank with all that a bank can have."""
    random = torch.Generator().manual_seed(0)
    directions = {"train": torch.randn(3, 8, generator=random), "concept": torch.randn(2, 4, 8, generator=random)}
    names = {"train": ["a", "b", "c"], "concept": ["bread", "cats"]}
    return VectorBank(directions, names, torch.rand(4, generator=random), {"seed": "0"}, {"concept": torch.ones(2, 4)})


def no_bank() -> VectorBank:
    """What happens where a bank cannot be made."""
    raise ConfigurationError(["concepts: none."])


def state_of(model: nn.Module) -> dict[str, Any]:
    """The quantisation state of every 4-bit layer, as bitsandbytes writes it into files."""
    return {n: m.quant_state.as_dict() for n, m in model.named_modules() if getattr(m, "quant_state", None) is not None}


def wrap(model: PeftModel) -> FullyShardedDataParallel:
    """Shard decoder layers and adapter matrices, sending weights from the first process."""
    layers = set(find_decoder_layers(model))
    matrices = {module for name, module in model.named_modules() if name.split(".")[-2:-1] in (["lora_A"], ["lora_B"])}
    # The check forbids the CPU because NCCL could not send from there; gloo can.
    with mock.patch("torch.distributed.fsdp._init_utils._check_module_states_for_sync_module_states"):
        return FullyShardedDataParallel(
            model,
            auto_wrap_policy=CustomPolicy(lambda module: module in layers | matrices),
            device_id=CPU,
            use_orig_params=True,
            sync_module_states=True,
            param_init_fn=partial(materialise, device=CPU),
        )


def load_and_run(base: BaseModel, rank: int) -> dict[str, Any]:
    """Load a model as FSDP does, put an adapter on it, shard it and run it."""
    model = load_shared(base, rank, CPU)
    frozen = not any(parameter.requires_grad for parameter in model.parameters())
    reading = not any(module.training for module in model.modules())
    torch.manual_seed(rank)
    adapted = add_lora(model, Lora()).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name and rank == 0:
            nn.init.normal_(parameter)  # zero in a fresh adapter, which then does nothing
    found: dict[str, Any] = {
        "devices": {parameter.device.type for parameter in adapted.parameters()},
        "only read": frozen and reading,
        "trained": [name for name, parameter in adapted.named_parameters() if parameter.requires_grad],
        "repacks": [getattr(module, "support_avx512bf16_for_cpu", False) for module in model.modules()],
        "adapter": {n: p.clone() for n, p in adapted.state_dict().items() if "lora_" in n} if rank == 0 else {},
    }
    sharded = wrap(adapted)
    with torch.no_grad():
        found["on"] = sharded(input_ids=IDS).logits
        with adapted.disable_adapter():
            found["off"] = sharded(input_ids=IDS).logits
    sharded(input_ids=IDS).logits.sum().backward()
    found["gradients"] = sum(p.grad is not None and bool(p.grad.any()) for p in sharded.parameters())
    found["buffers"] = {name.replace("_fsdp_wrapped_module.", ""): b.clone() for name, b in sharded.named_buffers()}
    found["states"] = {name.replace("_fsdp_wrapped_module.", ""): state for name, state in state_of(sharded).items()}
    found["own numbers"] = sum(parameter.numel() for parameter in sharded.parameters())
    return found


def fail(what: str, rank: int, folders: dict[str, str]) -> str:
    """Do what must fail in both processes, and say how it did."""
    try:
        if what == "no weights":
            load_shared(BaseModel(folders["no weights"]), rank, CPU)
        elif what == "another model":
            load_shared(BaseModel(folders["gemma" if rank else "qwen2-wide"]), rank, CPU)
        elif what == "a bug":
            fail_together(lambda: {}["nothing"] if rank == 0 else None)
        else:
            shared_bank(no_bank, rank)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def process(rank: int, folders: dict[str, str], room: str) -> None:
    """Everything that one of the two processes does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{room}/store")
    found: dict[str, Any] = {name: load_and_run(BaseModel(folders[f], **kw), rank) for name, (f, kw) in MODELS.items()}
    found |= {what: fail(what, rank, folders) for what in FAILURES}
    found["bank"] = vars(shared_bank(a_bank if rank == 0 else no_bank, rank))
    torch.save(found, f"{room}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tiny_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the two processes have found."""
    room = tmp_path_factory.mktemp("two")
    empty = shutil.copytree(tiny_folder("gemma"), room / "empty", ignore=shutil.ignore_patterns("*.safetensors"))
    folders = {family: str(tiny_folder(family)) for family, _ in MODELS.values()} | {"no weights": str(empty)}
    torch.multiprocessing.spawn(process, (folders, str(room)), nprocs=2)
    return [torch.load(room / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture(params=list(MODELS))
def both(
    request: pytest.FixtureRequest, found: list[dict[str, Any]], tiny_folder: Callable[[str], Path]
) -> tuple[dict[str, Any], dict[str, Any], PreTrainedModel]:
    """What the first and the second process have found of a model, and that model loaded plainly."""
    family, options = MODELS[request.param]
    return found[0][request.param], found[1][request.param], load_model(BaseModel(str(tiny_folder(family)), **options))


def test_only_the_first_process_has_weights(both) -> None:
    """The others have nothing but their shapes, until FSDP gives them their shard."""
    first, second, plain = both
    assert first["devices"] == {"cpu"}
    assert second["devices"] == {"meta"}
    whole = sum(parameter.numel() for parameter in add_lora(plain, Lora()).parameters())
    assert second["own numbers"] < 0.51 * whole + 100  # a shard is padded by less than a number for each unit


def test_logits_are_those_of_the_plain_model(both) -> None:
    """With the first process's adapter and without, bit for bit."""
    first, second, plain = both
    adapted = add_lora(plain, Lora()).eval()
    adapted.load_state_dict(first["adapter"], strict=False)
    with torch.no_grad():
        on = adapted(input_ids=IDS).logits
        with adapted.disable_adapter():
            off = adapted(input_ids=IDS).logits
    assert not torch.equal(on, off)
    for process in (first, second):
        assert torch.equal(process["on"], on)
        assert torch.equal(process["off"], off)


def test_buffers_and_quantisation_states_are_those_of_the_plain_model(both) -> None:
    """Rotary frequencies are in no file, and states are no parameters: FSDP alone would not send them all."""
    first, second, plain = both
    expected = {f"base_model.model.{name}": buffer for name, buffer in plain.named_buffers()}
    states = {f"base_model.model.{name}": state for name, state in state_of(plain).items()}
    assert any("inv_freq" in name for name in expected)
    for process in (first, second):
        assert process["buffers"].keys() == expected.keys()
        assert all(torch.equal(process["buffers"][name], buffer) for name, buffer in expected.items())
        own = {name.replace(".base_layer", ""): state for name, state in process["states"].items()}
        assert own.keys() == states.keys()
        for name, state in states.items():
            assert all(same(own[name][part], value) for part, value in state.items()), name


def same(a: Any, b: Any) -> bool:
    """Equal tensors, or equal values."""
    return torch.equal(a, b) if isinstance(b, torch.Tensor) else a == b


def test_only_the_adapter_is_trained(both) -> None:
    """In both processes: frozen base, in eval mode and left as packed, and gradients that reach the adapter's shards."""
    for process in both[:2]:
        assert process["trained"] == both[0]["trained"]
        assert all("lora_" in name for name in process["trained"])
        assert process["only read"]
        assert not any(process["repacks"])
        assert process["gradients"] == len(process["trained"])


def test_a_model_without_weights_fails_everywhere(found) -> None:
    """The process that could have gone on hears of it, instead of waiting."""
    for process in found:
        assert process["no weights"].startswith("ConfigurationError: 1 problem:\n  - base.name_or_path: ")


def test_two_different_models_are_noticed(found) -> None:
    """Other files on another machine."""
    for process in found:
        assert process["another model"].startswith("ConfigurationError")
        assert "differs from this process's" in process["another model"]


def test_a_bug_in_one_process_is_said_in_all(found) -> None:
    """As it is where it came up, with its traceback; as a problem elsewhere."""
    assert found[0]["a bug"].startswith("KeyError")
    assert found[1]["a bug"] == "ConfigurationError: 1 problem:\n  - process 0 failed: KeyError: 'nothing'"


def test_the_bank_of_the_first_process_is_everybodys(found) -> None:
    """All of it; and where it cannot be made, nobody has one."""
    for process in found:
        bank, expected = VectorBank(**process["bank"]), a_bank()
        assert (bank.fingerprint, bank.names, bank.metadata) == (expected.fingerprint, expected.names, expected.metadata)
        assert torch.equal(bank.lengths["concept"], expected.lengths["concept"])
        assert process["no bank"] == "ConfigurationError: 1 problem:\n  - concepts: none."


def test_one_layer_at_a_time(family_model: PreTrainedModel) -> None:
    """Logits as ever; a decoder layer is away from home while it runs, and all are home afterwards, also after an error."""
    layers = find_decoder_layers(family_model)
    with torch.no_grad():
        expected = family_model(input_ids=IDS).logits

    def places(module: nn.Module) -> list[int]:
        return [tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers())]

    home, home_of_layers = places(family_model), [places(layer) for layer in layers]
    away: list[list[bool]] = []

    def look(*_: Any) -> None:
        away.append(
            [all(x != y for x, y in zip(places(a), b, strict=True)) for a, b in zip(layers, home_of_layers, strict=True)]
        )

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with torch.no_grad(), one_layer_at_a_time(family_model, layers, CPU):
        handles = [layer.register_forward_pre_hook(look) for layer in layers]
        assert torch.equal(family_model(input_ids=IDS).logits, expected)
    assert away == [[a is b for b in layers] for a in layers]
    assert places(family_model) == home
    handles.append(layers[1].self_attn.register_forward_pre_hook(stop))
    with pytest.raises(KeyboardInterrupt), one_layer_at_a_time(family_model, layers, CPU):
        family_model(input_ids=IDS)
    assert places(family_model) == home


def test_room_is_made_for_what_has_none(tiny: Path) -> None:
    """Tied weights stay tied, classes and states are kept, and what has a place keeps it."""
    first, second = nn.Embedding(4, 3, device="meta"), nn.Linear(3, 4, bias=False)
    second.weight = first.weight
    packed = Params4bit(torch.empty(8, 1, device="meta"), quant_type="nf4", bnb_quantized=True)
    layer = nn.Module()
    layer.weight = packed
    placed = copy.deepcopy(kept := nn.Linear(3, 3))
    for module in (first, second, layer, kept):
        materialise(module, CPU)
    assert first.weight is second.weight
    assert first.weight.device == CPU
    assert first.weight.requires_grad
    assert layer.weight is packed
    assert (type(packed), packed.device, packed.quant_type, packed.bnb_quantized) == (Params4bit, CPU, "nf4", True)
    assert not packed.requires_grad
    assert torch.equal(kept.weight, placed.weight)
