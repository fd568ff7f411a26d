"""Adapters on the experts of a mixture: trained, saved, tested and resumed, or refused before the model is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from project_paths import CONFIG
from tiny_models import SIZES
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3MoeConfig

from introspection_lit.cli import main
from introspection_lit.training import checkpoint_files
from introspection_lit.utils.errors import ConfigurationError

EXPERTS = ("--model.lora.target_modules", "[gate_proj, up_proj, down_proj]")
NO_DROPOUT = ("--model.lora.dropout", "0.0")
# PEFT 0.21 says that it ignores ranks which it applies.
pytestmark = pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning")


@pytest.fixture(scope="module")
def mixture(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny mixture of four experts."""
    folder = tmp_path_factory.mktemp("models") / "mixture"
    sizes = SIZES | {"num_hidden_layers": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    torch.manual_seed(0)
    config = Qwen3MoeConfig(**sizes, vocab_size=len(tokenizer), pad_token_id=0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def arguments(mixture: Path, some_contexts: list[str], tmp_path: Path) -> list[str]:
    """Options of a short run with an adapter on the experts."""
    base = ["--config", CONFIG, "--model.base.name_or_path", str(mixture), "--trainer.max_epochs", "1"]
    logger = f"--trainer.logger.init_args.save_dir={tmp_path}"
    return [*base, *some_contexts, logger, *EXPERTS, *NO_DROPOUT]


def test_experts_are_trained_and_tested(arguments: list[str], tmp_path: Path) -> None:
    """Their matrices have rank times experts rows, twice that for the fused one; the checkpoint is loaded for the test."""
    cli = main(["fit", *arguments, "--test_after_fit", "true"])
    folder = tmp_path / "default" / "version_0"
    assert json.loads((folder / "results.json").read_text())["sets"]
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    rows = {tensor.shape[0] for name, tensor in saved.items() if "lora_A" in name}
    assert rows == {16 * 4, 2 * 16 * 4}
    assert any(tensor.any() for name, tensor in saved.items() if "lora_B" in name)
    resumed = ("--ckpt_path", str(folder / "checkpoints" / "last.ckpt"), "--trainer.max_epochs", "2")
    assert main(["fit", *arguments, *resumed]).trainer.global_step == 2 * cli.trainer.global_step


def test_a_checkpoint_that_could_not_be_read_is_known_before_the_first_step(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the reason: not after the last step."""
    monkeypatch.setattr(checkpoint_files, "adapter_tensor_problems", lambda _: ["it is of an unknown kind"])
    monkeypatch.setattr("introspection_lit.training.module.IntrospectionModule.training_step", _no_step)
    with pytest.raises((ConfigurationError, SystemExit)) as stop:
        main(["fit", *arguments])
    assert "could not be loaded again" in str(stop.value) or getattr(stop.value, "code", 0) == 2


def _no_step(*arguments: object) -> None:
    pytest.fail("a step was taken first")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (EXPERTS, "model.lora.dropout: got 0.05. PEFT adapts the experts"),
        ((*EXPERTS, *NO_DROPOUT, "--model.lora.layers", "[2]"), "model.lora.layers: got [2]. PEFT adapts the experts"),
        (("--model.lora.target_modules", "[nowhere]"), "model.lora.target_modules: got ['nowhere']"),
    ],
)
def test_what_peft_cannot_do(
    options: tuple[str, ...], said: str, mixture: Path, some_contexts: list[str], refused: Callable[..., str]
) -> None:
    """Dropout on experts it refuses once the weights are loaded; layers it ignores for them."""
    assert said in refused(*some_contexts, *options, base=mixture)
