"""A model and an adapter as strangers publish them, for tests that spoil them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM


@pytest.fixture
def adapter(tiny: Path, tmp_path: Path) -> Path:
    """A LoRA adapter for the tiny model, as anybody saves one."""
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny), LoraConfig(r=2, target_modules=["q_proj"]))
    model.save_pretrained(str(tmp_path / "theirs"))
    return tmp_path / "theirs"


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))
