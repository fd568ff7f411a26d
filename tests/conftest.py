"""Fixtures of tests of several packages (tiny models, few contexts, one run of the pipeline) and how workers share them."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may depend on a network; read when the hub's package is imported

import logging
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from project_paths import CONFIG, ROOT
from tiny_models import FAMILIES, NO_SYSTEM, SIZES, WIDE, contexts_file, train_tokenizer
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from xdist.scheduler import LoadScopeScheduling

from introspection_lit.models.base_model import BaseModel
from introspection_lit.models.loading import load_model
from introspection_lit.utils.launchers import without_launcher

torch.set_num_threads(1)  # tiny matrices: threads cost more than they save

# The same cases every time; `--hypothesis-profile thorough` tries twenty times as many, others at each run.
ANY_TIME = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]}
settings.register_profile("usual", max_examples=100, derandomize=True, database=None, **ANY_TIME)
settings.register_profile("thorough", max_examples=2000, **ANY_TIME)
settings.load_profile("usual")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """The tiny models' tokenizer, with a chat template like Qwen's."""
    return train_tokenizer()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Callable[[str], Path]:
    """Makes (once) a model folder of a family, as save_pretrained writes it, and says where."""
    root = tmp_path_factory.mktemp("models")

    def make(family: str) -> Path:
        folder: Path = root / family
        if not folder.exists():
            torch.manual_seed(0)
            sizes = SIZES | (WIDE if family.endswith("-wide") else {})
            config = FAMILIES[family.removesuffix("-wide")](**sizes, vocab_size=len(tokenizer), pad_token_id=0)
            AutoModelForCausalLM.from_config(config).save_pretrained(folder)
            if family == "gemma":
                train_tokenizer(NO_SYSTEM).save_pretrained(folder)
            else:
                tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny(tiny_folder: Callable[[str], Path]) -> Path:
    """A tiny Qwen2 folder."""
    return tiny_folder("qwen2")


@pytest.fixture(scope="session")
def few_contexts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file with eight contexts of two kinds and four of csv, for validation: so few that training needs each often."""
    return contexts_file(tmp_path_factory.mktemp("contexts") / "few.jsonl", chat=8, python=8, csv=4)


@pytest.fixture(scope="session")
def some_contexts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options for a twentieth of the built-in contexts: reading them all is most of what a run takes."""
    sizes = dict.fromkeys(("chat", "python", "french", "email"), 12) | {"csv": 6, "rust": 8}
    path = contexts_file(tmp_path_factory.mktemp("contexts") / "some.jsonl", **sizes)
    return ["--data.contexts", path, "--data.validation_kinds", "[csv]", "--data.test_kinds", "[rust]"]


@pytest.fixture(scope="session")
def steps(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The five scripts, run once on the tiny model: their folder, and the options they share."""
    from run_scripts import all_steps

    return all_steps(tiny, tmp_path_factory.mktemp("pipeline"))


@pytest.fixture
def refused(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Runs fit with options that cannot work and returns what was printed; loading the model fails the test."""
    from introspection_lit.cli import main

    monkeypatch.chdir(tmp_path)

    def no_loading(*args: object) -> None:
        pytest.fail("the model was loaded before the configuration was checked")

    monkeypatch.setattr("introspection_lit.training.module.load_model", no_loading)

    def command(*options: str, subcommand: str = "fit", base: str | Path = tiny) -> str:
        with pytest.raises(SystemExit) as stop:
            main([subcommand, "--config", CONFIG, "--model.base.name_or_path", str(base), *options])
        assert stop.value.code == 2
        return capsys.readouterr().err

    return command


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts a file system in memory, of a size or with options; the test is skipped where that is not allowed."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir(exist_ok=True)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """Where hostile code leaves its trace."""
    return tmp_path / "it-ran"


@pytest.fixture(
    params=[
        *("qwen2", "gemma", "qwen2-wide in nf4"),
        *(pytest.param(family, marks=pytest.mark.thorough) for family in FAMILIES if family not in ("qwen2", "gemma")),
    ]
)
def family_model(request: pytest.FixtureRequest, tiny_folder: Callable[[str], Path]) -> PreTrainedModel:
    """A fresh tiny model of each family, and one in NF4 (computing in float32), frozen and in eval mode."""
    family, _, quantization = request.param.partition(" in ")
    folder = str(tiny_folder(family))
    return load_model(BaseModel(folder, quantization=quantization or "none", quant_storage="uint8"))  # type: ignore[arg-type]


@cache
def shared_run(file: str) -> str | None:
    """The costly run that the tests of a file share: the pipeline's, or that of a fixture of the file; None: none."""
    text = (ROOT / file).read_text(encoding="utf-8")
    return "steps" if "steps: SimpleNamespace" in text else file if 'scope="module"' in text else None


class SharedRuns(LoadScopeScheduling):
    """Sends tests that share a run to one worker, so that it is made once, and every other test to any.

    Instead of ``--dist loadgroup``: xdist 3.8 adds groups to names of tests that pytest 9.2 does not let it change.
    """

    def _split_scope(self, nodeid: str) -> str:
        return shared_run(nodeid.partition("::")[0]) or nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> SharedRuns:
    """Let xdist use it."""
    return SharedRuns(config, log)


@pytest.fixture(autouse=True)
def no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """LightningCLI warns when the test runner's own command line is there beside the arguments it is given."""
    monkeypatch.setattr("sys.argv", ["pytest"])


@pytest.fixture(autouse=True)
def no_group_of_processes() -> Iterator[None]:
    """Variables that Lightning leaves after DDP or FSDP would make later tests join a group of processes."""
    yield
    for name in os.environ.keys() - without_launcher():
        del os.environ[name]


@pytest.fixture(autouse=True)
def messages_are_seen() -> Iterator[None]:
    """Lightning's messages reach ``caplog``, and code that quietens them for its process does so for one test."""
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = True
    yield
    logger.setLevel(before[0])
    logger.propagate = before[1]
