"""An exported adapter as people use it: loaded from its folder by plain PEFT, conversation and question in one pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from introspection_lit.models.adapters import CONFIG, read_adapter
from introspection_lit.steering.question_pass import read_answers, read_in_one_pass
from introspection_lit.tasks.scoring import log_odds
from introspection_lit.training.distributed import is_sharded
from introspection_lit.training.run_context import RunContext
from introspection_lit.trials.batch import TrialBatch
from introspection_lit.trials.test_sets import AS_EXPORTED

if TYPE_CHECKING:
    from introspection_lit.training.module import IntrospectionModule
    from introspection_lit.utils.lazy_types import PeftModel

# The name of the adapter beside the model's own.
EXPORTED = "exported"
# Validation trials on which an export is checked: pairs of a clean and a steered cache.
CHECKED_TRIALS = 8


def exported_folder(checkpoint: str | Path | None, adapter: str | None, run_folder: Path) -> Path:
    """Where the exported adapter of a test is: ``model.adapter``, or ``adapter`` in the folder of the training run."""
    if adapter is not None:
        return read_adapter(adapter).folder
    return (Path(checkpoint).parent.parent if checkpoint else run_folder) / "adapter"


def as_exported_problems(run: RunContext, gathered: bool) -> list[str]:
    """Problems if the test set ``as_exported`` is asked for and cannot be scored; before the model is loaded.

    Args:
        run: Its options, trainer and checkpoint.
        gathered: Whether evidence is gathered.
    """
    if AS_EXPORTED not in run.options.test_sets or run.trainer.state.fn not in ("fit", "test"):
        return []
    problems = []
    if not gathered:
        problems.append(
            f"data.test_trials: {AS_EXPORTED} is compared in the evidence, and evidence.enabled is false. Turn it on, or "
            "leave the set out."
        )
    if is_sharded(run.trainer):
        problems.append(
            f"data.test_trials: {AS_EXPORTED} cannot be tested with FSDP, whose parts of the model PEFT cannot give a "
            "second adapter. Leave it out here, and test the exported adapter with --model.adapter on one device."
        )
    if run.trainer.state.fn == "test" and run.module.adapter is None and run.checkpoint:
        folder = exported_folder(run.checkpoint, None, Path())
        if not (folder / CONFIG).is_file():
            problems.append(
                f"data.test_trials: {AS_EXPORTED} needs the adapter that the run has exported, and {folder} is none. Fit "
                "exports it at its end; or give a folder with --model.adapter instead of ckpt_path, or leave the set out."
            )
    return problems


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
    """Put the adapter of a folder beside the model's own, which stays the active one, and remove it at the end."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.load_adapter(str(folder), EXPORTED)
    try:
        yield
    finally:
        model.delete_adapter(EXPORTED)
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def acting(model: PeftModel) -> Iterator[None]:
    """Let the exported adapter act instead of the model's own; no gradients."""
    own, training = model.active_adapter, model.training
    model.eval()
    model.set_adapter(EXPORTED)
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
    """Compare an exported adapter with the protocol, on the same weights.

    Args:
        module: The module that trained it; its own adapter is not used.
        run: The run that trained it.
        folder: With PEFT's two files.
        example: The tokens of a conversation and its question, and those of the two answer words.
    """
    split, device = run.splits["validation"].single_question(), module.model.get_base_model().device
    batch = split.collate([split.plan.trial(number) for number in range(CHECKED_TRIALS)], run.vector_bank).to(device)
    batch = run.with_cache(batch)
    ids, answers = torch.tensor([example[0]], device=device), torch.tensor([example[1]], device=device)

    def whole_question(**inputs: Any) -> Any:
        """A question pass in which the adapter acts on every token, as in the protocol."""
        return module.model(**inputs, alora_offsets=[inputs["input_ids"].shape[1]] * len(inputs["input_ids"]))

    def example_score() -> float:
        return float(log_odds(module.model(input_ids=ids).logits[:, -1], answers))

    with loaded(module.model, folder):
        apart = log_odds_in_one_pass(module, batch)
        with acting(module.model):
            protocol = log_odds(read_answers(whole_question, batch), batch.answer_ids, batch.targets)
            score = example_score()
            with module.model.disable_adapter():
                without = example_score()
    return Check(CHECKED_TRIALS, float((apart - protocol).abs().max()), score, without)
