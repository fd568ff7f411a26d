"""Data loaders: batches of a split, dealt out to processes, resumable in the middle of an epoch."""

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
    """Item ``b`` is batch number ``b`` of a split; there is no last one.

    In training, batches are parts of an optimiser's step: step ``s`` has the same trials however many processes and
    accumulated batches share them, as long as together they are as many.

    Args:
        split: The split.
        bank: Directions and residual norms.
        batch_size: Trials in a batch; even in training.
        pool: Steps that are sorted by length together.
        parts: Batches that make a step, over all processes.
    """

    def __init__(self, split: Split, bank: VectorBank, batch_size: int, pool: int, parts: int = 1) -> None:
        self.split, self.bank = split, bank
        self.batch_size, self.pool, self.parts = batch_size, pool, parts

    def __getitem__(self, number: int) -> TrialBatch:
        step, part = divmod(number, self.parts)
        size, lengths = self.batch_size * self.parts, self.split.lengths()
        return self.split.collate(self.split.plan.batch(step, size, lengths, self.pool, (part, self.parts)), self.bank)


class EpochSampler(DistributedSampler[int]):
    """Deals the batches of an epoch out to the processes: as many to each, none to two.

    Epoch ``e`` of ``n`` batches holds the numbers from ``e * n`` on, so that every epoch is new; if ``n`` does not divide
    by the number of processes, the last round goes on to the numbers that follow. It is a ``DistributedSampler`` in name
    only, so that Lightning does not put its own in its place.

    Args:
        batches: Batches in an epoch over all processes.
        rank: This process.
        world_size: All processes.
        epoch: Says which epoch is running. Lightning's ``set_epoch`` is not used: after a resume it starts again at 0
            (Lightning 2.6).

    Attributes:
        begun: An epoch that was begun in an earlier run, and how many of this process's batches were done in it.
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
    """A loader that goes on in the middle of an epoch. Lightning saves its state and gives it back.

    Args:
        batches: What is loaded.
        sampler: In which order.
        done: Says how many batches of the epoch this process has done.
        num_workers: Worker processes.
    """

    def __init__(self, batches: SplitBatches, sampler: EpochSampler, done: Callable[[], int], num_workers: int) -> None:
        super().__init__(batches, batch_size=None, sampler=sampler, num_workers=num_workers)
        self.order, self.done = sampler, done
        self.cut = {"trials in a batch": batches.batch_size, "batches in a step": batches.parts, "batches": sampler.each}

    def state_dict(self) -> dict[str, Any]:
        """Where training is, and how its steps are cut."""
        return {"epoch": self.order.current_epoch(), "done": self.done(), "cut": self.cut}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on there.

        Raises:
            ConfigurationError: Steps are cut otherwise now: what is done of the epoch would be other trials.
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
