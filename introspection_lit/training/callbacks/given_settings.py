"""After a resume the optimiser has the settings of the command line, not those that its stored state brings back."""

from __future__ import annotations

from typing import cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info
from torch.optim.lr_scheduler import LambdaLR

from introspection_lit.training.run_context import module_of, run_of


class GivenSettings(Callback):
    """Sets learning rate, weight decay and schedule to what the options say, once the optimiser's state is restored.

    PyTorch stores the settings with the moments, and loads both. With the settings of before, nothing changes, bit by bit.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Overwrite what was restored, and say what has changed."""
        module = module_of(pl_module)
        if run_of(trainer).checkpoint is None and trainer.ckpt_path is None:
            return
        changed: dict[str, tuple[float, float]] = {}
        for optimizer, config in zip(trainer.optimizers, trainer.lr_scheduler_configs, strict=True):
            schedule = cast("LambdaLR", config.scheduler)
            schedule.base_lrs = [module.learning_rate] * len(optimizer.param_groups)
            rates = [module.learning_rate * shape(schedule.last_epoch) for shape in schedule.lr_lambdas]
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                given = {"initial_lr": module.learning_rate, "lr": rate, "weight_decay": module.weight_decay}
                changed |= {name: (group[name], value) for name, value in given.items() if group[name] != value}
                group.update(given)
            schedule._last_lr = [*rates]
        names = {"initial_lr": "learning_rate", "lr": "rate of the next step", "weight_decay": "weight_decay"}
        told = [f"{names[name]} {new:g} (in the checkpoint {old:g})" for name, (old, new) in changed.items()]
        if told:
            rank_zero_info(f"going on with the options of this command: {', '.join(told)}")
