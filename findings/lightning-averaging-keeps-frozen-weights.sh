#!/usr/bin/env bash
# lightning 2.6.6, torch 2.13.0: EMAWeightAveraging undoes a module that keeps its frozen weights out of checkpoints, and then cannot resume.
#
# Guess: it averages what is trained, and a module whose on_save_checkpoint keeps its adapter alone, with strict_loading off, has
#        small checkpoints with the callback as without, from which a run goes on.
# Seen:  callbacks save before the module does. The callback has by then put the whole state, frozen weights included, under
#        `current_model_state`, which the module does not know: with 10,010 frozen and 11 trained numbers the file has 45,517
#        bytes instead of some 4,100. On resuming, it loads the averages strictly, whatever strict_loading says: RuntimeError,
#        "Missing key(s) in state_dict". Without the callback the run goes on.
# Fails if that changes. Run: bash findings/lightning-averaging-keeps-frozen-weights.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 lightning==2.6.6
cat > "$folder/look.py" <<'PYTHON'
import logging
import warnings
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

warnings.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Adapted(LightningModule):
    """A frozen layer and a small one that is trained; checkpoints keep the latter."""

    def __init__(self):
        super().__init__()
        self.base, self.adapter = torch.nn.Linear(1000, 10).requires_grad_(False), torch.nn.Linear(10, 1)
        self.strict_loading = False

    def training_step(self, batch):
        return self.adapter(self.base(batch)).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD([weight for weight in self.parameters() if weight.requires_grad], lr=0.1)

    def on_save_checkpoint(self, checkpoint):
        kept = {name: value for name, value in checkpoint["state_dict"].items() if name.startswith("adapter")}
        checkpoint["state_dict"] = kept


def fit(epochs, averaging, resume=None):
    callbacks = [ModelCheckpoint(folder, save_last=True, save_top_k=0), *([EMAWeightAveraging()] if averaging else [])]
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, callbacks=callbacks, enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Adapted(), torch.utils.data.DataLoader(torch.ones(4, 1000)), ckpt_path=resume, weights_only=True)
    return folder / "last.ckpt"


found = []
for averaging in (False, True):
    folder = Path(f"run-{averaging}")
    path = fit(1, averaging)
    saved = torch.load(path, weights_only=True)
    states = {name: len(saved[name]) for name in ("state_dict", "current_model_state") if name in saved}
    try:
        fit(2, averaging, path)
        resumed = "resumed"
    except RuntimeError as error:
        resumed = " ".join(str(error).split())
    found.append((states, resumed))
    print("with averages" if averaging else "without", states, path.stat().st_size, "bytes;", resumed)
without, averages = found
assert without == ({"state_dict": 2}, "resumed"), "it has changed"
assert averages[0] == {"state_dict": 2, "current_model_state": 4}, "it has changed"
assert "Missing key(s) in state_dict: \"module.base.weight\"" in averages[1], "it has changed"
PYTHON
cd "$folder"
"$folder/venv/bin/python" "$folder/look.py"
