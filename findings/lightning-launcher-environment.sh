#!/usr/bin/env bash
# Lightning 2.6.6: a fit with DDP of one device leaves LOCAL_RANK and other variables of its launcher in os.environ.
#
# Guess: with one device nothing is launched, and after the fit (its process group destroyed) the process is as before; a
#        training that it starts as a child then launches its own processes.
# Seen:  LOCAL_RANK, NODE_RANK, MASTER_ADDR and MASTER_PORT stay; WORLD_SIZE alone is taken back. A child that inherits them believes that somebody
#        else has started its processes: LightningEnvironment.creates_processes_externally is True there, so that two devices
#        would wait for a second process that nobody starts.
# Fails if that changes. Run: bash findings/lightning-launcher-environment.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 lightning==2.6.6
cat > "$folder/look.py" <<'PYTHON'
import os
import subprocess
import sys
import warnings

from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

warnings.simplefilter("ignore")
names = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
for name in names:
    os.environ.pop(name, None)
before = LightningEnvironment().creates_processes_externally
quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
trainer = Trainer(accelerator="cpu", devices=1, strategy="ddp", max_steps=1, limit_val_batches=0, **quiet)
trainer.fit(BoringModel())
left = [name for name in names if name in os.environ]
look = "from lightning.fabric.plugins.environments import LightningEnvironment as E; print(E().creates_processes_externally)"
child = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout.strip()
print(f"processes come from outside: before the fit {before}, in a child after it {child}; left in os.environ: {', '.join(left)}")
assert before is False
assert child == "True"
assert left == ["LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"]
PYTHON
cd "$folder" && "$folder/venv/bin/python" look.py
