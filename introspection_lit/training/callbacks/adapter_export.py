"""Writes the adapter as a plain PEFT folder, with one JSON of ours and a model card."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning_utilities.core.rank_zero import rank_zero_info
from safetensors.torch import save

from introspection_lit.models.adapters import CONFIG, DESCRIPTION, WEIGHTS, check_replaceable
from introspection_lit.training.checkpoint_files import read_checkpoint
from introspection_lit.training.run_context import module_of, run_folder, run_of
from introspection_lit.utils.checksums import file_hash, with_checksum
from introspection_lit.utils.files import atomic_folder

if TYPE_CHECKING:
    from introspection_lit.training.module import IntrospectionModule
    from introspection_lit.training.run_context import RunContext


LOAD_HUB = """from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("{name}")"""
LOAD_LOCAL = """from introspection_lit.model import BaseModel, load_model

base = load_model(BaseModel("{name}"))"""
CARD = """---
base_model: {base_model}
library_name: peft
tags: [introspection, activation-steering, lora]
---

# An adapter that notices steering

A LoRA adapter for `{base_model}` that answers whether the model's activations were steered while it read the first turn
of a conversation. The first turn is processed by the clean base model, possibly with a direction added to its residual
stream; the adapter only reads the KV cache that this leaves behind.

- Question: "{question}" Answers: {answers}, after the assistant has begun with "{answer_prefix}".
- Score: logit({yes}) - logit({no}). Steered if above {threshold:.4f}, the threshold chosen on validation data.
- Trained on {train_vectors} random directions, bands {bands}, strengths {strengths} ({strength_unit}).
- Validation AUROC {auroc:.4f} at step {step}. Tests: see `results.json` of the run, if there is one.

```python
from peft import PeftModel
{load_base}
model = PeftModel.from_pretrained(base, "this/folder")
# Fill the cache with `model.disable_adapter()`; ask the question with the adapter on.
```

It was trained to answer one question and has not been tested for anything else: do not use it as a chat model.
Everything that defines it is in `{description}`.
"""


def export_adapter(folder: Path, module: IntrospectionModule, run: RunContext, checkpoint: dict[str, Any]) -> None:
    """Write an adapter folder that ``PeftModel.from_pretrained`` loads on its own.

    The folder appears complete or not at all; an older one of the same name is replaced.

    Args:
        folder: The folder to write.
        module: The trained module.
        run: The run that trained it.
        checkpoint: The checkpoint whose adapter is exported, as loaded from disk.
    """
    band_numbers = [list(band) for band in run.splits["train"].plan.bands]
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
    card = CARD.format(
        **description | {"question": description["question"][0]},
        yes=run.phrasing.answers[0],
        no=run.phrasing.answers[1],
        auroc=description["validation"]["auroc"],
        description=DESCRIPTION,
        load_base=(LOAD_HUB if module.base.on_hub else LOAD_LOCAL).format(name=module.base.name),
    )
    check_replaceable(folder)
    with atomic_folder(folder) as unfinished:
        # As PEFT's save_pretrained writes it, which finds nothing in a model with FSDP units inside (peft 0.21).
        name = module.model.active_adapter
        weights = {
            key.removeprefix("model.").replace(f".{name}.", "."): tensor.contiguous()
            for key, tensor in checkpoint["state_dict"].items()
        }
        (unfinished / WEIGHTS).write_bytes(save(weights, metadata={"format": "pt"}))
        adapter = copy.copy(module.model.peft_config[name])
        # The model's name, not the folder in this machine's cache that it was loaded from.
        adapter.base_model_name_or_path, adapter.revision = module.base.name, module.base.revision
        adapter.inference_mode = True
        adapter.save_pretrained(str(unfinished))
        description["files"] = {name: file_hash(unfinished / name) for name in (WEIGHTS, CONFIG)}
        (unfinished / DESCRIPTION).write_text(json.dumps(with_checksum(description), indent=2) + "\n", encoding="utf-8")
        (unfinished / "README.md").write_text(card, encoding="utf-8")


class AdapterExport(Callback):
    """Exports the best adapter of a fit as a PEFT folder, ``adapter`` in the run's folder."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export the adapter of the best checkpoint; log its validation beside the hyper-parameters (hparams tab)."""
        module, run, folder = module_of(pl_module), run_of(trainer), run_folder(trainer)
        saver = trainer.checkpoint_callback
        if not isinstance(saver, ModelCheckpoint) or not saver.best_model_path or not trainer.is_global_zero:
            return
        checkpoint = read_checkpoint(saver.best_model_path)
        export_adapter(folder / "adapter", module, run, checkpoint)
        if isinstance(trainer.logger, TensorBoardLogger):
            settings = {
                "learning_rate": module.learning_rate,
                "lora_r": module.lora.r,
                "loss": module.loss,
                "batch_size": run.batch_size,
                "strengths": str(list(run.options.strengths)),
                "seed": run.options.seed,
            }
            validated = checkpoint["introspection"]["validation"]
            trainer.logger.log_hyperparams(settings, {f"hp/validation_{name}": value for name, value in validated.items()})
        rank_zero_info(f"best adapter (step {checkpoint['global_step']}): {folder / 'adapter'}")
