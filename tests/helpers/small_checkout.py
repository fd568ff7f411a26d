"""A copy of the project in which every documented command is small: tiny models under the names of the real ones.

The code and the commands are those of the project. Smaller are the models (a tokenizer's own size of vocabulary, six narrow
layers), the sizes in the configurations, and a few sizes in the source.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import torch
import yaml
from peers import PEERS
from peft import LoraConfig, get_peft_model
from project_paths import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen2Config

from introspection_lit.models.base_model import BaseModel
from introspection_lit.models.sources import resolve
from introspection_lit.steering.extraction import CONCEPTS
from introspection_lit.steering.vector_files import write_direction
from introspection_lit.tasks.task_questions import TRAINED_CONCEPTS

# Wide enough for NF4 on the CPU.
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 8192,
}
# And the decoder layers of each: of the second, layers 21 to 42 are steered.
ON_HUB = {"Qwen/Qwen2.5-7B-Instruct": 6, "Qwen/Qwen2.5-Coder-32B-Instruct": 44}
# Sizes in the source: models of random weights, the larger set of contexts, what a benchmark measures by default.
IN_SOURCE = {
    "introspection_lit/models/random_models.py": {rf'"{name}": \d+': f'"{name}": {size}' for name, size in SIZES.items()},
    "introspection_lit/contexts/generation/build.py": {r"PER_KIND, SEED = \d+": "PER_KIND, SEED = 24"},
    "introspection_lit/tools/scaling/axes.py": {
        r"CONTEXT: \(32, .*\)": "CONTEXT: (32,)",
        r"QUESTIONS: \(1, .*\)": "QUESTIONS: (2,)",
        r"BATCH: \(2, .*\)": "BATCH: (4,)",
        r"KEPT: \(8, .*\)": "KEPT: (8,)",
        r"MANIFEST: \(1_000, .*\)": "MANIFEST: (40, 80)",
        r"TESTED: \(1_000, .*\)": "TESTED: (400,)",
    },
    "scripts/benchmark.py": {r'"sweep-limit": \(\d+': '"sweep-limit": (16', r'"rounds": \(\d+': '"rounds": (1'},
}
# Of a configuration with one question, and of one with several tasks, whose sets are multiples of the pairs they compare.
FEW = {"batch_size": 4, "eval_batch_size": 8, "trials_per_epoch": 4, "validation_trials": 8}
FEW_TASKS = {"batch_size": 8, "eval_batch_size": 64, "trials_per_epoch": 8, "validation_trials": 128}
# Commands that need the libraries of docs/where-people-work.md.
WITH_PEERS = r"^inspect |steer_with_"
EVIDENCE = {"probe_trials": 0, "lens_trials": 0, "texts": 1, "facts": 2}


def copy_of_the_project(folder: Path) -> Path:
    """What is in git, as it is now, and nothing that was ever made with it."""
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


def tiny_model(folder: Path, kind: type[LlamaConfig | Qwen2Config], layers: int = SIZES["num_hidden_layers"]) -> Path:
    """A model with the embedded model's tokenizer, as save_pretrained writes it."""
    tokenizer = AutoTokenizer.from_pretrained(resolve(BaseModel())["pretrained_model_name_or_path"])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(kind(**SIZES | {"num_hidden_layers": layers}, vocab_size=len(tokenizer)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def shrink(config: Path) -> None:
    """Make the sizes in a configuration small, and everything run on the CPU."""
    options = yaml.safe_load(config.read_text(encoding="utf-8"))
    data, trainer = options.get("data", {}), options.get("trainer", {})
    tasks = "tasks" in data
    if layers := options.get("model", {}).get("lora", {}).get("layers"):
        options["model"]["lora"]["layers"] = [layer for layer in layers if layer < SIZES["num_hidden_layers"]] or [
            2,
            3,
            4,
            5,
        ]
    for name, few in (FEW_TASKS if tasks else FEW).items():
        data.update({name: few} if name in data else {})
    if "test_trials" in data:
        data["test_trials"] = dict.fromkeys(data["test_trials"], 4) | {
            name: 44 for name in data["test_trials"] if name.startswith("deployed")
        }
    if "max_epochs" in trainer:
        trainer |= {"max_epochs": 1, "limit_train_batches": 2}
        data["concepts"] = list(CONCEPTS[:10] if tasks else CONCEPTS[:3])
        if tasks:
            data["trained_concepts"] = list(TRAINED_CONCEPTS[:10])
        options["evidence"] = EVIDENCE | {"sets": [], "report": config.stem == "smollm2-135m"}
    if trainer.get("accelerator") == "gpu":
        trainer |= {"accelerator": "cpu", "devices": 2 if "strategy" in trainer else 1}
    config.write_text(yaml.safe_dump(options, sort_keys=False), encoding="utf-8")


class SmallCheckout:
    """The copy, its models and its files; :meth:`run` runs a command in it."""

    def __init__(self, folder: Path) -> None:
        self.root = copy_of_the_project(folder / "project")
        self.hub, self.cache = folder / "hub", folder / "cache"
        self._make_models()
        self._make_small()
        self._write_files()
        self._stand_in_for_the_environment()
        self._make_runs()

    def environment(self, text: str = "") -> dict[str, str]:
        """Where the models are, and that of the tests' own interpreter, or of other libraries if a command needs them."""
        programs = PEERS if re.search(WITH_PEERS, text) else Path(sys.executable).parent
        own = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(self.root),
            "HF_HOME": str(self.hub),
            "HF_HUB_OFFLINE": "1",
            "INTROSPECTION_LIT_CACHE": str(self.cache),
            "OMP_NUM_THREADS": "1",
        }
        return os.environ | own

    def _make_models(self) -> None:
        embedded = Path(resolve(BaseModel())["pretrained_model_name_or_path"]).name
        tiny_model(self.cache / embedded, LlamaConfig)
        for name, layers in ON_HUB.items():
            tiny_model(self._snapshot(name), Qwen2Config, layers)
        adapter = get_peft_model(
            AutoModelForCausalLM.from_pretrained(self._snapshot(name)), LoraConfig(task_type="CAUSAL_LM")
        )
        adapter.peft_config["default"].base_model_name_or_path = name
        adapter.save_pretrained(self._snapshot("someone/their-adapter"))

    def _snapshot(self, name: str) -> Path:
        """The folder of a repository in the hub's cache."""
        repository = self.hub / "hub" / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / "main").write_text("0" * 40)
        return repository / "snapshots" / ("0" * 40)

    def _make_small(self) -> None:
        for config in [*(self.root / "configs").rglob("*.yaml"), *(self.root / "docs").rglob("*.yaml")]:
            shrink(config)
        for file, changes in IN_SOURCE.items():
            text = (self.root / file).read_text(encoding="utf-8")
            for pattern, small in changes.items():
                text, found = re.subn(pattern, small, text)
                assert found, f"{file} has no {pattern}"
            (self.root / file).write_text(text, encoding="utf-8")

    def _write_files(self) -> None:
        """The files of their own that documents have a reader bring."""
        talk = [{"role": "user", "content": "Name a river."}, {"role": "assistant", "content": "The Danube."}]
        asked = [{"role": "user", "content": "Was something added to you? Answer with yes or no."}]
        one = {"messages": [talk[0], talk[1] | {"steering_ends": True}, *asked], "answers": ["yes", "no"], "kind": "rivers"}
        directions = torch.randn(
            SIZES["num_hidden_layers"], SIZES["hidden_size"], generator=torch.Generator().manual_seed(0)
        )
        write_direction(self.root / "scripts" / "their_vectors.gguf", directions, "llama")
        (self.root.parent / "before").symlink_to(self.root)  # another build, as documents call it
        rows = (self.root / "introspection_lit" / "assets" / "contexts.jsonl").read_text(encoding="utf-8").splitlines()[::3]
        for folder in (self.root, self.root / "scripts"):
            (folder / "one.json").write_text(json.dumps(one))
            (folder / "mine.json").write_text(json.dumps(one))
            (folder / "mine.jsonl").write_text("\n".join(rows) + "\n")
            (folder / "many.json").write_text(json.dumps([json.loads(row) for row in rows]))

    def _stand_in_for_the_environment(self) -> None:
        """What `make` finds installed: this interpreter; the stamp is newer than all that it depends on."""
        python = self.root / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
        (self.root / ".venv" / ".installed").touch()

    def _make_runs(self) -> None:
        """The run that documents call RUN, which is the quickstart's; a second one, and a published adapter."""
        status, printed = self.run("python -m introspection_lit fit --config configs/quickstart.yaml")
        assert status == 0, printed
        run = self.root / "lightning_logs" / "quickstart" / "version_0"
        shutil.copyfile(run / "checkpoints" / "last.ckpt", run / "checkpoints" / "diverged.ckpt")
        shutil.copytree(run, self.root / "lightning_logs" / "default" / "version_0")
        embedded = self.root / "introspection_lit" / "assets" / "adapters" / "smollm2-135m"
        shutil.rmtree(embedded)
        shutil.copytree(run / "adapter", embedded)
        shutil.copyfile(run / "vectors.safetensors", embedded / "vectors.safetensors")
        (self.root / "NAME").symlink_to(next(self.cache.iterdir()))
        for name in ("RUN", "RUN_1", "RUN_2"):
            (self.root / name).symlink_to(run)
            (self.root / "scripts" / name).symlink_to(run)

    def run(
        self, text: str, folder: str = ".", state: tuple[str, ...] = (), until: str | None = None, seconds: float = 900
    ) -> tuple[int, str]:
        """Run a command as bash does, until it ends or until it has printed something.

        Args:
            text: The command.
            folder: Where, from the root of the copy.
            state: Commands before it in the same shell.
            until: A regular expression: once the output matches, the command is stopped (SIGTERM).
            seconds: How long it may take.

        Returns:
            The exit status, and what it printed.
        """
        script = "\n".join(["set -eo pipefail", *state, text])
        process = subprocess.Popen(
            ["bash", "-c", script],
            cwd=self.root / folder,
            env=self.environment(text),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        late = threading.Timer(seconds, os.killpg, (process.pid, signal.SIGKILL))
        late.start()
        printed = ""
        assert process.stdout
        for line in process.stdout:
            printed += line
            if until and re.search(until, line):
                os.killpg(process.pid, signal.SIGTERM)
                until = None
        late.cancel()
        return process.wait(), printed
