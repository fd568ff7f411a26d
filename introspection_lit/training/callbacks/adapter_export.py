"""Writes the adapter as a plain PEFT folder, with one JSON of ours and a model card."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from safetensors.torch import save

from introspection_lit.contexts.context import Context
from introspection_lit.contexts.splits import evenly_spaced
from introspection_lit.models.adapter_weights import WEIGHTS
from introspection_lit.models.adapters import CONFIG, DESCRIPTION, TEMPLATE, check_replaceable
from introspection_lit.tasks.invocation import holds, invocation_tokens
from introspection_lit.training.checkpoint_files import read_checkpoint
from introspection_lit.training.distributed import is_sharded
from introspection_lit.training.exported_adapter import check_export
from introspection_lit.training.logged import showing
from introspection_lit.training.model_card import example_tokens, model_card
from introspection_lit.training.run_context import module_of, run_folder, run_of
from introspection_lit.utils.checksums import file_hash, with_checksum
from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.files import atomic_folder

if TYPE_CHECKING:
    from introspection_lit.training.module import IntrospectionModule
    from introspection_lit.training.run_context import RunContext


# Conversations on which the invocation tokens are found.
INVOCATION_CONTEXTS = 32


def find_invocation(run: RunContext) -> tuple[list[int] | None, str | None]:
    """The tokens that switch the exported adapter on; or None, and why there are none."""
    split = run.splits["train"]
    if run.options.prefill_adapter:
        return None, "it was trained with data.prefill_adapter, which leaves it on while the conversation is read."
    texts, asked = split.question_texts(), list[tuple[Context, str | None]]()
    for context in evenly_spaced(split.contexts, INVOCATION_CONTEXTS):
        own = split.questionnaire is None and context.question_turns
        asked += [(context, None)] if own else [(context, text) for text in texts]
    try:
        tokens = invocation_tokens(split.tokenizer, asked, run.options.lead_in_text, run.phrasing)
    except ConfigurationError as error:
        return None, error.problems[0]
    if not holds(example_tokens(run, texts[0])[0], tokens):
        return None, "a conversation's own questions begin in several messages."
    return tokens, None


def export_adapter(folder: Path, module: IntrospectionModule, run: RunContext, checkpoint: dict[str, Any]) -> None:
    """Write an adapter folder that ``PeftModel.from_pretrained`` loads on its own.

    Where the questions have a beginning of their own, it is activated by that: in one pass over conversation and question
    it acts as in training. The folder appears complete or not at all; an older one of the same name is replaced.

    Args:
        folder: The folder to write.
        module: The trained module.
        run: The run that trained it.
        checkpoint: The checkpoint whose adapter is exported, as loaded from disk.
    """
    band_numbers = [list(band) for band in run.splits["train"].plan.bands]
    tokens, reason = find_invocation(run)
    description = {
        "format": "introspection_lit/adapter/1",
        **module.identity(),
        "quantization": module.base.quantization,
        "question": run.splits["train"].question_texts()[:10],
        "options": run.recorded_options(),
        "answers": list(run.phrasing.answers),
        "answer_prefix": run.phrasing.answer_prefix,
        "system_prompt": run.phrasing.system,
        "threshold": checkpoint["introspection"]["threshold"],
        "prefill_adapter": run.options.prefill_adapter,
        "invocation": None if tokens is None else run.wording.tokenizer.decode(tokens),
        "bands": band_numbers,
        "strengths": list(run.options.strengths),
        "strength_unit": run.options.strength_unit,
        "train_vectors": run.splits["train"].plan.vectors,
        "bank": run.bank.fingerprint if run.bank is not None else None,
        "seed": run.options.seed,
        "step": checkpoint["global_step"],
        "validation": checkpoint["introspection"]["validation"],
        "trained_on": run.training_record(),
    }
    files = [WEIGHTS, CONFIG]
    if run.options.chat_template is not None:
        description["options"]["data.chat_template"] = TEMPLATE
        files.append(TEMPLATE)
    check_replaceable(folder)
    with atomic_folder(folder) as unfinished:
        # As PEFT's save_pretrained writes it, which finds nothing in a model with FSDP units inside (peft 0.21).
        name = module.model.active_adapter
        weights = {
            key.removeprefix("model.").replace(f".{name}.", "."): tensor.contiguous()
            for key, tensor in checkpoint["state_dict"].items()
        }
        (unfinished / WEIGHTS).write_bytes(save(weights, metadata={"format": "pt"}))
        if TEMPLATE in files:
            (unfinished / TEMPLATE).write_text(str(run.wording.tokenizer.chat_template), encoding="utf-8")
        adapter = copy.copy(module.model.peft_config[name])
        # The model's name, not the folder in this machine's cache that it was loaded from.
        adapter.base_model_name_or_path, adapter.revision = module.base.name, module.base.revision
        adapter.inference_mode, adapter.alora_invocation_tokens = True, tokens
        adapter.save_pretrained(str(unfinished))
        check = None
        if tokens is not None and not is_sharded(run.trainer):
            try:
                check = check_export(module, run, unfinished, example_tokens(run, description["question"][0]))
            except Exception as error:  # PEFT has layers that cannot be activated; the training is not lost for that
                reason = f"PEFT could not run it so ({type(error).__name__}: {str(error)[:200]})."
                adapter.alora_invocation_tokens = description["invocation"] = None
                adapter.save_pretrained(str(unfinished))
        description["check"] = check and check._asdict()
        description["files"] = {name: file_hash(unfinished / name) for name in files}
        (unfinished / DESCRIPTION).write_text(json.dumps(with_checksum(description), indent=2) + "\n", encoding="utf-8")
        card = model_card(module.base, run, description, reason, check)
        (unfinished / "README.md").write_text(card, encoding="utf-8")
    if check is not None:
        rank_zero_info(
            f"exported adapter, in one pass of plain PEFT: log-odds within {check.largest_difference:.1e} of the protocol's"
        )
    elif reason is not None:
        rank_zero_warn(f"the exported adapter acts on everything it reads: {reason}")


class AdapterExport(Callback):
    """Exports the best adapter of a fit as a PEFT folder, ``adapter`` in the run's folder."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export the adapter of the best checkpoint; log its validation, in TensorBoard beside the hyper-parameters."""
        module, run, folder = module_of(pl_module), run_of(trainer), run_folder(trainer)
        saver = trainer.checkpoint_callback
        if not isinstance(saver, ModelCheckpoint) or not saver.best_model_path:
            return
        run.exported = folder / "adapter"  # in every process: each reads it in the test
        if not trainer.is_global_zero:
            return
        checkpoint = read_checkpoint(saver.best_model_path)
        export_adapter(folder / "adapter", module, run, checkpoint)
        validated = {f"hp/validation_{name}": v for name, v in checkpoint["introspection"]["validation"].items()}
        settings = {
            "learning_rate": module.learning_rate,
            "lora_r": module.lora.r,
            "loss": module.loss,
            "batch_size": run.batch_size,
            "strengths": str(list(run.options.strengths)),
            "seed": run.options.seed,
        }
        for logger in showing(trainer):
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(settings, validated)
            else:  # has all settings already
                logger.log_metrics(validated, checkpoint["global_step"])
        rank_zero_info(f"best adapter (step {checkpoint['global_step']}): {folder / 'adapter'}")
