"""Data loaders: batches of a split, distributed over processes and resumable in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from introspection_lit.steering.vector_bank import VectorBank
from introspection_lit.trials.batch import TrialBatch
from introspection_lit.trials.split import Split
from introspection_lit.utils.errors import ConfigurationError


class SplitBatches(Dataset[TrialBatch]):
    """An unlimited data set whose item ``b`` is batch number ``b`` of a split.

    In training, batches are parts of an optimiser step. Step ``s`` has the same trials for every combination of processes
    and accumulated batches with the same product.

    Args:
        split: The split.
        bank: Directions and residual norms.
        batch_size: Trials in a batch; even in training.
        pool: Number of steps whose trials are sorted by length together.
        parts: Batches in a step, over all processes.
    """

    def __init__(self, split: Split, bank: VectorBank, batch_size: int, pool: int, parts: int = 1) -> None:
        self.split, self.bank = split, bank
        self.batch_size, self.pool, self.parts = batch_size, pool, parts

    def __getitem__(self, number: int) -> TrialBatch:
        step, part = divmod(number, self.parts)
        size, lengths = self.batch_size * self.parts, self.split.lengths()
        return self.split.collate(self.split.plan.batch(step, size, lengths, self.pool, (part, self.parts)), self.bank)


class EpochSampler(DistributedSampler[int]):
    """Distributes the batch numbers of an epoch over the processes: equally many to each, none twice.

    Epoch ``e`` of ``n`` batches has the numbers from ``e * n`` on, so that every epoch has new trials. If ``n`` is not a
    multiple of the number of processes, it is rounded up. It subclasses ``DistributedSampler`` only so that Lightning does
    not replace it.

    Args:
        batches: Batches in an epoch over all processes.
        rank: Rank of this process.
        world_size: Number of processes.
        epoch: Returns the current epoch. Lightning's ``set_epoch`` is not used: after a resume it starts again at 0
            (Lightning 2.6).

    Attributes:
        resumed: An epoch that an earlier run had started, and the number of batches that this process had done in it.
    """

    def __init__(self, batches: int, rank: int, world_size: int, epoch: Callable[[], int]) -> None:
        self.rank, self.world_size, self.current_epoch = rank, world_size, epoch
        self.each = -(-batches // world_size)
        self.resumed = (-1, 0)

    def __len__(self) -> int:
        return self.each

    def __iter__(self) -> Iterator[int]:
        epoch = self.current_epoch()
        done = self.resumed[1] if epoch == self.resumed[0] else 0
        start = epoch * self.each * self.world_size
        return iter(range(start + self.rank + done * self.world_size, start + self.each * self.world_size, self.world_size))


class TrainingLoader(DataLoader[TrialBatch]):
    """A loader that can resume in the middle of an epoch; Lightning saves and restores its state.

    Args:
        batches: The batches of the training split.
        sampler: Their order.
        done: Returns the number of batches of the epoch that this process has done.
        num_workers: Number of worker processes.
    """

    def __init__(self, batches: SplitBatches, sampler: EpochSampler, done: Callable[[], int], num_workers: int) -> None:
        super().__init__(batches, batch_size=None, sampler=sampler, num_workers=num_workers)
        self.order, self.done = sampler, done
        self.cut = {"trials in a batch": batches.batch_size, "batches in a step": batches.parts, "batches": sampler.each}

    def state_dict(self) -> dict[str, Any]:
        """Epoch, batches done in it, and the sizes that must be the same on resuming."""
        return {"epoch": self.order.current_epoch(), "done": self.done(), "cut": self.cut}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state.

        Raises:
            ConfigurationError: Batch sizes differ, so that the batches done would have other trials.
        """
        if state["cut"] != self.cut:
            raise ConfigurationError(
                [
                    f"ckpt_path: the checkpoint is from the middle of an epoch, with {state['cut']}; the configuration "
                    f"gives {self.cut}. Use the data.batch_size, data.trials_per_epoch, accumulation and number of "
                    "processes that it was made with, or a checkpoint from the end of an epoch."
                ]
            )
        self.order.resumed = (state["epoch"], state["done"])
