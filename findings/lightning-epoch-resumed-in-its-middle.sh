#!/usr/bin/env bash
# lightning 2.6.6: an epoch that is resumed in its middle ends, and does not start.
#
# Guess: on_train_epoch_start runs before the first batch of an epoch that this process trains on, so a callback can make its
#        counters there.
# Seen:  resumed from a checkpoint of the first of three batches, a callback gets on_train_start, then batch 1 and 2 and
#        on_train_epoch_end, and no on_train_epoch_start. Resumed from the checkpoint that was written after the last batch
#        (ModelCheckpoint with every_n_train_steps=1), the whole next epoch runs without having started.
# Fails if that changes. Run: bash findings/lightning-epoch-resumed-in-its-middle.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'lightning==2.6.6' 'torch==2.13.0' 'numpy==2.4.6'
cat > "$folder/run.py" <<'PYTHON'
import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch.utils.data import DataLoader


class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, index):
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


class Told(Callback):
    def __init__(self):
        self.hooks = []

    def on_train_start(self, trainer, module):
        self.hooks.append("start")

    def on_train_epoch_start(self, trainer, module):
        self.hooks.append("epoch start")

    def on_train_batch_start(self, trainer, module, batch, index):
        self.hooks.append(f"batch {index}")

    def on_train_epoch_end(self, trainer, module):
        self.hooks.append("epoch end")


def hooks(epochs, resumed=None):
    told = Told()
    kept = ModelCheckpoint("kept", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    silent = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = lightning.Trainer(accelerator="cpu", max_epochs=epochs, callbacks=[told, kept], **silent)
    trainer.fit(Model(), DataLoader([0, 1, 2]), ckpt_path=resumed)
    return ", ".join(told.hooks)


print(hooks(1))
print(hooks(1, "kept/step=1.ckpt"))
print(hooks(2, "kept/step=3.ckpt"))
PYTHON
cd "$folder"
"$folder/venv/bin/python" -W ignore run.py > found 2> errors || { cat errors; exit 1; }
cat found
cmp found - <<'TEXT'
start, epoch start, batch 0, batch 1, batch 2, epoch end
start, batch 1, batch 2, epoch end
start, batch 0, batch 1, batch 2, epoch end
TEXT
