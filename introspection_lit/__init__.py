"""Trains a language model to notice when its activations are being steered, and measures whether it does.

The names in ``__all__`` are imported when they are first used: ``import introspection_lit`` alone loads no torch.
"""

from __future__ import annotations

import logging
from importlib import import_module
from types import SimpleNamespace
from typing import Any

__version__ = "0.1.0"

# Public names, and the modules that define them; __init__.pyi says the same to editors and type checkers.
_PUBLIC = {
    "BaseModel": "models.base_model",
    "Context": "contexts.context",
    "Detector": "detector",
    "Intervention": "steering.intervention",
    "IntrospectionDataModule": "training.datamodule",
    "IntrospectionModule": "training.module",
    "Lora": "models.base_model",
    "Question": "one_cache",
    "Steering": "steering.specification",
    "VectorBank": "steering.vector_bank",
    "ask_one_cache": "one_cache",
    "concept_question": "one_cache",
    "load_contexts": "contexts.loading",
    "main": "cli",
    "read_answers": "steering.question_pass",
    "read_directions": "steering.vector_files",
    "steer": "steering.intervention",
    "steered_cache": "steering.prefill",
    "write_direction": "steering.vector_files",
}
__all__ = list(_PUBLIC)
# Classes by their former modules, and where they are now: configurations name them, as in
# class_path: introspection_lit.callbacks.LogOddsFigure. jsonargparse takes a module that does not exist for an attribute of
# the package, so __getattr__ is all that it takes.
_FORMER = {
    "callbacks": {
        "AdapterExport": "training.callbacks.adapter_export",
        "BestCheckpoint": "training.callbacks.best_checkpoint",
        "ConfigWriter": "training.callbacks.writers",
        "LearningRate": "training.callbacks.monitors",
        "LogOddsFigure": "training.callbacks.monitors",
        "PredictionWriter": "training.callbacks.writers",
        "ReportWriter": "training.callbacks.writers",
        "ResultsWriter": "training.callbacks.writers",
        "TrialsPerSecond": "training.callbacks.monitors",
    },
    "checkpoint_files": {"CheckpointFiles": "training.checkpoint_files"},
    "collector": {"Evidence": "training.callbacks.evidence"},
    "data": {"IntrospectionDataModule": "training.datamodule"},
    "event_files": {"CurvesMayFail": "training.callbacks.tensorboard_files"},
    "interruption": {"Interruption": "training.callbacks.interruption"},
    "module": {"IntrospectionModule": "training.module"},
    "out_of_memory": {"OutOfMemory": "training.callbacks.out_of_memory"},
    "replay": {"ReplayReport": "training.callbacks.replay_report"},
    "strategies": {"ShardedPrecision": "training.fsdp", "ShardedStrategy": "training.fsdp"},
    "watch": {"Watch": "training.callbacks.training_health"},
}

# While it is imported, bitsandbytes looks for an optional faster 4-bit kernel and warns that it is not there.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def _defined(module: str, name: str) -> Any:
    return getattr(import_module(f"{__name__}.{module}"), name)


def __getattr__(name: str) -> Any:
    """Import a public name, or the classes of a former module."""
    if name in _PUBLIC:
        return _defined(_PUBLIC[name], name)
    if name in _FORMER:
        return SimpleNamespace(**{each: _defined(module, each) for each, module in _FORMER[name].items()})
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
