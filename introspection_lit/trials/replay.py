"""Single trials chosen by split and number, to be scored alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch.utils.data import Dataset

from introspection_lit.steering.vector_bank import VectorBank
from introspection_lit.trials.batch import TrialBatch
from introspection_lit.trials.manifest_plan import ManifestPlan
from introspection_lit.trials.split import Split
from introspection_lit.trials.trial import Trial
from introspection_lit.utils.errors import ConfigurationError

if TYPE_CHECKING:
    from introspection_lit.training.datamodule import IntrospectionDataModule


# Letters of a question in a message.
LONGEST = 200
# Numbers of trials are kept in 64 bits.
MOST = 2**63


def chosen_trials(names: Sequence[str], splits: Mapping[str, Split]) -> list[Trial]:
    """The trials that ``data.replay`` names.

    Args:
        names: ``SPLIT:NUMBER`` each.
        splits: Of the run, by name.

    Raises:
        ConfigurationError: A name is none, or no trial has it; all problems at once.
    """
    trials, problems = [], []
    for name in names:
        split, _, number = name.partition(":")
        if split not in splits:
            problems.append(f"data.replay: {name!r}: expected SPLIT:NUMBER with one of the splits {', '.join(splits)}.")
        elif not re.fullmatch(r"[0-9]{1,19}", number) or int(number) >= _total(splits[split]):
            total = _total(splits[split])
            beyond = "" if total == MOST else f" below {total}, which is how many trials {split} has"
            problems.append(f"data.replay: {name!r}: expected a trial's number, 0 or more{beyond}.")
        else:
            trials.append(splits[split].plan.trial(int(number)))
    if not names:
        problems.append("data.replay: got an empty list. Expected SPLIT:NUMBER, such as train:12.")
    if problems:
        raise ConfigurationError(problems)
    return trials


def _total(split: Split) -> int:
    """How many trials a split has; training has no end, but with a manifest."""
    if isinstance(split.plan, ManifestPlan):
        return split.plan.manifest.total
    return MOST if split.total is None else split.total


def in_words(data: IntrospectionDataModule, trial: Trial) -> str:
    """Everything that defines a trial, for a message."""
    row = data.describe(trial)
    how = f"vector {row['vector_name']!r} ({row['vectors']}), band {row['band']}, strength {row['strength']:.6g}"
    return (
        f"{trial.split}:{trial.number}, {'steered' if trial.steered else 'clean'} (context {row['context_key']!r} of kind "
        f"{row['kind']!r}, question {row['question_text'][:LONGEST]!r}{', ' + how if trial.steered else ''})"
    )


class Replayed(Dataset[TrialBatch]):
    """Item ``b`` is a batch of the ``b``-th of some trials alone; after the last one they start again, to be left out.

    Args:
        trials: Of any splits.
        splits: By name.
        bank: Directions and residual norms.
    """

    def __init__(self, trials: Sequence[Trial], splits: Mapping[str, Split], bank: VectorBank) -> None:
        self.trials, self.splits, self.bank = trials, splits, bank

    def __len__(self) -> int:
        return len(self.trials)

    def __getitem__(self, number: int) -> TrialBatch:
        trial = self.trials[number % len(self.trials)]
        batch = self.splits[trial.split].collate([trial], self.bank)
        batch.total = None if number < len(self.trials) else 0  # what several processes are filled up with
        return batch
