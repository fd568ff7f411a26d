"""Types of peft and transformers, for annotations in the modules that options are read from.

jsonargparse runs the ``if TYPE_CHECKING:`` blocks of the module in which a class with options stands, and peft takes
seconds to import, which ``--help`` has not got. So those modules take the names from here, where only type checkers import
the packages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
else:
    PeftModel = PretrainedConfig = PreTrainedModel = PreTrainedTokenizerBase = Any


__all__ = ["PeftModel", "PreTrainedModel", "PreTrainedTokenizerBase", "PretrainedConfig"]
