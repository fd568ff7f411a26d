"""W&B and MLflow, the real libraries without a network, get the metrics, the figures and the settings of a run."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger
from PIL import Image
from project_paths import CONFIG

from introspection_lit.training.logged import log_text

METRICS = {"train/loss", "validation/auroc", "heldout/auroc", "lr-AdamW", "hp/validation_auroc"}
SETTINGS = {"model/learning_rate": 0.01, "model/lora/r": 16, "data/train_vectors": 4, "seed_everything": 0}
SHORT = ["--trainer.max_epochs", "1", "--data.test_trials", "{heldout: 8}", "--evidence.enabled", "true"]
SHORT += [option for name in ("probe_trials", "lens_trials", "texts", "facts") for option in (f"--evidence.{name}", "0")]
SHORT += ["--trainer.enable_progress_bar", "false", "--test_after_fit", "true"]
pytestmark = pytest.mark.slow


def fit(folder: Path, base: Path, contexts: list[str], *logger: str) -> Path:
    """Train and test in a process of its own, as a user does, with the logger of these options; the run's folder."""
    words = ["fit", "--config", CONFIG, "--model.base.name_or_path", str(base), *contexts, *SHORT, *logger]
    command = [sys.executable, "-m", "introspection_lit", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (results,) = folder.rglob("results.json")
    return results.parent


def expected_figures(run: Path) -> set[str]:
    """The names of the figures of a run: those of its report, and the histogram of the validation."""
    return {f"test/{path.stem}" for path in (run / "figures").glob("*.png")} | {"validation/log_odds"}


def wandb_records(file: Path) -> Iterator[Any]:
    """The records of a W&B run that was not sent: protocol buffers in LevelDB's log format, after seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, parts, block = file.read_bytes(), 7, b"", 1 << 15
    while place + 7 <= len(content):
        if block - place % block < 7:  # the rest of a block is empty
            place += block - place % block
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def test_wandb(tiny: Path, some_contexts: list[str], tmp_path: Path) -> None:
    """Offline: what `wandb sync` would send."""
    logger = ["--trainer.logger", "WandbLogger", "--trainer.logger.project", "steering", "--trainer.logger.offline", "true"]
    run = fit(tmp_path, tiny, some_contexts, *logger)
    (file,) = tmp_path.rglob("*.wandb")
    history, config = dict[str, Any](), dict[str, Any]()
    for record in wandb_records(file):
        history |= {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
        for update in (record.config, record.run.config):
            config |= {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in update.update}
    assert history.keys() >= METRICS
    figures = {name.removesuffix("/filenames"): value for name, value in history.items() if name.endswith("/filenames")}
    assert figures.keys() == expected_figures(run)
    for name, (picture,) in figures.items():
        assert Image.open(file.parent / "files" / picture).size[0] == history[f"{name}/width"] > 500
    for name, value in SETTINGS.items():
        first, *rest = name.split("/")
        found = config[first]
        for part in rest:
            found = found[part]
        assert found == value
    assert config["folder"] == str(run)


def test_wandb_texts(tmp_path: Path) -> None:
    """A warning is a table with a single cell."""
    logger = WandbLogger(project="steering", offline=True, save_dir=tmp_path)
    log_text(Trainer(logger=logger, accelerator="cpu", enable_model_summary=False), "warnings/mass", "mass has collapsed")
    logger.experiment.finish()
    (table,) = tmp_path.rglob("*.table.json")
    assert json.loads(table.read_text())["data"] == [["mass has collapsed"]]
    assert "/warnings/mass_" in str(table)


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")  # mlflow 3.17 with SQLAlchemy 2.1
def test_mlflow(tiny: Path, some_contexts: list[str], tmp_path: Path) -> None:
    """A database in a file, as MLflow's own client reads it."""
    from mlflow.tracking import MlflowClient

    place = f"sqlite:///{tmp_path}/mlflow.db"
    run = fit(tmp_path, tiny, some_contexts, "--trainer.logger", "MLFlowLogger", "--trainer.logger.tracking_uri", place)
    client = MlflowClient(place)
    (found,) = client.search_runs([client.get_experiment_by_name("lightning_logs").experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.metrics.keys() >= METRICS
    settings = {name: str(value) for name, value in SETTINGS.items()} | {"folder": str(run)}
    assert {name: found.data.params[name] for name in settings} == settings
    images = [file.path for file in client.list_artifacts(found.info.run_id, "images") if file.path.endswith(".png")]
    assert {path.removeprefix("images/").split("+")[0].replace("~", "/") for path in images} == expected_figures(run)
    assert Image.open(client.download_artifacts(found.info.run_id, images[0], str(tmp_path))).size[0] > 500


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")  # mlflow 3.17 with SQLAlchemy 2.1
def test_mlflow_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning is a file."""
    monkeypatch.chdir(tmp_path)
    logger = MLFlowLogger(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    log_text(Trainer(logger=logger, accelerator="cpu", enable_model_summary=False), "warnings/mass", "mass has collapsed")
    (file,) = logger.experiment.list_artifacts(logger.run_id, "warnings")
    assert file.path == "warnings/mass.txt"
    downloaded = logger.experiment.download_artifacts(logger.run_id, file.path, str(tmp_path))
    assert Path(downloaded).read_text() == "mass has collapsed"
