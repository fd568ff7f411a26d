"""Training in several processes: FSDP for frozen packed weights and an adapter, and what is asked of any other strategy.

DDP is Lightning's own (``--trainer.strategy ddp``). FSDP is ``--trainer.strategy introspection_fsdp``: Lightning's strategy
neither runs on the CPU nor clips gradients by norm, casts rotary frequencies to bfloat16 under ``bf16-mixed``, gathers the
whole base model for every checkpoint, and loses its outermost unit between a fit and the test after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
import torch.distributed as dist
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins import FSDPPrecision, Precision
from lightning.pytorch.strategies import (
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    ParallelStrategy,
    Strategy,
    StrategyRegistry,
)
from torch import Tensor, nn
from torch.optim import Optimizer

from introspection_lit.training.checks import precision_problems
from introspection_lit.training.fsdp_shards import adapter_matrices, dtype_problems, gather_shards, own_part, plain_name
from introspection_lit.utils.errors import ConfigurationError

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule
    from torch.distributed.fsdp import FullyShardedDataParallel

    from introspection_lit.models.base_model import BaseModel


# The first torch whose FSDP can write flat weights back that are not sharded (pytorch pull request 154369).
ALONE = "2.9"


class ShardedPrecision(FSDPPrecision):
    """The precisions of one process, in each process of FSDP.

    Differs from Lightning's: nothing is cast as it is gathered, so that ``bf16-mixed`` means autocast over float32 adapters
    (and float32 gradients and rotary frequencies), on the CPU too; ``32-true`` leaves a bfloat16 base model as it is; and
    norm clipping works.
    """

    def __init__(self, precision: Literal["32-true", "bf16-true", "bf16-mixed"], strategy: ShardedStrategy) -> None:
        super().__init__(precision)
        self.strategy = strategy

    @property
    def mixed_precision_config(self) -> None:  # type: ignore[override]
        """No casts: autocast makes them."""
        return

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Cast the module under ``bf16-true`` only."""
        return super().convert_module(module) if self.precision == "bf16-true" else module

    def convert_input(self, data: Any) -> Any:
        """Cast a batch under ``bf16-true`` only."""
        return super().convert_input(data) if self.precision == "bf16-true" else data

    def convert_output(self, data: Any) -> Any:
        """Cast what a step returns under ``bf16-true`` only."""
        return super().convert_output(data) if self.precision == "bf16-true" else data

    def forward_context(self) -> AbstractContextManager[Any]:
        """Autocast on the device that is in use: Lightning's is for CUDA alone."""
        if self.precision == "bf16-mixed":
            return torch.autocast(self.strategy.root_device.type, dtype=torch.bfloat16)
        return super().forward_context()

    def clip_grad_by_norm(self, optimizer: Optimizer, clip_val: float) -> None:
        """Clip by the norm over the shards of all processes (Lightning raises: issue 19235)."""
        cast("FullyShardedDataParallel", self.strategy.model).clip_grad_norm_(clip_val)


