"""An exported adapter as people use it: loaded from its folder by plain PEFT, conversation and question in one pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from introspection_lit.models.adapter_weights import split_weights, weight_mismatches
from introspection_lit.models.adapters import (
    CONFIG,
    adapter_file_problems,
    base_mismatches,
    read_adapter,
)
from introspection_lit.steering.prefill import steered_cache
from introspection_lit.steering.question_pass import read_answers, read_in_one_pass
from introspection_lit.tasks.scoring import log_odds
from introspection_lit.training.checkpoint_files import read_checkpoint
from introspection_lit.training.distributed import is_sharded
from introspection_lit.training.run_context import RunContext
from introspection_lit.trials.batch import TrialBatch
from introspection_lit.utils.errors import ConfigurationError

if TYPE_CHECKING:
    from introspection_lit.training.module import IntrospectionModule
    from introspection_lit.utils.lazy_types import PeftModel

# The name that the exported adapter gets beside the model's own.
BESIDE = "exported"
# Validation trials on which an export is checked: pairs of a clean and a steered cache.
CHECKED_TRIALS = 8


def why_not_compared(run: RunContext, folder: Path) -> str | None:
    """Why a test cannot score ``as_exported`` through an exported adapter too; None: it can.

    Args:
        run: The run that tests.
        folder: Where the exported adapter should be.
    """
    if is_sharded(run.trainer):
        return "FSDP shards the model, and PEFT cannot give it a second adapter"
    if not (folder / CONFIG).is_file():
        return f"{folder} is no exported adapter; a fit exports one at its end, and --model.adapter names another"
    try:
        adapter = read_adapter(str(folder.absolute()))
    except ConfigurationError as error:
        return " ".join(error.problems)
    problems = adapter_file_problems(adapter) + base_mismatches(adapter, run.module.base_identity)
    if problems := problems or weight_mismatches(adapter, run.module.base):
        return " ".join(problems)
    if split_weights(adapter)[1]:
        return "its file holds embeddings of its base model, which PEFT would write over those of this one"
    tested, exported = run.trainer.ckpt_path, (adapter.description or {}).get("step")
    if run.module.adapter is None and tested and read_checkpoint(str(tested))["global_step"] != exported:
        return f"{folder} was exported at step {exported}, and another checkpoint is tested"
    return None


def exported_folder(run: RunContext) -> Path:
    """Where the exported adapter of a test is: ``model.adapter``, or ``adapter`` of the run that trained the weights."""
    if run.module.adapter is not None:
        return read_adapter(run.module.adapter).folder
    if run.exported is not None:
        return run.exported
    checkpoint = run.trainer.ckpt_path
    return (Path(checkpoint).parent.parent if checkpoint else run.folder) / "adapter"


class Check(NamedTuple):
    """What an exported adapter says in one pass.

    Attributes:
        trials: Number of validation trials compared.
        largest_difference: The largest difference of their log-odds from those of the protocol, in nats.
        example: Log-odds of a clean conversation, the one in the model card.
        example_without: The same with the base model alone.
    """

    trials: int
    largest_difference: float
    example: float
    example_without: float


@contextmanager
def loaded(model: PeftModel, folder: Path) -> Iterator[None]:
    """Put the adapter of a folder beside the model's own, which stays the active one; all is as before at the end."""
    training, trainable = model.training, [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    device = str(model.get_base_model().device)
    try:
        model.load_adapter(str(folder.absolute()), BESIDE, torch_device=device)
        yield
    finally:
        if BESIDE in model.peft_config:
            model.delete_adapter(BESIDE)
        for parameter, wanted in trainable:
            parameter.requires_grad_(wanted)
        model.train(training)


@contextmanager
def acting(model: PeftModel) -> Iterator[None]:
    """Let the exported adapter act instead of the model's own; no gradients."""
    own, training = model.active_adapter, model.training
    model.eval()
    model.set_adapter(BESIDE)
    try:
        with torch.no_grad():
            yield
    finally:
        model.set_adapter(own)
        model.train(training)


def log_odds_in_one_pass(module: IntrospectionModule, batch: TrialBatch) -> Tensor:
    """Log-odds of a batch, ``(rows,)``, by the exported adapter, which must be :func:`loaded`."""
    with acting(module.model):
        logits = read_in_one_pass(module.model, module.layers, batch)
    return log_odds(logits, batch.answer_ids, batch.targets)


def check_export(module: IntrospectionModule, run: RunContext, folder: Path, example: tuple[list[int], list[int]]) -> Check:
    """Compare an exported adapter with the protocol, on the same weights, in the base model's own precision.

    Args:
        module: The module that trained it; its own adapter is not used.
        run: The run that trained it.
        folder: With PEFT's two files.
        example: The tokens of a conversation and its question, and those of the two answer words.
    """
    split, device, model = run.splits["validation"].single_question(), module.device, module.model
    trials = max(2, min(CHECKED_TRIALS, run.options.eval_batch_size))
    batch = split.collate([split.plan.trial(number) for number in range(trials)], run.vector_bank).to(device)
    ids, answers = torch.tensor([example[0]], device=device), torch.tensor([example[1]], device=device)

    def whole_question(**inputs: Any) -> Any:
        """A question pass in which the adapter acts on every token, as in the protocol."""
        return model(**inputs, alora_offsets=[inputs["input_ids"].shape[1]] * len(inputs["input_ids"]))

    def example_score() -> float:
        return float(log_odds(model(input_ids=ids).logits[:, -1], answers))

    batch.cache = steered_cache(model, model, module.layers, batch.context_ids, batch.context_mask, batch.intervention)
    with loaded(model, folder):
        apart = log_odds_in_one_pass(module, batch)
        with acting(model):
            protocol = log_odds(read_answers(whole_question, batch), batch.answer_ids, batch.targets)
            score = example_score()
            with model.disable_adapter():
                without = example_score()
    return Check(trials, float((apart - protocol).abs().max()), score, without)
