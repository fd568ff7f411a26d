"""The trials of a tested run as conversations with a label and a steering, which any harness can ask about again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from introspection_lit.contexts.context import LARGE, Context
from introspection_lit.contexts.conversations import Phrasing
from introspection_lit.contexts.generation.build import large_contexts
from introspection_lit.contexts.loading import load_contexts
from introspection_lit.evaluation.trial_table import ADAPTER, USUAL_SETS
from introspection_lit.models.adapter_config import Adapter
from introspection_lit.models.adapters import DESCRIPTION, read_adapter
from introspection_lit.steering.specification import Steering
from introspection_lit.steering.vector_bank import VectorBank
from introspection_lit.tasks.adapter_record import base_of, recorded_wording
from introspection_lit.utils.errors import ConfigurationError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TRIALS, BANK, OPTIONS = "trials.jsonl", "vectors.safetensors", "config.yaml"
# A trial as plain values, so that a harness can write it to its own log.
Item = dict[str, Any]


@dataclass(frozen=True)
class TestedRun:
    """What a ``test`` has asked an adapter, and what it answered.

    Attributes:
        folder: The run's folder.
        adapter: The adapter that was tested.
        question: What is asked, answer words included.
        phrasing: System prompt, answer words, and how the answer starts.
        threshold: On the log-odds.
        items: The trials in the order of the test: ``name``, ``kind``, ``messages`` (role and content), ``steered``,
            ``vectors`` and ``vector`` (split and number in the bank), ``vector_name``, ``band``, ``strength``, ``unit``,
            and ``log_odds`` as ``test`` has measured them.
    """

    folder: Path
    adapter: Adapter
    question: str
    phrasing: Phrasing
    threshold: float
    items: list[Item]


def identity_of(adapter: Adapter) -> dict[str, Any]:
    """Which adapter it is, for a log: its files by SHA-256, its base model and the step of its training."""
    recorded = adapter.description or {}
    names = ("files", "base_model", "revision", "dtype", "quantization", "step")
    return {"adapter": adapter.name} | {name: recorded.get(name) for name in names}


def steering_of(item: Item, bank: VectorBank) -> Steering:
    """The steering of an item that is steered, with the direction of the run's bank."""
    return Steering(bank.directions[item["vectors"]][item["vector"]], item["strength"], tuple(item["band"]), item["unit"])


def read_tested_run(folder: str | Path, adapter: str | Path | None = None, sets: tuple[str, ...] = USUAL_SETS) -> TestedRun:
    """Read the trials of a run that was tested.

    Only trials that a :class:`~introspection_lit.detector.Detector` can repeat are among them: the adapter's own question
    about a conversation that was steered as a whole, or not.

    Args:
        folder: The run's folder, with ``trials.jsonl``, ``vectors.safetensors`` and ``config.yaml``.
        adapter: The adapter that was tested, folder or hub id; None: ``adapter`` in that folder.
        sets: Test sets whose trials are wanted.

    Raises:
        ConfigurationError: A file is missing or cannot be used, or there are no such trials.
    """
    folder = Path(folder)
    missing = [name for name in (TRIALS, BANK, OPTIONS) if not (folder / name).is_file()]
    if missing:
        action = "Expected the folder of a run that was tested (test, or fit with --test_after_fit true) with evidence"
        raise ConfigurationError([f"run: {folder} has no {', '.join(missing)}. {action}."])
    tested = read_adapter(str(adapter or (folder / "adapter").absolute()))
    wording = recorded_wording(tested)
    if not wording:
        raise ConfigurationError([f"{tested.name} has no {DESCRIPTION}, which says what to ask. Export it again."])
    data = yaml.safe_load((folder / OPTIONS).read_text(encoding="utf-8"))["data"]
    contexts = _contexts(data, tested)
    items = []
    for line in (folder / TRIALS).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        context, whole = contexts.get(row["context_key"]), not (row.get("parts") or row.get("change"))
        if context and whole and row["split"] in sets and row["question_text"] == wording["question"]:
            items.append(_item(row, context, data["strength_unit"]))
    if not items:
        expected = f"Expected trials of {', '.join(sets)} about contexts of {data['contexts']}"
        raise ConfigurationError([f"run: {folder / TRIALS} has no trial that can be asked again. {expected}."])
    return TestedRun(folder, tested, wording["question"], wording["phrasing"], wording["threshold"], items)


def _contexts(data: dict[str, Any], adapter: Adapter) -> dict[str, Context]:
    """The contexts that a run drew from, by fingerprint."""
    found: dict[str, Context] = {}
    for source in filter(None, (data["contexts"], data.get("test_contexts"))):
        made = (
            large_contexts(tokenizer_of(adapter), data["max_context_tokens"]) if source == LARGE else load_contexts(source)
        )
        found |= {context.key: context for context in made}
    return found


def tokenizer_of(adapter: Adapter, base: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of the adapter's base model.

    Args:
        adapter: Has been read.
        base: Another place of the model.
    """
    from introspection_lit.models.adapters import own_template
    from introspection_lit.models.loading import load_tokenizer, read_template

    own = own_template(adapter)
    return load_tokenizer(base_of(adapter, base), read_template(own) if own is not None else None)


def _item(row: dict[str, Any], context: Context, unit: str) -> Item:
    messages = [{"role": turn.role, "content": turn.content} for turn in context.turns]
    names = ("kind", "steered", "vectors", "vector", "vector_name", "band", "strength")
    return {
        "name": f"{row['split']}:{row['number']}",
        "messages": messages,
        **{name: row[name] for name in names},
        "unit": unit,
        "log_odds": row["scores"][ADAPTER],
    }