class ShardedStrategy(FSDPStrategy):
    """FSDP (FULL_SHARD) of a frozen base model and its LoRA adapter, on GPUs, or on the CPU with gloo.

    Every decoder layer is a unit, and so is every matrix of the adapter: a unit has weights of one dtype, and packed
    weights and float32 adapters differ. Checkpoints are those of one process: the whole adapter under the
    same names, and the optimiser's state in the same order, so that a run resumes with or without FSDP.
    """

    strategy_name = "introspection_fsdp"

    def __init__(self, process_group_backend: str | None = None) -> None:
        self.root: FullyShardedDataParallel | None = None
        self.shapes: dict[str, torch.Size] = {}  # of the adapter's tensors before they were sharded
        super().__init__(process_group_backend=process_group_backend)

    @property
    def precision_plugin(self) -> FSDPPrecision:
        """Ours, whatever the trainer has chosen."""
        return cast("FSDPPrecision", self._precision_plugin) or ShardedPrecision("32-true", self)

    @precision_plugin.setter
    def precision_plugin(self, plugin: Precision | None) -> None:
        if plugin is not None and not isinstance(plugin, ShardedPrecision):
            plugin = ShardedPrecision(cast("Any", plugin.precision), self)
        self._precision_plugin = plugin

    def _setup_model(self, model: nn.Module) -> nn.Module:
        """Shard the module; a second call (the test after fit) gives the same wrapper.

        Raises:
            ConfigurationError: A unit has weights of several dtypes.
        """
        from torch.distributed.fsdp import FullyShardedDataParallel
        from torch.distributed.fsdp.wrap import CustomPolicy

        if self.root is not None and self.root.module is model:
            return self.root
        module = cast("Any", model)  # IntrospectionModule: its layers and its model
        layers, matrices = set(module.layers), set(adapter_matrices(module.model))
        if problems := dtype_problems(module, layers | matrices):
            raise ConfigurationError(problems)
        self.shapes = {name: parameter.shape for name, parameter in module.named_parameters() if "lora_" in name}
        self.root = FullyShardedDataParallel(
            module,
            sharding_strategy=self.sharding_strategy,
            auto_wrap_policy=CustomPolicy(lambda child: child in layers or child in matrices),
            device_id=self.root_device,  # of any type: without it, FSDP looks for an accelerator
            use_orig_params=True,
            **self._sent_from_first(module),
        )
        return super()._setup_model(self.root)

    def _sent_from_first(self, module: nn.Module) -> dict[str, Any]:
        """How the weights of the first process, the only ones that are loaded, come to the others."""
        from introspection_lit.training.fsdp_loading import materialise

        if self.world_size == 1:
            return {}
        if self.root_device.type != "cpu":
            return {"sync_module_states": True, "param_init_fn": partial(materialise, device=self.root_device)}
        for child in module.modules():  # FSDP sends between accelerators only
            materialise(child, self.root_device)
        for tensor in chain(module.parameters(), module.buffers()):
            dist.broadcast(tensor.data, src=0)
        return {}

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning restores it as in one process, through :meth:`load_optimizer_state_dict`."""
        return True

    def _shards(self) -> dict[str, nn.Parameter]:
        """This process's part of each tensor of the adapter, by the name that it has in one process."""
        assert self.lightning_module is not None
        named = {plain_name(name): parameter for name, parameter in self.lightning_module.named_parameters()}
        return {name: named[name] for name in self.shapes}

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The whole adapter, on every process; the base model is not gathered."""
        return {name: gather_shards(shard, self.shapes[name]) for name, shard in self._shards().items()}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The whole state, on every process, as in one process."""
        state = (optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer).state_dict()
        shapes = self._shapes_in(optimizer)
        # Adam has no state for an empty shard; the first process's is never empty, and it is the one that writes.
        kinds = self.broadcast({number: {k: v.dim() for k, v in kept.items()} for number, kept in state["state"].items()})
        empty = torch.empty(0, device=self.root_device)
        gathered: dict[int, dict[str, Tensor]] = {}
        for number, dimensions in kinds.items():
            own = state["state"].get(number, {})
            parts = {kind: own.get(kind, empty) for kind in dimensions}
            gathered[number] = {
                k: gather_shards(part, shapes[number]) if dimensions[k] else part for k, part in parts.items()
            }
        return {**state, "state": gathered}

    def _shapes_in(self, optimizer: Optimizer) -> list[torch.Size]:
        """The shape of each tensor that an optimiser steps, in its order."""
        names = {id(shard): name for name, shard in self._shards().items()}
        return [self.shapes[names[id(shard)]] for group in optimizer.param_groups for shard in group["params"]]

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read the file; nothing is put into the model yet."""
        return ParallelStrategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this process's part of the adapter."""
        for name, shard in self._shards().items():
            shard.data.copy_(own_part(checkpoint["state_dict"][name]).view_as(shard))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this process's part of the optimiser's state."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            shards = [shard for group in optimizer.param_groups for shard in group["params"]]
            state = {
                number: {k: own_part(value).view_as(shards[number]) if value.dim() else value for k, value in kept.items()}
                for number, kept in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})


StrategyRegistry.register(
    ShardedStrategy.strategy_name, ShardedStrategy, description="FSDP of a frozen, possibly packed base model with LoRA"
)


def adapter_shapes(module: LightningModule) -> Mapping[str, torch.Size]:
    """The unsharded shapes of the adapter's tensors, by their names in one process."""
    strategy = module.trainer.strategy
    if isinstance(strategy, ShardedStrategy) and strategy.shapes:
        return strategy.shapes
    return {plain_name(name): tensor.shape for name, tensor in module.named_parameters() if "lora_" in name}


def strategy_problems(strategy: Strategy, base: BaseModel, precision: str, world_size: int) -> list[str]:
    """Check that a strategy can train this model in this precision.

    Args:
        strategy: The trainer's.
        base: The model.
        precision: The trainer's, such as ``bf16-mixed``.
        world_size: Processes.
    """
    expected = f"Expected auto, ddp or {ShardedStrategy.strategy_name}."
    if isinstance(strategy, ModelParallelStrategy) and base.quantization == "nf4":
        return [
            "trainer.strategy: ModelParallelStrategy (FSDP2) corrupts packed NF4 weights on CUDA: it copies numbers, and "
            "bytes that are a bfloat16 nan come out as another one (bitsandbytes issue 1945, pytorch issue 159333). "
            + expected
        ]
    if isinstance(strategy, ModelParallelStrategy | DeepSpeedStrategy):
        return [f"trainer.strategy: {type(strategy).__name__} would shard nothing: it is not supported here. {expected}"]
    sharded = isinstance(strategy, FSDPStrategy)
    if sharded and not isinstance(strategy, ShardedStrategy):
        return [
            f"trainer.strategy: Lightning's {type(strategy).__name__} cannot clip gradients by norm and gathers the whole "
            f"base model for every checkpoint. {expected}"
        ]
    problems = precision_problems(base, precision, sharded)
    if sharded and world_size == 1 and torch.__version__ < ALONE:
        problems.append(
            f"trainer.strategy: FSDP of one process fails before torch {ALONE} (pytorch issue 151223); this is "
            f"{torch.__version__}. Use trainer.strategy auto, which is the same with one process, or a newer torch."
        )
    return problems
