"""The option ``data.replay``: single trials, named by split and number, each scored in a batch of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset

from introspection_lit.steering.vector_bank import VectorBank
from introspection_lit.trials.batch import TrialBatch
from introspection_lit.trials.manifest_plan import ManifestPlan
from introspection_lit.trials.split import Split
from introspection_lit.trials.trial import Trial, subtracted
from introspection_lit.utils.errors import ConfigurationError

# Characters of a question in a message.
QUESTION_LENGTH = 200
# Trials among which a steered one is looked for.
LOOKED_AT = 64
# Trial numbers are stored as int64.
UNLIMITED = 2**63


def chosen_trials(names: Sequence[str], splits: Mapping[str, Split], option: str = "data.replay") -> list[Trial]:
    """Look up trials by their names.

    Args:
        names: ``SPLIT:NUMBER`` each.
        splits: The splits of the run, by name.
        option: The option that names them, for messages.

    Raises:
        ConfigurationError: A name is malformed or names no trial; all problems at once.
    """
    trials, problems = [], []
    for name in names:
        split, _, number = name.partition(":")
        if split not in splits:
            problems.append(f"{option}: {name!r}: expected SPLIT:NUMBER with one of the splits {', '.join(splits)}.")
        elif not re.fullmatch(r"[0-9]{1,19}", number) or int(number) >= total_of(splits[split]):
            total = total_of(splits[split])
            limit = "" if total == UNLIMITED else f" below {total}, which is how many trials {split} has"
            problems.append(f"{option}: {name!r}: expected a trial's number, 0 or more{limit}.")
        else:
            trials.append(splits[split].plan.trial(int(number)))
    if not names:
        problems.append(f"{option}: got an empty list. Expected SPLIT:NUMBER, such as train:12.")
    if problems:
        raise ConfigurationError(problems)
    return trials


def first_steered(split: Split) -> Trial:
    """The first trial of a split that is steered, among those of a few batches; else the first."""
    trials = (split.plan.trial(number) for number in range(min(LOOKED_AT, total_of(split))))
    return next((trial for trial in trials if trial.strength), split.plan.trial(0))


def total_of(split: Split) -> int:
    """Number of trials in a split; training without a manifest is unlimited."""
    if isinstance(split.plan, ManifestPlan):
        return split.plan.manifest.total
    return UNLIMITED if split.total is None else split.total


def format_trial(row: Mapping[str, Any]) -> str:
    """Write out everything that defines a trial, for a message.

    Args:
        row: The trial as :meth:`~introspection_lit.trials.split.Split.describe` returns it.
    """
    vector = f"vector {row['vector_name']!r} ({row['vectors']}), band {row['band']}, strength {row['strength']:.6g}"
    vector += subtracted(bool(row.get("opposite")))
    return (
        f"{row['split']}:{row['number']}, {'steered' if row['steered'] else 'clean'} (context {row['context_key']!r} of "
        f"kind {row['kind']!r}, question {row['question_text'][:QUESTION_LENGTH]!r}"
        f"{', ' + vector if row['steered'] else ''})"
    )


class SingleTrials(Dataset[TrialBatch]):
    """Batches of one trial each.

    Numbers beyond the last trial start again at the first one, marked as padding: several processes need equally many.

    Args:
        trials: The trials, of any splits.
        splits: The splits of the run, by name.
        bank: Directions and residual norms.
    """

    def __init__(self, trials: Sequence[Trial], splits: Mapping[str, Split], bank: VectorBank) -> None:
        self.trials, self.splits, self.bank = trials, splits, bank

    def __len__(self) -> int:
        return len(self.trials)

    def __getitem__(self, number: int) -> TrialBatch:
        trial = self.trials[number % len(self.trials)]
        batch = self.splits[trial.split].collate([trial], self.bank)
        batch.total = None if number < len(self.trials) else 0  # 0: every row is padding
        return batch
