#!/usr/bin/env bash
# lightning 2.6.6: the config.yaml of a resumed fit makes a later test load the checkpoint that the fit began from.
#
# Guess: the configuration that LightningCLI saves beside a run describes that run, so `test --config RUN/config.yaml` tests
#        what the run ended with, or asks for a checkpoint.
# Seen:  the saved file keeps ckpt_path of `fit --ckpt_path`, and `test` has an option of the same name: without a word it
#        tests the weights from before the resumed training, after one step instead of two.
# Fails if that changes. Run: bash findings/lightning-config-of-a-resumed-fit.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    'lightning==2.6.6' 'torch==2.13.0' 'jsonargparse[signatures]==4.53.0' 'numpy==2.4.6'
cat > "$folder/run.py" <<'PYTHON'
import lightning
import torch
from lightning.pytorch.cli import LightningCLI
from torch.utils.data import DataLoader


class Counting(lightning.LightningModule):
    """Its only weight counts the steps of training."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, index):
        return -self.weight.sum()

    def test_step(self, batch, index):
        print(f"tested after {self.weight.item():g} steps")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)

    def train_dataloader(self):
        return DataLoader([0])

    test_dataloader = train_dataloader


trainer = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": True}
LightningCLI(Counting, trainer_defaults=trainer)
PYTHON
cd "$folder"
run() { "$folder/venv/bin/python" -W ignore run.py "$@" 2> "$folder/errors" || { cat "$folder/errors"; exit 1; }; }
run fit --trainer.max_epochs 1 > /dev/null
first=$(ls lightning_logs/version_0/checkpoints/*.ckpt)
run fit --trainer.max_epochs 2 --ckpt_path "$first" > /dev/null
last=$(ls lightning_logs/version_1/checkpoints/*.ckpt)
saved=$(grep '^ckpt_path' lightning_logs/version_1/config.yaml)
by_config=$(run test --config lightning_logs/version_1/config.yaml | grep tested)
by_name=$(run test --config lightning_logs/version_1/config.yaml --ckpt_path "$last" | grep tested)
echo "saved $saved; with it: $by_config; with the last checkpoint: $by_name"
[[ "$saved" == "ckpt_path: $first" && "$by_config" == "tested after 1 steps" && "$by_name" == "tested after 2 steps" ]]
