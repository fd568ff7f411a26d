"""Silences what other packages print at every start."""

from __future__ import annotations

import logging
import warnings

import transformers


def _is_not_advertisement(record: logging.LogRecord) -> bool:
    """False of Lightning's advertisement for another package."""
    return "litlogger" not in record.getMessage()


def quieten() -> None:
    """Silence warnings of other packages that come at every start and that users cannot act on."""
    for message in (
        ".*isinstance\\(treespec, LeafSpec\\).*",  # Lightning 2.6 with torch 2.13
        ".*is_gradient_checkpointing.*",  # peft 0.21 with transformers 5.23
        ".*does not have many workers.*",  # batches are made from tokens in memory: workers would be slower
        ".*LightningCLI's args parameter is intended.*",  # the scripts have a command line of their own
        ".*It is recommended to use `self.log.*sync_dist=True.*",  # our metrics are already gathered over processes
    ):
        warnings.filterwarnings("ignore", message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_not_advertisement)
    # transformers' bars for loading weights write over the trainer's.
    transformers.utils.logging.disable_progress_bar()
