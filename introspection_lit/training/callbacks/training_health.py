"""Warns of training that runs but has gone wrong: answer probability that collapses, false alarms that run away."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn

from introspection_lit.training.logged import log_text
from introspection_lit.training.run_context import module_of

# Below this, nine tenths of what the model would say is neither answer: the log-odds are those of a rare event. Untrained
# models begin at .6 to .8 when the question names the answers, and training on the full softmax takes them above .95.
LITTLE = 0.1
# Of the highest mass so far. In the runs of docs/results it never fell by more than a hundredth between validations.
SHARE = 0.5
# From here on false alarms are called run away, if they were certainly fewer before. At the threshold that validation sets,
# runs that learn have .08 at most, and at 0 in their first epoch of training .20.
ALARMS = 0.25
MASS, FPR, TRAINING_FPR = "mass", "false alarms", "false alarms in training"


class Watch(Callback):
    """Warns while fitting, once of each: mass has collapsed, false alarms have run away. The run goes on.

    What is compared is compared with what the same run had reached before, so that an untrained model, which may have
    little mass and say yes to everything, is no reason to warn; nor are rates of few trials that chance explains.

    Attributes:
        start: The mass of the first training batch.
        highest: The highest mass of a validation so far.
        lowest: The lowest upper end of a 95 % interval of the FPR so far, by cause.
        said: The causes that were warned of.
    """

    def __init__(self) -> None:
        self.start: float | None = None
        self.highest = 0.0
        self.lowest: dict[str, float] = {}
        self.said: list[str] = []
        self._seen: dict[str, Any] | None = None  # the summary of training that was looked at last

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Remember where the mass began."""
        if self.start is None and "train/mass_step" in trainer.callback_metrics:
            self.start = float(trainer.callback_metrics["train/mass_step"])

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the training trials of the epoch before."""
        self._look_at_training(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at those of the last epoch."""
        self._look_at_training(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at a validation."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        summary = module_of(pl_module).summaries["validation"]
        free = module_of(pl_module).loss == "pairwise"
        self._warn(trainer, MASS, self.mass_trouble(summary["mass"], free))
        self._warn(trainer, FPR, self.alarm_trouble(FPR, summary))

    def _look_at_training(self, trainer: Trainer, pl_module: LightningModule) -> None:
        summary = module_of(pl_module).summaries.get("train")
        if summary is not None and summary is not self._seen:
            self._seen = summary
            self._warn(trainer, TRAINING_FPR, self.alarm_trouble(TRAINING_FPR, summary))

    def mass_trouble(self, mass: float, free: bool = False) -> str | None:
        """What a validation's mass shows, if anything; to be called once for each.

        Args:
            mass: Its mean, in [0, 1].
            free: The loss does not raise it: then little is trouble even if there never was more.
        """
        reached = max(self.highest, self.start or 0.0)
        self.highest = max(self.highest, mass)
        fallen = reached >= LITTLE and mass < max(LITTLE, SHARE * reached)
        if not fallen and not (free and mass < LITTLE):
            return None
        return (
            f"mass {'has collapsed' if fallen else 'is little'}: P(yes) + P(no) is {mass:.3f} in this validation and was "
            f"{reached:.3f} at most before. Log-odds of what the model would hardly say mean nothing. Train with "
            "model.loss full, or lower model.learning_rate."
        )

    def alarm_trouble(self, cause: str, summary: dict[str, Any]) -> str | None:
        """What a summary's false alarms show, if anything; to be called once for each.

        Args:
            cause: Which rate it is.
            summary: With ``fpr``, ``fpr_interval``, ``tpr`` and ``threshold``.
        """
        low, high = summary["fpr_interval"]
        before = self.lowest.get(cause, 1.0)
        self.lowest[cause] = min(before, high)
        if not (summary["fpr"] >= ALARMS and low > before):
            return None
        where = "among the training trials" if cause == TRAINING_FPR else "in this validation"
        everything = " The model answers yes to nearly everything." if low > 0.5 and summary["tpr"] > 0.5 else ""
        return (
            f"false alarms have run away: the FPR {where} is {summary['fpr']:.3f} at the threshold "
            f"{summary['threshold']:.3f} (at least {low:.3f}, with 95 % confidence) and was at most {before:.3f} "
            f"before.{everything} It may come back; if not, lower model.learning_rate, or use an earlier checkpoint."
        )

    def _warn(self, trainer: Trainer, cause: str, trouble: str | None) -> None:
        """Say it once, and to the loggers."""
        if trouble is None or cause in self.said:
            return
        self.said.append(cause)
        text = f"step {trainer.global_step}, epoch {trainer.current_epoch}: {trouble}"
        rank_zero_warn(text)
        log_text(trainer, f"warnings/{cause.replace(' ', '_')}", text)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on with."""
        return {"start": self.start, "highest": self.highest, "lowest": dict(self.lowest), "said": list(self.said)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with it."""
        self.start, self.highest = state_dict["start"], state_dict["highest"]
        self.lowest, self.said = dict(state_dict["lowest"]), list(state_dict["said"])
